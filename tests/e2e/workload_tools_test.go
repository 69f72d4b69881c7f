package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func logs(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.start(t, ns, hello("talker", onto("n1")), hello("farther", onto("n2")))
	for _, name := range []string{"talker", "farther"} {
		ip := w.waitReady(t, ns, name).Status.PodIP
		w.inPod(t, w.apps, "tool-n1", "tool", "get", "http://"+ip+":8080/log?line=receipt-4711", "15s")
		out := w.kubectl(t, "", "logs", "--namespace", ns, name)
		wantContains(t, "log of "+name, out, "ready as "+name, " receipt-4711\n")
	}
	t.Run("follow", func(t *testing.T) {
		ctx, cancel := context.WithCancel(within(t, 60*time.Second, "following"))
		defer cancel()
		cmd := exec.CommandContext(ctx, atollBinary(t), "kubectl", "--kubeconfig", w.kubeconfig, "logs", "--namespace", ns, "--follow", "--since=1h", "talker")
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		defer func() { cancel(); _ = cmd.Wait() }()
		lines := bufio.NewScanner(out)
		for sent := false; lines.Scan(); {
			if strings.Contains(lines.Text(), " fresh-line") {
				return
			}
			if !sent { // the first line has come, so it follows
				sent = true
				ip := w.waitReady(t, ns, "talker").Status.PodIP
				w.inPod(t, w.apps, "tool-n1", "tool", "get", "http://"+ip+":8080/log?line=fresh-line", "15s")
			}
		}
		t.Errorf("the new line did not come: %v, %v", lines.Err(), context.Cause(ctx))
	})
}

func execWithInput(t *testing.T, w *workloads) {
	for _, name := range []string{"tool-n1", "tool-n2"} {
		text := "typed into " + name + "\n" + strings.Repeat("x", 100_000) + "\n"
		if out := w.kubectl(t, text, "exec", "--namespace", w.apps, "--stdin", name, "--", "tool", "cat", "/dev/stdin"); out != text {
			t.Errorf("%s gave back %d bytes of %d", name, len(out), len(text))
		}
	}
	t.Run("exit codes come through", func(t *testing.T) {
		ctx := within(t, 30*time.Second, "exec")
		cmd := exec.CommandContext(ctx, atollBinary(t), "kubectl", "--kubeconfig", w.kubeconfig, "exec", "--namespace", w.apps, "tool-n2", "--", "tool", "fail", "7")
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 {
			t.Errorf("kubectl exec -- tool fail 7: %v, want exit status 7", err)
		}
	})
}

// copyFiles needs a tar in the container; the pod borrows the lab's tools from its node.
func copyFiles(t *testing.T, w *workloads) {
	ns := w.namespace(t, privilegedLabels)
	w.start(t, ns, tool("box", onto("n2"), hostPath("/lab/bin"), env("PATH", "/lab/bin:/bin")))
	dir := t.TempDir()
	want := strings.Repeat("a line of a file that is copied\n", 10_000)
	must(t, os.WriteFile(filepath.Join(dir, "there"), []byte(want), 0o600))
	w.kubectl(t, "", "cp", filepath.Join(dir, "there"), ns+"/box:/tmp/there")
	w.kubectl(t, "", "cp", ns+"/box:/tmp/there", filepath.Join(dir, "back"))
	if got := readable(t, filepath.Join(dir, "back")); string(got) != want {
		t.Errorf("%d bytes came back, want %d", len(got), len(want))
	}
}

func portForward(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.start(t, ns, hello("hello", onto("n2")))
	ctx, cancel := context.WithCancel(within(t, 60*time.Second, "port-forward"))
	defer cancel()
	cmd := exec.CommandContext(ctx, atollBinary(t), "kubectl", "--kubeconfig", w.kubeconfig, "port-forward", "--namespace", ns, "pod/hello", ":8080")
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	defer func() { cancel(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	m := regexp.MustCompile(`^Forwarding from (127\.0\.0\.1:\d+) -> 8080`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("kubectl said %q", line)
	}
	for range 3 {
		text, err := get(ctx, "http://"+m[1]+"/")
		if err != nil || strings.TrimSpace(text) != "hello from hello" {
			t.Errorf("got %q, %v", text, err)
		}
	}
}

func top(t *testing.T, w *workloads) {
	number := regexp.MustCompile(`^\d+(m|Mi)$`)
	for _, tt := range []struct {
		name string
		args []string
		rows int // at least
	}{
		{"nodes", []string{"top", "nodes", "--no-headers"}, 2},
		{"pods", []string{"top", "pods", "--no-headers", "--namespace", w.apps, "--selector", "app=hello"}, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eventually(t, 120*time.Second, "figures of all", func(ctx context.Context) error {
				out, err := exec.CommandContext(ctx, atollBinary(t), append([]string{"kubectl", "--kubeconfig", w.kubeconfig}, tt.args...)...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				rows := 0
				for line := range strings.Lines(string(out)) {
					f := strings.Fields(line)
					// Pods: name, cores, bytes. Nodes: name, cores, share, bytes, share.
					if len(f) >= 3 && number.MatchString(f[1]) && (number.MatchString(f[2]) || len(f) == 5 && number.MatchString(f[3])) {
						rows++
					}
				}
				if rows < tt.rows {
					return fmt.Errorf("%d rows with figures in %q", rows, out)
				}
				return nil
			})
		})
	}
}
