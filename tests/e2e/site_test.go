package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/atollhq/atoll/pkg/status"
	"github.com/atollhq/atoll/tests/lab"
)

// site is a running site with clients for its API, used from the host through the first node's address.
type site struct {
	lab        *lab.Lab
	n1         *lab.Node
	kubeconfig string // usable on the host
	config     *rest.Config
	kube       kubernetes.Interface
	dynamic    dynamic.Interface
	mapper     meta.ResettableRESTMapper
}

// connect makes clients. Call it again after the first node got a new disk: it then has new authorities.
func (s *site) connect(t *testing.T) {
	t.Helper()
	var err error
	s.kubeconfig, err = s.lab.Site(1).Kubeconfig()
	must(t, err)
	s.config, err = clientcmd.BuildConfigFromFlags("", s.kubeconfig)
	must(t, err)
	s.config.QPS, s.config.Burst, s.config.Timeout = 100, 200, 20*time.Second
	s.kube, err = kubernetes.NewForConfig(s.config)
	must(t, err)
	s.dynamic, err = dynamic.NewForConfig(s.config)
	must(t, err)
	s.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(s.kube.Discovery()))
}

// namespace makes a namespace for one test. It goes away with the test; when the test failed, what is in it is logged first.
func (s *site) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()[strings.Index(t.Name(), "/")+1:]), "-"), "-")
	name = strings.Trim(name[:min(len(name), 40)], "-")
	return s.namespaceNamed(t, name, labels)
}

func (s *site) namespaceNamed(t *testing.T, name string, labels map[string]string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	eventually(t, 30*time.Second, "making namespace "+name, func(ctx context.Context) error {
		_, err := s.kube.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
		return err
	})
	t.Cleanup(func() {
		if t.Failed() {
			s.describe(t, name)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = s.kube.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	})
	// Pods are refused until the controllers have made the service account.
	eventually(t, 30*time.Second, "the service account of namespace "+name, func(ctx context.Context) error {
		_, err := s.kube.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return name
}

// describe logs what a person would look at first.
func (s *site) describe(t *testing.T, ns string) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if pods, err := s.kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{}); err == nil {
		for _, p := range pods.Items {
			t.Logf("pod %s on %s: %s, %s", p.Name, p.Spec.NodeName, p.Status.Phase, podState(&p))
		}
	}
	if events, err := s.kube.CoreV1().Events(ns).List(ctx, metav1.ListOptions{}); err == nil {
		for _, e := range events.Items[max(0, len(events.Items)-40):] {
			t.Logf("event %s %s/%s: %s: %s", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}

func podState(p *corev1.Pod) string {
	var out []string
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			out = append(out, c.Message)
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		text := fmt.Sprintf("%s ready=%v restarts=%d", c.Name, c.Ready, c.RestartCount)
		if w := c.State.Waiting; w != nil {
			text += " waiting: " + w.Reason + " " + w.Message
		}
		if e := c.State.Terminated; e != nil {
			text += fmt.Sprintf(" ended: %s %d", e.Reason, e.ExitCode)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// apply does what `kubectl apply --server-side` does with YAML of several documents.
func (s *site) apply(t *testing.T, ns, text string) {
	t.Helper()
	ctx := within(t, 30*time.Second, "apply")
	decoder := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		obj := &unstructured.Unstructured{}
		err := decoder.Decode(obj)
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		if len(obj.Object) > 0 {
			must(t, s.applyOne(ctx, ns, obj))
		}
	}
}

func (s *site) applyOne(ctx context.Context, ns string, obj *unstructured.Unstructured) error {
	gvk := obj.GroupVersionKind()
	mapping, err := s.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return err
	}
	var api dynamic.ResourceInterface = s.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		api = s.dynamic.Resource(mapping.Resource).Namespace(ns)
	}
	_, err = api.Apply(ctx, obj.GetName(), obj, metav1.ApplyOptions{FieldManager: "e2e", Force: true})
	return err
}

// start creates pods and waits until all are Ready.
func (s *site) start(t *testing.T, ns string, pods ...*corev1.Pod) {
	t.Helper()
	ctx := within(t, 30*time.Second, "creating pods")
	for _, p := range pods {
		_, err := s.kube.CoreV1().Pods(ns).Create(ctx, p, metav1.CreateOptions{})
		must(t, err)
	}
	for _, p := range pods {
		s.waitReady(t, ns, p.Name)
	}
}

func (s *site) waitReady(t *testing.T, ns, name string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	eventually(t, 60*time.Second, "pod "+ns+"/"+name+" becoming Ready", func(ctx context.Context) (err error) {
		if pod, err = s.kube.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{}); err == nil && !ready(pod) {
			err = fmt.Errorf("%s, %s", pod.Status.Phase, podState(pod))
		}
		return err
	})
	return pod
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// remove deletes a pod and waits until it is gone.
func (s *site) remove(t *testing.T, ns, name string) {
	t.Helper()
	must(t, s.kube.CoreV1().Pods(ns).Delete(within(t, 20*time.Second, "deleting a pod"), name, metav1.DeleteOptions{}))
	eventually(t, 60*time.Second, "end of pod "+name, func(ctx context.Context) error {
		_, err := s.kube.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it is still there"))
	})
}

// readyPods waits until exactly count pods with the label app=name exist and all are Ready.
func (s *site) readyPods(t *testing.T, ns, app string, count int) []corev1.Pod {
	t.Helper()
	var pods *corev1.PodList
	eventually(t, 90*time.Second, fmt.Sprintf("%d Ready pods of %s/%s", count, ns, app), func(ctx context.Context) (err error) {
		pods, err = s.kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		var states []string
		for _, p := range pods.Items {
			if !ready(&p) {
				states = append(states, p.Name+": "+podState(&p))
			}
		}
		if len(pods.Items) != count || len(states) > 0 {
			return fmt.Errorf("%d pods, not Ready: %s", len(pods.Items), strings.Join(states, ", "))
		}
		return nil
	})
	return pods.Items
}

// exec runs a program in a pod and returns its standard output.
func (s *site) exec(ctx context.Context, ns, pod string, argv ...string) (string, error) {
	req := s.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: argv, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	config := rest.CopyConfig(s.config)
	config.Timeout = 0 // of the whole stream; ctx bounds it
	executor, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, req.URL().String())
	if err != nil {
		return "", err
	}
	var out, stderr bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &stderr}); err != nil {
		err = fmt.Errorf("%s in %s/%s: %w: %s", strings.Join(argv, " "), ns, pod, err, strings.TrimSpace(stderr.String()))
		return out.String(), err
	}
	return out.String(), nil
}

