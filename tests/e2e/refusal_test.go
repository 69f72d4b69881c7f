package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/pkg/status"
	"github.com/atollhq/atoll/tests/lab"
)

// TestBadInput: what cannot work ends at once, in words, with a remedy and the right exit code, and leaves no mess.
func TestBadInput(t *testing.T) {
	l := newLab(t, lab.Options{Images: []string{}})
	n := l.Site(1).Node(1)
	must(t, n.PowerOn(within(t, 30*time.Second, "powering on")))
	t.Run("asked wrongly", func(t *testing.T) { askedWrongly(t, n) })
	t.Run("configuration file", func(t *testing.T) { wrongFile(t, n) })
	t.Run("nothing was made by any of these", func(t *testing.T) {
		if got := onNode(t, n, "sh", "-c", "ls -A /var/lib; ls -A /etc/atoll 2>/dev/null; true"); strings.TrimSpace(got) != "" {
			t.Errorf("left behind: %s", got)
		}
	})
	t.Run("not root", func(t *testing.T) {
		for _, role := range []string{"server", "agent --server https://192.0.2.1:6443 --token 0123456789abcdef0123456789abcdef"} {
			r := runOnNode(t, n, "su", "-s", "/lab/bin/sh", "nobody", "-c", "/usr/local/bin/atoll "+role)
			wantRefusal(t, r, 1, "root", "sudo")
		}
	})
	t.Run("port in use", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = n.Exec(ctx, "nc", "-l", "-p", "6443")
		}()
		defer func() { cancel(); <-ended }()
		eventually(t, 20*time.Second, "the port being taken", func(ctx context.Context) error {
			out, err := n.Exec(ctx, "netstat", "-ltn")
			if err == nil && !strings.Contains(out, ":6443 ") {
				err = errors.New(out)
			}
			return err
		})
		wantRefusal(t, runOnNode(t, n, "atoll", "server"), 1, "6443", "nc", "--https-listen-port")
	})
	t.Run("token file that is not there", func(t *testing.T) {
		wantRefusal(t, runOnNode(t, n, "atoll", "server", "--token-file", "/etc/none"), 2, "token-file", "/etc/none")
	})
	t.Run("data folder that is a file", func(t *testing.T) {
		must(t, n.WriteFile("/srv/data", []byte("x"), 0o600))
		wantRefusal(t, runOnNode(t, n, "atoll", "server", "--data-dir", "/srv/data"), 1, "/srv/data", "--data-dir")
	})
	t.Run("read-only data folder", func(t *testing.T) {
		must(t, n.Kill(within(t, 60*time.Second, "switching off")))
		must(t, n.Configure(func(c *lab.Config) { c.ReadOnly = true }))
		must(t, n.PowerOn(within(t, 30*time.Second, "powering on")))
		wantRefusal(t, runOnNode(t, n, "atoll", "server"), 1, dataDir, "read-only file system")
		must(t, n.Kill(within(t, 60*time.Second, "switching off")))
		must(t, n.Configure(func(c *lab.Config) { c.ReadOnly = false }))
	})
	t.Run("damaged binary", func(t *testing.T) { damagedBinary(t, n) })
	t.Run("disk that is too small", func(t *testing.T) {
		must(t, n.Kill(within(t, 60*time.Second, "switching off")))
		must(t, n.Configure(func(c *lab.Config) { c.DiskMB = 24; c.Binary = atollBinary(t) }))
		must(t, n.Blank(within(t, 60*time.Second, "a new disk")))
		must(t, n.PowerOn(within(t, 30*time.Second, "powering on")))
		wantRefusal(t, runOnNode(t, n, "atoll", "server"), 1, "no space left on device", "free ")
	})
}

