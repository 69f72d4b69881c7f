package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/tests/lab"
)

func (w *workloads) service(t *testing.T, name string) *corev1.Service {
	t.Helper()
	svc, err := w.kube.CoreV1().Services(w.apps).Get(within(t, 10*time.Second, "reading a Service"), name, metav1.GetOptions{})
	must(t, err)
	return svc
}

func clusterIP(t *testing.T, w *workloads) {
	url := "http://" + w.service(t, "hello").Spec.ClusterIP + "/"
	for _, from := range []string{"tool-n1", "tool-n2"} {
		w.greetings(t, "pod "+from, func(ctx context.Context) (string, error) {
			return w.exec(ctx, w.apps, from, "tool", "get", url)
		})
	}
	for _, n := range []*lab.Node{w.n1, w.n2} {
		w.greetings(t, "node "+n.Hostname(), func(ctx context.Context) (string, error) {
			return getOn(ctx, n, url)
		})
	}
	t.Run("the API has one too", func(t *testing.T) {
		for _, from := range []string{"tool-n1", "tool-n2"} {
			w.inPod(t, w.apps, from, "tool", "tcp", "10.43.0.1:443", "10s")
		}
	})
}

func nodePort(t *testing.T, w *workloads) {
	for _, n := range []*lab.Node{w.n1, w.n2} {
		w.greetings(t, "outside, through "+n.Hostname(), func(ctx context.Context) (string, error) {
			return get(ctx, "http://"+n.Address().String()+":30080/")
		})
	}
}

func loadBalancer(t *testing.T, w *workloads) {
	const port = 8888
	w.apply(t, w.apps, `
apiVersion: v1
kind: Service
metadata: {name: hello-lb}
spec:
  type: LoadBalancer
  selector: {app: hello}
  ports: [{port: 8888, targetPort: 8080}]
`)
	want := []string{w.n1.Address().String(), w.n2.Address().String()}
	eventually(t, 30*time.Second, "the Service getting addresses", func(context.Context) error {
		var got []string
		for _, in := range w.service(t, "hello-lb").Status.LoadBalancer.Ingress {
			got = append(got, in.IP)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("addresses %v, want %v", got, want)
		}
		return nil
	})
	for _, address := range want {
		w.greetings(t, "outside, through "+address, func(ctx context.Context) (string, error) {
			return get(ctx, fmt.Sprintf("http://%s:%d/", address, port))
		})
	}
	t.Run("and is closed when it is deleted", func(t *testing.T) {
		must(t, w.kube.CoreV1().Services(w.apps).Delete(within(t, 10*time.Second, "deleting"), "hello-lb", metav1.DeleteOptions{}))
		for _, address := range want {
			eventually(t, 30*time.Second, address+" not answering any more", func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				if _, err := get(ctx, fmt.Sprintf("http://%s:%d/", address, port)); err == nil {
					return errors.New("it still answers")
				}
				return nil
			})
		}
	})
}

func podToPod(t *testing.T, w *workloads) {
	t1, t2 := w.waitReady(t, w.apps, "tool-n1"), w.waitReady(t, w.apps, "tool-n2")
	for _, p := range w.readyPods(t, w.apps, "hello", 4) {
		for _, from := range []*corev1.Pod{t1, t2} {
			got := w.inPod(t, w.apps, from.Name, "tool", "get", "http://"+p.Status.PodIP+":8080/ip", "15s")
			if strings.TrimSpace(got) != from.Status.PodIP {
				t.Errorf("%s on %s sees %s as %q, want its own address %s", p.Name, p.Spec.NodeName, from.Name, got, from.Status.PodIP)
			}
		}
	}
}

