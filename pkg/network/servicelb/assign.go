package servicelb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Class is the spec.loadBalancerClass of Services that must be served by this package even if another one is the default.
const Class = "atoll.dev/node"

// Condition is the type of the status condition that marks a Service as ours and tells how it fares.
const Condition = "atoll.dev/NodeAddresses"

// Reasons of the condition and of events.
const (
	Assigned         = "Assigned"
	PortTaken        = "PortTaken"
	PortReserved     = "PortReserved"
	NoNodes          = "NoNodes"
	NoLocalEndpoints = "NoLocalEndpoints"
)

// toBeDeleted is the taint of a node that an autoscaler is about to remove.
const toBeDeleted = "ToBeDeletedByClusterAutoscaler"

// Port is a port that Services may not have, because the node itself listens there.
type Port struct {
	Protocol corev1.Protocol
	Number   int32
	UsedBy   string // for people: "SSH"
}

// DefaultReserved are the ports on which every node listens on its own addresses.
func DefaultReserved() []Port {
	return []Port{
		{corev1.ProtocolTCP, 22, "SSH"},
		{corev1.ProtocolTCP, 6443, "the Kubernetes API"},
		{corev1.ProtocolTCP, 10250, "kubelet"},
	}
}

// Key names a Service.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Decision is what a Service shall have.
type Decision struct {
	Addresses []netip.Addr // empty: stays pending
	Reason    string
	Message   string
}

// Assign decides for every Service that is ours. It depends on its arguments alone and not on their order.
func Assign(services []*corev1.Service, nodes []*corev1.Node, endpoints []*discoveryv1.EndpointSlice, reserved []Port) map[Key]Decision {
	nodes = usable(nodes)
	claims := nodePorts(services)
	out := map[Key]Decision{}
	for _, svc := range inOrder(services) {
		key := Key{svc.Namespace, svc.Name}
		d := refuse(svc, claims, reserved)
		if d.Reason == "" {
			d = place(svc, nodes, endpoints)
			// A Service that waits for endpoints keeps its ports: it will be back.
			for _, p := range svc.Spec.Ports {
				claims[claim{protocol(p), p.Port}] = holder{key, false}
			}
		}
		out[key] = d
	}
	return out
}

// Ours tells whether a Service is served by this package.
func Ours(svc *corev1.Service) bool {
	class := svc.Spec.LoadBalancerClass
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.DeletionTimestamp == nil &&
		(class == nil || *class == "" || *class == Class)
}

type claim struct {
	protocol corev1.Protocol
	port     int32
}

type holder struct {
	key      Key
	nodePort bool
}

func (h holder) String() string {
	if h.nodePort {
		return "the node port of service " + h.key.String()
	}
	return "held by service " + h.key.String()
}

// nodePorts are claims too: a packet for a load balancer's address never comes to the node port of another Service.
func nodePorts(services []*corev1.Service) map[claim]holder {
	out := map[claim]holder{}
	for _, svc := range services {
		key := Key{svc.Namespace, svc.Name}
		for _, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				out[claim{protocol(p), p.NodePort}] = holder{key, true}
			}
		}
	}
	return out
}

func protocol(p corev1.ServicePort) corev1.Protocol { return cmp.Or(p.Protocol, corev1.ProtocolTCP) }

// holds tells whether svc got its ports in an earlier round. It may still have no address, for want of a node or a pod.
func holds(svc *corev1.Service) bool {
	c := meta.FindStatusCondition(svc.Status.Conditions, Condition)
	return c != nil && c.Reason != PortTaken && c.Reason != PortReserved
}

