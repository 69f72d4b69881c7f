package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// peer is a peer of a rule, resolved: the pods that a selector stands for, a block of addresses, or everything.
type peer struct {
	key      string // equal keys stand for equal peers
	pods     []*podInfo
	blocks   []Range
	builtins []Builtin
	any      bool
	err      error
}

func (c *computation) anyPeer() *peer {
	p := &peer{key: "any", any: true, builtins: c.node.Builtins}
	for _, list := range c.pods {
		p.pods = append(p.pods, list...)
	}
	return p
}

// peer resolves a peer of policy p.
func (c *computation) peer(p *networkingv1.NetworkPolicy, np networkingv1.NetworkPolicyPeer) *peer {
	if np.IPBlock != nil {
		return c.blockPeer(np.IPBlock)
	}
	if np.PodSelector == nil && np.NamespaceSelector == nil {
		return &peer{err: errors.New("a peer has no selector and no ipBlock")}
	}
	podSelector, err := selector(np.PodSelector)
	if err != nil {
		return &peer{err: fmt.Errorf("podSelector: %w", err)}
	}
	where, inNamespace := "namespace "+p.Namespace, func(ns string) bool { return ns == p.Namespace }
	if np.NamespaceSelector != nil {
		nsSelector, err := selector(np.NamespaceSelector)
		if err != nil {
			return &peer{err: fmt.Errorf("namespaceSelector: %w", err)}
		}
		where = "namespaces (" + nsSelector.String() + ")"
		inNamespace = func(ns string) bool {
			set, known := c.namespaces[ns]
			// Of a namespace that the cache does not have yet nothing is known, so only "all" selects it.
			return known && nsSelector.Matches(set) || nsSelector.Empty()
		}
	}
	key := where + " pods (" + podSelector.String() + ")"
	if known, ok := c.peers[key]; ok {
		return known
	}
	out := &peer{key: key}
	for ns, list := range c.pods {
		if !inNamespace(ns) {
			continue
		}
		for _, pod := range list {
			if podSelector.Matches(pod.labels) {
				out.pods = append(out.pods, pod)
			}
		}
	}
	for _, b := range c.node.Builtins {
		if inNamespace(b.Namespace) && podSelector.Matches(labels.Set(b.Labels)) {
			out.builtins = append(out.builtins, b)
		}
	}
	c.peers[key] = out
	return out
}

// blockPeer resolves an ipBlock. It also knows the pods inside, because only of those a named port can be looked up.
func (c *computation) blockPeer(b *networkingv1.IPBlock) *peer {
	blocks, err := blockRanges(b.CIDR, b.Except)
	if err != nil {
		return &peer{err: err}
	}
	out := &peer{key: fmt.Sprintf("ipBlock %s except %v", b.CIDR, b.Except), blocks: blocks}
	covers := func(a netip.Addr) bool {
		return slices.ContainsFunc(blocks, func(r Range) bool { return r.Contains(a) })
	}
	for _, list := range c.pods {
		for _, pod := range list {
			if inside := slices.DeleteFunc(slices.Clone(pod.addrs), func(a netip.Addr) bool { return !covers(a) }); len(inside) > 0 {
				clipped := *pod
				clipped.addrs = inside
				out.pods = append(out.pods, &clipped)
			}
		}
	}
	for _, bi := range c.node.Builtins {
		bi.Addresses = slices.DeleteFunc(slices.Clone(bi.Addresses), func(a netip.Addr) bool { return !covers(a) })
		if len(bi.Addresses) > 0 {
			out.builtins = append(out.builtins, bi)
		}
	}
	return out
}

// selector is metav1.LabelSelectorAsSelector, but nil selects everything.
func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// peerPart makes the peer part of an Allow.
func (c *computation) peerPart(peers []*peer) Allow {
	var a Allow
	for _, p := range peers {
		switch {
		case p.any:
			return Allow{AnyPeer: true}
		case p.blocks != nil:
			a.Blocks = append(a.Blocks, p.blocks...)
		default:
			if key := c.group(p); key != "" && !slices.Contains(a.Groups, key) {
				a.Groups = append(a.Groups, key)
			}
		}
	}
	slices.Sort(a.Groups)
	a.Blocks = merged(a.Blocks)
	return a
}

