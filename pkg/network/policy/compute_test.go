package policy_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/pkg/network/policy"
)

// TestSemantics holds the API's rules, one row each. Flows not named are not looked at.
func TestSemantics(t *testing.T) {
	for _, row := range []struct {
		name     string
		policies []string
		yes, no  []string
	}{
		{
			name: "no policy, everything passes",
			yes:  []string{"x/a -> y/b tcp 80", "x/a -> 203.0.113.1 tcp 443", "203.0.113.1 -> x/a tcp 80", "x/a -> x/b icmp 0"},
		},
		{
			name:     "default deny of ingress isolates the namespace and nothing else",
			policies: []string{"x/deny\npodSelector: {}\npolicyTypes: [Ingress]"},
			yes:      []string{"x/a -> y/a tcp 80", "y/a -> y/b tcp 80", "x/a -> x/a tcp 80", "x/a -> dns udp 53"},
			no:       []string{"y/a -> x/a tcp 80", "x/b -> x/a tcp 80", "203.0.113.1 -> x/a tcp 80", "y/a -> x/a icmp 0", "y/a -> x/a sctp 1"},
		},
		{
			name:     "default deny of egress",
			policies: []string{"x/deny\npodSelector: {}\npolicyTypes: [Egress]"},
			yes:      []string{"y/a -> x/a tcp 80", "x/a -> x/a tcp 80"},
			no:       []string{"x/a -> y/a tcp 80", "x/a -> x/b tcp 80", "x/a -> 203.0.113.1 udp 53", "x/a -> dns udp 53", "x/a -> 192.168.7.11 tcp 6443"},
		},
		{
			name:     "without policyTypes and without egress rules, ingress only",
			policies: []string{"x/p\npodSelector: {}"},
			yes:      []string{"x/a -> y/a tcp 80"},
			no:       []string{"y/a -> x/a tcp 80"},
		},
		{
			name:     "without policyTypes but with egress rules, both",
			policies: []string{"x/p\npodSelector: {}\negress: [{to: [{podSelector: {}}]}]"},
			yes:      []string{},
			no:       []string{"x/a -> y/a tcp 80", "y/a -> x/a tcp 80", "x/a -> x/b tcp 80"},
		},
		{
			name:     "egress rules do not count when policyTypes says ingress",
			policies: []string{"x/p\npodSelector: {}\npolicyTypes: [Ingress]\negress: [{to: [{podSelector: {}}]}]"},
			yes:      []string{"x/a -> y/a tcp 80"},
			no:       []string{"y/a -> x/a tcp 80"},
		},
		{
			name:     "an empty rule allows everything",
			policies: []string{"x/p\npodSelector: {}\npolicyTypes: [Ingress, Egress]\ningress: [{}]\negress: [{}]"},
			yes:      []string{"x/a -> y/a tcp 80", "203.0.113.1 -> x/a icmp 0", "x/a -> dns udp 53"},
		},
		{
			name:     "podSelector of a peer means the policy's own namespace",
			policies: []string{"x/p\npodSelector: {matchLabels: {app: a}}\ningress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]"},
			yes:      []string{"x/b -> x/a tcp 80", "y/a -> x/c tcp 80"},
			no:       []string{"y/b -> x/a tcp 80", "x/c -> x/a tcp 80"},
		},
		{
			name:     "namespaceSelector alone means all its pods",
			policies: []string{"x/p\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]"},
			yes:      []string{"y/a -> x/a tcp 80", "y/b -> x/a tcp 80"},
			no:       []string{"x/b -> x/a tcp 80", "z/a -> x/a tcp 80"},
		},
		{
			name: "namespaceSelector and podSelector in one peer: and",
			policies: []string{`x/p
podSelector: {}
ingress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}, podSelector: {matchLabels: {app: b}}}]}]`},
			yes: []string{"y/b -> x/a tcp 80"},
			no:  []string{"y/a -> x/a tcp 80", "x/b -> x/a tcp 80"},
		},
		{
			name: "in two peers: or",
			policies: []string{`x/p
podSelector: {}
ingress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}, {podSelector: {matchLabels: {app: b}}}]}]`},
			yes: []string{"y/a -> x/a tcp 80", "x/b -> x/a tcp 80"},
			no:  []string{"z/b -> x/a tcp 80"},
		},
		{
			name: "expressions: NotIn, Exists",
			policies: []string{`x/p
podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [c]}]}
ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [z]}, {key: team, operator: Exists}]}}]}]`},
			yes: []string{"y/a -> x/a tcp 80", "z/a -> x/c tcp 80"},
			no:  []string{"z/a -> x/a tcp 80"},
		},
		{
			name:     "an empty namespaceSelector means all pods, not the world",
			policies: []string{"x/p\npodSelector: {}\ningress: [{from: [{namespaceSelector: {}}]}]"},
			yes:      []string{"z/c -> x/a tcp 80"},
			no:       []string{"203.0.113.1 -> x/a tcp 80"},
		},
		{
			name: "policies add up",
			policies: []string{
				"x/deny\npodSelector: {}",
				"x/a\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}], ports: [{port: 80}]}]",
				"x/b\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: z}}}], ports: [{port: 81}]}]",
			},
			yes: []string{"y/a -> x/a tcp 80", "z/a -> x/a tcp 81"},
			no:  []string{"y/a -> x/a tcp 81", "z/a -> x/a tcp 80"},
		},
		{
			name: "both sides must agree",
			policies: []string{
				"x/out\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]",
				"y/in\npodSelector: {}\ningress: [{from: [{podSelector: {}}]}]",
				"z/in\npodSelector: {}\ningress: [{}]",
			},
			no: []string{"x/a -> y/a tcp 80", "x/a -> z/a tcp 80"},
		},
		{
			name: "ipBlock and except",
			policies: []string{`x/p
podSelector: {}
policyTypes: [Ingress, Egress]
ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.128/25]}}]}]
egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}}]}]`},
			yes: []string{"203.0.113.5 -> x/a tcp 80", "x/a -> 8.8.8.8 tcp 443", "x/a -> 9.255.255.255 tcp 1", "x/a -> 11.0.0.0 tcp 1"},
			no:  []string{"203.0.113.200 -> x/a tcp 80", "x/a -> 10.1.1.1 tcp 443", "x/a -> 192.168.4.4 tcp 443", "x/a -> y/a tcp 80", "x/a -> dns udp 53"},
		},
		{
			name: "an address that one rule excepts and another allows is allowed",
			policies: []string{
				"x/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 10.42.0.0/16, except: [10.42.2.0/24]}}]}]",
				"x/q\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 10.42.2.22/32}}]}]",
			},
			yes: []string{"x/a -> y/b tcp 80", "x/a -> y/a tcp 80"}, // y/b is 10.42.2.22
			no:  []string{"x/a -> y/c tcp 80"},
		},
		{
			name:     "a pod's address in an ipBlock selects it",
			policies: []string{"x/p\npodSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.42.1.21/32}}]}]"},
			yes:      []string{"y/a -> x/a tcp 80"},
			no:       []string{"y/b -> x/a tcp 80"},
		},
		{
			name:     "an except that covers all leaves nothing",
			policies: []string{"x/p\npodSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.42.0.0/16, except: [10.42.0.0/16]}}]}]"},
			no:       []string{"y/a -> x/a tcp 80"},
		},
		{
			name:     "ports: number, default protocol TCP",
			policies: []string{"x/p\npodSelector: {}\ningress: [{ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 7, protocol: SCTP}]}]"},
			yes:      []string{"y/a -> x/a tcp 80", "y/a -> x/a udp 53", "y/a -> x/a sctp 7", "203.0.113.1 -> x/a tcp 80"},
			no:       []string{"y/a -> x/a udp 80", "y/a -> x/a tcp 53", "y/a -> x/a tcp 7", "y/a -> x/a icmp 0"},
		},
		{
			name:     "a protocol without a port is all its ports",
			policies: []string{"x/p\npodSelector: {}\ningress: [{ports: [{protocol: UDP}]}]"},
			yes:      []string{"y/a -> x/a udp 1", "y/a -> x/a udp 65535"},
			no:       []string{"y/a -> x/a tcp 1"},
		},
		{
			name:     "endPort, both ends included, overlapping ranges",
			policies: []string{"x/p\npodSelector: {}\ningress: [{ports: [{port: 80, endPort: 90}, {port: 85, endPort: 95}, {port: 97}]}]"},
			yes:      []string{"y/a -> x/a tcp 80", "y/a -> x/a tcp 90", "y/a -> x/a tcp 95", "y/a -> x/a tcp 97"},
			no:       []string{"y/a -> x/a tcp 79", "y/a -> x/a tcp 96", "y/a -> x/a tcp 98"},
		},
		{
			name:     "a named port of ingress is the receiving pod's own",
			policies: []string{"x/p\npodSelector: {}\ningress: [{ports: [{port: web}]}]"},
			yes:      []string{"y/a -> x/a tcp 80", "y/a -> x/b tcp 8080"},
			no:       []string{"y/a -> x/a tcp 8080", "y/a -> x/b tcp 80", "y/a -> x/a udp 80"},
		},
		{
			name:     "a named port with peers: both",
			policies: []string{"x/p\npodSelector: {}\ningress: [{from: [{podSelector: {}}], ports: [{port: web}]}]"},
			yes:      []string{"x/c -> x/b tcp 8080"},
			no:       []string{"x/c -> x/b tcp 80", "y/a -> x/b tcp 8080"},
		},
		{
			name: "a named port of egress is the destination's",
			policies: []string{`x/p
podSelector: {}
policyTypes: [Egress]
egress: [{to: [{namespaceSelector: {matchLabels: {team: 'y'}}}], ports: [{port: web}]}]`},
			yes: []string{"x/a -> y/a tcp 80", "x/a -> y/b tcp 8080"},
			no:  []string{"x/a -> y/b tcp 80", "x/a -> z/b tcp 8080", "x/a -> 203.0.113.1 tcp 80"},
		},
		{
			name:     "a named port of egress without peers is looked up in every pod, not outside",
			policies: []string{"x/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{ports: [{port: web}]}]"},
			yes:      []string{"x/a -> z/b tcp 8080"},
			no:       []string{"x/a -> z/b tcp 80", "x/a -> 203.0.113.1 tcp 80"},
		},
		{
			name: "a named port of egress to an ipBlock is looked up in the pods inside",
			policies: []string{`x/p
podSelector: {}
policyTypes: [Egress]
egress: [{to: [{ipBlock: {cidr: 10.42.2.0/24}}], ports: [{port: web}]}]`},
			yes: []string{"x/a -> z/b tcp 8080"},
			no:  []string{"x/a -> x/b tcp 8080", "x/a -> z/b tcp 80"},
		},
		{
			name:     "a name that no pod has allows nothing",
			policies: []string{"x/p\npodSelector: {}\ningress: [{ports: [{port: nope}]}]"},
			no:       []string{"y/a -> x/a tcp 80"},
		},
		{
			name:     "names are per protocol",
			policies: []string{"x/p\npodSelector: {}\ningress: [{ports: [{port: ask, protocol: UDP}, {port: web, protocol: UDP}]}]"},
			yes:      []string{"y/a -> x/a udp 53"},
			no:       []string{"y/a -> x/a tcp 80", "y/a -> x/a udp 80"},
		},
		{
			name: "DNS for whoever allows the pods of DNS in kube-system, on the ports of DNS only",
			policies: []string{`x/p
podSelector: {}
policyTypes: [Egress]
egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]`},
			yes: []string{"x/a -> dns udp 53", "x/a -> dns tcp 53"},
			no:  []string{"x/a -> dns tcp 6443", "x/a -> 192.168.7.11 udp 1053", "x/a -> 192.168.7.11 tcp 6443", "x/a -> 10.43.0.11 udp 53"},
		},
		{
			name: "DNS with ports as every guide writes it",
			policies: []string{`x/p
podSelector: {}
policyTypes: [Egress]
egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], ports: [{port: 53, protocol: UDP}]}]`},
			yes: []string{"x/a -> dns udp 53"},
			no:  []string{"x/a -> dns tcp 53"},
		},
		{
			name:     "DNS for whoever allows port 53 to any destination, as upstream's tests do",
			policies: []string{"x/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{ports: [{port: 53, protocol: UDP}]}]"},
			yes:      []string{"x/a -> dns udp 53", "x/a -> 8.8.8.8 udp 53"},
			no:       []string{"x/a -> dns tcp 53", "x/a -> 8.8.8.8 tcp 443"},
		},
		{
			name:     "DNS by the names of its ports",
			policies: []string{"x/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{namespaceSelector: {}}], ports: [{port: dns-tcp}]}]"},
			yes:      []string{"x/a -> dns tcp 53"},
			no:       []string{"x/a -> dns udp 53"},
		},
		{
			name: "DNS by an ipBlock with its address, not by one without",
			policies: []string{
				"x/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 10.43.0.10/32}}]}]",
				"y/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}}]}]",
			},
			yes: []string{"x/a -> dns udp 53"},
			no:  []string{"x/a -> 192.168.7.11 udp 1053", "y/a -> dns udp 53"},
		},
		{
			name:     "DNS by an ipBlock with the address of the node that serves it, as for every process of a node",
			policies: []string{"x/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 192.168.7.11/32}}]}]"},
			yes:      []string{"x/a -> dns udp 53", "x/a -> 192.168.7.11 tcp 6443"},
		},
		{
			name:     "DNS is not in other namespaces and has no other labels",
			policies: []string{"x/p\npodSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {}}, {namespaceSelector: {matchLabels: {team: 'y'}}}, {namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}]}]"},
			no:       []string{"x/a -> dns udp 53"},
		},
		{
			name:     "a selector that matches no pod",
			policies: []string{"x/p\npodSelector: {matchLabels: {app: nope}}"},
			yes:      []string{"y/a -> x/a tcp 80"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld()
			w.policies = parse(t, row.policies...)
			for _, s := range row.yes {
				if !w.allows(w.flow(t, s)) {
					t.Errorf("%s: blocked, should pass", s)
				}
			}
			for _, s := range row.no {
				if w.allows(w.flow(t, s)) {
					t.Errorf("%s: passes, should be blocked", s)
				}
			}
		})
	}
}

