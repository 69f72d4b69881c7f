package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/status"
	"github.com/atollhq/atoll/tests/lab"
)

func podSecurity(t *testing.T, w *workloads) {
	t.Run("refused by default, in words", func(t *testing.T) {
		ns := w.namespace(t, nil)
		for name, tt := range map[string]struct {
			option podOption
			word   string
		}{
			"privileged": {privileged, "privileged"},
			"host-path":  {hostPath("/etc"), "hostPath"},
			"host-net":   {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "hostNetwork"},
		} {
			_, err := w.kube.CoreV1().Pods(ns).Create(within(t, 20*time.Second, "creating"), tool(name, tt.option), metav1.CreateOptions{})
			if !apierrors.IsForbidden(err) {
				t.Errorf("%s: %v, want it refused", name, err)
				continue
			}
			wantContains(t, "refusal", err.Error(), `violates PodSecurity "baseline:latest"`, tt.word)
		}
		w.start(t, ns, tool("plain"))
	})
	t.Run("allowed where the namespace says so", func(t *testing.T) {
		ns := w.namespace(t, privilegedLabels)
		must(t, w.n2.WriteFile("/etc/atoll-e2e/name", []byte("n2"), 0o644))
		w.start(t, ns, tool("privileged", onto("n2"), privileged, hostPath("/etc/atoll-e2e")))
		if got := w.inPod(t, ns, "privileged", "tool", "cat", "/etc/atoll-e2e/name"); got != "n2" {
			t.Errorf("the node's file reads %q", got)
		}
	})
}

// auditEvent has the fields of an audit event that people look for.
type auditEvent struct {
	Verb      string
	User      struct{ Username string }
	ObjectRef struct{ Resource, Namespace, Name string }
	Response  json.RawMessage `json:"responseObject"`
	Request   json.RawMessage `json:"requestObject"`
}

func auditLog(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.apply(t, ns, "apiVersion: v1\nkind: Secret\nmetadata: {name: audited}\nstringData: {key: not-for-the-audit-log-90ab}\n")
	file := dataDir + "/server/logs/audit.log"
	eventually(t, 90*time.Second, "the event being in the log", func(context.Context) error {
		data, err := w.n1.ReadFile(file)
		if err != nil {
			return err
		}
		if bytes.Contains(data, []byte("not-for-the-audit-log-90ab")) {
			return errFinal{errors.New("the secret's text is in the audit log")}
		}
		lines := bufio.NewScanner(bytes.NewReader(data))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var e auditEvent
			if json.Unmarshal(lines.Bytes(), &e) != nil || e.ObjectRef.Name != "audited" || e.ObjectRef.Namespace != ns {
				continue
			}
			switch {
			case e.ObjectRef.Resource != "secrets" || (e.Verb != "patch" && e.Verb != "create"):
				return errFinal{fmt.Errorf("unexpected event %s", lines.Bytes())}
			case e.User.Username == "" || strings.HasPrefix(e.User.Username, "system:anonymous"):
				return errFinal{fmt.Errorf("no user in %s", lines.Bytes())}
			}
			return nil
		}
		return errors.New("no event about it")
	})
	out := onNode(t, w.n1, "stat", "-c", "%a", file)
	if mode := strings.TrimSpace(out); mode != "600" {
		t.Errorf("mode of the audit log is %s, want 600", mode)
	}
}

// certificates runs `atoll certificate check` on a node.
func certificates(t *testing.T, n *lab.Node) map[string]pki.Info {
	t.Helper()
	var list []pki.Info
	must(t, json.Unmarshal([]byte(onNode(t, n, "atoll", "certificate", "check", "-o", "json")), &list))
	out := map[string]pki.Info{}
	for _, c := range list {
		out[c.Name] = c
		if c.State != pki.StateOK {
			t.Errorf("%s: certificate %s is %s %s", n.Name(), c.Name, c.State, c.Error)
		}
	}
	if len(out) < 4 {
		t.Errorf("%s: only %d certificates", n.Name(), len(out))
	}
	return out
}

// served returns the SHA-256 of the certificate that answers on a port.
func served(ctx context.Context, address string) (string, error) {
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // looked at, not trusted
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	c, ok := conn.(*tls.Conn)
	if !ok || len(c.ConnectionState().PeerCertificates) == 0 {
		return "", errors.New("no certificate")
	}
	return pki.Hash(c.ConnectionState().PeerCertificates[0]), nil
}

// servers are the ports on which nodes serve TLS to others.
func (w *workloads) servers() []string {
	n1, n2 := w.n1.Address().String(), w.n2.Address().String()
	return []string{n1 + ":6443", n1 + ":10250", n2 + ":10250"}
}