// wantRefusal checks how a command ended that had to. words may be in cause or remedy.
func wantRefusal(t *testing.T, r result, code int, words ...string) {
	t.Helper()
	wantNoPanic(t, r.stderr)
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	at := strings.Index(r.stderr, "Error: ")
	if at < 0 || !strings.Contains(r.stderr[at:], "\nTry:   ") {
		t.Errorf("no cause with a remedy: %v", r)
		return
	}
	wantContains(t, "message", r.stderr[at:], words...)
}

func askedWrongly(t *testing.T, n *lab.Node) {
	const url, token = "https://192.0.2.1:6443", "0123456789abcdef0123456789abcdef"
	for _, tt := range []struct {
		args  string
		words []string
	}{
		{"sever", []string{`"sever"`, "atoll server"}},
		{"server --node-lable a=b", []string{"node-lable", "node-label"}},
		{"agent --tokn x", []string{"tokn", "token"}},
		{"server --cluster-cidr 10.42.0.0", []string{"cluster-cidr", "10.42.0.0"}},
		{"server --cluster-cidr 10.42.0.0/99", []string{"cluster-cidr", "10.42.0.0/99"}},
		{"server --cluster-cidr 10.43.0.0/16", []string{"cluster-cidr", "service-cidr"}},
		{"server --service-cidr 10.42.128.0/20", []string{"cluster-cidr", "service-cidr"}},
		{"server --cluster-dns 10.99.0.10", []string{"cluster-dns", "10.99.0.10"}},
		{"server --https-listen-port 0", []string{"https-listen-port"}},
		{"server --https-listen-port 70000", []string{"https-listen-port"}},
		{"server --https-listen-port many", []string{"https-listen-port", "many"}},
		{"server --node-name Till_1", []string{"node-name", "till_1"}},
		{"server --disable trafik", []string{"disable", "trafik"}},
		{"server --data-dir relative", []string{"data-dir", "relative"}},
		{"server --token short", []string{"token"}},
		{"server extra", []string{"extra"}},
		{"agent", []string{"server"}},
		{"agent --server " + url, []string{"token"}},
		{"agent --server http://192.0.2.1:6443 --token " + token, []string{"https://"}},
		{"agent --server " + url + " --token K10" + strings.Repeat("ab", 32) + "::server:x", []string{"K3s"}},
		{"status -o yamml", []string{"yamml"}},
		{"token delete", []string{"token"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			began := time.Now()
			r := runOnNode(t, n, append([]string{"atoll"}, strings.Fields(tt.args)...)...)
			wantRefusal(t, r, 2, tt.words...)
			if took := time.Since(began); took > patient(5*time.Second) {
				t.Errorf("the answer took %s", took.Round(time.Millisecond))
			}
		})
	}
}

func wrongFile(t *testing.T, n *lab.Node) {
	const file = "/etc/atoll/config.yaml"
	for _, tt := range []struct {
		name, text string
		words      []string
	}{
		{"unknown key", "node-lable: a=b\n", []string{file, "node-lable", "node-label"}},
		{"wrong type", "https-listen-port: many\n", []string{file, "https-listen-port", "many"}},
		{"no YAML", "token: [\n", []string{file}},
		{"several at once", "cluster-cidr: 10.42.0.0\nnode-lable: a=b\n", []string{"cluster-cidr", "node-lable"}},
		{"ranges that overlap", "cluster-cidr: 10.0.0.0/8\n", []string{"cluster-cidr", "service-cidr"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must(t, n.WriteFile(file, []byte(tt.text), 0o600))
			wantRefusal(t, runOnNode(t, n, "atoll", "server"), 2, tt.words...)
		})
	}
	onNode(t, n, "rm", "-r", "/etc/atoll")
}

