package servicelb_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/atollhq/atoll/pkg/network/servicelb"
	"github.com/atollhq/atoll/pkg/run"
)

// service makes one of type LoadBalancer. Its age in minutes decides who is older; ports are "80" or "53/UDP" or "80:30080".
func service(name string, age int, ports ...string) *corev1.Service {
	ns, name, _ := strings.Cut(name, "/")
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-time.Duration(age) * time.Minute))},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}},
	}
	for _, p := range ports {
		sp := corev1.ServicePort{Protocol: corev1.ProtocolTCP}
		p, proto, ok := strings.Cut(p, "/")
		if ok {
			sp.Protocol = corev1.Protocol(proto)
		}
		_, _ = fmt.Sscanf(p, "%d:%d", &sp.Port, &sp.NodePort)
		s.Spec.Ports = append(s.Spec.Ports, sp)
	}
	return s
}

// with changes a Service in a table row.
func with(s *corev1.Service, change func(*corev1.Service)) *corev1.Service { change(s); return s }

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func condition(reason string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		status := metav1.ConditionFalse
		if reason == servicelb.Assigned {
			status = metav1.ConditionTrue
		}
		s.Status.Conditions = []metav1.Condition{{Type: servicelb.Condition, Status: status, Reason: reason}}
	}
}

func node(name string, ready bool, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}}
	for _, a := range addrs {
		kind := corev1.NodeInternalIP
		if rest, ok := strings.CutPrefix(a, "ext "); ok {
			kind, a = corev1.NodeExternalIP, rest
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: kind, Address: a})
	}
	return n
}

// endpoints makes a slice; each item is "node ready", "node unready" or "node ending".
func endpoints(service string, family discoveryv1.AddressType, items ...string) *discoveryv1.EndpointSlice {
	ns, name, _ := strings.Cut(service, "/")
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: name + "-" + strings.ToLower(string(family)), Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: family,
	}
	for _, item := range items {
		host, state, _ := strings.Cut(item, " ")
		ready, ending := state == "ready", state == "ending"
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{NodeName: &host, Conditions: discoveryv1.EndpointConditions{
			Ready: &ready, Serving: new(ready || ending), Terminating: &ending}})
	}
	return s
}

func three() []*corev1.Node {
	return []*corev1.Node{node("n3", true, "192.168.7.13"), node("n1", true, "192.168.7.11"), node("n2", true, "192.168.7.12")}
}