func askForRotation(t *testing.T, w *workloads) {
	w.before, w.asked = map[string]pki.Info{}, map[string]int{}
	for _, n := range []*lab.Node{w.n1, w.n2} {
		for name, c := range certificates(t, n) {
			w.before[n.Hostname()+" "+name] = c
		}
		onNode(t, n, "atoll", "certificate", "rotate")
		now, err := n.Status(t.Context())
		must(t, err)
		w.asked[n.Hostname()] = now.PID
	}
	for _, address := range w.servers() {
		hash, err := served(within(t, 10*time.Second, "connecting"), address)
		must(t, err)
		w.before[address] = pki.Info{SHA256: hash}
	}
}

func rotated(t *testing.T, w *workloads) {
	if len(w.before) == 0 {
		t.Fatal("rotation was not asked for")
	}
	for _, address := range w.servers() {
		eventually(t, 150*time.Second, "a new certificate on "+address, func(ctx context.Context) error {
			hash, err := served(ctx, address)
			if err == nil && hash == w.before[address].SHA256 {
				err = errors.New("it is the old one")
			}
			return err
		})
	}
	for _, n := range []*lab.Node{w.n1, w.n2} {
		if now, err := n.Status(t.Context()); err != nil || now.PID != w.asked[n.Hostname()] {
			t.Errorf("%s: process %d was asked, now it is %d (%v): nothing is proven about a running node", n.Name(), w.asked[n.Hostname()], now.PID, err)
		}
		for name, c := range certificates(t, n) {
			before := w.before[n.Hostname()+" "+name]
			if same := before.SHA256 == c.SHA256; same != c.Authority {
				t.Errorf("%s: certificate %s (authority: %v): unchanged is %v", n.Name(), name, c.Authority, same)
			}
		}
	}
	t.Run("the kubeconfig of before still works, and the new one too", func(t *testing.T) {
		ctx := within(t, 20*time.Second, "asking the API")
		if _, err := w.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		again := &site{lab: w.lab}
		again.connect(t)
		if bytes.Equal(again.config.CertData, w.config.CertData) {
			t.Error("the administrator's kubeconfig holds the old certificate")
		}
		if _, err := again.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("API server and kubelets go on with each other", func(t *testing.T) {
		for _, name := range []string{"tool-n1", "tool-n2"} { // through the API server to the kubelet
			eventually(t, 20*time.Second, "exec in "+name, func(ctx context.Context) error {
				_, err := w.exec(ctx, w.apps, name, "tool", "id")
				return err // the connections of before are closed when certificates change; one request may meet that
			})
		}
		ns := w.namespace(t, nil)
		w.start(t, ns, tool("new-n1", onto("n1")), tool("new-n2", onto("n2"))) // seen and reported by both kubelets
	})
}

// report asks a node for its status.
func report(ctx context.Context, n *lab.Node) (status.Report, error) {
	var r status.Report
	out, err := n.Exec(ctx, "atoll", "status", "-o", "json")
	var exit *lab.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return r, fmt.Errorf("%w in %q", err, out)
	}
	code := 0
	if exit != nil {
		code = exit.Code
	}
	if want := map[bool]int{true: 0, false: 3}[r.Healthy]; code != want {
		return r, errFinal{fmt.Errorf("status says healthy=%v with exit code %d, want %d", r.Healthy, code, want)}
	}
	return r, nil
}

var errNotMentioned = errors.New("status does not tell")

// reportMentions returns nil when the node's status has a problem with all words in text or remedy, and a remedy.
func reportMentions(ctx context.Context, n *lab.Node, words ...string) error {
	r, err := report(ctx, n)
	if err != nil {
		return err
	}
	var seen []string
next:
	for _, p := range r.Problems {
		seen = append(seen, p.Text)
		for _, word := range words {
			if !strings.Contains(p.Text+" "+p.Remedy, word) {
				continue next
			}
		}
		if p.Remedy == "" {
			return errFinal{fmt.Errorf("problem without a remedy: %s", p.Text)}
		}
		return nil
	}
	return fmt.Errorf("%w about %v: %s", errNotMentioned, words, strings.Join(seen, "; "))
}

func healthy(t *testing.T, n *lab.Node) status.Report {
	t.Helper()
	var r status.Report
	eventually(t, 60*time.Second, n.Name()+" being healthy", func(ctx context.Context) (err error) {
		if s, err := n.Status(ctx); err == nil && s.State == lab.StateExited {
			return errFinal{fmt.Errorf("atoll has ended with code %d", s.Exit)}
		}
		if r, err = report(ctx, n); err == nil && !r.Healthy {
			err = fmt.Errorf("problems %+v", r.Problems)
		}
		return err
	})
	return r
}

func statusOfNodes(t *testing.T, w *workloads) {
	for role, n := range map[string]*lab.Node{"server": w.n1, "agent": w.n2} {
		t.Run(role, func(t *testing.T) {
			r := healthy(t, n)
			if r.Node != n.Hostname() || r.Role != role || r.Address != n.Address().String() || r.Pods == nil || r.Pods.Running < 2 {
				t.Errorf("report %+v", r)
			}
			names := map[string]bool{}
			for _, c := range r.Components {
				names[c.Name] = true
			}
			for _, want := range []string{"kubelet", "kube-proxy", "containerd", "images"} {
				if !names[want] {
					t.Errorf("no part %s in %v", want, names)
				}
			}
			text := runOnNode(t, n, "atoll", "status")
			if text.code != 0 {
				t.Error(text)
			}
			wantContains(t, "status", text.out, "OK: ", role+" "+n.Hostname()+" at "+n.Address().String(), "pods on this node: ", "kubelet")
		})
	}
	t.Run("not running", func(t *testing.T) {
		must(t, w.n3.PowerOn(within(t, 30*time.Second, "powering on")))
		text := runOnNode(t, w.n3, "atoll", "status")
		if text.code != 3 {
			t.Error(text)
		}
		wantContains(t, "status", text.out, "NOT OK: atoll is not running", "Try: ")
		var r status.Report
		out := runOnNode(t, w.n3, "atoll", "status", "-o", "json")
		must(t, json.Unmarshal([]byte(out.out), &r))
		if out.code != 3 || r.Healthy || len(r.Problems) != 1 || r.Problems[0].Remedy == "" {
			t.Errorf("report %+v, exit code %d", r, out.code)
		}
	})
}

func tokens(t *testing.T, w *workloads) {
	create := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(onNode(t, w.n1, append([]string{"atoll", "token", "create"}, args...)...))
	}
	good := create("--description", "third box")
	expired := create("--ttl", "1s")
	deleted := create("--description", "to be deleted")
	id := func(token string) string {
		_, rest, _ := strings.Cut(token, "::")
		before, _, _ := strings.Cut(rest, ".")
		return before
	}
	list := onNode(t, w.n1, "atoll", "token", "list")
	wantContains(t, "token list", list, id(good), "third box", id(expired), id(deleted))
	if _, secret, ok := strings.Cut(good[strings.Index(good, "::"):], "."); !ok || strings.Contains(list, secret) {
		t.Errorf("token %q: its secret is in the list, or there is none", good)
	}
	onNode(t, w.n1, "atoll", "token", "delete", id(deleted))
	if again := onNode(t, w.n1, "atoll", "token", "list"); strings.Contains(again, id(deleted)) {
		t.Errorf("the deleted token is still listed:\n%s", again)
	}

	config, err := w.n3.Configured()
	must(t, err)
	site := config.Args // --server URL --token SECRET ...
	join := func(t *testing.T, token string) {
		t.Helper()
		must(t, w.n3.Stop(within(t, 30*time.Second, "stopping")))
		must(t, w.n3.Configure(func(c *lab.Config) { c.Args = []string{site[0], site[1], "--token", token} }))
		must(t, w.n3.Start(within(t, 30*time.Second, "starting")))
	}
	for _, tt := range []struct{ name, token, word string }{
		{"wrong", strings.Repeat("0123456789abcdef", 2), "the token is not one of this site"},
		{"deleted", deleted, "the token is not one of this site"},
		{"expired", expired, "the token has expired"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			join(t, tt.token)
			eventually(t, 60*time.Second, "status telling why", func(ctx context.Context) error { return reportMentions(ctx, w.n3, tt.word) })
			r := runOnNode(t, w.n3, "atoll", "status")
			if r.code != 3 {
				t.Errorf("status of a node that cannot join: %v", r)
			}
			wantContains(t, "status", r.out, "NOT OK", tt.word, "Try: ")
			log, err := w.n3.Logs()
			must(t, err)
			wantContains(t, "log", log, tt.word)
		})
	}
	t.Run("good", func(t *testing.T) {
		join(t, good)
		must(t, w.n3.WaitReady(within(t, 90*time.Second, "n3 becoming Ready")))
		ns := w.namespace(t, nil)
		w.start(t, ns, tool("on-n3", onto("n3")))
		target := w.readyPods(t, w.apps, "hello", 4)[0].Status.PodIP
		eventually(t, 30*time.Second, "the new node reaching pods of others", func(ctx context.Context) error {
			_, err := w.exec(ctx, ns, "on-n3", "tool", "get", "http://"+target+":8080/")
			return err
		})
		w.remove(t, ns, "on-n3")
		must(t, w.n3.Stop(within(t, 40*time.Second, "stopping n3")))
	})
	t.Run("a token of another site is refused before anything is told", func(t *testing.T) {
		at := strings.Index(good, "::") // the hash of the site's authority ends there
		other := good[:at-8] + "00000000" + good[at:]
		must(t, w.n3.Blank(within(t, 60*time.Second, "a new disk")))
		join(t, other)
		eventually(t, 60*time.Second, "status telling why", func(ctx context.Context) error {
			return reportMentions(ctx, w.n3, "authority")
		})
		must(t, w.n3.Kill(within(t, 60*time.Second, "switching n3 off")))
	})
}
