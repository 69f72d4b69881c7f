// Package netnstest builds small networks out of network namespaces for tests: a node, pods attached to it with a routed veth
// pair like CNI's ptp plugin does, and machines beside it.
//
// Namespaces have no name and no process; they vanish when the test ends or dies. All needs root; New skips the test without.
package netnstest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// Namespace is one network namespace.
type Namespace struct {
	t      testing.TB
	Name   string
	handle netns.NsHandle
	links  atomic.Int32
}

// New makes an empty namespace with loopback up.
func New(t testing.TB, name string) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	var handle netns.NsHandle
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		handle, err = netns.Get()
		return err
	})
	if err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = handle.Close() })
	n := &Namespace{t: t, Name: name, handle: handle}
	n.must(n.netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	}))
	return n
}

// onThread runs f on a thread of its own that is thrown away after.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// Do runs f inside the namespace. Programs that f starts, and sockets that it opens, belong there.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return err
		}
		return f()
	})
}

func (n *Namespace) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("namespace %s: %v", n.Name, err)
	}
}

func (n *Namespace) netlink(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(n.handle)
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

// Sysctl writes a setting, such as "net/ipv4/ip_forward".
func (n *Namespace) Sysctl(key, value string) {
	n.t.Helper()
	n.must(n.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) }))
}

// NFT runs nft with the given script.
func (n *Namespace) NFT(script string) string {
	n.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		n.t.Skip("needs the program nft (Debian package nftables)")
	}
	var out bytes.Buffer
	n.must(n.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewBufferString(script), &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		return nil
	}))
	return out.String()
}

// Table opens an nftables table of the namespace.
func (n *Namespace) Table(family knftables.Family, name string) knftables.Interface {
	n.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		n.t.Skip("needs the program nft (Debian package nftables)")
	}
	var inner knftables.Interface
	err := n.Do(func() (err error) {
		inner, err = knftables.New(family, name)
		return err
	})
	if err != nil {
		n.t.Skipf("nftables does not work here: %v", err)
	}
	return table{n, inner}
}

// Attach connects a new namespace to n the way CNI's ptp plugin does: a veth pair, one route per address on n, and in the
// new namespace a default route through the gateway, an address that n has on every such link.
func (n *Namespace) Attach(name string, gateways []netip.Addr, addrs ...netip.Addr) *Namespace {
	n.t.Helper()
	pod := New(n.t, name)
	host := "veth" + strconv.Itoa(int(n.links.Add(1)))
	n.must(n.netlink(func(h *netlink.Handle) error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.handle)}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		return n.plug(h, host, gateways, addrs)
	}))
	n.must(pod.netlink(func(h *netlink.Handle) error { return pod.plugPod(h, gateways, addrs) }))
	return pod
}

// plug sets up the node's end.
func (n *Namespace) plug(h *netlink.Handle, name string, gateways, addrs []netip.Addr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, gw := range gateways {
		if err := h.AddrAdd(link, address(gw)); err != nil {
			return fmt.Errorf("add %s: %w", gw, err)
		}
	}
	for _, a := range addrs {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(a), Scope: netlink.SCOPE_LINK}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s: %w", a, err)
		}
	}
	return nil
}

// plugPod sets up the pod's end.
func (n *Namespace) plugPod(h *netlink.Handle, gateways, addrs []netip.Addr) error {
	link, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := h.AddrAdd(link, address(a)); err != nil {
			return fmt.Errorf("add %s: %w", a, err)
		}
	}
	for _, gw := range gateways {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(gw), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to %s: %w", gw, err)
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("default route by %s: %w", gw, err)
		}
	}
	return nil
}

// AddAddress gives the namespace's loopback one more address.
func (n *Namespace) AddAddress(a netip.Addr) {
	n.t.Helper()
	n.must(n.netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.AddrAdd(lo, address(a))
	}))
}

// ForgetConnections empties the connection tracking table.
func (n *Namespace) ForgetConnections() {
	n.t.Helper()
	n.must(n.netlink(func(h *netlink.Handle) error { return h.ConntrackTableFlush(netlink.ConntrackTable) }))
}