func TestAssign(t *testing.T) {
	for _, row := range []struct {
		name      string
		services  []*corev1.Service
		nodes     []*corev1.Node
		endpoints []*discoveryv1.EndpointSlice
		want      map[string]string // service -> addresses, or reason: words of the message
	}{
		{
			name:     "all nodes, in the order of addresses",
			services: []*corev1.Service{service("d/web", 1, "80")},
			want:     map[string]string{"d/web": "192.168.7.11 192.168.7.12 192.168.7.13"},
		},
		{
			name: "only load balancers of our class or of none",
			services: []*corev1.Service{
				with(service("d/a", 1, "80"), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }),
				with(service("d/b", 1, "81"), func(s *corev1.Service) { s.Spec.LoadBalancerClass = new("example.com/other") }),
				with(service("d/c", 1, "82"), func(s *corev1.Service) { s.Spec.LoadBalancerClass = new(servicelb.Class) }),
				with(service("d/e", 1, "83"), func(s *corev1.Service) { s.DeletionTimestamp = &metav1.Time{} }),
			},
			want: map[string]string{"d/c": "192.168.7.11 192.168.7.12 192.168.7.13"},
		},
		{
			name:     "nodes that may not, or are not Ready, are left out",
			services: []*corev1.Service{service("d/web", 1, "80")},
			nodes: []*corev1.Node{
				node("n1", true, "192.168.7.11"), node("n2", false, "192.168.7.12"),
				func() *corev1.Node {
					n := node("n3", true, "192.168.7.13")
					n.Labels[corev1.LabelNodeExcludeBalancers] = "false"
					return n
				}(),
				func() *corev1.Node {
					n := node("n4", true, "192.168.7.14")
					n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}
					return n
				}(),
				func() *corev1.Node {
					n := node("n5", true, "192.168.7.15")
					n.DeletionTimestamp = &metav1.Time{}
					return n
				}(),
				node("n6", true),
			},
			want: map[string]string{"d/web": "192.168.7.11"},
		},
		{
			name:     "when no node is Ready, what is there stays reachable",
			services: []*corev1.Service{service("d/web", 1, "80")},
			nodes:    []*corev1.Node{node("n1", false, "192.168.7.11")},
			want:     map[string]string{"d/web": "192.168.7.11"},
		},
		{
			name:     "no node at all",
			services: []*corev1.Service{service("d/web", 1, "80")},
			nodes:    []*corev1.Node{},
			want:     map[string]string{"d/web": "NoNodes: exclude-from-external-load-balancers"},
		},
		{
			name: "an external address replaces the internal ones of its family",
			services: []*corev1.Service{with(service("d/web", 1, "80"), func(s *corev1.Service) {
				s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
			})},
			nodes: []*corev1.Node{node("n1", true, "192.168.7.11", "fd00::11", "ext 203.0.113.1"), node("n2", true, "192.168.7.12", "fd00::12")},
			want:  map[string]string{"d/web": "192.168.7.12 203.0.113.1 fd00::11 fd00::12"},
		},
		{
			name: "families of the service, in its order",
			services: []*corev1.Service{
				with(service("d/six", 1, "80"), func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }),
				with(service("d/both", 1, "81"), func(s *corev1.Service) {
					s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
				}),
			},
			nodes: []*corev1.Node{node("n1", true, "192.168.7.11", "fd00::11")},
			want:  map[string]string{"d/six": "fd00::11", "d/both": "fd00::11 192.168.7.11"},
		},
		{
			name:     "a family that no node has",
			services: []*corev1.Service{with(service("d/six", 1, "80"), func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} })},
			want:     map[string]string{"d/six": "NoNodes: IPv6"},
		},
		{
			name:      "policy Local: nodes with a ready pod",
			services:  []*corev1.Service{with(service("d/web", 1, "80"), local)},
			endpoints: []*discoveryv1.EndpointSlice{endpoints("d/web", discoveryv1.AddressTypeIPv4, "n1 ready", "n2 unready", "n3 ending"), endpoints("e/web", discoveryv1.AddressTypeIPv4, "n2 ready")},
			want:      map[string]string{"d/web": "192.168.7.11"},
		},
		{
			name:      "policy Local: with no ready pod, those that end and still serve",
			services:  []*corev1.Service{with(service("d/web", 1, "80"), local)},
			endpoints: []*discoveryv1.EndpointSlice{endpoints("d/web", discoveryv1.AddressTypeIPv4, "n2 unready", "n3 ending")},
			want:      map[string]string{"d/web": "192.168.7.13"},
		},
		{
			name:     "policy Local: none",
			services: []*corev1.Service{with(service("d/web", 1, "80"), local)},
			want:     map[string]string{"d/web": "NoLocalEndpoints: no node has a ready pod"},
		},
		{
			name: "policy Local: per family",
			services: []*corev1.Service{with(with(service("d/web", 1, "80"), local), func(s *corev1.Service) {
				s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
			})},
			nodes:     []*corev1.Node{node("n1", true, "192.168.7.11", "fd00::11"), node("n2", true, "192.168.7.12", "fd00::12")},
			endpoints: []*discoveryv1.EndpointSlice{endpoints("d/web", discoveryv1.AddressTypeIPv4, "n1 ready"), endpoints("d/web", discoveryv1.AddressTypeIPv6, "n2 ready")},
			want:      map[string]string{"d/web": "192.168.7.11 fd00::12"},
		},
		{
			name:     "of two that want a port the older has it; the other learns who",
			services: []*corev1.Service{service("d/young", 1, "80"), service("d/old", 2, "80")},
			want:     map[string]string{"d/old": "192.168.7.11 192.168.7.12 192.168.7.13", "d/young": "PortTaken: port 80/TCP is held by service d/old"},
		},
		{
			name:     "one port of several is enough to wait, and then the others are free",
			services: []*corev1.Service{service("d/a", 3, "80"), service("d/b", 2, "80", "443"), service("d/c", 1, "443")},
			nodes:    []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:     map[string]string{"d/a": "192.168.7.11", "d/b": "PortTaken: d/a", "d/c": "192.168.7.11"},
		},
		{
			name:     "the same number with another protocol is another port",
			services: []*corev1.Service{service("d/a", 2, "53"), service("d/b", 1, "53/UDP")},
			nodes:    []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:     map[string]string{"d/a": "192.168.7.11", "d/b": "192.168.7.11"},
		},
		{
			name:     "who holds a port is not pushed out by an older one",
			services: []*corev1.Service{service("d/old", 9, "80"), with(service("d/young", 1, "80"), condition(servicelb.Assigned))},
			nodes:    []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:     map[string]string{"d/old": "PortTaken: d/young", "d/young": "192.168.7.11"},
		},
		{
			name:     "nor while its pods are away",
			services: []*corev1.Service{service("d/old", 9, "80"), with(with(service("d/young", 1, "80"), local), condition(servicelb.NoLocalEndpoints))},
			want:     map[string]string{"d/old": "PortTaken: d/young", "d/young": "NoLocalEndpoints: Local"},
		},
		{
			name:     "who waited does not hold",
			services: []*corev1.Service{service("d/old", 9, "80"), with(service("d/young", 1, "80"), condition(servicelb.PortTaken))},
			nodes:    []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:     map[string]string{"d/old": "192.168.7.11", "d/young": "PortTaken: d/old"},
		},
		{
			name:     "equal age: by name",
			services: []*corev1.Service{service("d/b", 1, "80"), service("d/a", 1, "80")},
			nodes:    []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:     map[string]string{"d/a": "192.168.7.11", "d/b": "PortTaken: d/a"},
		},
		{
			name:     "ports of the node are not given away",
			services: []*corev1.Service{service("d/ssh", 1, "22"), service("d/api", 1, "6443"), service("d/udp", 1, "22/UDP")},
			nodes:    []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:     map[string]string{"d/ssh": "PortReserved: port 22/TCP is used by SSH", "d/api": "PortReserved: the Kubernetes API", "d/udp": "192.168.7.11"},
		},
		{
			name: "the node port of another service is not free, one's own is",
			services: []*corev1.Service{
				with(service("d/np", 1, "80:30080"), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }),
				service("d/lb", 9, "30080"), service("d/own", 9, "30081:30081"),
			},
			nodes: []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:  map[string]string{"d/lb": "PortTaken: the node port of service d/np", "d/own": "192.168.7.11"},
		},
		{
			name: "a node port that was given away later does not push out",
			services: []*corev1.Service{
				with(service("d/np", 1, "80:30080"), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }),
				with(service("d/lb", 9, "30080"), condition(servicelb.Assigned)),
			},
			nodes: []*corev1.Node{node("n1", true, "192.168.7.11")},
			want:  map[string]string{"d/lb": "192.168.7.11"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.nodes == nil {
				row.nodes = three()
			}
			check := func() {
				got := servicelb.Assign(row.services, row.nodes, row.endpoints, servicelb.DefaultReserved())
				if len(got) != len(row.want) {
					t.Errorf("%d decisions, want %d: %v", len(got), len(row.want), got)
				}
				for key, d := range got {
					want, text := row.want[key.String()], strings.Trim(fmt.Sprint(d.Addresses), "[]")
					reason, words, problem := strings.Cut(want, ": ")
					if problem && (d.Reason != reason || !strings.Contains(d.Message, words) || len(d.Addresses) > 0) ||
						!problem && (d.Reason != servicelb.Assigned || text != want) {
						t.Errorf("%s: %s %q %q, want %q", key, text, d.Reason, d.Message, want)
					}
				}
			}
			check()
			slices.Reverse(row.services)
			slices.Reverse(row.nodes)
			check()
		})
	}
}