// inOrder returns our Services in the order in which they choose: those that hold their ports first, so that nobody loses a port
// to an older Service that becomes a load balancer later; then the older first.
func inOrder(services []*corev1.Service) []*corev1.Service {
	var out []*corev1.Service
	for _, svc := range services {
		if Ours(svc) {
			out = append(out, svc)
		}
	}
	waits := func(s *corev1.Service) int {
		if holds(s) {
			return 0
		}
		return 1
	}
	slices.SortFunc(out, func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(waits(a), waits(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// refuse returns a Decision with a reason when a port of svc is not free.
func refuse(svc *corev1.Service, claims map[claim]holder, reserved []Port) Decision {
	for _, p := range svc.Spec.Ports {
		for _, r := range reserved {
			if r.Protocol == protocol(p) && r.Number == p.Port {
				return Decision{Reason: PortReserved, Message: fmt.Sprintf(
					"port %d/%s is used by %s on every node; give the service another port", p.Port, protocol(p), r.UsedBy)}
			}
		}
		h, taken := claims[claim{protocol(p), p.Port}]
		if !taken || h.key == (Key{svc.Namespace, svc.Name}) {
			continue
		}
		// A node port that was given away after this Service got its port does not take it back.
		if h.nodePort && holds(svc) {
			continue
		}
		return Decision{Reason: PortTaken, Message: fmt.Sprintf(
			"port %d/%s is %s; give one of the two another port, or delete the other service", p.Port, protocol(p), h)}
	}
	return Decision{}
}

// place chooses the addresses of a Service whose ports are free.
func place(svc *corev1.Service, nodes []*corev1.Node, endpoints []*discoveryv1.EndpointSlice) Decision {
	var out []netip.Addr
	families := svc.Spec.IPFamilies
	if len(families) == 0 {
		families = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	local := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	for _, family := range families {
		var found []netip.Addr
		withEndpoint := localNodes(svc, family, endpoints)
		for _, node := range nodes {
			if !local || withEndpoint[node.Name] {
				found = append(found, addresses(node, family)...)
			}
		}
		slices.SortFunc(found, netip.Addr.Compare)
		out = append(out, slices.Compact(found)...)
	}
	switch {
	case len(out) > 0:
		return Decision{Addresses: out, Reason: Assigned, Message: "the service is reachable at addresses of nodes"}
	case local && len(nodes) > 0:
		return Decision{Reason: NoLocalEndpoints, Message: "externalTrafficPolicy is Local and no node has a ready pod of the service"}
	}
	return Decision{Reason: NoNodes, Message: fmt.Sprintf("no node has an address of family %v and may be used; "+
		"look at 'kubectl get nodes -o wide' and at the label %s", families, corev1.LabelNodeExcludeBalancers)}
}

// usable returns the nodes whose addresses may be given out: the Ready ones. If none is Ready, all: what still works must not
// be taken from the network because nobody hears from the nodes.
func usable(nodes []*corev1.Node) []*corev1.Node {
	var ready, all []*corev1.Node
	for _, n := range nodes {
		if !mayServe(n) {
			continue
		}
		all = append(all, n)
		if isReady(n) {
			ready = append(ready, n)
		}
	}
	if len(ready) == 0 {
		return all
	}
	return ready
}

func mayServe(n *corev1.Node) bool {
	_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
	return !excluded && n.DeletionTimestamp == nil &&
		!slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == toBeDeleted })
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// addresses returns the external addresses of a node in a family or, when it has none, the internal ones.
func addresses(n *corev1.Node, family corev1.IPFamily) []netip.Addr {
	byType := map[corev1.NodeAddressType][]netip.Addr{}
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if err != nil || ip.Unmap().Is4() != (family == corev1.IPv4Protocol) {
			continue
		}
		byType[a.Type] = append(byType[a.Type], ip.Unmap())
	}
	if external := byType[corev1.NodeExternalIP]; len(external) > 0 {
		return external
	}
	return byType[corev1.NodeInternalIP]
}

// localNodes returns the nodes that have a ready endpoint of svc in a family. When none is ready anywhere, those that end but
// still serve: kube-proxy sends traffic to them, too.
func localNodes(svc *corev1.Service, family corev1.IPFamily, endpoints []*discoveryv1.EndpointSlice) map[string]bool {
	ready, ending := map[string]bool{}, map[string]bool{}
	for _, slice := range endpoints {
		if slice.Namespace != svc.Namespace || slice.Labels[discoveryv1.LabelServiceName] != svc.Name || string(slice.AddressType) != string(family) {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.NodeName == nil {
				continue
			}
			c := e.Conditions
			switch {
			case c.Ready == nil || *c.Ready:
				ready[*e.NodeName] = true
			case c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating:
				ending[*e.NodeName] = true
			}
		}
	}
	if len(ready) == 0 {
		return ending
	}
	return ready
}

// Status returns what the status of svc shall be, and whether it differs from what it is. decided is false for a Service that
// is not ours: then what we wrote while it was is taken back, and nothing else touched.
func Status(svc *corev1.Service, d Decision, decided bool, now metav1.Time) (want corev1.ServiceStatus, changed bool) {
	want = *svc.Status.DeepCopy()
	before := meta.FindStatusCondition(svc.Status.Conditions, Condition)
	if !decided {
		if before == nil || svc.DeletionTimestamp != nil {
			return want, false
		}
		meta.RemoveStatusCondition(&want.Conditions, Condition)
		// A class can only change by way of another type, on which the API server empties the list itself. So a list that
		// a load balancer of another class has now is the work of that one.
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
			want.LoadBalancer.Ingress = nil
		}
		return want, true
	}
	want.LoadBalancer.Ingress = nil
	for _, a := range d.Addresses {
		mode := corev1.LoadBalancerIPModeVIP // the node itself takes packets to this address, kube-proxy must program it
		want.LoadBalancer.Ingress = append(want.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	status := metav1.ConditionFalse
	if len(d.Addresses) > 0 {
		status = metav1.ConditionTrue
	}
	conditionChanged := meta.SetStatusCondition(&want.Conditions, metav1.Condition{
		Type: Condition, Status: status, Reason: d.Reason, Message: d.Message, LastTransitionTime: now,
	})
	return want, conditionChanged || !sameIngress(want.LoadBalancer.Ingress, svc.Status.LoadBalancer.Ingress)
}

func sameIngress(a, b []corev1.LoadBalancerIngress) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.LoadBalancerIngress) bool {
		return x.IP == y.IP && x.Hostname == y.Hostname && len(x.Ports) == len(y.Ports) &&
			(x.IPMode == nil) == (y.IPMode == nil) && (x.IPMode == nil || *x.IPMode == *y.IPMode)
	})
}