func dnsNames(t *testing.T, w *workloads) {
	w.apply(t, w.apps, `
apiVersion: v1
kind: Service
metadata: {name: named}
spec:
  clusterIP: None
  selector: {app: named}
  ports: [{name: web, port: 8080}]
`)
	w.start(t, w.apps, hello("named", onto("n2"), func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "till", "named" }))
	named := w.waitReady(t, w.apps, "named").Status.PodIP
	var all []string
	for _, p := range w.readyPods(t, w.apps, "hello", 4) {
		all = append(all, p.Status.PodIP)
	}
	slices.Sort(all)
	service := w.service(t, "hello").Spec.ClusterIP
	for _, tt := range []struct {
		name string
		want []string
	}{
		{"hello", []string{service}},
		{"hello.apps", []string{service}},
		{"hello.apps.svc.cluster.local.", []string{service}},
		{"kubernetes.default", []string{"10.43.0.1"}},
		{"kube-dns.kube-system", []string{"10.43.0.10"}},
		{"hello-headless", all},
		{"till.named.apps.svc.cluster.local.", []string{named}},
		{strings.ReplaceAll(named, ".", "-") + ".apps.pod.cluster.local.", []string{named}},
	} {
		for _, from := range []string{"tool-n1", "tool-n2"} {
			t.Run(tt.name+" from "+from, func(t *testing.T) {
				eventually(t, 20*time.Second, "the right answer", func(ctx context.Context) error {
					out, err := w.exec(ctx, w.apps, from, "tool", "dns", tt.name)
					if err == nil && !slices.Equal(strings.Fields(out), tt.want) {
						err = fmt.Errorf("got %v, want %v", strings.Fields(out), tt.want)
					}
					return err
				})
			})
		}
	}
	t.Run("a pod's own name is in its hosts file", func(t *testing.T) {
		out := w.inPod(t, w.apps, "tool-n1", "tool", "dns", "tool-n1")
		if addr, err := netip.ParseAddr(strings.TrimSpace(out)); err != nil || addr.String() != w.waitReady(t, w.apps, "tool-n1").Status.PodIP {
			t.Errorf("got %q", out)
		}
	})
	t.Run("a name that is not there", func(t *testing.T) {
		if out, err := w.exec(within(t, 20*time.Second, "asking"), w.apps, "tool-n1", "tool", "dns", "nobody.apps.svc.cluster.local."); err == nil ||
			!strings.Contains(err.Error(), "no such host") {
			t.Errorf("got %q, %v", out, err)
		}
	})
}

func dnsOutside(t *testing.T, w *workloads) {
	// The tool gives up after 5 s by itself and says timeout then; an answer of the server, whatever it is, comes at once.
	for _, from := range []string{"tool-n1", "tool-n2"} {
		began := time.Now()
		out, err := w.exec(within(t, 20*time.Second, "asking"), w.apps, from, "tool", "dns", "example.org")
		took := time.Since(began)
		if err == nil || strings.Contains(err.Error(), "timeout") || strings.Contains(err.Error(), "deadline") || took > patient(3*time.Second) {
			t.Errorf("%s: %q, %v after %s; want a failure at once", from, out, err, took.Round(time.Millisecond))
		}
	}
}

// reach tells whether a connection from a pod comes about.
func (w *workloads) reach(ctx context.Context, ns, pod, target string) error {
	_, err := w.exec(ctx, ns, pod, "tool", "tcp", target, "1500ms")
	return err
}

// wantReach waits until the connections come about or fail as wanted, all in one look: policies take a moment.
func (w *workloads) wantReach(t *testing.T, what string, looks []look) {
	t.Helper()
	eventually(t, 30*time.Second, what, func(ctx context.Context) error {
		for _, l := range looks {
			err := w.reach(ctx, l.ns, l.from, l.to)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			switch {
			case l.open && err != nil:
				return fmt.Errorf("%s to %s is closed: %w", l.from, l.to, err)
			case !l.open && err == nil:
				return fmt.Errorf("%s to %s is open", l.from, l.to)
			case !l.open && !strings.Contains(err.Error(), "timeout") && !strings.Contains(err.Error(), "refused"):
				return fmt.Errorf("%s to %s: %w", l.from, l.to, err)
			}
		}
		return nil
	})
}

type look struct {
	ns, from, to string
	open         bool
}

