package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/knftables"

	"github.com/atollhq/atoll/pkg/network/policy"
	"github.com/atollhq/atoll/pkg/network/policy/cniplugin"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
)

// cluster is a Controller for n1 on the world, with a fake API and a fake table.
type cluster struct {
	*world
	t        *testing.T
	api      *fake.Clientset
	nft      *counting           // the fake table, or
	table    knftables.Interface // any table
	socket   string
	patience time.Duration // of the plugin
	ready    chan struct{}
	stop     func() error // stops the controller and waits
}

// counting is a fake table that counts transactions and can be told to fail.
type counting struct {
	*knftables.Fake
	mu           sync.Mutex
	transactions int
	failures     int
}

func (c *counting) Run(ctx context.Context, tx *knftables.Transaction) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.transactions++
	if c.failures > 0 {
		c.failures--
		return errors.New("no memory")
	}
	return c.Fake.Run(ctx, tx)
}

func (c *counting) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.transactions
}

func (c *counting) failNext(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = n
}

func newCluster(t *testing.T, docs ...string) *cluster {
	t.Helper()
	c := &cluster{world: newWorld(), t: t, socket: filepath.Join(t.TempDir(), "policy.sock")}
	c.nft = &counting{Fake: knftables.NewFake(knftables.InetFamily, policy.TableName)}
	c.table = c.nft
	objects := []runtime.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.1.0/24"}}}}
	for _, p := range c.pods {
		objects = append(objects, p)
	}
	for _, n := range c.namespaces {
		objects = append(objects, n)
	}
	for _, p := range parse(t, docs...) {
		objects = append(objects, p)
	}
	c.api = fake.NewClientset(objects...)
	c.start()
	return c
}

// start runs a new Controller on the same API and table.
func (c *cluster) start() {
	c.t.Helper()
	factory := informers.NewSharedInformerFactory(c.api, 0)
	var component run.Component = policy.New(policy.Config{
		NodeName: "n1", Factory: factory, Builtins: []policy.Builtin{policy.DNS(dnsAddr)}, Socket: c.socket,
		NFT: func() (knftables.Interface, error) { return c.table, nil },
	})
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	c.ready = make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- component.Run(ctx, func() { close(c.ready) }) }()
	c.stop = sync.OnceValue(func() error {
		cancel()
		factory.Shutdown()
		return <-done
	})
	c.t.Cleanup(func() { _ = c.stop() })
	select {
	case <-c.ready:
	case err := <-done:
		c.t.Fatalf("ended before it was ready: %v", err)
	case <-time.After(10 * time.Second):
		c.t.Fatal("not ready within 10 s")
	}
}

// within waits until ok, and returns how long that took.
func (c *cluster) within(d time.Duration, what string, ok func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(began) > d {
			c.t.Fatalf("%s: not within %s\n%s", what, d, c.nft.Dump())
		}
		<-tick.C
	}
	return time.Since(began)
}

func (c *cluster) has(words string) func() bool {
	return func() bool { return strings.Contains(c.nft.Dump(), words) }
}

func (c *cluster) hasNot(words string) func() bool {
	return func() bool { return !strings.Contains(c.nft.Dump(), words) }
}

