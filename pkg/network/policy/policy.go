// Package policy enforces NetworkPolicy (networking.k8s.io/v1) on one node with nftables.
//
// Work is split in three. Compute turns the objects of the cluster into Rules: who is isolated, what each policy allows, which
// addresses a selector stands for. Render turns Rules into the chains, sets and maps of one nftables table. Controller watches
// the cluster, and writes what differs from the last time in one transaction. The first two are pure.
//
// What holds:
//   - A pod that no policy selects costs nothing; without policies the table does not exist.
//   - Replies, and connections that were allowed when they began, pass. A policy bites on new connections.
//   - A node always reaches its own pods (probes), and a pod always reaches itself.
//   - Rules see addresses after service translation: for pod -> ClusterIP -> pod, those of the real endpoint.
//   - What is refused is dropped, not rejected: an address that becomes allowed a moment later then costs a client one
//     retransmission instead of an error.
//   - Rules stay in force when the process stops, and are replaced, not removed, when it starts again.
//   - Parts that other clusters run as pods and atoll runs in its own process (DNS) count as pods for egress rules: see Builtin.
//
// DESIGN.md beside this file explains the table and the decisions.
package policy

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// TableName is the nftables table, of family inet, that this package owns.
const TableName = "atoll-policy"

// PodKey names a pod.
type PodKey struct{ Namespace, Name string }

func (k PodKey) String() string { return k.Namespace + "/" + k.Name }

// Node is what Compute needs to know about the node for which it computes.
type Node struct {
	Name string
	// PodCIDRs are the node's own pod prefixes. Without them Rules.Hold cannot be made.
	PodCIDRs []netip.Prefix
	// Builtins are the parts of atoll that egress rules see as pods.
	Builtins []Builtin
	// Attached holds the addresses that the pod network just gave to pods of this node.
	// They win over the addresses in the status of the pod, which come a second or two later.
	Attached map[PodKey][]netip.Addr
}

// Builtin is a part of atoll that other clusters run as pods behind a Service, and that atoll runs in its own process.
//
// An egress rule that selects such pods by namespace and labels, or whose ipBlock contains the address, allows traffic to the
// address and ports given here and to no other port of the node. They are those of the Service: traffic is recognised by the
// destination that the pod asked for, so it does not matter where the process listens or on which node.
type Builtin struct {
	Namespace string
	Labels    map[string]string
	Addresses []netip.Addr
	Ports     []Port
}

// Port is a port of a pod or Builtin; Name is empty when it has none.
type Port struct {
	Name     string
	Protocol corev1.Protocol
	Number   uint16
}

// DNS describes the cluster's DNS service with the labels, port names and numbers that CoreDNS has as a Deployment.
func DNS(addresses ...netip.Addr) Builtin {
	return Builtin{
		Namespace: "kube-system",
		Labels:    map[string]string{"k8s-app": "kube-dns"},
		Addresses: addresses,
		Ports: []Port{
			{Name: "dns", Protocol: corev1.ProtocolUDP, Number: 53},
			{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Number: 53},
		},
	}
}

// Direction is a direction of traffic as seen from the pod.
type Direction string

// The two directions. Their text is part of the names of chains.
const (
	In  Direction = "in"
	Out Direction = "out"
)

// PolicyKey names one direction of a NetworkPolicy.
type PolicyKey struct {
	Namespace, Name string
	Direction       Direction
}

func (k PolicyKey) String() string { return fmt.Sprintf("%s/%s/%s", k.Namespace, k.Name, k.Direction) }
