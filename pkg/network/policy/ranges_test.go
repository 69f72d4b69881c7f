package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/pkg/network/policy"
)

// TestBlocks holds how ipBlocks become ranges, seen through Compute.
func TestBlocks(t *testing.T) {
	type block = networkingv1.IPBlock
	for _, row := range []struct {
		name   string
		blocks []block
		want   string
	}{
		{"a prefix stays one", []block{{CIDR: "10.0.0.0/8"}}, "10.0.0.0/8"},
		{"one address", []block{{CIDR: "10.0.0.1/32"}}, "10.0.0.1"},
		{"host bits are dropped", []block{{CIDR: "10.1.2.3/16"}}, "10.1.0.0/16"},
		{"leading zeros, as the API server takes them", []block{{CIDR: "010.0.0.0/8"}}, "10.0.0.0/8"},
		{"a hole", []block{{CIDR: "10.0.0.0/8", Except: []string{"10.128.0.0/16"}}}, "10.0.0.0/9 10.129.0.0-10.255.255.255"},
		{"a hole at each end", []block{{CIDR: "10.0.0.0/30", Except: []string{"10.0.0.0/32", "10.0.0.3/32"}}}, "10.0.0.1-10.0.0.2"},
		{"holes that overlap", []block{{CIDR: "10.0.0.0/24", Except: []string{"10.0.0.0/25", "10.0.0.64/26"}}}, "10.0.0.128/25"},
		{"everything", []block{{CIDR: "0.0.0.0/0"}}, "0.0.0.0/0"},
		{"everything but one", []block{{CIDR: "0.0.0.0/0", Except: []string{"255.255.255.255/32"}}}, "0.0.0.0-255.255.255.254"},
		{"overlapping blocks are joined", []block{{CIDR: "10.0.0.0/24"}, {CIDR: "10.0.0.128/25"}}, "10.0.0.0/24"},
		{"touching blocks are joined", []block{{CIDR: "10.0.1.0/24"}, {CIDR: "10.0.0.0/24"}}, "10.0.0.0/23"},
		{"one block fills the hole of another", []block{{CIDR: "10.0.0.0/24", Except: []string{"10.0.0.0/25"}}, {CIDR: "10.0.0.0/25"}}, "10.0.0.0/24"},
		{"IPv6", []block{{CIDR: "2001:db8::/32", Except: []string{"2001:db8:8000::/33"}}}, "2001:db8::/33"},
		{"the end of IPv6", []block{{CIDR: "::/0"}, {CIDR: "ffff::/16"}}, "::/0"},
		{"the families do not mix", []block{{CIDR: "0.0.0.0/0"}, {CIDR: "::/0", Except: []string{"8000::/1"}}}, "0.0.0.0/0 ::/1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld()
			rule := networkingv1.NetworkPolicyIngressRule{}
			for _, b := range row.blocks {
				rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{IPBlock: &b})
			}
			w.policies = []*networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p"},
				Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule}}}}
			rules := policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])
			allows := rules.Policies[policy.PolicyKey{Namespace: "x", Name: "p", Direction: policy.In}]
			if len(allows) != 1 {
				t.Fatalf("%d rules: %+v, problems %v", len(allows), allows, rules.Problems)
			}
			var got []string
			for _, b := range allows[0].Blocks {
				got = append(got, b.String())
			}
			if strings.Join(got, " ") != row.want {
				t.Errorf("got %q, want %q", strings.Join(got, " "), row.want)
			}
		})
	}
}

// FuzzBlocks: whatever the API server let through, no panic, and Contains agrees with the prefixes.
func FuzzBlocks(f *testing.F) {
	f.Add("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3")
	f.Add("::/0", "::ffff:0:0/96", "::1")
	f.Add("::ffff:10.0.0.0/104", "10.0.0.0/9", "10.200.0.1")
	f.Fuzz(func(t *testing.T, cidr, except, probe string) {
		w := newWorld()
		block := &networkingv1.IPBlock{CIDR: cidr, Except: []string{except}}
		w.policies = []*networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p"},
			Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: block}}}}}}}
		rules := policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])
		policy.Render(rules)
		a, err := netip.ParseAddr(probe)
		c, errC := netip.ParsePrefix(cidr)
		e, errE := netip.ParsePrefix(except)
		if err != nil || errC != nil || errE != nil || a.Is4In6() || c.Addr().Is4In6() || e.Addr().Is4In6() || a.Zone() != "" {
			return
		}
		if want, got := c.Contains(a) && !e.Contains(a), rules.Allows(policy.Flow{Src: a, Dst: w.addr("x/a"), Protocol: "TCP", Port: 1}); got != want {
			if a != w.addr("x/a") {
				t.Errorf("%s in %s except %s: %v", a, cidr, except, got)
			}
		}
	})
}
