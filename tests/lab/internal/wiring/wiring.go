package wiring

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, named by a process in it.
type Namespace struct{ PID int }

// Do runs f on a thread that is in the namespace. f must not start goroutines that use the network.
func (ns Namespace) Do(f func() error) error {
	target, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", ns.PID))
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer target.Close()
	return onThreadOfItsOwn(func() error {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThreadOfItsOwn runs f on a thread that ends with it, so that nobody else gets it in the wrong namespace.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process' first thread cannot end, and stands for the whole process in /proc/self. Keep it busy, so that the next
			// try gets another one.
			done <- onThreadOfItsOwn(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // still locked: the thread ends here
	}()
	return <-done
}

// CheckFree returns an error when the host already uses an address or route in the plan's range.
func CheckFree(p Plan) error {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of the host: %w", err)
	}
	for _, a := range addrs {
		if overlaps(p.Range(), a.IPNet) {
			return fmt.Errorf("the lab's range %s is in use: the host has the address %s", p.Range(), a.IPNet)
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list routes of the host: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && overlaps(p.Range(), r.Dst) {
			return fmt.Errorf("the lab's range %s is in use: the host has a route to %s", p.Range(), r.Dst)
		}
	}
	return nil
}

// whole asks for a list again when it changed while the kernel wrote it, because another lab came or went.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// overlaps leaves the default route out: it overlaps everything and claims nothing.
func overlaps(p netip.Prefix, n *net.IPNet) bool {
	addr, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return ok && bits > 0 && p.Overlaps(netip.PrefixFrom(addr, bits))
}

// BuildWorld makes the bridges of the world and the host's cable to it.
// alias marks the host's end, so that its maker can be told.
func BuildWorld(p Plan, world Namespace, alias string) error {
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	err = world.Do(func() error {
		mgmt, err := addBridge("mgmt", p.hardware(cardMgmt, 0, 0))
		if err != nil {
			return err
		}
		wan, err := addBridge("wan", p.hardware(cardWAN, 0, 0))
		if err != nil {
			return err
		}
		if err := addAddr(wan, p.World(), 24); err != nil {
			return err
		}
		// Made here, marked, and only then handed to the host: there is never an unmarked interface on the host.
		name := p.HostInterface()
		if err := addCable(name, p.hardware(cardHost, 0, 0), "host", nil, 0); err != nil {
			return err
		}
		if err := plug("host", mgmt); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetAlias(link, alias); err != nil {
			return fmt.Errorf("mark %s: %w", name, err)
		}
		if err := netlink.LinkSetNsFd(link, int(host.Fd())); err != nil {
			return fmt.Errorf("hand %s to the host: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("build world: %w", err)
	}
	link, err := netlink.LinkByName(p.HostInterface())
	if err != nil {
		return fmt.Errorf("find %s: %w", p.HostInterface(), err)
	}
	return addAddr(link, p.Host(), 24)
}

// RemoveHostInterface removes the host's cable when it carries the mark alias, and leaves any other alone.
// It is needed only when the world's namespace outlives its holder for a moment.
func RemoveHostInterface(p Plan, alias string) error {
	link, err := netlink.LinkByName(p.HostInterface())
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", p.HostInterface(), err)
	}
	if link.Attrs().Alias != alias {
		return nil
	}
	err = netlink.LinkDel(link)
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove %s: %w", p.HostInterface(), err)
	}
	return nil
}

// BuildSite wires a site's router to the world and routes the site from the host and from the world.
func BuildSite(p Plan, world, router Namespace, site int) error {
	err := world.Do(func() error {
		for _, c := range []struct {
			near, bridge, far string
			kind              int
		}{
			{fmt.Sprintf("m%d", site), "mgmt", "mgmt0", cardMgmt},
			{LineName(site), "wan", "wan0", cardUplink},
		} {
			if err := addCable(c.near, p.hardware(cardLine, site, c.kind), c.far, p.hardware(c.kind, site, 0), router.PID); err != nil {
				return err
			}
			bridge, err := netlink.LinkByName(c.bridge)
			if err != nil {
				return err
			}
			if err := plug(c.near, bridge); err != nil {
				return err
			}
		}
		return addRoute(p.SiteRange(site), p.Uplink(site))
	})
	if err != nil {
		return fmt.Errorf("wire s%d to the world: %w", site, err)
	}
	err = router.Do(func() error {
		lan, err := addBridge("lan", p.hardware(cardLAN, site, 0))
		if err != nil {
			return err
		}
		if err := addAddr(lan, p.Gateway(site), 24); err != nil {
			return err
		}
		for name, addr := range map[string]netip.Addr{"mgmt0": p.routerMgmt(site), "wan0": p.Uplink(site)} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := addAddr(link, addr, 24); err != nil {
				return err
			}
		}
		return addRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), p.World())
	})
	if err != nil {
		return fmt.Errorf("build router of s%d: %w", site, err)
	}
	if err := addRoute(p.SiteRange(site), p.routerMgmt(site)); err != nil {
		return fmt.Errorf("route s%d from the host: %w", site, err)
	}
	return nil
}

