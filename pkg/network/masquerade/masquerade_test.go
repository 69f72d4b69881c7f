package masquerade_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/atollhq/atoll/pkg/network/masquerade"
	"github.com/atollhq/atoll/pkg/network/netnstest"
	"github.com/atollhq/atoll/pkg/remedy"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestRules(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  masquerade.Config
		want []string
	}{
		{"no pods, no rule", masquerade.Config{ServiceCIDRs: prefixes("10.43.0.0/16")}, nil},
		{
			"IPv4",
			masquerade.Config{PodCIDRs: prefixes("10.42.0.0/16"), ServiceCIDRs: prefixes("10.43.0.0/16")},
			[]string{`oifname != "lo" ip saddr { 10.42.0.0/16 } ip daddr != { 10.42.0.0/16, 10.43.0.0/16, 224.0.0.0/4 } masquerade fully-random`},
		},
		{
			"dual stack, each family by itself",
			masquerade.Config{PodCIDRs: prefixes("10.42.0.0/16", "fd42::/56"), ServiceCIDRs: prefixes("10.43.0.0/16", "fd43::/112")},
			[]string{
				`oifname != "lo" ip saddr { 10.42.0.0/16 } ip daddr != { 10.42.0.0/16, 10.43.0.0/16, 224.0.0.0/4 } masquerade fully-random`,
				`oifname != "lo" ip6 saddr { fd42::/56 } ip6 daddr != { fd42::/56, fd43::/112, fe80::/10, ff00::/8 } masquerade fully-random`,
			},
		},
		{
			"excluded prefixes, also inside others, with host bits, and twice",
			masquerade.Config{PodCIDRs: prefixes("10.42.0.0/16"), ServiceCIDRs: prefixes("10.43.0.0/16"), Keep: prefixes("192.168.7.1/24", "10.43.5.0/24", "10.42.0.0/16")},
			[]string{`oifname != "lo" ip saddr { 10.42.0.0/16 } ip daddr != { 10.42.0.0/16, 10.43.0.0/16, 192.168.7.0/24, 224.0.0.0/4 } masquerade fully-random`},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := masquerade.Rules(row.cfg); !slices.Equal(got, row.want) {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

// site is a node with two pods, and a machine outside that has no route to pods: it answers because it is asked by the node.
type site struct {
	node, pod, pod6, other, outside *netnstest.Namespace
	cfg                             masquerade.Config
	table                           knftables.Interface
}

func newSite(t *testing.T) *site {
	t.Helper()
	addr := netip.MustParseAddr
	s := &site{node: netnstest.New(t, "node")}
	s.table = s.node.Table(knftables.InetFamily, masquerade.TableName)
	s.node.AddAddress(addr("192.168.7.11"))
	gw4, gw6 := []netip.Addr{addr("10.42.1.1")}, []netip.Addr{addr("fd42::1")}
	s.pod = s.node.Attach("pod", gw4, addr("10.42.1.5"))
	s.pod6 = s.node.Attach("pod6", gw6, addr("fd42::5"))
	s.other = s.node.Attach("other", gw4, addr("10.42.1.6"))
	// The outside sees the node as 203.0.113.1, and has routes back to pods only so that the test can see their addresses.
	s.outside = s.node.Attach("outside", []netip.Addr{addr("203.0.113.1"), addr("2001:db8::1")}, addr("203.0.113.7"), addr("198.51.100.7"), addr("2001:db8::7"))
	for _, ns := range []*netnstest.Namespace{s.other, s.outside, s.node} {
		ns.Serve(80)
	}
	s.cfg = masquerade.Config{
		PodCIDRs: prefixes("10.42.0.0/16", "fd42::/56"), ServiceCIDRs: prefixes("10.43.0.0/16", "fd43::/112"),
		Keep: prefixes("198.51.100.0/24"), CheckEvery: 20 * time.Millisecond,
		NFT: func() (knftables.Interface, error) { return s.table, nil },
	}
	return s
}

// start runs the component inside the node until the test ends.
func (s *site) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.node.Do(func() error { return masquerade.New(s.cfg).Run(ctx, func() { close(ready) }) })
	}()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("ended: %v", err)
	}
	return stop
}

// seen is the address that the server sees.
func seen(t *testing.T, from *netnstest.Namespace, network, to string) string {
	t.Helper()
	got, err := from.Ask(network, netip.MustParseAddrPort(to), 5*time.Second)
	if err != nil {
		t.Errorf("%s -> %s: %v", from.Name, to, err)
	}
	return got
}