// damagedBinary changes some bytes of the programs that atoll carries, as a bad download or a bad disk does.
func damagedBinary(t *testing.T, n *lab.Node) {
	carried := readable(t, filepath.Join(repository(t), "pkg/runtime/bundle/payload", runtime.GOARCH, "bundle.tar.zst"))
	binary := readable(t, atollBinary(t))
	at := bytes.Index(binary, carried[:4096])
	if at < 0 {
		t.Fatal("the carried programs are not in the binary as they are in the tree; build it again")
	}
	middle := at + len(carried)/2
	copy(binary[middle:middle+64], bytes.Repeat([]byte{0xa5}, 64))
	path := filepath.Join(t.TempDir(), "atoll")
	must(t, os.WriteFile(path, binary, 0o755)) //nolint:gosec // a program
	must(t, n.SetBinary(path))
	must(t, n.Blank(within(t, 60*time.Second, "a new disk"))) // programs that are unpacked already would do
	must(t, n.PowerOn(within(t, 30*time.Second, "powering on")))
	wantRefusal(t, runOnNode(t, n, "atoll", "server"), 1, "programs carried inside atoll are damaged", "download atoll again")
}

// fullDisk is a site of one box with a small disk of its own.
type fullDisk struct {
	*site
	ns string
}

// TestFullDisk: a full disk degrades the node, which says so, and nothing that was stored is lost.
func TestFullDisk(t *testing.T) {
	l := newLab(t, lab.Options{DiskMB: 900})
	d := &fullDisk{site: &site{lab: l, n1: l.Site(1).Node(1)}}
	must(t, d.n1.Start(within(t, 30*time.Second, "starting")))
	working(t, d.n1)
	d.connect(t)
	d.ns = d.namespaceNamed(t, "shop", nil)
	d.apply(t, d.ns, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {since: before the disk was full}\n")
	d.apply(t, d.ns, appDeployment)
	d.readyPods(t, d.ns, "hello", 1)

	inOrder(t, d, []step[*fullDisk]{
		{"it says so and goes on", func(t *testing.T, d *fullDisk) {
			pid := mustStatus(t, d.n1).PID
			_ = runOnNode(t, d.n1, "dd", "if=/dev/zero", "of=/var/filler", "bs=1M") // until it fails
			eventually(t, 30*time.Second, "status telling about the disk", func(ctx context.Context) error {
				return reportMentions(ctx, d.n1, "the disk of "+dataDir+" is full")
			})
			r := runOnNode(t, d.n1, "atoll", "status")
			if r.code != 3 {
				t.Errorf("status on a full disk: %v", r)
			}
			wantContains(t, "status", r.out, "NOT OK", "the disk of "+dataDir+" is full", "Try: ")
			// Writes fail or not, as the database has room in its file; none may end the process.
			failed := 0
			for i := range 40 {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				_, err := d.kube.CoreV1().ConfigMaps(d.ns).Create(ctx, &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("filler-%d", i)}, BinaryData: map[string][]byte{"x": make([]byte, 256<<10)},
				}, metav1.CreateOptions{})
				cancel()
				if err != nil {
					failed++
				}
			}
			if failed == 0 {
				t.Error("10 MiB were written to a full disk: this test shows nothing")
			}
			d.wantKept(t)
			if now := mustStatus(t, d.n1); now.PID != pid || now.State != lab.StateRunning {
				t.Errorf("process %d became %+v", pid, now)
			}
		}},
		{"with room again it is healthy by itself", func(t *testing.T, d *fullDisk) {
			onNode(t, d.n1, "rm", "/var/filler")
			eventually(t, 120*time.Second, "writes working", func(ctx context.Context) error {
				_, err := d.kube.CoreV1().ConfigMaps(d.ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "after-"}}, metav1.CreateOptions{})
				return err
			})
			eventually(t, 120*time.Second, "status having no complaint", func(ctx context.Context) error {
				r, err := report(ctx, d.n1)
				for _, p := range r.Problems {
					if p.Severity != status.Note {
						err = errors.Join(err, errors.New(p.Text))
					}
				}
				return err
			})
			d.wantKept(t)
			d.wantApp(t)
		}},
		{"started on a full disk it runs or says why not", func(t *testing.T, d *fullDisk) {
			must(t, d.n1.Stop(within(t, 40*time.Second, "stopping")))
			_ = runOnNode(t, d.n1, "dd", "if=/dev/zero", "of=/var/filler", "bs=1M")
			must(t, d.n1.Start(within(t, 30*time.Second, "starting")))
			eventually(t, settle, "words about the disk", func(ctx context.Context) error {
				s, err := d.n1.Status(ctx)
				if err != nil {
					return err
				}
				if s.State == lab.StateRunning {
					return reportMentions(ctx, d.n1, "the disk of "+dataDir+" is full")
				}
				log, err := d.n1.Logs()
				if err != nil {
					return err
				}
				tail := log[max(0, len(log)-20_000):]
				if !strings.Contains(tail, "no space left") || !strings.Contains(tail, "\nTry:   ") {
					return errFinal{fmt.Errorf("it ended with code %d and without a remedy: %s", s.Exit, tail[max(0, len(tail)-2000):])}
				}
				return nil
			})
			onNode(t, d.n1, "rm", "/var/filler")
			if mustStatus(t, d.n1).State != lab.StateRunning {
				must(t, d.n1.Start(within(t, 30*time.Second, "starting")))
			}
			working(t, d.n1)
			d.wantKept(t)
			d.wantApp(t)
		}},
		{"a power cut that loses what was not synced leaves a sound database", func(t *testing.T, d *fullDisk) {
			// Made durable by the stop; what comes after it may be lost.
			restart(t, d.n1)
			for i := range rounds(1, 50) {
				ctx, stop := context.WithCancel(t.Context())
				written := make(chan struct{})
				go func() { // so that the cut hits writes
					defer close(written)
					for ctx.Err() == nil {
						_, _ = d.kube.CoreV1().ConfigMaps(d.ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "cut-"}}, metav1.CreateOptions{})
					}
				}()
				eventually(t, 30*time.Second, "some writes", func(ctx context.Context) error {
					list, err := d.kube.CoreV1().ConfigMaps(d.ns).List(ctx, metav1.ListOptions{})
					if err == nil && len(list.Items) < 20*(i+1) {
						err = fmt.Errorf("%d objects", len(list.Items))
					}
					return err
				})
				must(t, d.n1.Kill(within(t, 60*time.Second, "cutting the power")))
				stop()
				<-written
				must(t, d.n1.Start(within(t, 30*time.Second, "starting")))
				working(t, d.n1)
				d.wantKept(t)
				d.wantApp(t)
			}
		}},
		{"no node wrote anything that looks like a crash", func(t *testing.T, d *fullDisk) { noCrash(t, d.n1) }},
	})
}

