package policy_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/knftables"

	"github.com/atollhq/atoll/pkg/network/netnstest"
	"github.com/atollhq/atoll/pkg/network/policy"
)

// These tests ask the real kernel: namespaces are the pods, and a packet either arrives or does not.

// A packet that has not arrived after patience was dropped; one that must arrive may take as long as a busy machine takes.
const (
	patience = 300 * time.Millisecond
	longest  = 5 * time.Second
)

var (
	gateways = []netip.Addr{netip.MustParseAddr("10.42.1.1")}
	outside  = netip.MustParseAddr("203.0.113.7")
)

// rig is the world in the kernel: every pod hangs on the one node n1. Those of n2 do as well, but to n1 they are strangers
// whose packets it forwards.
type rig struct {
	*world
	node  *netnstest.Namespace
	boxes map[string]*netnstest.Namespace // by pod name, and "outside"
	table *policy.Table
	nft   knftables.Interface
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{world: newWorld(), node: netnstest.New(t, "n1"), boxes: map[string]*netnstest.Namespace{}}
	r.nft = r.node.Table(knftables.InetFamily, policy.TableName)
	r.node.Sysctl("net/ipv4/ip_forward", "1")
	r.node.Sysctl("net/ipv6/conf/all/forwarding", "1")
	r.node.AddAddress(dnsHost.Addr())
	for _, p := range r.pods {
		name := p.Namespace + "/" + p.Name
		r.boxes[name] = r.node.Attach(name, gateways, r.addr(name))
		r.boxes[name].Serve(53, 80, 81, 8080)
	}
	r.boxes["outside"] = r.node.Attach("outside", gateways, outside)
	r.boxes["outside"].Serve(53, 80, 81, 8080)
	r.node.Serve(int(dnsHost.Port()), 6443)
	r.table = policy.NewTable(r.nft, time.Now)
	return r
}

// apply enforces the policies of the world as node n1.
func (r *rig) apply(t testing.TB) policy.Rules {
	t.Helper()
	rules := policy.Compute(r.pods, r.namespaces, r.policies, r.nodes["n1"])
	if _, err := r.table.Sync(context.Background(), policy.Render(rules)); err != nil {
		t.Fatal(err)
	}
	return rules
}

func (r *rig) reaches(from *netnstest.Namespace, network, to string, want bool) bool {
	within := patience
	if want {
		within = longest
	}
	_, err := from.Ask(network, netip.MustParseAddrPort(to), within)
	return err == nil
}

func (r *rig) expect(t testing.TB, from *netnstest.Namespace, network, to string, want bool) {
	t.Helper()
	if got := r.reaches(from, network, to, want); got != want {
		t.Errorf("%s -> %s %s: passes %v, want %v", from.Name, network, to, got, want)
	}
}