// group makes sure that the addresses of p are a group and returns its key, or "" when there are none.
func (c *computation) group(p *peer) string {
	key := shortHash(p.key)
	if _, ok := c.rules.Groups[key]; ok {
		return key
	}
	members := map[netip.Addr]PodKey{}
	for _, pod := range p.pods {
		for _, a := range pod.addrs {
			members[a] = pod.key
		}
	}
	if len(members) == 0 {
		return ""
	}
	c.rules.Groups[key] = Group{Selector: p.key, Members: members}
	return key
}

// endpoints makes sure that the named ports of the pods of peers are a set of endpoints, and returns its key or "".
func (c *computation) endpoints(peers []*peer, named []Port) string {
	var about []string
	for _, p := range peers {
		about = append(about, p.key)
	}
	for _, n := range named {
		about = append(about, fmt.Sprintf("%s/%s", n.Name, n.Protocol))
	}
	key := shortHash("endpoints " + strings.Join(about, ", "))
	if _, ok := c.rules.Endpoints[key]; ok {
		return key
	}
	members := map[Endpoint]PodKey{}
	for _, p := range peers {
		for _, pod := range p.pods {
			for _, port := range pod.ports {
				if !slices.ContainsFunc(named, func(n Port) bool { return n.Name == port.Name && n.Protocol == port.Protocol }) {
					continue
				}
				for _, a := range pod.addrs {
					members[Endpoint{a, port.Protocol, port.Number}] = pod.key
				}
			}
		}
	}
	if len(members) == 0 {
		return ""
	}
	c.rules.Endpoints[key] = EndpointSet{Selector: strings.Join(about, ", "), Members: members}
	return key
}

// builtins returns the endpoints of the Builtins among peers that the wanted ports cover.
func (c *computation) builtins(peers []*peer, want wantedPorts) []Endpoint {
	var out []Endpoint
	for _, p := range peers {
		for _, b := range p.builtins {
			for _, port := range b.Ports {
				if !want.covers(port) {
					continue
				}
				for _, a := range b.Addresses {
					out = append(out, Endpoint{a, port.Protocol, port.Number})
				}
			}
		}
	}
	slices.SortFunc(out, compareEndpoints)
	return slices.Compact(out)
}

func compareEndpoints(a, b Endpoint) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// wantedPorts is the ports of a rule: any, ranges of numbers, and names (whose Number is unused).
type wantedPorts struct {
	any    bool
	ranges []PortRange
	named  []Port
}

func splitPorts(ports []networkingv1.NetworkPolicyPort) wantedPorts {
	w := wantedPorts{any: len(ports) == 0}
	for _, p := range ports {
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		switch {
		case p.Port == nil:
			w.ranges = append(w.ranges, PortRange{proto, 0, 65535})
		case p.Port.Type == intstr.String:
			w.named = append(w.named, Port{Name: p.Port.StrVal, Protocol: proto})
		default:
			last := p.Port.IntVal
			if p.EndPort != nil && *p.EndPort > last {
				last = *p.EndPort
			}
			w.ranges = append(w.ranges, PortRange{proto, uint16(p.Port.IntVal), uint16(last)})
		}
	}
	w.ranges = mergedPorts(w.ranges)
	return w
}

func (w wantedPorts) covers(p Port) bool {
	return w.any ||
		slices.ContainsFunc(w.named, func(n Port) bool { return n.Name == p.Name && n.Protocol == p.Protocol }) ||
		slices.ContainsFunc(w.ranges, func(r PortRange) bool {
			return r.Protocol == p.Protocol && r.First <= p.Number && p.Number <= r.Last
		})
}

// mergedPorts sorts ranges and joins those that touch, as nft wants them.
func mergedPorts(rs []PortRange) []PortRange {
	slices.SortFunc(rs, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First))
	})
	var out []PortRange
	for _, r := range rs {
		if n := len(out) - 1; n >= 0 && out[n].Protocol == r.Protocol && int(r.First) <= int(out[n].Last)+1 {
			out[n].Last = max(out[n].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// shortHash names things in nftables, where names are short and the alphabet is small.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10]))
}
