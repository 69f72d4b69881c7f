package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"
)

// Ruleset is the content of the nftables table: plain text by name, so that two can be compared. Nil is "no table".
type Ruleset struct {
	Chains map[string]Chain
	Sets   map[string]Set // maps as well
}

// Chain is one chain with its rules in order.
type Chain struct {
	Hook    knftables.BaseChainHook // empty for a chain that others jump to
	Comment string
	Rules   []string
}

// Set is a set, or a map when Verdicts is true.
type Set struct {
	Type     string
	Comment  string
	Verdicts bool
	Elements map[string]Element // by key, the parts of a key joined with " . "
}

// Element is an element of a set or map.
type Element struct {
	Comment string
	Verdict string // of a map
}

// Names of what is always in the table. DESIGN.md has the picture.
const (
	chainForward  = "forward"
	chainInput    = "input"
	chainFromPods = "from-pods"
	chainToPods   = "to-pods"
	chainHoldOut  = "hold-out"
	chainHoldIn   = "hold-in"
	acceptOut     = "goto " + chainToPods // allowed to leave; may it arrive?
	acceptIn      = "accept"
)

// family is one of the two address families with the words that nft has for it.
type family struct {
	suffix, word, addrType, proto string
	bits                          int
}

func families() []family {
	return []family{{"-4", "ip", "ipv4_addr", "ipv4", 32}, {"-6", "ip6", "ipv6_addr", "ipv6", 128}}
}

func (f family) has(a netip.Addr) bool { return a.BitLen() == f.bits }

// Render writes rules as nftables objects. It returns nil when there is nothing to enforce.
func Render(r Rules) *Ruleset {
	if len(r.Ingress) == 0 && len(r.Egress) == 0 && r.Hold == nil {
		return nil
	}
	out := &Ruleset{Chains: map[string]Chain{}, Sets: map[string]Set{}}
	out.frame(r)
	out.hold(r.Hold)
	out.groups(r)
	for key := range r.Policies {
		out.policy(r, key)
	}
	out.isolated(r.Ingress, In)
	out.isolated(r.Egress, Out)
	return out
}

// frame adds the fixed part: hooks, and the order of the checks.
func (s *Ruleset) frame(r Rules) {
	const known = "ct state established,related accept"
	// A pod must be able to find its gateway's link address, whatever its policy says.
	const neighbours = "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, " +
		"mld-listener-report, mld-listener-done, mld2-listener-report } accept"
	s.Chains[chainForward] = Chain{Hook: knftables.ForwardHook, Rules: []string{known, "goto " + chainFromPods}}
	s.Chains[chainInput] = Chain{Hook: knftables.InputHook, Rules: []string{known, neighbours, "goto " + chainFromPods}}

	from, to := Chain{}, Chain{}
	for _, f := range families() {
		// A pod that reaches itself through a Service.
		own := "own" + f.suffix
		s.Sets[own] = Set{Type: f.addrType + " . " + f.addrType, Elements: ownElements(f, r)}
		from.Rules = append(from.Rules, fmt.Sprintf("%s saddr . %s daddr @%s accept", f.word, f.word, own))
	}
	from.Rules = append(from.Rules, "jump "+chainHoldOut)
	to.Rules = append(to.Rules, "jump "+chainHoldIn)
	for _, f := range families() {
		from.Rules = append(from.Rules, fmt.Sprintf("%s saddr vmap @%s%s", f.word, chainFromPods, f.suffix))
		to.Rules = append(to.Rules, fmt.Sprintf("%s daddr vmap @%s%s", f.word, chainToPods, f.suffix))
	}
	from.Rules = append(from.Rules, acceptOut)
	// Not left out: the packet may be here by goto from a chain that was jumped to, which would go on after the end.
	to.Rules = append(to.Rules, "accept")
	s.Chains[chainFromPods], s.Chains[chainToPods] = from, to
}

func ownElements(f family, r Rules) map[string]Element {
	out := map[string]Element{}
	for _, isolated := range []map[netip.Addr]Isolation{r.Ingress, r.Egress} {
		for a, iso := range isolated {
			if f.has(a) {
				out[fmt.Sprintf("%s . %s", a, a)] = Element{Comment: comment(iso.Pod.String())}
			}
		}
	}
	return out
}