func (c *cluster) addPolicy(doc string) {
	c.t.Helper()
	p := parse(c.t, doc)[0]
	if _, err := c.api.NetworkingV1().NetworkPolicies(p.Namespace).Create(c.t.Context(), p, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) addPod(p *corev1.Pod) {
	c.t.Helper()
	if _, err := c.api.CoreV1().Pods(p.Namespace).Create(c.t.Context(), p, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// TestFollowsTheCluster: each kind of change arrives in the table within a second.
func TestFollowsTheCluster(t *testing.T) {
	c := newCluster(t)
	if c.nft.Table != nil {
		t.Error("a table without policies")
	}
	ctx := t.Context()
	took := map[string]time.Duration{}

	c.addPolicy(denyX)
	took["policy"] = c.within(time.Second, "policy", c.has("10.42.1.11 : goto pod/x/a/in"))
	c.addPolicy("x/in\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]")
	c.within(time.Second, "second policy", c.has("10.42.2.22 comment \"y/b\""))

	c.addPod(pod("y", "new", "n2", "10.42.2.99"))
	took["peer"] = c.within(time.Second, "peer", c.has("10.42.2.99 comment \"y/new\""))
	if err := c.api.CoreV1().Pods("y").Delete(ctx, "new", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.within(time.Second, "peer gone", c.hasNot("10.42.2.99"))

	ns := namespace("z")
	ns.Labels["team"] = "y"
	if _, err := c.api.CoreV1().Namespaces().Update(ctx, ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	took["namespace"] = c.within(time.Second, "namespace", c.has("comment \"z/a\""))

	waiting := pod("x", "starting", "n1")
	c.addPod(waiting)
	c.within(time.Second, "hold", c.has("hold-in ip daddr { 10.42.1.0/24 }"))
	waiting = waiting.DeepCopy()
	waiting.Status.PodIPs = []corev1.PodIP{{IP: "10.42.1.80"}}
	if _, err := c.api.CoreV1().Pods("x").UpdateStatus(ctx, waiting, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	took["address"] = c.within(time.Second, "address", c.has("10.42.1.80 : goto pod/x/starting/in"))
	c.within(time.Second, "hold over", c.hasNot("hold-in ip daddr"))

	for _, name := range []string{"deny", "in"} {
		if err := c.api.NetworkingV1().NetworkPolicies("x").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	took["end"] = c.within(time.Second, "no policy", func() bool { c.nft.RLock(); defer c.nft.RUnlock(); return c.nft.Table == nil })
	t.Log(took)
	if err := c.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestBursts: many changes at once cost few transactions; changes that cannot matter cost none.
func TestBursts(t *testing.T) {
	c := newCluster(t, denyX, "x/in\npodSelector: {}\ningress: [{from: [{namespaceSelector: {}}]}]")
	before, began := c.nft.count(), time.Now()
	for i := range 100 {
		c.addPod(pod("y", fmt.Sprintf("many-%d", i), "n2", fmt.Sprintf("10.42.2.%d", 100+i)))
	}
	c.within(10*time.Second, "all pods", c.has("10.42.2.199 comment"))
	if n, most := c.nft.count()-before, 2+int(time.Since(began)/(100*time.Millisecond)); n > most {
		t.Errorf("%d transactions for a burst of 100 pods, want at most %d: one in 100 ms", n, most)
	}
	before = c.nft.count()
	for i := range 50 {
		p := pod("y", "many-0", "n2", "10.42.2.100")
		p.Status.Message = fmt.Sprint(i)
		if _, err := c.api.CoreV1().Pods("y").UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.addPod(pod("y", "after", "n2", "10.42.2.250"))
	c.within(10*time.Second, "pod after", c.has("10.42.2.250 comment"))
	if n := c.nft.count() - before; n > 1 {
		t.Errorf("%d transactions, only one change mattered", n)
	}
}

// TestRestart: rules stay when the controller stops, and the next one brings them up to date.
func TestRestart(t *testing.T) {
	c := newCluster(t, denyX)
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if !c.has("10.42.1.11 : goto pod/x/a/in")() {
		t.Fatal("the rules went away with the process")
	}
	if err := c.api.CoreV1().Pods("x").Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.addPod(pod("x", "other", "n1", "10.42.1.90"))
	c.start()
	if !c.has("10.42.1.90 : goto pod/x/other/in")() || c.has("10.42.1.11 : goto")() {
		t.Errorf("ready before the table was up to date:\n%s", c.nft.Dump())
	}
	c.within(5*time.Second, "leftover chain", c.hasNot("chain inet atoll-policy pod/x/a/in"))

	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also when there is nothing to remove
		if err := policy.Remove(t.Context(), func() (knftables.Interface, error) { return c.nft, nil }); err != nil {
			t.Fatal(err)
		}
		if c.nft.Table != nil {
			t.Error("the table is still there")
		}
	}
}

// TestWritingFails: at the start it is an error, later it is tried again until it works.
func TestWritingFails(t *testing.T) {
	c := newCluster(t, denyX)
	c.nft.failNext(2)
	c.addPod(pod("x", "new", "n1", "10.42.1.90"))
	c.within(10*time.Second, "after two failures", c.has("10.42.1.90 : goto pod/x/new/in"))

	factory := informers.NewSharedInformerFactory(c.api, 0)
	broken := &counting{Fake: knftables.NewFake(knftables.InetFamily, policy.TableName), failures: 9}
	component := policy.New(policy.Config{NodeName: "n1", Factory: factory, NFT: func() (knftables.Interface, error) { return broken, nil }})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	factory.Start(ctx.Done())
	if err := component.Run(ctx, func() { t.Error("ready without rules") }); err == nil {
		t.Error("no error")
	}
}

// TestNoNFT: without nftables the error says what to do.
func TestNoNFT(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	component := policy.New(policy.Config{NodeName: "n1", Factory: informers.NewSharedInformerFactory(fake.NewClientset(), 0)})
	err := component.Run(t.Context(), func() {})
	if err == nil || !strings.Contains(remedy.Of(err), "--disable-network-policy") {
		t.Errorf("error %v, remedy %q", err, remedy.Of(err))
	}
}

// plugin runs the CNI plugin as containerd would.
func (c *cluster) plugin(command, podName, uid, sandbox string, addrs ...string) (code int, out string) {
	ns, name, _ := strings.Cut(podName, "/")
	env := map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": sandbox,
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + ns + ";K8S_POD_NAME=" + name + ";K8S_POD_UID=" + uid,
	}
	type ip struct {
		Address string `json:"address"`
	}
	prev := map[string]any{"cniVersion": "1.0.0", "ips": []ip{}}
	for _, a := range addrs {
		prev["ips"] = append(prev["ips"].([]ip), ip{a})
	}
	conf, _ := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "pods", "type": "atoll-policy", "socket": c.socket, "prevResult": prev})
	var stdout bytes.Buffer
	code = cniplugin.Main(func(k string) string { return env[k] }, bytes.NewReader(conf), &stdout, c.patience)
	return code, stdout.String()
}

// TestAttach: when the plugin returns, the rules of the pod are in force, long before its status tells the address.
func TestAttach(t *testing.T) {
	c := newCluster(t, denyX)
	c.addPod(pod("x", "starting", "n1"))
	code, out := c.plugin("ADD", "x/starting", "x-starting", "box1", "10.42.1.70/24", "fd42::70/64")
	if code != 0 || !strings.Contains(out, "10.42.1.70/24") {
		t.Fatalf("exit %d, %s", code, out)
	}
	if !c.has("10.42.1.70 : goto pod/x/starting/in")() || !c.has("fd42::70 : goto pod/x/starting/out")() {
		t.Fatalf("the plugin returned before the rules were there:\n%s", c.nft.Dump())
	}
	// Another sandbox of the pod takes over, then the first is reported as gone.
	if code, out := c.plugin("ADD", "x/starting", "x-starting", "box2", "10.42.1.71/24"); code != 0 {
		t.Fatalf("exit %d, %s", code, out)
	}
	if code, _ := c.plugin("DEL", "x/starting", "x-starting", "box1"); code != 0 {
		t.Fatal("DEL must not fail")
	}
	if !c.has("10.42.1.71 : goto pod/x/starting/in")() || c.has("10.42.1.70")() {
		t.Fatalf("the second sandbox is not the one that counts:\n%s", c.nft.Dump())
	}
	if code, _ := c.plugin("DEL", "x/starting", "x-starting", "box2"); code != 0 {
		t.Fatal("DEL must not fail")
	}
	c.within(time.Second, "gone", c.hasNot("10.42.1.71"))
}

// TestAttachOfAnUnknownPod: the cache may be behind. The plugin waits for the pod where policies may apply to it, not elsewhere.
func TestAttachOfAnUnknownPod(t *testing.T) {
	c := newCluster(t, denyX)
	if code, out := c.plugin("ADD", "y/unheard", "uid", "box0", "10.42.1.73/24"); code != 0 {
		t.Fatalf("no policy in y: exit %d, %s", code, out)
	}
	type result struct {
		code int
		out  string
	}
	done := make(chan result, 1)
	go func() {
		code, out := c.plugin("ADD", "x/late", "uid-of-file", "box1", "10.42.1.72/24")
		done <- result{code, out}
	}()
	select {
	case r := <-done:
		t.Fatalf("returned for a pod that nobody knows: %+v", r)
	case <-time.After(200 * time.Millisecond):
	}
	static := pod("x", "late", "n1")
	static.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "uid-of-file"} // kubelet's name for a static pod
	c.addPod(static)
	if r := <-done; r.code != 0 {
		t.Fatalf("exit %d: %s", r.code, r.out)
	}
	if !c.has("10.42.1.72 : goto pod/x/late/in")() {
		t.Errorf("no rules:\n%s", c.nft.Dump())
	}
	// A deleted pod is forgotten although nobody reported its sandbox.
	if err := c.api.CoreV1().Pods("x").Delete(t.Context(), "late", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.within(time.Second, "gone", c.hasNot("10.42.1.72"))
}

// TestPluginIsFirst: while a node comes up the plugin may be called before the controller listens. It waits.
func TestPluginIsFirst(t *testing.T) {
	c := newCluster(t, denyX)
	c.addPod(pod("x", "starting", "n1"))
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	c.patience = time.Minute
	done := make(chan string, 1)
	go func() {
		_, out := c.plugin("ADD", "x/starting", "x-starting", "box1", "10.42.1.70/24")
		done <- out
	}()
	select {
	case out := <-done:
		t.Fatalf("the plugin did not wait: %s", out)
	case <-time.After(100 * time.Millisecond):
	}
	c.start()
	if out := <-done; !strings.Contains(out, "10.42.1.70/24") {
		t.Fatal(out)
	}
	if !c.has("10.42.1.70 : goto pod/x/starting/in")() {
		t.Errorf("no rules:\n%s", c.nft.Dump())
	}
}

// TestPluginAlone: the plugin without a controller, and with odd input.
func TestPluginAlone(t *testing.T) {
	c := &cluster{t: t, socket: filepath.Join(t.TempDir(), "nobody.sock")}
	for _, row := range []struct {
		command string
		code    int
		words   string
	}{
		{"VERSION", 0, `"1.0.0"`},
		{"ADD", 1, "reach the policy controller"},
		{"DEL", 0, ""},
		{"CHECK", 0, ""},
		{"DANCE", 1, "DANCE"},
	} {
		code, out := c.plugin(row.command, "x/a", "", "box", "10.42.1.1/24")
		if code != row.code || !strings.Contains(out, row.words) {
			t.Errorf("%s: exit %d, %q", row.command, code, out)
		}
		if code != 0 {
			var e struct {
				CNIVersion string
				Code       int
				Msg        string
			}
			if err := json.Unmarshal([]byte(out), &e); err != nil || e.Code == 0 || e.Msg == "" {
				t.Errorf("%s: not an error as CNI wants it: %q", row.command, out)
			}
		}
	}
	var out bytes.Buffer
	if code := cniplugin.Main(func(string) string { return "ADD" }, strings.NewReader("{"), &out, 0); code != 1 {
		t.Errorf("broken configuration: exit %d", code)
	}
}