// PlugNode connects a node's namespace to its site's switch. A cable left over from before a power cut is removed first: the kernel
// takes its time to drop a dead node's namespace.
func PlugNode(p Plan, router, node Namespace, site, number int) error {
	err := router.Do(func() error {
		port := PortName(number)
		for _, old := range []string{"x" + port, port} {
			if err := removeLink(old); err != nil {
				return err
			}
		}
		err := addCable(port, p.hardware(cardPort, site, number), Interface, p.hardware(cardNode, site, number), node.PID)
		if err != nil {
			return err
		}
		lan, err := netlink.LinkByName("lan")
		if err != nil {
			return err
		}
		return plug(port, lan)
	})
	if err != nil {
		return fmt.Errorf("connect s%d/n%d: %w", site, number, err)
	}
	return nil
}

// PortName is the switch's name for a node's port.
func PortName(node int) string { return "n" + strconv.Itoa(node) }

// LineName is the world's name for a site's line.
func LineName(site int) string { return "w" + strconv.Itoa(site) }

// addBridge makes a switch that behaves like a cheap one: it forwards at once and floods multicast.
func addBridge(name string, mac net.HardwareAddr) (netlink.Link, error) {
	// A fixed hardware address: otherwise it changes with the ports, and everybody's ARP entry for it is wrong for a while.
	off := false
	bridge := &netlink.Bridge{
		LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac, TxQLen: -1}, MulticastSnooping: &off,
	}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("add bridge %s: %w", name, err)
	}
	return bridge, netlink.LinkSetUp(bridge)
}

// addCable makes a pair of interfaces; the far end goes into the namespace of process pid, or stays here when pid is 0.
func addCable(near string, nearMAC net.HardwareAddr, far string, farMAC net.HardwareAddr, pid int) error {
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: near, HardwareAddr: nearMAC, TxQLen: 1000},
		PeerName:  far, PeerHardwareAddr: farMAC,
	}
	if pid != 0 {
		veth.PeerNamespace = netlink.NsPid(pid)
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add cable %s: %w", near, err)
	}
	return nil
}

func plug(name string, bridge netlink.Link) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("plug %s into %s: %w", name, bridge.Attrs().Name, err)
	}
	return netlink.LinkSetUp(link)
}

func addAddr(link netlink.Link, addr netip.Addr, bits int) error {
	ipnet := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipnet}); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	return netlink.LinkSetUp(link)
}

func addRoute(to netip.Prefix, via netip.Addr) error {
	dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route to %s: %w", to, err)
	}
	return nil
}

// setPort opens or blocks a port of a bridge. A blocked port keeps its carrier, like a switch that has stopped forwarding: the node
// sees no link change, only silence. It lasts until the node's own end goes down and up.
func setPort(name string, open bool) error {
	link, err := netlink.LinkByName("x" + name) // with a wire in between, this one is in the bridge
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		link, err = netlink.LinkByName(name)
	}
	if errors.As(err, &missing) {
		return nil // the node is off; whoever plugs it in applies its cuts
	}
	if err != nil {
		return fmt.Errorf("find port %s: %w", name, err)
	}
	const disabled, forwarding = 0, 3 // BR_STATE_*
	state := byte(disabled)
	if open {
		state = forwarding
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, nl.Uint8Attr(state))
	req.AddData(info)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	if open && errors.Is(err, unix.ENETDOWN) {
		return nil // the node's end is down; the port opens by itself when it comes up
	}
	if err != nil {
		return fmt.Errorf("set state of port %s: %w", name, err)
	}
	return nil
}