// TestOnTheWire asks the real kernel which source address arrives.
func TestOnTheWire(t *testing.T) {
	s := newSite(t)
	s.start(t)
	for _, row := range []struct {
		name, network, to, want string
		from                    *netnstest.Namespace
	}{
		{"outside", "tcp", "203.0.113.7:80", "203.0.113.1", s.pod},
		{"outside, UDP", "udp", "203.0.113.7:80", "203.0.113.1", s.pod},
		{"another pod", "tcp", "10.42.1.6:80", "10.42.1.5", s.pod},
		{"the node", "tcp", "192.168.7.11:80", "10.42.1.5", s.pod},
		{"a prefix that is excluded", "tcp", "198.51.100.7:80", "10.42.1.5", s.pod},
		{"outside, IPv6", "tcp", "[2001:db8::7]:80", "2001:db8::1", s.pod6},
		{"from the node itself", "tcp", "203.0.113.7:80", "203.0.113.1", s.node},
		{"from the node to a pod", "tcp", "10.42.1.6:80", "10.42.1.1", s.node},
	} {
		if got := seen(t, row.from, row.network, row.to); got != row.want {
			t.Errorf("%s: the server sees %s, want %s", row.name, got, row.want)
		}
	}
}

// TestRepair: rules that somebody flushes come back; they stay when the component stops, and its successor adopts them.
func TestRepair(t *testing.T) {
	s := newSite(t)
	stop := s.start(t)
	rules := func() int {
		rules, err := s.table.ListRules(t.Context(), "postrouting")
		if err != nil && !knftables.IsNotFound(err) {
			t.Fatal(err)
		}
		return len(rules)
	}
	for _, damage := range []string{"flush ruleset", "flush chain inet atoll-masq postrouting", "add rule inet atoll-masq postrouting counter"} {
		s.node.NFT(damage)
		tick := time.NewTicker(5 * time.Millisecond)
		for deadline := time.Now().Add(10 * time.Second); rules() != 2; <-tick.C {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d rules after 10 s, want 2", damage, rules())
			}
		}
		tick.Stop()
	}
	stop()
	if n := rules(); n != 2 {
		t.Errorf("%d rules after the component stopped, want 2", n)
	}
	s.cfg.Keep = nil // a new configuration
	s.start(t)
	if got := seen(t, s.pod, "tcp", "198.51.100.7:80"); got != "203.0.113.1" {
		t.Errorf("the old exclusion is still there: %s", got)
	}
	if n := rules(); n != 2 {
		t.Errorf("%d rules, want 2", n)
	}
}

// TestForward runs on the real settings of a network namespace.
func TestForward(t *testing.T) {
	ns := netnstest.New(t, "node")
	get := func(key string) string {
		var out string
		if err := ns.Do(func() error {
			b, err := os.ReadFile("/proc/sys/" + key)
			out = strings.TrimSpace(string(b))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	ns.Sysctl("net/ipv4/ip_forward", "0")
	ns.Sysctl("net/ipv6/conf/lo/accept_ra", "1")
	if err := ns.Do(func() error { return masquerade.Forward("/proc/sys", true, true) }); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/lo/accept_ra": "2",
	} {
		if got := get(key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	ns.Sysctl("net/ipv4/conf/lo/rp_filter", "1")
	if err := ns.Do(func() error { return masquerade.Loosen("/proc/sys", "lo") }); err != nil {
		t.Fatal(err)
	}
	if got := get("net/ipv4/conf/lo/rp_filter"); got != "2" {
		t.Errorf("rp_filter is %s, want 2", got)
	}
}

// TestReadOnlySettings mounts /proc/sys read-only, as container engines do.
func TestReadOnlySettings(t *testing.T) {
	ns := netnstest.New(t, "node")
	ns.Sysctl("net/ipv4/ip_forward", "0")
	inContainer := func() error {
		return ns.Do(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			for _, m := range []struct {
				source, target string
				flags          uintptr
			}{{"", "/", unix.MS_REC | unix.MS_PRIVATE}, {"/proc/sys", "/proc/sys", unix.MS_BIND}, {"", "/proc/sys", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY}} {
				if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
					return err
				}
			}
			return masquerade.Forward("/proc/sys", true, false)
		})
	}
	err := inContainer()
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward") || !strings.Contains(remedy.Of(err), "sysctl -w net.ipv4.ip_forward=1") {
		t.Errorf("error %v, remedy %q", err, remedy.Of(err))
	}
	ns.Sysctl("net/ipv4/ip_forward", "1") // by the host
	if err := inContainer(); err != nil {
		t.Errorf("nothing needs to be written, and still: %v", err)
	}
}

// TestNoIPv6: a kernel without IPv6 is named as the cause.
func TestNoIPv6(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "net/ipv4"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "net/ipv4/ip_forward"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := masquerade.Forward(root, true, false); err != nil {
		t.Error(err)
	}
	if err := masquerade.Forward(root, true, true); !strings.Contains(remedy.Of(err), "--cluster-cidr") {
		t.Errorf("error %v, remedy %q", err, remedy.Of(err))
	}
}
