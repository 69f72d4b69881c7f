package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/atollhq/atoll/pkg/network/policy"
)

// oracle answers from the objects themselves, in the words of the API reference and with no thought for speed. It knows
// nothing of sets and chains, and so errs in other ways than the code under test.
type oracle struct{ w *world }

func (o oracle) allows(src, dst netip.Addr, proto corev1.Protocol, port uint16) bool {
	if src == dst {
		return true
	}
	from, to := o.podAt(src), o.podAt(dst)
	return o.side(from, networkingv1.PolicyTypeEgress, dst, to, proto, port) &&
		o.side(to, networkingv1.PolicyTypeIngress, src, to, proto, port)
}

func (o oracle) podAt(a netip.Addr) *corev1.Pod {
	for _, p := range o.w.pods {
		for _, ip := range p.Status.PodIPs {
			if ip.IP == a.String() {
				return p
			}
		}
	}
	return nil
}

// side: is there no policy for pod in this direction, or one that allows the peer at the destination's port?
func (o oracle) side(pod *corev1.Pod, dir networkingv1.PolicyType, peer netip.Addr, dst *corev1.Pod, proto corev1.Protocol, port uint16) bool {
	if pod == nil {
		return true
	}
	isolated := false
	for _, p := range o.w.policies {
		if p.Namespace != pod.Namespace || !o.selects(&p.Spec.PodSelector, pod.Labels) || !slices.Contains(p.Spec.PolicyTypes, dir) {
			continue
		}
		isolated = true
		if dir == networkingv1.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				if o.peers(p.Namespace, r.From, peer) && o.ports(r.Ports, dst, proto, port) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			if o.peers(p.Namespace, r.To, peer) && o.ports(r.Ports, dst, proto, port) {
				return true
			}
		}
	}
	return !isolated
}

func (o oracle) peers(ns string, peers []networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	pod := o.podAt(a)
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		if b := p.IPBlock; b != nil {
			in := func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(a) }
			return in(b.CIDR) && !slices.ContainsFunc(b.Except, in)
		}
		if pod == nil {
			return false
		}
		if p.NamespaceSelector == nil && pod.Namespace != ns {
			return false
		}
		if p.NamespaceSelector != nil {
			i := slices.IndexFunc(o.w.namespaces, func(n *corev1.Namespace) bool { return n.Name == pod.Namespace })
			if !o.selects(p.NamespaceSelector, o.w.namespaces[i].Labels) {
				return false
			}
		}
		return p.PodSelector == nil || o.selects(p.PodSelector, pod.Labels)
	})
}

func (o oracle) selects(s *metav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if labels[k] != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions { // the generator makes In and NotIn
		if slices.Contains(e.Values, labels[e.Key]) != (e.Operator == metav1.LabelSelectorOpIn) {
			return false
		}
	}
	return true
}

func (o oracle) ports(ports []networkingv1.NetworkPolicyPort, dst *corev1.Pod, proto corev1.Protocol, port uint16) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		if *p.Protocol != proto {
			return false
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.Int && p.EndPort != nil:
			return int32(port) >= p.Port.IntVal && int32(port) <= *p.EndPort
		case p.Port.Type == intstr.Int:
			return int32(port) == p.Port.IntVal
		}
		return dst != nil && slices.ContainsFunc(dst.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool {
			cp := c.Protocol
			if cp == "" {
				cp = corev1.ProtocolTCP
			}
			return c.Name == p.Port.StrVal && cp == proto && uint16(c.ContainerPort) == port
		})
	})
}

// generator makes random policies over the names and addresses of the world.
type generator struct{ *rand.Rand }

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

func (g generator) policies(n int) []*networkingv1.NetworkPolicy {
	var out []*networkingv1.NetworkPolicy
	for i := range n {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, "x", "y", "z"), Name: fmt.Sprintf("p%d", i)}}
		p.Spec.PodSelector = *g.selector("app", "a", "b", "c")
		p.Spec.PolicyTypes = pick(g,
			[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress})
		for range g.IntN(3) {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.peers(), Ports: g.ports()})
		}
		for range g.IntN(3) {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: g.peers(), Ports: g.ports()})
		}
		out = append(out, p)
	}
	return out
}

func (g generator) selector(key string, values ...string) *metav1.LabelSelector {
	switch g.IntN(4) {
	case 0:
		return &metav1.LabelSelector{}
	case 1:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key: key, Operator: pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn),
			Values: []string{pick(g, values...), pick(g, values...)}}}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: pick(g, values...)}}
}

func (g generator) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range g.IntN(3) {
		switch g.IntN(4) {
		case 0:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: g.selector("app", "a", "b", "c")})
		case 1:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: g.selector("team", "x", "y", "z")})
		case 2:
			out = append(out, networkingv1.NetworkPolicyPeer{
				PodSelector: g.selector("app", "a", "b", "c"), NamespaceSelector: g.selector("team", "x", "y", "z")})
		case 3:
			b := &networkingv1.IPBlock{CIDR: pick(g, "0.0.0.0/0", "10.42.0.0/16", "10.42.1.0/28", "10.42.1.21/32", "203.0.113.0/24")}
			if b.CIDR == "0.0.0.0/0" || b.CIDR == "10.42.0.0/16" {
				b.Except = pick(g, nil, []string{"10.42.1.0/27"}, []string{"10.42.1.8/29", "10.42.2.0/24"})
			}
			out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: b})
		}
	}
	return out
}

func (g generator) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range g.IntN(3) {
		proto := pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP)
		p := networkingv1.NetworkPolicyPort{Protocol: &proto}
		switch g.IntN(4) {
		case 0:
		case 1:
			v, end := intstr.FromInt32(pick[int32](g, 80, 81)), pick[int32](g, 81, 8080)
			p.Port, p.EndPort = &v, &end
		case 2:
			v := intstr.FromInt32(pick[int32](g, 53, 80, 81, 8080))
			p.Port = &v
		case 3:
			v := intstr.FromString(pick(g, "web", "ask"))
			p.Port = &v
		}
		out = append(out, p)
	}
	return out
}

// TestAgainstOracle compares the rules with the oracle for every pair of addresses under many random sets of policies.
func TestAgainstOracle(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := generator{rand.New(rand.NewPCG(seed, 1))}
	w := newWorld()
	addrs := []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("198.51.100.7")}
	for _, p := range w.pods {
		addrs = append(addrs, w.addr(p.Namespace+"/"+p.Name))
	}
	rounds, blocked, checked := 300, 0, 0
	if testing.Short() {
		rounds = 30
	}
	for round := range rounds {
		w.policies = g.policies(1 + g.IntN(6))
		var nodes []policy.Rules
		for _, n := range w.nodes {
			nodes = append(nodes, policy.Compute(w.pods, w.namespaces, w.policies, n))
		}
		for _, src := range addrs {
			for _, dst := range addrs {
				for _, port := range []uint16{53, 80, 81, 8080} {
					for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
						f := policy.Flow{Src: src, Dst: dst, Protocol: proto, Port: port}
						got := nodes[0].Allows(f) && nodes[1].Allows(f)
						want := oracle{w}.allows(src, dst, proto, port)
						if got != want {
							t.Fatalf("round %d: %s -> %s %s %d: allowed %v, the oracle says %v", round, src, dst, proto, port, got, want)
						}
						checked++
						if !want {
							blocked++
						}
					}
				}
			}
		}
	}
	if blocked*10 < checked || blocked*10 > checked*9 {
		t.Errorf("%d of %d flows blocked: the random policies decide too little", blocked, checked)
	}
}