func policyIngress(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.start(t, ns, hello("server", onto("n1")), tool("friend", onto("n2"), labelled("role", "friend")), tool("stranger", onto("n2")),
		tool("near", onto("n1")))
	ip := w.waitReady(t, ns, "server").Status.PodIP
	web, echo := ip+":8080", ip+":8081"
	w.wantReach(t, "all being open without a policy", []look{{ns, "friend", web, true}, {ns, "stranger", web, true}, {ns, "near", web, true}, {ns, "friend", echo, true}})
	w.apply(t, ns, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
    - from: [{podSelector: {matchLabels: {role: friend}}}]
      ports: [{port: 8080}]
`)
	w.wantReach(t, "only the friend getting to the web port", []look{
		{ns, "stranger", web, false}, {ns, "near", web, false}, {ns, "friend", echo, false}, {ns, "friend", web, true},
	})
	t.Run("the kubelet's probes still get through", func(t *testing.T) {
		p, err := w.kube.CoreV1().Pods(ns).Get(within(t, 10*time.Second, "reading the pod"), "server", metav1.GetOptions{})
		must(t, err)
		if !ready(p) || p.Status.ContainerStatuses[0].RestartCount > 0 {
			t.Error(podState(p))
		}
	})
	t.Run("a label that is given later counts", func(t *testing.T) {
		w.kubectl(t, "", "label", "--namespace", ns, "pod", "stranger", "role=friend")
		w.wantReach(t, "the stranger being a friend", []look{{ns, "stranger", web, true}, {ns, "near", web, false}})
	})
	t.Run("all is open again without the policy", func(t *testing.T) {
		must(t, w.kube.NetworkingV1().NetworkPolicies(ns).Delete(within(t, 10*time.Second, "deleting"), "friends", metav1.DeleteOptions{}))
		w.wantReach(t, "all being open", []look{{ns, "near", web, true}, {ns, "friend", echo, true}})
	})
}

func policyNamespace(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	partner := w.namespaceNamed(t, "policy-partner", map[string]string{"shop.example/partner": "yes"})
	w.start(t, ns, hello("server", onto("n2")), tool("own", onto("n2")))
	w.start(t, partner, tool("client", onto("n1")))
	web := w.waitReady(t, ns, "server").Status.PodIP + ":8080"
	w.wantReach(t, "all being open without a policy", []look{{ns, "own", web, true}, {partner, "client", web, true}, {w.apps, "tool-n1", web, true}})
	w.apply(t, ns, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: partners}
spec:
  podSelector: {}
  ingress: [{from: [{namespaceSelector: {matchLabels: {shop.example/partner: "yes"}}}]}]
`)
	w.wantReach(t, "only the partner getting in", []look{{ns, "own", web, false}, {w.apps, "tool-n1", web, false}, {partner, "client", web, true}})
}

func policyEgress(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.start(t, ns, tool("jailed", onto("n1")), tool("free", onto("n1")))
	near, far := "", ""
	for _, p := range w.readyPods(t, w.apps, "hello", 4) {
		if p.Spec.NodeName == "n1" {
			near = p.Status.PodIP + ":8080"
		} else {
			far = p.Status.PodIP + ":8080"
		}
	}
	outside := w.n2.Address().String() + ":10250"
	w.wantReach(t, "all being open without a policy", []look{{ns, "jailed", near, true}, {ns, "jailed", far, true}, {ns, "jailed", outside, true}})
	w.apply(t, ns, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: jail}
spec:
  podSelector: {matchLabels: {app: jailed}}
  policyTypes: [Ingress, Egress]
  egress:
    - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
`)
	w.wantReach(t, "the jailed pod getting nowhere", []look{
		{ns, "jailed", near, false}, {ns, "jailed", far, false}, {ns, "jailed", outside, false}, {ns, "free", far, true},
	})
	t.Run("DNS works", func(t *testing.T) {
		want := w.service(t, "hello").Spec.ClusterIP
		if got := strings.TrimSpace(w.inPod(t, ns, "jailed", "tool", "dns", "hello.apps")); got != want {
			t.Errorf("got %q, want %s", got, want)
		}
	})
	t.Run("a service is no way around it", func(t *testing.T) {
		if err := w.reach(within(t, 20*time.Second, "connecting"), ns, "jailed", w.service(t, "hello").Spec.ClusterIP+":80"); err == nil {
			t.Error("the ClusterIP is reached")
		}
	})
}
