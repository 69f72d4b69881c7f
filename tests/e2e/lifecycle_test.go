package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/pkg/status"
	"github.com/atollhq/atoll/tests/lab"
)

// box is a site of one box with an app that should not notice what happens to atoll.
type box struct {
	*site
	app string // its namespace: the Deployment hello with two replicas, and the pod keeper with a claim
}

const settle = 90 * time.Second // from a start to Ready, on an idle machine, with much to spare

// TestLifecycle: whatever ends atoll or the box, starting it again is all that is ever needed, and pods notice as little as possible.
func TestLifecycle(t *testing.T) {
	l := newLab(t, lab.Options{})
	b := &box{site: &site{lab: l, n1: l.Site(1).Node(1)}, app: "shop"}
	inOrder(t, b, []step[*box]{
		{"an empty disk becomes a Ready node that runs an app", firstStart},
		{"SIGTERM ends it within 20 s, pods run on and answer", stopLeavesPods},
		{"a restart restarts no container", restartKeepsContainers},
		{"a process that was paused goes on", paused},
		{"lost leases end nothing: it leads again and the controllers work", leasesLost},
		{"--disable takes parts away, and gives them back", disable},
		{"killed at any instant, a start is all it needs", killedAtRandom},
		{"after a power cut pods run again with their data", powerCut},
		{"power cuts during the start do no harm", powerCutsDuringStart},
		{"without a default route it works and says so", noDefaultRoute},
		{"damaged carried programs on disk are repaired", damagedPrograms},
		{"a damaged database ends the start in words; the good one put back, all is there", damagedDatabase},
		{"killed during its first start, a start is all it needs", firstStartKilled},
		{"no node wrote anything that looks like a crash", func(t *testing.T, b *box) { noCrash(t, b.n1) }},
	})
}

func (b *box) up(t *testing.T) {
	t.Helper()
	must(t, b.n1.Start(within(t, 30*time.Second, "starting")))
	working(t, b.n1)
}

func firstStart(t *testing.T, b *box) {
	began := time.Now()
	b.up(t)
	t.Logf("Ready %s after the start", time.Since(began).Round(10*time.Millisecond))
	b.connect(t)
	b.deploy(t)
	healthy(t, b.n1)
}

// deploy makes the app. Its namespace stays: it is there for all steps.
func (b *box) deploy(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, "making the namespace", func(ctx context.Context) error {
		_, err := b.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b.app}}, metav1.CreateOptions{})
		return err
	})
	eventually(t, 30*time.Second, "the service account", func(ctx context.Context) error {
		_, err := b.kube.CoreV1().ServiceAccounts(b.app).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	b.apply(t, b.app, claimYAML+`
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      containers:
        - name: main
          image: registry.atoll.test/hello:1
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  type: NodePort
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kept}
data: {since: the first start}
`)
	b.start(t, b.app, tool("keeper", claim("/data", "data")))
	b.inPod(t, b.app, "keeper", "tool", "write", "/data/receipt", "paid 12.50")
	b.readyPods(t, b.app, "hello", 2)
}

// containers returns the running containers of the app by pod.
func (b *box) containers(t *testing.T, replicas int) map[string]string {
	t.Helper()
	out := map[string]string{"keeper": containerOf(b.waitReady(t, b.app, "keeper"))}
	for _, p := range b.readyPods(t, b.app, "hello", replicas) {
		out[p.Name] = containerOf(&p)
	}
	return out
}

// wantApp checks that nothing of the app was lost.
func (b *box) wantApp(t *testing.T, replicas int) {
	t.Helper()
	b.readyPods(t, b.app, "hello", replicas)
	b.waitReady(t, b.app, "keeper")
	eventually(t, 30*time.Second, "reading the volume", func(ctx context.Context) error {
		got, err := b.exec(ctx, b.app, "keeper", "tool", "cat", "/data/receipt") // refused until the kubelet has heard of the pod
		if err == nil && got != "paid 12.50" {
			err = errFinal{fmt.Errorf("the volume holds %q", got)}
		}
		return err
	})
	c, err := b.kube.CoreV1().ConfigMaps(b.app).Get(within(t, 10*time.Second, "reading"), "kept", metav1.GetOptions{})
	if err != nil || c.Data["since"] != "the first start" {
		t.Errorf("the ConfigMap: %v, %v", c, err)
	}
	eventually(t, 30*time.Second, "the app answering from outside", func(ctx context.Context) error {
		_, err := get(ctx, "http://"+b.n1.Address().String()+":30080/")
		return err
	})
}

// wantSame compares containers of before and after. A pod that was not there before is no business of this check.
func wantSame(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, was := range before {
		if after[name] != was {
			t.Errorf("container of %s was %s, is %s", name, was, after[name])
		}
	}
}

// shims counts the processes that keep containers.
func shims(t *testing.T, n *lab.Node) int {
	t.Helper()
	pids, err := n.Processes()
	must(t, err)
	count := 0
	for _, pid := range pids {
		if text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")); err == nil && strings.Contains(string(text), "containerd-shim-runc-v2") {
			count++
		}
	}
	return count
}