const denyX = "x/deny\npodSelector: {}\npolicyTypes: [Ingress, Egress]"

// TestPods holds which pods count and which address is whose.
func TestPods(t *testing.T) {
	later := metav1.NewTime(time.Unix(1000, 0))
	for _, row := range []struct {
		name    string
		change  func(w *world)
		yes, no []string
	}{
		{
			name:   "hostNetwork pods are not isolated",
			change: func(w *world) { w.pod("x/a").Spec.HostNetwork = true },
			yes:    []string{"y/a -> x/a tcp 80", "x/a -> y/a tcp 80"},
			no:     []string{"y/a -> x/b tcp 80"},
		},
		{
			name: "hostNetwork pods are not peers",
			change: func(w *world) {
				w.pod("y/a").Spec.HostNetwork = true
				w.policies = append(w.policies, parse(t, "x/allow\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]")...)
			},
			yes: []string{"y/b -> x/a tcp 80"},
			no:  []string{"y/a -> x/a tcp 80"},
		},
		{
			name: "the address of a pod that ended belongs to nobody",
			change: func(w *world) {
				w.pod("x/a").Status.Phase = corev1.PodSucceeded
				w.pod("x/b").Status.Phase = corev1.PodFailed
			},
			yes: []string{"y/a -> x/a tcp 80", "y/a -> x/b tcp 80"},
			no:  []string{"y/a -> x/c tcp 80"},
		},
		{
			name: "of two pods with one address the one that is not leaving has it",
			change: func(w *world) {
				young := pod("z", "new", "n1", "10.42.1.11")
				w.pod("x/a").DeletionTimestamp = &later
				w.pod("x/a").CreationTimestamp = later
				w.pods = append(w.pods, young)
			},
			yes: []string{"y/a -> 10.42.1.11 tcp 80"},
		},
		{
			name: "and if both stay, the younger",
			change: func(w *world) {
				young := pod("x", "new", "n1", "10.42.1.21") // the address of y/a
				young.CreationTimestamp = later
				w.pods = append(w.pods, young)
			},
			no: []string{"y/b -> 10.42.1.21 tcp 80"},
		},
		{
			name: "an address that the pod network told wins over the status",
			change: func(w *world) {
				n1 := w.nodes["n1"]
				n1.Attached = attached("x/a", "10.42.1.99")
				w.nodes["n1"] = n1
			},
			yes: []string{"y/a -> 10.42.1.11 tcp 80"}, // its old address
			no:  []string{"y/a -> 10.42.1.99 tcp 80"},
		},
		{
			name: "and over a younger pod's status",
			change: func(w *world) {
				n1 := w.nodes["n1"]
				n1.Attached = attached("x/a", "10.42.1.21") // y/a had it before the reboot
				w.nodes["n1"] = n1
				w.pod("y/a").CreationTimestamp = later
			},
			no: []string{"y/b -> 10.42.1.21 tcp 80"},
		},
		{
			name: "both families of a pod are isolated",
			change: func(w *world) {
				w.pod("x/a").Status.PodIPs = append(w.pod("x/a").Status.PodIPs, corev1.PodIP{IP: "fd42::11"})
				w.pod("y/a").Status.PodIPs = append(w.pod("y/a").Status.PodIPs, corev1.PodIP{IP: "fd42::21"})
				w.policies = append(w.policies, parse(t, "x/allow\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}], ports: [{port: web}]}]")...)
			},
			yes: []string{"fd42::21 -> fd42::11 tcp 80"},
			no:  []string{"fd42::22 -> fd42::11 tcp 80", "fd42::21 -> fd42::11 tcp 81"},
		},
		{
			name: "while an isolated pod has no address, unknown addresses of the node wait",
			change: func(w *world) {
				w.pods = append(w.pods, pod("x", "starting", "n1"))
			},
			yes: []string{"y/a -> y/b tcp 80", "y/b -> y/a tcp 80", "203.0.113.1 -> y/a tcp 80"},
			no:  []string{"10.42.1.77 -> y/a tcp 80", "y/b -> 10.42.1.77 tcp 80"},
		},
		{
			name: "but not for pods that nobody isolates, of other nodes, with hostNetwork, or on their way out",
			change: func(w *world) {
				gone, host := pod("x", "gone", "n1"), pod("x", "host", "n1")
				gone.DeletionTimestamp = &later
				host.Spec.HostNetwork = true
				w.pods = append(w.pods, pod("y", "free", "n1"), pod("x", "elsewhere", "n3"), gone, host)
			},
			yes: []string{"10.42.1.77 -> y/a tcp 80", "y/b -> 10.42.1.77 tcp 80"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld()
			w.policies = parse(t, denyX)
			row.change(w)
			for _, s := range row.yes {
				if !w.allows(w.flow(t, s)) {
					t.Errorf("%s: blocked, should pass", s)
				}
			}
			for _, s := range row.no {
				if w.allows(w.flow(t, s)) {
					t.Errorf("%s: passes, should be blocked", s)
				}
			}
		})
	}
}