// hold fills the chains that stop unknown addresses; they are empty most of the time.
func (s *Ruleset) hold(h *Hold) {
	var in, out Chain
	if h != nil {
		for _, f := range families() {
			var cidrs []string
			for _, p := range h.CIDRs {
				if f.has(p.Addr()) {
					cidrs = append(cidrs, p.String())
				}
			}
			if len(cidrs) == 0 {
				continue
			}
			known := Set{Type: f.addrType, Elements: map[string]Element{}}
			for a, pod := range h.Known {
				if f.has(a) {
					known.Elements[a.String()] = Element{Comment: comment(pod.String())}
				}
			}
			s.Sets["known"+f.suffix] = known
			rule := func(field, also string) string {
				match := fmt.Sprintf("%s %s", f.word, field)
				return fmt.Sprintf("%s %s %s != @known%s %scounter drop", match, braces(cidrs), match, f.suffix, also)
			}
			if h.Out {
				out.Rules = append(out.Rules, rule("saddr", ""))
			}
			if h.In { // the gateway lies in the prefix too, but is the node
				in.Rules = append(in.Rules, rule("daddr", "fib daddr type != local "))
			}
		}
	}
	s.Chains[chainHoldIn], s.Chains[chainHoldOut] = in, out
}

// isolated adds a chain for each isolated pod, and fills the maps from pod address to chain.
//
// The chain is the pod's own and keeps its name for as long as the pod is there. If its name said what is in it, a change of
// policy would change the map, and a packet on its way in that moment would find the new chain by the new map, but still
// with its old content, which is none: it would pass. Rules of one chain, on the other hand, change at once.
func (s *Ruleset) isolated(pods map[netip.Addr]Isolation, dir Direction) {
	name := chainToPods
	if dir == Out {
		name = chainFromPods
	}
	for _, f := range families() {
		m := Set{Type: f.addrType + " : verdict", Verdicts: true, Elements: map[string]Element{}}
		for a, iso := range pods {
			if f.has(a) {
				m.Elements[a.String()] = Element{Verdict: "goto " + podName(iso.Pod, dir)}
				s.Chains[podName(iso.Pod, dir)] = s.pod(iso)
			}
		}
		s.Sets[name+f.suffix] = m
	}
}

// pod goes through the policies of a pod and drops what none of them allows.
func (s *Ruleset) pod(iso Isolation) Chain {
	var c Chain
	for _, key := range iso.Policies {
		if _, ok := s.Chains[policyName(key)]; ok { // else it allows nothing
			c.Rules = append(c.Rules, "jump "+policyName(key))
		}
	}
	c.Rules = append(c.Rules, "counter drop")
	return c
}

func podName(pod PodKey, dir Direction) string { return chainName("pod", pod.Namespace, pod.Name, dir) }

func policyName(key PolicyKey) string {
	return chainName("policy", key.Namespace, key.Name, key.Direction)
}

// chainName makes a name of at most 255 characters, which is what nft takes; those of Kubernetes may be longer.
func chainName(kind, namespace, name string, dir Direction) string {
	full := fmt.Sprintf("%s/%s/%s/%s", kind, namespace, name, dir)
	if len(full) > 200 {
		return fmt.Sprintf("%s/%s/%s/%s", kind, namespace, shortHash(full), dir)
	}
	return full
}

// groups adds the sets of addresses and of endpoints.
func (s *Ruleset) groups(r Rules) {
	for key, g := range r.Groups {
		for _, f := range families() {
			set := Set{Type: f.addrType, Comment: comment(g.Selector), Elements: map[string]Element{}}
			for a, pod := range g.Members {
				if f.has(a) {
					set.Elements[a.String()] = Element{Comment: comment(pod.String())}
				}
			}
			if len(set.Elements) > 0 {
				s.Sets[groupName(key, f)] = set
			}
		}
	}
	for key, g := range r.Endpoints {
		for _, f := range families() {
			set := Set{Type: f.addrType + " . inet_proto . inet_service", Comment: comment(g.Selector), Elements: map[string]Element{}}
			for e, pod := range g.Members {
				if f.has(e.Addr) {
					set.Elements[fmt.Sprintf("%s . %s . %d", e.Addr, protocol(e.Protocol), e.Port)] = Element{Comment: comment(pod.String())}
				}
			}
			if len(set.Elements) > 0 {
				s.Sets[endpointsName(key, f)] = set
			}
		}
	}
}