func stopLeavesPods(t *testing.T, b *box) {
	before, kept := b.containers(t, 2), shims(t, b.n1)
	if kept < 3 {
		t.Fatalf("%d shims for three pods", kept)
	}
	began := time.Now()
	must(t, b.n1.Stop(within(t, 30*time.Second, "stopping")))
	took := time.Since(began)
	t.Logf("stopped after %s", took.Round(10*time.Millisecond))
	if took > 20*time.Second {
		t.Errorf("it took %s to stop, want at most 20 s", took)
	}
	if s, err := b.n1.Status(t.Context()); err != nil || s.State != lab.StateStopped || s.Exit != 0 {
		t.Errorf("after SIGTERM: %+v, %v; want exit code 0", s, err)
	}
	if now := shims(t, b.n1); now != kept {
		t.Errorf("%d shims before, %d after the stop", kept, now)
	}
	for range 10 { // over the NodePort, so the rules for services are there too
		if text, err := get(within(t, 10*time.Second, "asking the app"), "http://"+b.n1.Address().String()+":30080/"); err != nil || !strings.HasPrefix(text, "hello from ") {
			t.Errorf("without atoll the app answers %q, %v", text, err)
		}
	}
	b.up(t)
	wantSame(t, before, b.containers(t, 2))
	b.wantApp(t, 2)
}

func restartKeepsContainers(t *testing.T, b *box) {
	before := b.containers(t, 2)
	began := time.Now()
	restart(t, b.n1)
	t.Logf("stopped, started and healthy %s later", time.Since(began).Round(10*time.Millisecond))
	b.replicas(t, 3) // the controllers, the scheduler and the kubelet have seen the present
	wantSame(t, before, b.containers(t, 3))
	b.replicas(t, 2)
}

// replicas scales the Deployment and waits for it: a check that everything from the API to the containers works.
func (b *box) replicas(t *testing.T, count int) {
	t.Helper()
	eventually(t, 30*time.Second, "scaling", func(ctx context.Context) error {
		scale, err := b.kube.AppsV1().Deployments(b.app).GetScale(ctx, "hello", metav1.GetOptions{})
		if err != nil {
			return err
		}
		scale.Spec.Replicas = int32(count) //nolint:gosec // two or three
		_, err = b.kube.AppsV1().Deployments(b.app).UpdateScale(ctx, "hello", scale, metav1.UpdateOptions{})
		return err
	})
	b.readyPods(t, b.app, "hello", count)
}

func paused(t *testing.T, b *box) {
	pause := 20 * time.Second
	if os.Getenv(envSoak) != "" {
		pause = time.Minute
	}
	before, containers := mustStatus(t, b.n1), b.containers(t, 2)
	must(t, b.n1.Signal(t.Context(), unix.SIGSTOP))
	<-time.After(pause) // this is what happens to it, not a wait for something
	must(t, b.n1.Signal(t.Context(), unix.SIGCONT))
	b.replicas(t, 3)
	b.replicas(t, 2)
	if after := mustStatus(t, b.n1); after.PID != before.PID || after.State != lab.StateRunning {
		t.Errorf("before the pause %+v, after it %+v", before, after)
	}
	wantSame(t, containers, b.containers(t, 2))
	healthy(t, b.n1)
}

// leasesLost takes the leases away, as another server does after this one was silent for too long.
func leasesLost(t *testing.T, b *box) {
	before := mustStatus(t, b.n1)
	led := func() (began, ended int) {
		log, err := b.n1.Logs()
		must(t, err)
		return strings.Count(log, "msg=leading "), strings.Count(log, `msg="no longer leading"`)
	}
	began, ended := led()
	leases := b.kube.CoordinationV1().Leases("kube-system")
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		eventually(t, 20*time.Second, "taking the lease "+name, func(ctx context.Context) error {
			lease, err := leases.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			now := metav1.NowMicro()
			lease.Spec.HolderIdentity, lease.Spec.AcquireTime, lease.Spec.RenewTime = new("somebody-else"), &now, &now
			_, err = leases.Update(ctx, lease, metav1.UpdateOptions{}) // fails when the holder was faster
			return err
		})
	}
	eventually(t, 60*time.Second, "both leases being lost and led again", func(context.Context) error {
		if b, e := led(); b < began+2 || e < ended+2 {
			return fmt.Errorf("begun %d times, ended %d times since", b-began, e-ended)
		}
		return nil
	})
	b.replicas(t, 3)
	b.replicas(t, 2)
	if after := mustStatus(t, b.n1); after.PID != before.PID || after.State != lab.StateRunning {
		t.Errorf("before %+v, after %+v", before, after)
	}
	healthy(t, b.n1)
}

