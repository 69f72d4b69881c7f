package wiring_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// emptyNamespace starts a process that does nothing, in a network namespace of its own.
func emptyNamespace(t *testing.T) wiring.Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return wiring.Namespace{PID: cmd.Process.Pid}
}

func TestRangeInUse(t *testing.T) {
	plan := wiring.Plan{Lab: 4} // 10.81.0.0/16
	for _, tt := range []struct {
		name, address, route string
		refused              string
	}{
		{name: "nothing there"},
		{name: "address inside", address: "10.81.7.1/24", refused: "10.81.7.1/24"},
		{name: "address of a wider network", address: "10.1.2.3/8", refused: "10.1.2.3/8"},
		{name: "address of the lab beside", address: "10.82.0.1/16"},
		{name: "route inside", address: "192.0.2.1/24", route: "10.81.3.0/24", refused: "10.81.3.0/24"},
		{name: "default route", address: "192.0.2.1/24", route: "0.0.0.0/0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := emptyNamespace(t).Do(func() error {
				if err := configureLoopback(tt.address, tt.route); err != nil {
					t.Error(err)
				}
				return wiring.CheckFree(plan)
			})
			if (err != nil) != (tt.refused != "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
				t.Errorf("got %v, want an error about %q", err, tt.refused)
			}
		})
	}
}

func configureLoopback(address, route string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if address != "" {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	if route != "" {
		_, dst, err := net.ParseCIDR(route)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
	}
	return nil
}

// TestForeignInterfaceIsLeftAlone: another program's interface with the lab's name must survive a removal.
func TestForeignInterfaceIsLeftAlone(t *testing.T) {
	plan := wiring.Plan{Lab: 4}
	err := emptyNamespace(t).Do(func() error {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: plan.HostInterface()}}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		if err := wiring.RemoveHostInterface(plan, "atoll lab 1234"); err != nil {
			return err
		}
		if _, err := netlink.LinkByName(plan.HostInterface()); err != nil {
			t.Errorf("the interface is gone: %v", err)
		}
		if err := netlink.LinkSetAlias(link, "atoll lab 1234"); err != nil {
			return err
		}
		if err := wiring.RemoveHostInterface(plan, "atoll lab 1234"); err != nil {
			return err
		}
		if _, err := netlink.LinkByName(plan.HostInterface()); err == nil {
			t.Error("the lab's own interface is still there")
		}
		return wiring.RemoveHostInterface(plan, "atoll lab 1234") // twice is fine
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAddressPlanHasNoOverlaps(t *testing.T) {
	seen := map[string]string{}
	add := func(what, addr string) {
		if other, ok := seen[addr]; ok {
			t.Fatalf("%s and %s both have %s", what, other, addr)
		}
		seen[addr] = what
	}
	for id := range wiring.MaxLabs {
		p := wiring.Plan{Lab: id}
		add("world", p.World().String())
		add("host", p.Host().String())
		for s := 1; s <= wiring.MaxSites; s++ {
			add("uplink", p.Uplink(s).String())
			add("gateway", p.Gateway(s).String())
			for n := 1; n <= wiring.MaxNodes; n++ {
				add("node", p.Node(s, n).String())
				if !p.SiteRange(s).Contains(p.Node(s, n)) || !p.Range().Contains(p.Node(s, n)) {
					t.Fatalf("%s is outside of %s", p.Node(s, n), p.SiteRange(s))
				}
			}
		}
	}
}