func groupName(key string, f family) string     { return "group/" + key + f.suffix }
func endpointsName(key string, f family) string { return "ports/" + key + f.suffix }

// policy adds the chain of a policy, unless it allows nothing.
func (s *Ruleset) policy(r Rules, key PolicyKey) {
	var rules []string
	for _, a := range r.Policies[key] {
		rules = append(rules, s.allow(a, key.Direction)...)
	}
	if len(rules) > 0 {
		s.Chains[policyName(key)] = Chain{Rules: rules}
	}
}

// allow writes an Allow as rules: each way to match the peer with each way to match the port.
func (s *Ruleset) allow(a Allow, dir Direction) []string {
	field, verdict := "saddr", acceptIn
	if dir == Out {
		field, verdict = "daddr", acceptOut
	}
	var rules []string
	for _, b := range a.Builtins {
		f := families()[0]
		if !f.has(b.Addr) {
			f = families()[1]
		}
		rules = append(rules, fmt.Sprintf("ct original %s daddr %s meta l4proto %s ct original proto-dst %d %s",
			f.word, b.Addr, protocol(b.Protocol), b.Port, verdict))
	}
	if len(a.Builtins) > 0 {
		return rules
	}
	for _, p := range s.peerMatches(a, field) {
		for _, q := range s.portMatches(a) {
			if p.family == "" || q.family == "" || p.family == q.family {
				rules = append(rules, strings.Join(strings.Fields(p.text+" "+q.text+" "+verdict), " "))
			}
		}
	}
	return rules
}

// match is a condition and the family that it implies, if any.
type match struct{ family, text string }

func (s *Ruleset) peerMatches(a Allow, field string) []match {
	if a.AnyPeer {
		return []match{{}}
	}
	var out []match
	for _, f := range families() {
		for _, g := range a.Groups {
			if _, ok := s.Sets[groupName(g, f)]; ok {
				out = append(out, match{f.word, fmt.Sprintf("%s %s @%s", f.word, field, groupName(g, f))})
			}
		}
		var blocks []string
		for _, b := range a.Blocks {
			if !f.has(b.First) {
				continue
			}
			if b.everything() {
				out = append(out, match{f.word, "meta nfproto " + f.proto})
				continue
			}
			blocks = append(blocks, b.String())
		}
		if len(blocks) > 0 {
			out = append(out, match{f.word, fmt.Sprintf("%s %s %s", f.word, field, braces(blocks))})
		}
	}
	return out
}

func (s *Ruleset) portMatches(a Allow) []match {
	if a.AnyPort {
		return []match{{}}
	}
	var out []match
	byProtocol := map[corev1.Protocol][]string{}
	for _, p := range a.Ports {
		switch {
		case p.First == 0 && p.Last == 65535:
			out = append(out, match{"", "meta l4proto " + protocol(p.Protocol)})
		case p.First == p.Last:
			byProtocol[p.Protocol] = append(byProtocol[p.Protocol], fmt.Sprint(p.First))
		default:
			byProtocol[p.Protocol] = append(byProtocol[p.Protocol], fmt.Sprintf("%d-%d", p.First, p.Last))
		}
	}
	for _, proto := range slices.Sorted(maps.Keys(byProtocol)) {
		out = append(out, match{"", fmt.Sprintf("%s dport %s", protocol(proto), braces(byProtocol[proto]))})
	}
	for _, f := range families() {
		if _, ok := s.Sets[endpointsName(a.Endpoints, f)]; ok {
			out = append(out, match{f.word, fmt.Sprintf("%s daddr . meta l4proto . th dport @%s", f.word, endpointsName(a.Endpoints, f))})
		}
	}
	return out
}

func protocol(p corev1.Protocol) string { return strings.ToLower(string(p)) }

func braces(items []string) string { return "{ " + strings.Join(items, ", ") + " }" }

// comment makes s fit into an nftables comment.
func comment(s string) string {
	s = strings.ReplaceAll(s, `"`, "'")
	if len(s) > knftables.CommentLengthMax {
		s = s[:knftables.CommentLengthMax-3] + "..."
	}
	return s
}