// TestForeignServices: what others wrote is not touched.
func TestForeignServices(t *testing.T) {
	vip := corev1.LoadBalancerIPModeVIP
	theirs := []corev1.LoadBalancerIngress{{IP: "203.0.113.1", IPMode: &vip}}
	for _, row := range []struct {
		name    string
		service *corev1.Service
		changed bool
		left    int // addresses
	}{
		{"never ours", with(service("d/a", 1, "80"), func(s *corev1.Service) {
			s.Spec.LoadBalancerClass = new("example.com/other")
			s.Status.LoadBalancer.Ingress = theirs
		}), false, 1},
		{"was ours, now of another class that already wrote", with(with(service("d/a", 1, "80"), condition(servicelb.Assigned)), func(s *corev1.Service) {
			s.Spec.LoadBalancerClass = new("example.com/other")
			s.Status.LoadBalancer.Ingress = theirs
		}), true, 1},
		{"was ours, now of another type", with(with(service("d/a", 1, "80"), condition(servicelb.Assigned)), func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeClusterIP
			s.Status.LoadBalancer.Ingress = theirs
		}), true, 0},
		{"is being deleted", with(with(service("d/a", 1, "80"), condition(servicelb.Assigned)), func(s *corev1.Service) {
			s.DeletionTimestamp = &metav1.Time{}
			s.Status.LoadBalancer.Ingress = theirs
		}), false, 1},
	} {
		status, changed := servicelb.Status(row.service, servicelb.Decision{}, false, metav1.Time{})
		if changed != row.changed || len(status.LoadBalancer.Ingress) != row.left {
			t.Errorf("%s: changed %v, %d addresses left, want %v, %d", row.name, changed, len(status.LoadBalancer.Ingress), row.changed, row.left)
		}
		if changed && meta.FindStatusCondition(status.Conditions, servicelb.Condition) != nil {
			t.Errorf("%s: our mark is still there", row.name)
		}
	}
}

