package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Compute returns the rules of one node. It depends on its arguments alone, changes none of them, and gives equal results
// for equal sets of objects in any order.
//
// Pods with hostNetwork are not pods here: their traffic is that of their node. Pods that have ended are ignored; of two pods
// that claim one address the younger one that is not being deleted has it.
func Compute(pods []*corev1.Pod, namespaces []*corev1.Namespace, policies []*networkingv1.NetworkPolicy, node Node) Rules {
	if len(policies) == 0 {
		return Rules{}
	}
	c := &computation{
		node:       node,
		namespaces: map[string]labels.Set{},
		pods:       map[string][]*podInfo{},
		peers:      map[string]*peer{},
		rules: Rules{
			Ingress: map[netip.Addr]Isolation{}, Egress: map[netip.Addr]Isolation{},
			Policies: map[PolicyKey][]Allow{}, Groups: map[string]Group{}, Endpoints: map[string]EndpointSet{},
		},
	}
	for _, ns := range namespaces {
		c.namespaces[ns.Name] = ns.Labels
	}
	c.index(pods)
	policies = slices.Clone(policies)
	slices.SortFunc(policies, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range policies {
		c.policy(p)
	}
	c.hold()
	slices.Sort(c.rules.Problems)
	return c.rules
}

// podInfo is what matters of a pod. It has no addresses while it starts.
type podInfo struct {
	key     PodKey
	labels  labels.Set
	addrs   []netip.Addr
	ports   []Port
	local   bool
	waiting map[Direction]bool // isolated, address not known yet
	sure    bool               // the pod network told the address, it was not read from the status
	leaving bool
	created int64
}

type computation struct {
	node       Node
	namespaces map[string]labels.Set
	pods       map[string][]*podInfo // by namespace, sorted by name
	peers      map[string]*peer      // by key, so that equal selectors are matched once
	rules      Rules
}

// index fills c.pods and settles who owns an address that several pods claim.
func (c *computation) index(pods []*corev1.Pod) {
	owner := map[netip.Addr]*podInfo{}
	for _, pod := range pods {
		if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		info := &podInfo{
			key: PodKey{pod.Namespace, pod.Name}, labels: pod.Labels, ports: portsOf(pod),
			local:   pod.Spec.NodeName == c.node.Name,
			waiting: map[Direction]bool{},
			leaving: pod.DeletionTimestamp != nil,
			created: pod.CreationTimestamp.Unix(),
		}
		info.addrs = addressesOf(pod)
		if attached := c.node.Attached[info.key]; info.local && len(attached) > 0 {
			info.addrs, info.sure = attached, true
		}
		for _, a := range info.addrs {
			if prev, taken := owner[a]; !taken || info.beats(prev) {
				owner[a] = info
			}
		}
		c.pods[pod.Namespace] = append(c.pods[pod.Namespace], info)
	}
	for _, list := range c.pods {
		slices.SortFunc(list, func(a, b *podInfo) int { return cmp.Compare(a.key.Name, b.key.Name) })
		for _, info := range list {
			info.addrs = slices.DeleteFunc(slices.Clone(info.addrs), func(a netip.Addr) bool { return owner[a] != info })
		}
	}
}

func (p *podInfo) beats(other *podInfo) bool {
	if p.sure != other.sure {
		return p.sure
	}
	if p.leaving != other.leaving {
		return other.leaving
	}
	return cmp.Or(cmp.Compare(p.created, other.created), cmp.Compare(p.key.String(), other.key.String())) > 0
}

func addressesOf(pod *corev1.Pod) []netip.Addr {
	texts := make([]string, 0, 2)
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 && pod.Status.PodIP != "" {
		texts = append(texts, pod.Status.PodIP)
	}
	var out []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// portsOf returns the named ports of the containers that run as long as the pod does.
func portsOf(pod *corev1.Pod) []Port {
	var out []Port
	add := func(c corev1.Container) {
		for _, p := range c.Ports {
			if p.Name != "" {
				out = append(out, Port{p.Name, cmp.Or(p.Protocol, corev1.ProtocolTCP), uint16(p.ContainerPort)})
			}
		}
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for _, c := range pod.Spec.Containers {
		add(c)
	}
	return out
}

// policy adds one policy if it selects a pod of this node.
func (c *computation) policy(p *networkingv1.NetworkPolicy) {
	subject := c.peer(p, networkingv1.NetworkPolicyPeer{PodSelector: &p.Spec.PodSelector})
	if subject.err != nil {
		c.problem(p, subject.err)
		return
	}
	var local []*podInfo
	for _, pod := range subject.pods {
		if pod.local {
			local = append(local, pod)
		}
	}
	if len(local) == 0 {
		return
	}
	here := &peer{key: "on this node: " + subject.key, pods: local}
	in, out := directions(p)
	if in {
		c.isolate(p, In, local)
		for _, r := range p.Spec.Ingress {
			c.rule(p, In, r.From, r.Ports, here)
		}
	}
	if out {
		c.isolate(p, Out, local)
		for _, r := range p.Spec.Egress {
			c.rule(p, Out, r.To, r.Ports, here)
		}
	}
}

// directions tells which directions a policy applies to. Without policyTypes it applies to ingress, and to egress when it
// has egress rules.
func directions(p *networkingv1.NetworkPolicy) (in, out bool) {
	if len(p.Spec.PolicyTypes) == 0 {
		return true, len(p.Spec.Egress) > 0
	}
	return slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress),
		slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
}

func (c *computation) isolate(p *networkingv1.NetworkPolicy, dir Direction, pods []*podInfo) {
	key := PolicyKey{p.Namespace, p.Name, dir}
	c.rules.Policies[key] = nil
	isolated := c.rules.Ingress
	if dir == Out {
		isolated = c.rules.Egress
	}
	for _, pod := range pods {
		if len(pod.addrs) == 0 && !pod.leaving {
			pod.waiting[dir] = true
		}
		for _, a := range pod.addrs {
			iso := isolated[a]
			iso.Pod = pod.key
			iso.Policies = append(iso.Policies, key) // policies come sorted
			isolated[a] = iso
		}
	}
}

// rule adds what one rule of a policy allows: at most one Allow for numbered ports, one for named ports, one for Builtins.
func (c *computation) rule(p *networkingv1.NetworkPolicy, dir Direction, peers []networkingv1.NetworkPolicyPeer,
	ports []networkingv1.NetworkPolicyPort, here *peer) {
	key := PolicyKey{p.Namespace, p.Name, dir}
	var matched []*peer
	for _, np := range peers {
		m := c.peer(p, np)
		if m.err != nil {
			c.problem(p, m.err)
			continue
		}
		matched = append(matched, m)
	}
	if len(peers) == 0 {
		matched = []*peer{c.anyPeer()}
	}
	if len(matched) == 0 {
		return
	}
	want := splitPorts(ports)
	base := c.peerPart(matched)

	if numbered := base; want.any || len(want.ranges) > 0 {
		numbered.AnyPort, numbered.Ports = want.any, want.ranges
		c.allow(key, numbered)
	}
	if len(want.named) > 0 {
		named := base
		if dir == In {
			// A name is looked up in the pod that receives: one of those that the policy selects.
			named.Endpoints = c.endpoints([]*peer{here}, want.named)
		} else {
			// The destinations are the peers, so the set of endpoints is the peer part too.
			named = Allow{AnyPeer: true, Endpoints: c.endpoints(matched, want.named)}
		}
		if named.Endpoints != "" {
			c.allow(key, named)
		}
	}
	if dir == Out {
		if b := c.builtins(matched, want); len(b) > 0 {
			c.allow(key, Allow{Builtins: b})
		}
	}
}

func (c *computation) allow(key PolicyKey, a Allow) {
	if len(a.Builtins) == 0 && !a.AnyPeer && len(a.Groups) == 0 && len(a.Blocks) == 0 {
		return // selects nobody today
	}
	c.rules.Policies[key] = append(c.rules.Policies[key], a)
}

func (c *computation) problem(p *networkingv1.NetworkPolicy, err error) {
	c.rules.Problems = append(c.rules.Problems, fmt.Sprintf("NetworkPolicy %s/%s: %v", p.Namespace, p.Name, err))
}

// hold decides whether unknown addresses must wait.
func (c *computation) hold() {
	h := &Hold{CIDRs: c.node.PodCIDRs, Known: map[netip.Addr]PodKey{}}
	for _, list := range c.pods {
		for _, pod := range list {
			if !pod.local {
				continue
			}
			h.In = h.In || pod.waiting[In]
			h.Out = h.Out || pod.waiting[Out]
			for _, a := range pod.addrs {
				h.Known[a] = pod.key
			}
		}
	}
	if (h.In || h.Out) && len(h.CIDRs) > 0 {
		c.rules.Hold = h
	}
}