// TestProblems: what cannot be read is named and allows nothing, the rest of the policy holds.
func TestProblems(t *testing.T) {
	w := newWorld()
	w.policies = parse(t,
		"x/p\npodSelector: {}\ningress: [{from: [{ipBlock: {cidr: nonsense}}, {podSelector: {matchLabels: {app: b}}}]}]",
		"x/q\npodSelector: {matchExpressions: [{key: app, operator: Near}]}",
		"x/r\npodSelector: {}\ningress: [{from: [{}]}]")
	rules := policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])
	if len(rules.Problems) != 3 {
		t.Errorf("problems: %q, want one for each of p, q, r", rules.Problems)
	}
	for _, want := range []string{"x/p", "x/q", "x/r"} {
		if !slices.ContainsFunc(rules.Problems, func(p string) bool { return strings.Contains(p, want) }) {
			t.Errorf("no problem names %s: %q", want, rules.Problems)
		}
	}
	if !w.allows(w.flow(t, "x/b -> x/a tcp 80")) || w.allows(w.flow(t, "x/c -> x/a tcp 80")) {
		t.Error("the readable peer of x/p should still count, and only that")
	}
}

// TestOrderDoesNotMatter: informers list in any order, and equal clusters must give equal tables.
func TestOrderDoesNotMatter(t *testing.T) {
	w := newWorld()
	w.policies = parse(t, denyX,
		"x/p\npodSelector: {}\ningress: [{from: [{namespaceSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: web}, {port: 1, endPort: 9}]}]",
		"y/p\npodSelector: {}\negress: [{ports: [{port: 53, protocol: UDP}]}, {to: [{podSelector: {}}]}]")
	first := policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])
	slices.Reverse(w.pods)
	slices.Reverse(w.namespaces)
	slices.Reverse(w.policies)
	second := policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])
	if !reflect.DeepEqual(first, second) {
		t.Errorf("rules differ:\n%+v\n%+v", first, second)
	}
	if !reflect.DeepEqual(policy.Render(first), policy.Render(second)) {
		t.Error("tables differ")
	}
}

// TestNothingToDo: a node without isolated pods needs no table at all.
func TestNothingToDo(t *testing.T) {
	w := newWorld()
	if policy.Render(policy.Compute(w.pods, w.namespaces, nil, w.nodes["n1"])) != nil {
		t.Error("a table without policies")
	}
	w.policies = parse(t, "z/deny\npodSelector: {}") // all pods of z are on n2
	if policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])) != nil {
		t.Error("a table on n1 for pods of n2")
	}
	if policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n2"])) == nil {
		t.Error("no table on n2")
	}
}