// appDeployment is an app that comes back after the kubelet has evicted its pod, which is what it does on a full disk.
const appDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec: {containers: [{name: main, image: "registry.atoll.test/hello:1"}]}
`

// wantApp waits until a pod of the app is Ready. Evicted ones stay as a record of what happened.
func (d *fullDisk) wantApp(t *testing.T) {
	t.Helper()
	eventually(t, 120*time.Second, "a pod of the app being Ready", func(ctx context.Context) error {
		pods, err := d.kube.CoreV1().Pods(d.ns).List(ctx, metav1.ListOptions{LabelSelector: "app=hello"})
		if err != nil {
			return err
		}
		var states []string
		for _, p := range pods.Items {
			if ready(&p) {
				return nil
			}
			states = append(states, string(p.Status.Phase)+" "+p.Status.Reason+" "+podState(&p))
		}
		return errors.New(strings.Join(states, "; "))
	})
}

func (d *fullDisk) wantKept(t *testing.T) {
	t.Helper()
	c, err := d.kube.CoreV1().ConfigMaps(d.ns).Get(within(t, 20*time.Second, "reading"), "kept", metav1.GetOptions{})
	if err != nil || c.Data["since"] != "before the disk was full" {
		t.Errorf("what was stored before: %v, %v", c, err)
	}
}