func mustStatus(t *testing.T, n *lab.Node) lab.Status {
	t.Helper()
	s, err := n.Status(t.Context())
	must(t, err)
	return s
}

func disable(t *testing.T, b *box) {
	class := func(ctx context.Context) error {
		_, err := b.kube.StorageV1().StorageClasses().Get(ctx, "local-path", metav1.GetOptions{})
		return err
	}
	metrics := func(ctx context.Context) error {
		return b.kube.CoreV1().RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes").Do(ctx).Error()
	}
	eventually(t, 60*time.Second, "the metrics API being there before", metrics)
	must(t, class(within(t, 10*time.Second, "reading the StorageClass")))

	must(t, b.n1.WriteFile("/etc/atoll/config.yaml", []byte("disable: [metrics-server]\ndisable+: [local-storage]\n"), 0o600))
	restart(t, b.n1)
	for name, look := range map[string]func(context.Context) error{"StorageClass": class, "metrics API": metrics} {
		eventually(t, 60*time.Second, name+" being taken away", func(ctx context.Context) error {
			err := look(ctx)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, errors.New("it is still there"))
		})
	}
	if r := healthy(t, b.n1); slices.ContainsFunc(r.Problems, func(p status.Problem) bool { return p.Severity != status.Note }) {
		t.Errorf("problems because of what was asked for: %+v", r.Problems)
	}
	b.wantApp(t, 2) // its volume is not the class's business any more

	onNode(t, b.n1, "rm", "/etc/atoll/config.yaml")
	restart(t, b.n1)
	eventually(t, 60*time.Second, "the StorageClass being back", class)
	eventually(t, 90*time.Second, "the metrics API being back", metrics)
}

// seeded prints what is needed to see the same instants again.
func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number will do
	if text := os.Getenv("ATOLL_E2E_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("ATOLL_E2E_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not a secret
}

func rounds(normal, soak int) int {
	if os.Getenv(envSoak) != "" {
		return soak
	}
	return normal
}

func killedAtRandom(t *testing.T, b *box) {
	random := seeded(t)
	before := b.containers(t, 2)
	for i := range rounds(4, 100) {
		after := time.Duration(random.Int64N(int64(6 * time.Second)))
		<-time.After(after) // the instant
		must(t, b.n1.Signal(t.Context(), unix.SIGKILL))
		_, err := b.n1.WaitExit(within(t, 30*time.Second, "end of the process"))
		must(t, err)
		t.Logf("kill %d after %s", i+1, after.Round(time.Millisecond))
		must(t, b.n1.Start(within(t, 30*time.Second, "starting")))
	}
	working(t, b.n1)
	b.replicas(t, 3)
	wantSame(t, before, b.containers(t, 3))
	b.replicas(t, 2)
	b.wantApp(t, 2)
	healthy(t, b.n1)
}

func powerCut(t *testing.T, b *box) {
	must(t, b.n1.Kill(within(t, 60*time.Second, "cutting the power")))
	began := time.Now()
	b.up(t)
	b.wantApp(t, 2)
	t.Logf("the app runs %s after power is back", time.Since(began).Round(10*time.Millisecond))
	b.replicas(t, 3)
	b.replicas(t, 2)
	healthy(t, b.n1)
}

func powerCutsDuringStart(t *testing.T, b *box) {
	random := seeded(t)
	for i := range rounds(2, 100) {
		must(t, b.n1.Kill(within(t, 60*time.Second, "cutting the power")))
		must(t, b.n1.Start(within(t, 30*time.Second, "starting")))
		after := time.Duration(random.Int64N(int64(8 * time.Second)))
		<-time.After(after) // the instant
		t.Logf("cut %d after %s", i+1, after.Round(time.Millisecond))
	}
	must(t, b.n1.Kill(within(t, 60*time.Second, "cutting the power")))
	b.up(t)
	b.wantApp(t, 2)
	healthy(t, b.n1)
}