// Route sends a prefix to the link that leads to via, which was given to Attach.
func (n *Namespace) Route(prefix netip.Prefix, via netip.Addr) {
	n.t.Helper()
	n.must(n.netlink(func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}, Gw: via.AsSlice()})
	}))
}

func address(a netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: single(a)}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD // usable at once
	}
	return out
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// Serve answers on TCP and UDP at the ports, on every address of the namespace, until the test ends: with the address of the
// peer as this namespace sees it.
func (n *Namespace) Serve(ports ...int) {
	n.t.Helper()
	for _, port := range ports {
		n.must(n.Do(func() error {
			lis, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			n.t.Cleanup(func() { _ = lis.Close() })
			go serveTCP(lis)
			return n.serveUDP(port)
		}))
	}
}

func serveTCP(lis net.Listener) {
	for {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			buf := make([]byte, 64)
			for {
				if _, err := conn.Read(buf); err != nil {
					return
				}
				if _, err := conn.Write([]byte(host(conn.RemoteAddr()))); err != nil {
					return
				}
			}
		}()
	}
}

// serveUDP uses one socket per address, so that the answer comes from the address that was asked.
func (n *Namespace) serveUDP(port int) error {
	ifaces, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, a := range ifaces {
		ip := a.(*net.IPNet).IP
		if ip.IsLinkLocalUnicast() || seen[ip.String()] { // the node has its gateway address on every link
			continue
		}
		seen[ip.String()] = true
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: port})
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { _ = conn.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				_, peer, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = conn.WriteTo([]byte(host(peer)), peer)
			}
		}()
	}
	return nil
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// Conn is an open connection to a server made by Serve.
type Conn struct{ net.Conn }

// Ask sends a byte and returns the answer: the address that the server sees.
func (c Conn) Ask(within time.Duration) (string, error) {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	k, err := c.Read(buf)
	return string(buf[:k]), err
}

// Dial connects from the namespace.
func (n *Namespace) Dial(network string, to netip.AddrPort, within time.Duration) (c Conn, err error) {
	err = n.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		conn, err := (&net.Dialer{}).DialContext(ctx, network, to.String())
		c = Conn{conn}
		return err
	})
	return c, err
}

// Ask connects, asks once and closes. It returns the address that the server sees.
func (n *Namespace) Ask(network string, to netip.AddrPort, within time.Duration) (string, error) {
	c, err := n.Dial(network, to, within)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.Ask(within)
}

// table runs nft inside a namespace.
type table struct {
	ns    *Namespace
	inner knftables.Interface
}

func (t table) NewTransaction() *knftables.Transaction { return t.inner.NewTransaction() }

func (t table) Run(ctx context.Context, tx *knftables.Transaction) error {
	return t.ns.Do(func() error { return t.inner.Run(ctx, tx) })
}

func (t table) Check(ctx context.Context, tx *knftables.Transaction) error {
	return t.ns.Do(func() error { return t.inner.Check(ctx, tx) })
}

func (t table) ListAll(ctx context.Context) (out map[string][]string, err error) {
	err = t.ns.Do(func() error { out, err = t.inner.ListAll(ctx); return err })
	return out, err
}

func (t table) List(ctx context.Context, kind string) (out []string, err error) {
	err = t.ns.Do(func() error { out, err = t.inner.List(ctx, kind); return err })
	return out, err
}

func (t table) ListRules(ctx context.Context, chain string) (out []*knftables.Rule, err error) {
	err = t.ns.Do(func() error { out, err = t.inner.ListRules(ctx, chain); return err })
	return out, err
}

func (t table) ListElements(ctx context.Context, kind, name string) (out []*knftables.Element, err error) {
	err = t.ns.Do(func() error { out, err = t.inner.ListElements(ctx, kind, name); return err })
	return out, err
}

func (t table) ListCounters(ctx context.Context) (out []*knftables.Counter, err error) {
	err = t.ns.Do(func() error { out, err = t.inner.ListCounters(ctx); return err })
	return out, err
}