// inPod is exec for what must work at once.
func (s *site) inPod(t *testing.T, ns, pod string, argv ...string) string {
	t.Helper()
	out, err := s.exec(within(t, 20*time.Second, strings.Join(argv, " ")), ns, pod, argv...)
	must(t, err)
	return out
}

// kubectl runs `atoll kubectl` on the host.
func (s *site) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	ctx := within(t, 60*time.Second, "kubectl "+strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, atollBinary(t), append([]string{"kubectl", "--kubeconfig", s.kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out.String()
}

// nodeReady waits until a node says Ready. The lab's WaitReady asks from inside the node; this asks as people do.
func (s *site) nodeReady(t *testing.T, name string) *corev1.Node {
	t.Helper()
	var node *corev1.Node
	eventually(t, 60*time.Second, name+" being Ready", func(ctx context.Context) (err error) {
		if node, err = s.kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", node.Status.Conditions)
	})
	return node
}

// restart stops and starts atoll, and waits until all its parts work again: the node object may say Ready all the time.
func restart(t *testing.T, n *lab.Node) {
	t.Helper()
	must(t, n.Restart(within(t, 60*time.Second, "restarting "+n.Name())))
	working(t, n)
}

// working waits until a node that was started is Ready and healthy.
func working(t *testing.T, n *lab.Node) status.Report {
	t.Helper()
	must(t, n.WaitReady(within(t, settle, n.Name()+" becoming Ready")))
	return healthy(t, n)
}

// get fetches a URL from the host over a connection of its own.
func get(ctx context.Context, url string) (string, error) {
	return fetch(ctx, (&net.Dialer{}).DialContext, url)
}

// getOn fetches a URL as a program on the node would.
func getOn(ctx context.Context, n *lab.Node, url string) (string, error) {
	return fetch(ctx, n.Dial, url)
}

func fetch(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: dial}
	resp, err := (&http.Client{Transport: transport, Timeout: 15 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return string(body), err
}