// TestKernelDoesWhatRulesSay enforces random policies and tries every pair, port and protocol.
func TestKernelDoesWhatRulesSay(t *testing.T) {
	r := newRig(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := generator{rand.New(rand.NewPCG(seed, 2))}
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	addrs := map[string]netip.Addr{"outside": outside}
	for _, p := range r.pods {
		addrs[p.Namespace+"/"+p.Name] = r.addr(p.Namespace + "/" + p.Name)
	}
	blocked, checked := 0, 0
	for round := range rounds {
		r.policies = g.policies(3 + g.IntN(5))
		rules := r.apply(t)
		r.node.ForgetConnections() // else a port that is used again belongs to a connection of the last round
		var wg sync.WaitGroup
		slots := make(chan struct{}, 100)
		for from, src := range addrs {
			for to, dst := range addrs {
				for _, network := range []string{"tcp", "udp"} {
					for _, port := range []uint16{53, 80, 8080} {
						f := policy.Flow{Src: src, Dst: dst, Protocol: corev1.Protocol(strings.ToUpper(network)), Port: port}
						want := rules.Allows(f)
						checked++
						if !want {
							blocked++
						}
						slots <- struct{}{}
						wg.Go(func() {
							defer func() { <-slots }()
							if got := r.reaches(r.boxes[from], network, fmt.Sprintf("%s:%d", dst, port), want); got != want {
								t.Errorf("round %d: %s -> %s %s %d: passes %v, want %v", round, from, to, network, port, got, want)
							}
						})
					}
				}
			}
		}
		wg.Wait()
		if t.Failed() {
			t.Fatalf("table:\n%s", r.node.NFT("list table inet "+policy.TableName))
		}
	}
	t.Logf("%d flows tried, %d of them blocked", checked, blocked)
	if blocked == 0 {
		t.Error("nothing was to be blocked, which proves nothing")
	}
}

// TestNodeAndPods holds what is not between two pods: the node, the DNS that it serves, and Services.
func TestNodeAndPods(t *testing.T) {
	r := newRig(t)
	// What kube-proxy would do: the DNS service, a service of x/b, and one of x/a for itself.
	r.node.NFT(`table ip services {
		chain pre { type nat hook prerouting priority dstnat;
			ip daddr 10.43.0.10 udp dport 53 dnat to 192.168.7.11:1053
			ip daddr 10.43.0.10 tcp dport 53 dnat to 192.168.7.11:1053
			ip daddr 10.43.0.20 tcp dport 99 dnat to 10.42.1.12:80
			ip daddr 10.43.0.21 tcp dport 99 dnat to 10.42.1.11:80
		}
		chain post { type nat hook postrouting priority srcnat; ip saddr 10.42.1.11 ip daddr 10.42.1.11 masquerade
		}
	}`)
	xa, xb, ya := r.boxes["x/a"], r.boxes["x/b"], r.boxes["y/a"]
	const dns, server = "10.43.0.10:53", "192.168.7.11:6443"

	r.expect(t, xa, "udp", dns, true)
	r.expect(t, xa, "tcp", server, true)

	r.policies = parse(t, denyX)
	r.apply(t)
	r.expect(t, xa, "udp", dns, false)
	r.expect(t, xa, "tcp", dns, false)
	r.expect(t, xa, "tcp", server, false)
	r.expect(t, xa, "tcp", "10.42.1.1:6443", false) // the gateway is the node, too
	r.expect(t, r.node, "tcp", "10.42.1.11:80", true)
	r.expect(t, r.node, "udp", "10.42.1.11:53", true)
	r.expect(t, ya, "tcp", "10.42.1.11:80", false)
	r.expect(t, ya, "udp", dns, true)
	r.expect(t, xa, "tcp", "10.43.0.21:99", true) // itself, by its service
	r.expect(t, xb, "tcp", "10.43.0.21:99", false)

	r.policies = parse(t, denyX, `x/dns
podSelector: {}
policyTypes: [Egress]
egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]`)
	r.apply(t)
	r.expect(t, xa, "udp", dns, true)
	r.expect(t, xa, "tcp", dns, true)
	r.expect(t, xa, "udp", dnsHost.String(), false) // the allowance is for the service
	r.expect(t, xa, "tcp", server, false)

	// A service: the rule names the real port of the real pod.
	r.policies = parse(t, denyX,
		"x/out\npodSelector: {matchLabels: {app: a}}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}]",
		"x/in\npodSelector: {matchLabels: {app: b}}\ningress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}]}]")
	r.apply(t)
	r.expect(t, xa, "tcp", "10.43.0.20:99", true)
	r.expect(t, ya, "tcp", "10.43.0.20:99", false)

	r.policies = nil
	r.apply(t)
	r.expect(t, ya, "tcp", "10.42.1.11:80", true)
	if out := r.node.NFT("list tables"); strings.Contains(out, policy.TableName) {
		t.Errorf("the table is still there:\n%s", out)
	}
}

// TestHold: while an isolated pod has no known address, an address that nobody is known to own is cut off, except from its
// node; everything else goes on.
func TestHold(t *testing.T) {
	r := newRig(t)
	r.policies = parse(t, denyX)
	starting := pod("x", "starting", "n1")
	r.pods = append(r.pods, starting)
	box := r.node.Attach("x/starting", gateways, netip.MustParseAddr("10.42.1.77"))
	box.Serve(80)
	r.apply(t)
	r.expect(t, box, "tcp", "10.42.2.22:80", false)
	r.expect(t, box, "tcp", "192.168.7.11:6443", false)
	r.expect(t, r.boxes["y/a"], "tcp", "10.42.1.77:80", false)
	r.expect(t, r.node, "tcp", "10.42.1.77:80", true)
	r.expect(t, r.boxes["y/a"], "tcp", "10.42.2.22:80", true)
	r.expect(t, r.boxes["y/a"], "tcp", "10.42.1.1:6443", true)
	r.expect(t, r.boxes["outside"], "tcp", "10.42.1.21:80", true)

	starting.Status.PodIPs = []corev1.PodIP{{IP: "10.42.1.77"}}
	r.policies = append(r.policies, parse(t, "x/in\npodSelector: {}\npolicyTypes: [Ingress]\ningress: [{}]")...)
	r.apply(t)
	r.expect(t, r.boxes["y/a"], "tcp", "10.42.1.77:80", true)
	r.expect(t, box, "tcp", "10.42.2.22:80", false)
}

// TestOpenConnections: a policy does not cut what is open, and binds what is new.
func TestOpenConnections(t *testing.T) {
	r := newRig(t)
	xa, ya := r.boxes["x/a"], r.boxes["y/a"]
	r.node.NFT("table inet tracking {\n chain c {\n type filter hook forward priority 0\n ct state new accept\n }\n }") // kube-proxy's part
	in, err := ya.Dial("tcp", netip.MustParseAddrPort("10.42.1.11:80"), longest)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	fromNode, err := r.node.Dial("tcp", netip.MustParseAddrPort("10.42.1.11:81"), longest)
	if err != nil {
		t.Fatal(err)
	}
	defer fromNode.Close()

	r.policies = parse(t, denyX)
	r.apply(t)
	r.expect(t, ya, "tcp", "10.42.1.11:80", false)
	r.expect(t, xa, "tcp", "10.42.1.21:80", false)
	for name, c := range map[string]netnstest.Conn{"from a pod": in, "from the node": fromNode} {
		if _, err := c.Ask(5 * time.Second); err != nil {
			t.Errorf("connection %s, open before the policy: %v", name, err)
		}
	}
}

// TestIPv6 holds that neighbours are found under a default deny, and that rules bind in both families.
func TestIPv6(t *testing.T) {
	r := newRig(t)
	gw := []netip.Addr{netip.MustParseAddr("fd42::1")}
	six := map[string]*netnstest.Namespace{}
	for _, name := range []string{"x/a", "x/b", "y/a"} {
		addr := netip.MustParseAddr("fd42::" + strings.TrimPrefix(r.addr(name).String(), "10.42.1."))
		six[name] = r.node.Attach(name+" (v6)", gw, addr)
		six[name].Serve(80, 81)
		r.pod(name).Status.PodIPs = append(r.pod(name).Status.PodIPs, corev1.PodIP{IP: addr.String()})
	}
	r.policies = parse(t, denyX, "x/in\npodSelector: {matchLabels: {app: a}}\npolicyTypes: [Ingress]\n"+
		"ingress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}], ports: [{port: web}]}]")
	r.apply(t)
	r.expect(t, six["y/a"], "tcp", "[fd42::11]:80", true)
	r.expect(t, six["y/a"], "tcp", "[fd42::11]:81", false)
	r.expect(t, six["y/a"], "tcp", "[fd42::12]:80", false)
	r.expect(t, six["x/a"], "tcp", "[fd42::21]:80", false)
	r.expect(t, six["x/a"], "tcp", "[fd42::1]:6443", false)
	r.expect(t, r.node, "tcp", "[fd42::12]:80", true)
}

// TestSCTP sends the first packet of an association by hand, as the kernel may have no SCTP.
func TestSCTP(t *testing.T) {
	r := newRig(t)
	r.policies = parse(t, "x/p\npodSelector: {}\ningress: [{ports: [{port: 7, protocol: SCTP}, {port: 8, protocol: TCP}]}]")
	r.apply(t)
	for port, want := range map[uint16]bool{7: true, 8: false} {
		within := patience
		if want {
			within = longest
		}
		got, err := sctpArrives(r.boxes["y/a"], r.boxes["x/a"], r.addr("x/a"), port, within)
		if err != nil {
			t.Skipf("raw SCTP: %v", err)
		}
		if got != want {
			t.Errorf("SCTP to port %d: arrives %v, want %v", port, got, want)
		}
	}
}

func sctpArrives(from, to *netnstest.Namespace, addr netip.Addr, port uint16, within time.Duration) (arrives bool, err error) {
	var in, out net.PacketConn
	if err := to.Do(func() (err error) { in, err = net.ListenPacket("ip4:132", "0.0.0.0"); return err }); err != nil {
		return false, err
	}
	defer in.Close()
	if err := from.Do(func() (err error) { out, err = net.ListenPacket("ip4:132", "0.0.0.0"); return err }); err != nil {
		return false, err
	}
	defer out.Close()
	init := []byte{
		0x30, 0x39, byte(port >> 8), byte(port), 0, 0, 0, 0, 0, 0, 0, 0, // ports 12345 -> port, tag 0, checksum
		1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1, // chunk INIT
	}
	crc := crc32c(init)
	init[8], init[9], init[10], init[11] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	if _, err := out.WriteTo(init, &net.IPAddr{IP: addr.AsSlice()}); err != nil {
		return false, err
	}
	_ = in.SetReadDeadline(time.Now().Add(within))
	_, _, err = in.ReadFrom(make([]byte, 100))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

// TestNoGap floods an isolated pod while the table is replaced again and again, as by restarts of the process, and
// while it changes, and counts what gets through.
func TestNoGap(t *testing.T) {
	r := newRig(t)
	r.policies = parse(t, denyX)
	rules := policy.Compute(r.pods, r.namespaces, r.policies, r.nodes["n1"])
	r.apply(t)
	xa, ya := r.boxes["x/a"], r.boxes["y/a"]

	var sink net.PacketConn
	if err := xa.Do(func() (err error) { sink, err = net.ListenPacket("udp", "10.42.1.11:9"); return err }); err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	leaked := 0
	last := make(chan struct{})
	go func() {
		defer close(last)
		buf := make([]byte, 10)
		for {
			n, _, err := sink.ReadFrom(buf)
			if err != nil || string(buf[:n]) == "last" {
				return
			}
			leaked++
		}
	}()
	ctx, stop := context.WithCancel(context.Background())
	var flood sync.WaitGroup
	sent := 0
	sender, err := ya.Dial("udp", netip.MustParseAddrPort("10.42.1.11:9"), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	flood.Go(func() {
		for ; ctx.Err() == nil; sent++ {
			_, _ = sender.Write([]byte("flood"))
		}
	})

	others := parse(t, "z/q\npodSelector: {}\negress: [{to: [{namespaceSelector: {}}]}]", "x/q\npodSelector: {}\ningress: [{ports: [{port: 80}]}]")
	for i := range 60 {
		if i%2 == 0 {
			r.table = policy.NewTable(r.nft, time.Now) // a new process: it knows nothing of what is there
			if n, err := r.table.Sync(context.Background(), policy.Render(rules)); err != nil || n == 0 {
				t.Errorf("replace: %d operations, %v", n, err)
			}
			continue
		}
		r.policies = append(parse(t, denyX), others[i/2%2])
		r.apply(t)
	}
	stop()
	flood.Wait()

	// One packet that arrives, so that those before it have.
	r.policies = nil
	r.apply(t)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for arrived := false; !arrived; {
		_, _ = sender.Write([]byte("last"))
		select {
		case <-last:
			arrived = true
		case <-tick.C:
		}
	}
	t.Logf("%d packets sent", sent)
	if leaked > 0 || sent < 1000 {
		t.Errorf("%d of %d packets got through", leaked, sent)
	}
}

// TestFromAPIToPacket runs the whole thing: objects in an API, a Controller, the kernel, packets.
func TestFromAPIToPacket(t *testing.T) {
	r := newRig(t)
	objects := []runtime.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.1.0/24"}}}}
	for _, p := range r.pods {
		objects = append(objects, p)
	}
	for _, n := range r.namespaces {
		objects = append(objects, n)
	}
	c := &cluster{world: r.world, t: t, api: fake.NewClientset(objects...), socket: filepath.Join(t.TempDir(), "policy.sock"), table: r.nft}
	c.start()
	xa, ya := r.boxes["x/a"], r.boxes["y/a"]
	r.expect(t, ya, "tcp", "10.42.1.11:80", true)

	c.addPolicy(denyX)
	began := time.Now()
	for r.reaches(ya, "tcp", "10.42.1.11:80", false) {
		if time.Since(began) > longest {
			t.Fatal("the policy does not bite")
		}
	}
	t.Logf("a new policy bites after %s at most", time.Since(began)-patience)
	r.expect(t, xa, "tcp", "10.42.1.21:80", false)
	r.expect(t, r.node, "tcp", "10.42.1.11:80", true)

	// A pod starts: the plugin is called, and from its first packet on it is isolated, although the API has no address.
	c.addPod(pod("x", "fresh", "n1"))
	fresh := r.node.Attach("x/fresh", gateways, netip.MustParseAddr("10.42.1.88"))
	if code, out := c.plugin("ADD", "x/fresh", "x-fresh", "box", "10.42.1.88/32"); code != 0 {
		t.Fatalf("plugin: %s", out)
	}
	r.expect(t, fresh, "tcp", "10.42.1.21:80", false)
	c.addPolicy("x/out\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]")
	r.expect(t, fresh, "tcp", "10.42.1.21:80", true) // the first SYN may be dropped, the second comes a second later

	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	r.expect(t, ya, "tcp", "10.42.1.11:80", false) // without the process
	c.start()
	r.expect(t, ya, "tcp", "10.42.1.11:80", false)
	for _, name := range []string{"deny", "out"} {
		if err := c.api.NetworkingV1().NetworkPolicies("x").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	r.expect(t, ya, "tcp", "10.42.1.11:80", true)
}

func crc32c(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