// rig is a Controller on a fake API.
type rig struct {
	t   *testing.T
	api *fake.Clientset
}

func newRig(t *testing.T, objects ...runtime.Object) *rig {
	t.Helper()
	r := &rig{t: t, api: fake.NewClientset(objects...)}
	factory := informers.NewSharedInformerFactory(r.api, 0)
	var component run.Component = servicelb.New(servicelb.Config{Client: r.api, Factory: factory})
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- component.Run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	t.Cleanup(func() {
		cancel()
		factory.Shutdown()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-ready
	return r
}

func (r *rig) get(name string) *corev1.Service {
	r.t.Helper()
	ns, name, _ := strings.Cut(name, "/")
	s, err := r.api.CoreV1().Services(ns).Get(r.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) update(name string, change func(*corev1.Service)) {
	r.t.Helper()
	s := r.get(name)
	change(s)
	if _, err := r.api.CoreV1().Services(s.Namespace).Update(r.t.Context(), s, metav1.UpdateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) addresses(name string) string {
	var out []string
	for _, i := range r.get(name).Status.LoadBalancer.Ingress {
		if i.IPMode == nil || *i.IPMode != corev1.LoadBalancerIPModeVIP {
			r.t.Errorf("%s: mode of %s is not VIP", name, i.IP)
		}
		out = append(out, i.IP)
	}
	return strings.Join(out, " ")
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func (r *rig) untilAddresses(name, want string) {
	r.t.Helper()
	r.until(name+" has "+want, func() bool { return r.addresses(name) == want })
}

func (r *rig) writes() int {
	n := 0
	for _, a := range r.api.Actions() {
		if a.Matches("patch", "services/status") {
			n++
		}
	}
	return n
}

func (r *rig) event(about, words string) bool {
	list, err := r.api.CoreV1().Events("").List(r.t.Context(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
		return e.InvolvedObject.Namespace+"/"+e.InvolvedObject.Name == about && strings.Contains(e.Reason+": "+e.Message, words)
	})
}

// TestLife follows Services through everything that changes their addresses.
func TestLife(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, node("n1", true, "192.168.7.11"), node("n2", true, "192.168.7.12"), service("d/web", 2, "80"), service("d/other", 1, "80"))
	r.untilAddresses("d/web", "192.168.7.11 192.168.7.12")
	r.until("event for d/other", func() bool { return r.event("d/other", "PortTaken: port 80/TCP is held by service d/web") })
	if got := r.addresses("d/other"); got != "" {
		t.Errorf("d/other has %s", got)
	}

	n2 := node("n2", false, "192.168.7.12")
	if _, err := r.api.CoreV1().Nodes().UpdateStatus(ctx, n2, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.untilAddresses("d/web", "192.168.7.11")

	// A heartbeat, and a round that finds nothing to do, write nothing.
	writes := r.writes()
	beat := n2.DeepCopy()
	beat.Status.Conditions[0].LastHeartbeatTime = metav1.Now()
	if _, err := r.api.CoreV1().Nodes().UpdateStatus(ctx, beat, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.update("d/web", func(s *corev1.Service) { s.Labels = map[string]string{"round": "one"} })
	if _, err := r.api.CoreV1().Services("d").Create(ctx, service("d/last", 0, "81"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.untilAddresses("d/last", "192.168.7.11")
	if n := r.writes() - writes; n != 1 {
		t.Errorf("%d writes, want the one for d/last", n)
	}

	// The type changes: the list and our mark go, and who waited gets the port.
	r.update("d/web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	r.untilAddresses("d/web", "")
	r.untilAddresses("d/other", "192.168.7.11")
	r.until("event for d/other", func() bool { return r.event("d/other", "Assigned: addresses of nodes: [192.168.7.11]") })
	if c := meta.FindStatusCondition(r.get("d/web").Status.Conditions, servicelb.Condition); c != nil {
		t.Errorf("our mark is still on d/web: %v", c)
	}

	// Policy Local follows the pods.
	r.update("d/other", local)
	r.untilAddresses("d/other", "")
	if _, err := r.api.DiscoveryV1().EndpointSlices("d").Create(ctx, endpoints("d/other", discoveryv1.AddressTypeIPv4, "n1 ready"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.untilAddresses("d/other", "192.168.7.11")

	if err := r.api.CoreV1().Services("d").Delete(ctx, "other", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.update("d/web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })
	r.untilAddresses("d/web", "192.168.7.11")
}

// TestWritesFail: a refused write is tried again, and does not keep other Services waiting.
func TestWritesFail(t *testing.T) {
	api := fake.NewClientset(node("n1", true, "192.168.7.11"), service("d/a", 1, "80"), service("d/b", 1, "81"))
	var mu sync.Mutex
	refused := 0
	api.PrependReactor("patch", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		name := a.(clienttesting.PatchAction).GetName()
		if a.GetSubresource() != "status" || name != "a" || refused == 2 {
			return false, nil, nil
		}
		refused++
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "services"}, "a", fmt.Errorf("somebody was faster"))
	})
	factory := informers.NewSharedInformerFactory(api, 0)
	component := servicelb.New(servicelb.Config{Client: api, Factory: factory})
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- component.Run(ctx, func() {}) }()
	r := &rig{t: t, api: api}
	r.untilAddresses("d/b", "192.168.7.11")
	r.untilAddresses("d/a", "192.168.7.11")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if refused != 2 {
		t.Errorf("%d writes refused, want 2", refused)
	}
}
