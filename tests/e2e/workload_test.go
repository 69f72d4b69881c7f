package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/tests/lab"
)

// workloads is a site of a server and an agent that runs what people run. A third box is off until the end.
type workloads struct {
	*site
	n2, n3 *lab.Node

	apps string // a namespace with the Deployment hello, four replicas over both nodes, and a pod tool-n1, tool-n2 on each

	before map[string]pki.Info // certificates when rotation was asked for, by node and name, or by address
	asked  map[string]int      // atoll's process then, by node
}

// TestWorkloads: everything that a Kubernetes cluster does for an app works on two boxes with nothing but a kernel.
func TestWorkloads(t *testing.T) {
	l := newLab(t, lab.Options{
		Nodes: 3, ServerArgs: []string{"--node-label", "shop.example/place=front"},
		AgentArgs: []string{"--node-label", "shop.example/place=back", "--node-label", "shop.example/till=1,shop.example/scale=2"},
	})
	w := &workloads{site: &site{lab: l, n1: l.Site(1).Node(1)}, n2: l.Site(1).Node(2), n3: l.Site(1).Node(3)}
	for _, n := range []*lab.Node{w.n1, w.n2} {
		must(t, n.Start(within(t, 30*time.Second, "starting "+n.Name())))
		working(t, n)
	}
	w.connect(t)
	w.apps = w.namespaceNamed(t, "apps", nil)

	inOrder(t, w, []step[*workloads]{
		{"nodes carry the labels they were given", nodeLabels},
		{"a CronJob is made, its first Job is looked for at the end", makeCronJob},
		{"certificates are good and told to rotate, new ones are looked for later", askForRotation},
		{"a Deployment runs on both nodes and counts only ready pods", deployment},
		{"a ClusterIP reaches every replica from pods and nodes", clusterIP},
		{"a NodePort answers on every node from outside", nodePort},
		{"a LoadBalancer gets the nodes' addresses and answers on them from outside", loadBalancer},
		{"pods reach pods of another node and keep their address", podToPod},
		{"DNS knows services, pods and headless services", dnsNames},
		{"DNS fails fast for names outside when there is no upstream", dnsOutside},
		{"ConfigMaps and Secrets arrive as files and variables", configuration},
		{"logs", logs},
		{"exec, with standard input", execWithInput},
		{"cp, both ways", copyFiles},
		{"port-forward", portForward},
		{"top of nodes and pods", top},
		{"certificates were replaced while everything went on", rotated},
		{"a claim gets a volume whose data outlives pods and a restart of atoll", claimedVolume},
		{"NetworkPolicy: ingress by pod label and port", policyIngress},
		{"NetworkPolicy: ingress by namespace", policyNamespace},
		{"NetworkPolicy: no egress but DNS", policyEgress},
		{"a memory limit ends the container", memoryLimit},
		{"a CPU limit slows the container down", cpuLimit},
		{"a rolling update loses no request", rollingUpdate},
		{"a Job runs to its end", job},
		{"Secrets are encrypted on disk, ConfigMaps are not", encryptedAtRest},
		{"Pod Security refuses a privileged pod unless the namespace allows it", podSecurity},
		{"server/manifests: applied, changed, pruned", manifestsFolder},
		{"agent/images: archives are loaded and pinned, a truncated one is told about", imagesFolder},
		{"status, in words and as JSON", statusOfNodes},
		{"tokens: a wrong, a deleted and an expired one are refused in words, a good one joins", tokens},
		{"the audit log says who made what", auditLog},
		{"the CronJob has run", cronJobRan},
		{"kube-system held no pod and nothing was pulled", nothingPulled},
		{"no node wrote anything that looks like a crash", func(t *testing.T, w *workloads) { noCrash(t, w.n1, w.n2, w.n3) }},
	})
}

func noCrash(t *testing.T, nodes ...*lab.Node) {
	for _, n := range nodes {
		text, err := n.Logs()
		must(t, err)
		wantNoPanic(t, text)
	}
}

func nodeLabels(t *testing.T, w *workloads) {
	for name, want := range map[string]map[string]string{
		"n1": {"shop.example/place": "front", "node-role.kubernetes.io/control-plane": "true"},
		"n2": {"shop.example/place": "back", "shop.example/till": "1", "shop.example/scale": "2"},
	} {
		node := w.nodeReady(t, name)
		for key, value := range want {
			if node.Labels[key] != value {
				t.Errorf("%s: label %s is %q, want %q", name, key, node.Labels[key], value)
			}
		}
		if _, server := node.Labels["node-role.kubernetes.io/control-plane"]; server != (name == "n1") {
			t.Errorf("%s: marked as server: %v", name, server)
		}
	}
}

const helloDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 4
  selector: {matchLabels: {app: hello}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 2}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: hello}}}
      containers:
        - name: main
          image: registry.atoll.test/hello:1
          env: [{name: READY_AFTER, value: 2s}, {name: GRACE, value: 8s}, {name: VERSION, value: "1"}]
          ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
          resources: {requests: {cpu: 10m, memory: 16Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: hello-headless}
spec:
  clusterIP: None
  selector: {app: hello}
  ports: [{port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: hello-nodeport}
spec:
  type: NodePort
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

func deployment(t *testing.T, w *workloads) {
	w.apply(t, w.apps, helloDeployment)
	w.start(t, w.apps, tool("tool-n1", onto("n1")), tool("tool-n2", onto("n2")))
	pods := w.readyPods(t, w.apps, "hello", 4)
	count := map[string]int{}
	for _, p := range pods {
		count[p.Spec.NodeName]++
		started := p.Status.ContainerStatuses[0].State.Running.StartedAt
		for _, c := range p.Status.Conditions {
			// Times are whole seconds, cut off.
			if c.Type == corev1.PodReady && c.LastTransitionTime.Sub(started.Time) < time.Second {
				t.Errorf("%s was Ready %s after its start, although it answers its probe only after 2 s", p.Name, c.LastTransitionTime.Sub(started.Time))
			}
		}
	}
	if count["n1"] != 2 || count["n2"] != 2 {
		t.Errorf("pods per node: %v, want two each", count)
	}
	eventually(t, 20*time.Second, "the Deployment counting its pods", func(ctx context.Context) error {
		d, err := w.kube.AppsV1().Deployments(w.apps).Get(ctx, "hello", metav1.GetOptions{})
		if err == nil && (d.Status.ReadyReplicas != 4 || d.Status.UpdatedReplicas != 4) {
			err = fmt.Errorf("status %+v", d.Status)
		}
		return err
	})
}

// greetings asks again and again until all pods have answered.
func (w *workloads) greetings(t *testing.T, from string, ask func(context.Context) (string, error)) {
	t.Helper()
	pods := w.readyPods(t, w.apps, "hello", 4)
	missing := map[string]bool{}
	for _, p := range pods {
		missing[p.Name] = true
	}
	failures := 0
	eventually(t, 40*time.Second, "answers of all pods to "+from, func(ctx context.Context) error {
		text, err := ask(ctx)
		if err != nil {
			failures++
			return err
		}
		fields := strings.Fields(text)
		if len(fields) < 3 || !strings.HasPrefix(text, "hello from ") {
			return errFinal{fmt.Errorf("%s got %q", from, text)}
		}
		delete(missing, fields[2])
		if len(missing) > 0 {
			return fmt.Errorf("no answer of %v yet, %d failures", missing, failures)
		}
		return nil
	})
}

func job(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.apply(t, ns, `
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  completions: 2
  parallelism: 2
  template:
    metadata: {labels: {app: once}}
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "registry.atoll.test/hello:1", args: [once]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: never}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "registry.atoll.test/tool:1", args: [fail, "7"]}]
`)
	wait := func(name string, condition batchv1.JobConditionType) {
		eventually(t, 60*time.Second, fmt.Sprintf("Job %s being %s", name, condition), func(ctx context.Context) error {
			j, err := w.kube.BatchV1().Jobs(ns).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool { return c.Type == condition && c.Status == corev1.ConditionTrue }) {
				return nil
			}
			return fmt.Errorf("status %+v", j.Status)
		})
	}
	wait("once", batchv1.JobComplete)
	wait("never", batchv1.JobFailed)
	if out := w.kubectl(t, "", "logs", "--namespace", ns, "--selector", "app=once"); strings.Count(out, "hello from once-") != 2 {
		t.Errorf("logs of both pods: %q", out)
	}
}

func makeCronJob(t *testing.T, w *workloads) {
	w.apply(t, w.apps, `
apiVersion: batch/v1
kind: CronJob
metadata: {name: minutely}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        metadata: {labels: {app: minutely}}
        spec:
          restartPolicy: Never
          containers: [{name: main, image: "registry.atoll.test/hello:1", args: [once]}]
`)
}

func cronJobRan(t *testing.T, w *workloads) {
	eventually(t, 90*time.Second, "a Job of the CronJob having succeeded", func(ctx context.Context) error {
		jobs, err := w.kube.BatchV1().Jobs(w.apps).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, j := range jobs.Items {
			if strings.HasPrefix(j.Name, "minutely-") && j.Status.Succeeded > 0 {
				return nil
			}
		}
		return fmt.Errorf("%d Jobs, none has succeeded", len(jobs.Items))
	})
}

func memoryLimit(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.start(t, ns, hello("small", limit(corev1.ResourceMemory, "48Mi")))
	ip := w.waitReady(t, ns, "small").Status.PodIP
	// Little enough fits: it is the limit that ends it later, not the size of the program.
	w.inPod(t, w.apps, "tool-n1", "tool", "get", "http://"+ip+":8080/alloc?mb=8&for=1ms", "15s")
	if _, err := w.exec(within(t, 30*time.Second, "allocating"), w.apps, "tool-n1", "tool", "get", "http://"+ip+":8080/alloc?mb=96&for=30s", "60s"); err == nil {
		t.Error("96 MiB were held by a container with a limit of 48")
	}
	eventually(t, 60*time.Second, "the container being started again", func(ctx context.Context) error {
		p, err := w.kube.CoreV1().Pods(ns).Get(ctx, "small", metav1.GetOptions{})
		if err != nil {
			return err
		}
		last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
		switch {
		case last == nil || !ready(p):
			return errors.New(podState(p))
		case last.Reason != "OOMKilled" || last.ExitCode != 137:
			return errFinal{fmt.Errorf("ended with %s, exit code %d; want OOMKilled, 137", last.Reason, last.ExitCode)}
		}
		return nil
	})
}

func cpuLimit(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.start(t, ns, hello("slow", limit(corev1.ResourceCPU, "200m")))
	ip := w.waitReady(t, ns, "slow").Status.PodIP
	url := func(path string) string { return "http://" + ip + ":8080" + path }
	throttled := func() int {
		var text string
		for _, file := range []string{"/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"} { // v2, v1
			out, err := w.exec(within(t, 30*time.Second, "reading cpu.stat"), w.apps, "tool-n1", "tool", "get", url("/read?path="+file), "20s")
			if err == nil {
				text = out
				break
			}
		}
		m := regexp.MustCompile(`(?m)^nr_throttled (\d+)$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no nr_throttled in cpu.stat: %q", text)
		}
		n, err := strconv.Atoi(m[1])
		must(t, err)
		return n
	}
	before := throttled()
	w.inPod(t, w.apps, "tool-n1", "tool", "get", url("/burn?cpu=2&for=3s"), "60s")
	// Two threads use up 20 ms of each 100 ms in 10 ms, or in more when others want the cores too.
	if after := throttled(); after-before < 5 {
		t.Errorf("throttled in %d periods of 3 s, want nearly 30", after-before)
	}
}

func rollingUpdate(t *testing.T, w *workloads) {
	const workers = 4
	ctx, stop := context.WithCancel(within(t, 4*time.Minute, "the rolling update"))
	var mu sync.Mutex
	var failed []string
	answers := map[string]int{}
	var wg sync.WaitGroup
	for i := range workers {
		address := []*lab.Node{w.n1, w.n2}[i%2].Address().String()
		wg.Go(func() {
			pause := time.NewTicker(50 * time.Millisecond)
			defer pause.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-pause.C:
				}
				text, err := get(context.WithoutCancel(ctx), "http://"+address+":30080/")
				mu.Lock()
				if err != nil {
					failed = append(failed, time.Now().Format(time.StampMilli)+" "+err.Error())
				} else {
					_, version, _ := strings.Cut(strings.TrimSpace(text), " version ")
					answers[version]++
				}
				mu.Unlock()
			}
		})
	}
	w.apply(t, w.apps, strings.ReplaceAll(helloDeployment, `name: VERSION, value: "1"`, `name: VERSION, value: "2"`))
	err := poll(ctx, func(ctx context.Context) error {
		d, err := w.kube.AppsV1().Deployments(w.apps).Get(ctx, "hello", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.ObservedGeneration < d.Generation || d.Status.UpdatedReplicas != 4 || d.Status.Replicas != 4 || d.Status.AvailableReplicas != 4 {
			return fmt.Errorf("status %+v", d.Status)
		}
		mu.Lock()
		defer mu.Unlock()
		if answers["2"] < 20 {
			return fmt.Errorf("answers so far: %v", answers)
		}
		return nil
	})
	stop()
	wg.Wait()
	must(t, err)
	t.Logf("answers by version: %v", answers)
	if answers["1"] == 0 {
		t.Error("no answer of the old version: the requests did not span the update")
	}
	if len(failed) > 0 {
		t.Errorf("%d requests failed, the first: %s\nthe last: %s", len(failed), failed[0], failed[len(failed)-1])
	}
	w.readyPods(t, w.apps, "hello", 4) // the old pods are gone
}

func nothingPulled(t *testing.T, w *workloads) {
	ctx := within(t, 20*time.Second, "listing")
	pods, err := w.kube.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{})
	must(t, err)
	for _, p := range pods.Items {
		t.Errorf("pod %s in kube-system", p.Name)
	}
	events, err := w.kube.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	must(t, err)
	seen := 0
	for _, e := range events.Items {
		switch e.Reason {
		case "Pulling", "ErrImagePull", "ImagePullBackOff":
			t.Errorf("%s of %s: %s", e.Reason, e.InvolvedObject.Name, e.Message)
		case "Pulled":
			seen++ // "already present on machine"
		}
	}
	if seen == 0 {
		t.Error("no event tells about an image: this test could not fail")
	}
}
