package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/atollhq/atoll/pkg/network/policy"
)

// world is a cluster of two nodes as the tests use it: namespaces x, y, z with the label team=<name>, pods a, b, c in each with
// the label app=<name>. Pods x/* and y/a run on n1, the others on n2. Addresses are 10.42.1.* on n1 and 10.42.2.* on n2.
type world struct {
	pods       []*corev1.Pod
	namespaces []*corev1.Namespace
	policies   []*networkingv1.NetworkPolicy
	nodes      map[string]policy.Node
}

// dnsAddr is the address of the DNS service, dnsHost where the process really listens.
var (
	dnsAddr = netip.MustParseAddr("10.43.0.10")
	dnsHost = netip.MustParseAddrPort("192.168.7.11:1053")
)

func newWorld() *world {
	w := &world{nodes: map[string]policy.Node{}}
	for i, name := range []string{"n1", "n2"} {
		w.nodes[name] = policy.Node{
			Name:     name,
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", i+1))},
			Builtins: []policy.Builtin{policy.DNS(dnsAddr)},
		}
	}
	w.namespaces = append(w.namespaces, namespace("kube-system"))
	for i, ns := range []string{"x", "y", "z"} {
		w.namespaces = append(w.namespaces, namespace(ns))
		for j, name := range []string{"a", "b", "c"} {
			node, subnet := "n1", 1
			if i*3+j > 3 {
				node, subnet = "n2", 2
			}
			w.pods = append(w.pods, pod(ns, name, node, fmt.Sprintf("10.42.%d.%d", subnet, 10*(i+1)+j+1)))
		}
	}
	return w
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		"kubernetes.io/metadata.name": name, "team": name}}}
}

// pod makes a running pod. Port "web" is 80, but 8080 in pods called b.
func pod(ns, name, node string, addrs ...string) *corev1.Pod {
	web := int32(80)
	if name == "b" {
		web = 8080
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(ns + "-" + name), Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "web", ContainerPort: web}, {Name: "ask", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return p
}

func (w *world) pod(name string) *corev1.Pod {
	for _, p := range w.pods {
		if p.Namespace+"/"+p.Name == name {
			return p
		}
	}
	panic("no pod " + name)
}

// addr understands "x/a" (a pod), an address, and "dns".
func (w *world) addr(s string) netip.Addr {
	if a, err := netip.ParseAddr(s); err == nil {
		return a
	}
	return netip.MustParseAddr(w.pod(s).Status.PodIPs[0].IP)
}

// allows asks every node, as a packet from one to the other passes both.
func (w *world) allows(f policy.Flow) bool {
	for _, node := range w.nodes {
		if !policy.Compute(w.pods, w.namespaces, w.policies, node).Allows(f) {
			return false
		}
	}
	return true
}

// flow reads "x/a -> y/b tcp 80".
func (w *world) flow(t *testing.T, s string) policy.Flow {
	t.Helper()
	var src, dst, proto string
	var port uint16
	if n, _ := fmt.Sscanf(s, "%s -> %s %s %d", &src, &dst, &proto, &port); n < 3 {
		t.Fatalf("cannot read flow %q", s)
	}
	f := policy.Flow{Src: w.addr(src), Protocol: corev1.Protocol(strings.ToUpper(proto)), Port: port}
	if dst == "dns" {
		f.Dst, f.Port, f.AskedAddr, f.AskedPort = dnsHost.Addr(), dnsHost.Port(), dnsAddr, port
		return f
	}
	f.Dst = w.addr(dst)
	return f
}

// parse reads NetworkPolicies. "default/p" in a line of its own before the spec names it: see the tables.
func parse(t testing.TB, docs ...string) []*networkingv1.NetworkPolicy {
	t.Helper()
	var out []*networkingv1.NetworkPolicy
	for _, doc := range docs {
		name, spec, _ := strings.Cut(strings.TrimLeft(doc, "\n"), "\n")
		ns, name, _ := strings.Cut(strings.TrimSpace(name), "/")
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
		if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(spec, "\t", "  ")), &p.Spec); err != nil {
			t.Fatalf("policy %s: %v\n%s", name, err, spec)
		}
		out = append(out, p)
	}
	return out
}

func attached(pod string, addrs ...string) map[policy.PodKey][]netip.Addr {
	ns, name, _ := strings.Cut(pod, "/")
	var out []netip.Addr
	for _, a := range addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	return map[policy.PodKey][]netip.Addr{{Namespace: ns, Name: name}: out}
}
