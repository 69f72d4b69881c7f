package policy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Rules is everything that one node enforces. The zero value enforces nothing.
type Rules struct {
	// Ingress and Egress hold the isolated pods of this node by address, each with the policies that select it.
	Ingress, Egress map[netip.Addr]Isolation
	// Policies holds what each policy named there allows. One that allows nothing has an empty list.
	Policies map[PolicyKey][]Allow
	// Groups are the pods of the cluster that a peer of a policy selects; Allow.Groups refers to them by key.
	Groups map[string]Group
	// Endpoints are the (address, protocol, port) that a named port stands for; Allow.Endpoints refers to them by key.
	Endpoints map[string]EndpointSet
	// Hold is not nil while a pod that must be isolated has no known address yet.
	Hold *Hold
	// Problems are parts of policies that could not be read and therefore allow nothing. Sorted.
	Problems []string
}

// Isolation is one address of a pod with the policies that apply to it in one direction.
type Isolation struct {
	Pod      PodKey
	Policies []PolicyKey // sorted
}

// Group is a set of pods by address.
type Group struct {
	Selector string // for people
	Members  map[netip.Addr]PodKey
}

// EndpointSet is what a named port stands for.
type EndpointSet struct {
	Selector string // for people
	Members  map[Endpoint]PodKey
}

// Endpoint is one port of one pod, or of one Builtin.
type Endpoint struct {
	Addr     netip.Addr
	Protocol corev1.Protocol
	Port     uint16
}

// PortRange is a run of ports, both ends included.
type PortRange struct {
	Protocol    corev1.Protocol
	First, Last uint16
}

// Allow lets traffic pass that matches both its peer part and its port part. The peer is the source in direction In, the
// destination in direction Out; ports are always those of the destination.
type Allow struct {
	AnyPeer bool     // else one of Groups or Blocks must match
	Groups  []string // keys of Rules.Groups, sorted
	Blocks  []Range  // sorted, not overlapping

	AnyPort   bool        // else one of Ports or Endpoints must match
	Ports     []PortRange // sorted, not overlapping
	Endpoints string      // key of Rules.Endpoints

	// Builtins, when not empty, replaces all of the above: the destination that the pod asked for, before service
	// translation, must be one of these.
	Builtins []Endpoint
}

// Hold drops new connections of addresses in the node's pod prefixes that nobody is known to own. It keeps a pod isolated
// from its first packet on, although its address becomes known a moment after it has started.
type Hold struct {
	In, Out bool // which directions the waiting pods are isolated in
	CIDRs   []netip.Prefix
	Known   map[netip.Addr]PodKey // the pods of this node whose address is known
}

// Flow is the first packet of a connection as the node forwards it, after service translation.
type Flow struct {
	Src, Dst netip.Addr
	Protocol corev1.Protocol
	Port     uint16
	// AskedAddr and AskedPort are the destination before service translation; when invalid, Dst and Port.
	AskedAddr netip.Addr
	AskedPort uint16
}

// Allows tells whether the first packet of a connection passes. It says in Go what the rendered table says to the kernel.
// It is not for packets that the node itself sends: those always pass.
func (r Rules) Allows(f Flow) bool {
	if !f.AskedAddr.IsValid() {
		f.AskedAddr, f.AskedPort = f.Dst, f.Port
	}
	if iso, ok := r.Egress[f.Src]; ok && !(f.Src == f.Dst) && !r.anyAllows(iso, f) {
		return false
	}
	if iso, ok := r.Ingress[f.Dst]; ok && !(f.Src == f.Dst) && !r.anyAllows(iso, f) {
		return false
	}
	return !r.Hold.drops(f)
}

func (h *Hold) drops(f Flow) bool {
	return h != nil && (h.Out && h.unknown(f.Src) || h.In && h.unknown(f.Dst))
}

func (h *Hold) unknown(a netip.Addr) bool {
	_, known := h.Known[a]
	return !known && slices.ContainsFunc(h.CIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (r Rules) anyAllows(iso Isolation, f Flow) bool {
	for _, key := range iso.Policies {
		peer := f.Src
		if key.Direction == Out {
			peer = f.Dst
		}
		for _, a := range r.Policies[key] {
			if r.allowMatches(a, peer, f) {
				return true
			}
		}
	}
	return false
}

func (r Rules) allowMatches(a Allow, peer netip.Addr, f Flow) bool {
	if len(a.Builtins) > 0 {
		return slices.Contains(a.Builtins, Endpoint{f.AskedAddr, f.Protocol, f.AskedPort})
	}
	inGroup := func(key string) bool { _, ok := r.Groups[key].Members[peer]; return ok }
	inBlock := func(b Range) bool { return b.Contains(peer) }
	if !a.AnyPeer && !slices.ContainsFunc(a.Groups, inGroup) && !slices.ContainsFunc(a.Blocks, inBlock) {
		return false
	}
	inPorts := func(p PortRange) bool { return p.Protocol == f.Protocol && p.First <= f.Port && f.Port <= p.Last }
	_, named := r.Endpoints[a.Endpoints].Members[Endpoint{f.Dst, f.Protocol, f.Port}]
	return a.AnyPort || named || slices.ContainsFunc(a.Ports, inPorts)
}