func noDefaultRoute(t *testing.T, b *box) {
	must(t, b.n1.Kill(within(t, 60*time.Second, "cutting the power")))
	must(t, b.n1.PowerOn(within(t, 30*time.Second, "powering on")))
	onNode(t, b.n1, "ip", "route", "del", "default")
	must(t, b.n1.Start(within(t, 30*time.Second, "starting")))
	working(t, b.n1)
	eventually(t, 30*time.Second, "status telling about the route", func(ctx context.Context) error {
		return reportMentions(ctx, b.n1, "no default route")
	})
	r := healthy(t, b.n1)
	if r.Address != b.n1.Address().String() {
		t.Errorf("the node took the address %s, want %s", r.Address, b.n1.Address())
	}
	// The host is behind the route that is gone, so the app is asked from the node.
	eventually(t, settle, "the app answering", func(ctx context.Context) error {
		_, err := getOn(ctx, b.n1, "http://"+b.n1.Address().String()+":30080/")
		return err
	})
	must(t, b.n1.Kill(within(t, 60*time.Second, "cutting the power")))
	b.up(t)
	b.wantApp(t, 2)
}

func damagedPrograms(t *testing.T, b *box) {
	find := func() string {
		return strings.TrimSpace(onNode(t, b.n1, "find", dataDir+"/data", "-name", "runc", "-size", "+1k"))
	}
	runc := find()
	sum := onNode(t, b.n1, "sha256sum", runc)
	must(t, b.n1.Stop(within(t, 40*time.Second, "stopping")))
	onNode(t, b.n1, "sh", "-c", `printf damaged | dd of="$0" bs=1 seek=100000 conv=notrunc`, runc)
	if onNode(t, b.n1, "sha256sum", runc) == sum {
		t.Fatal("the file is not damaged: this test could not fail")
	}
	b.up(t)
	if now := onNode(t, b.n1, "sha256sum", find()); strings.Fields(now)[0] != strings.Fields(sum)[0] {
		t.Errorf("runc is %s, was %s", now, sum)
	}
	log, err := b.n1.Logs()
	must(t, err)
	wantContains(t, "log", log[max(0, len(log)-100_000):], "carried programs on disk are damaged, unpacking them again")
	b.replicas(t, 3) // needs runc
	b.replicas(t, 2)
}

func damagedDatabase(t *testing.T, b *box) {
	const folder = dataDir + "/server/db"
	before := b.containers(t, 2)
	must(t, b.n1.Stop(within(t, 40*time.Second, "stopping")))
	onNode(t, b.n1, "cp", "-a", folder, "/var/lib/rescue")
	onNode(t, b.n1, "sh", "-c", "dd if=/dev/urandom of="+folder+"/state.db bs=4096 seek=3 count=40 conv=notrunc && rm -f "+folder+"/state.db-*")
	damaged := onNode(t, b.n1, "sha256sum", folder+"/state.db")
	must(t, b.n1.Start(within(t, 30*time.Second, "starting")))
	code, err := b.n1.WaitExit(within(t, 60*time.Second, "end of the start"))
	must(t, err)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	log, err := b.n1.Logs()
	must(t, err)
	wantContains(t, "log", log[max(0, len(log)-20_000):], "Error: start server: datastore: the datastore file is damaged", "Try:   copy "+folder+" aside")
	if now := onNode(t, b.n1, "sha256sum", folder+"/state.db"); now != damaged {
		t.Error("the damaged file was changed: nothing may be lost that could be rescued")
	}
	t.Run("the copy put back", func(t *testing.T) {
		onNode(t, b.n1, "sh", "-c", "rm -r "+folder+" && cp -a /var/lib/rescue "+folder)
		b.up(t)
		wantSame(t, before, b.containers(t, 2))
		b.wantApp(t, 2)
	})
}

func firstStartKilled(t *testing.T, b *box) {
	random := seeded(t)
	must(t, b.n1.Blank(within(t, 60*time.Second, "a new disk")))
	for i := range rounds(4, 100) {
		must(t, b.n1.Start(within(t, 30*time.Second, "starting")))
		after := time.Duration(random.Int64N(int64(time.Duration(i+1) * 1500 * time.Millisecond)))
		<-time.After(after) // the instant
		must(t, b.n1.Signal(t.Context(), unix.SIGKILL))
		_, err := b.n1.WaitExit(within(t, 30*time.Second, "end of the process"))
		must(t, err)
		t.Logf("kill %d after %s", i+1, after.Round(time.Millisecond))
	}
	b.up(t)
	b.connect(t)
	b.deploy(t)
	b.wantApp(t, 2)
	healthy(t, b.n1)
	for _, c := range certificates(t, b.n1) {
		if c.Error != "" {
			t.Error(c)
		}
	}
}
