package lab_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/lab"
)

func TestUpAndDownLeaveNothing(t *testing.T) {
	before := hostState(t)
	t.Run("lab", func(t *testing.T) {
		l := newLab(t, lab.Options{Sites: 2, Nodes: 2, DiskMB: 32})
		mustUp(t, l)
		for _, s := range l.Sites() {
			for _, n := range s.Nodes() {
				if err := n.Ready(testContext(t)); err != nil {
					t.Errorf("%s: %v", n.Name(), err)
				}
			}
		}
		if same := slices.Equal(before, hostState(t)); same {
			t.Error("the host's state does not show the lab: this test could not fail")
		}
	})
	wantSame(t, before)
}

func TestNodeIsAMachineOfItsOwn(t *testing.T) {
	l := newLab(t, lab.Options{Nodes: 2})
	mustUp(t, l)
	n1, n2 := l.Site(1).Node(1), l.Site(1).Node(2)
	checks := []struct {
		name string
		argv []string
		want string
	}{
		{"host name", []string{"hostname"}, "n2\n"},
		{"PID 1", []string{"cat", "/proc/1/comm"}, "lab\n"},
		{"no program but atoll", []string{"sh", "-c", "find /usr /bin/ /sbin/ /lib/ -type f"}, "/usr/local/bin/atoll\n"},
		{"interfaces", []string{"ls", "/sys/class/net"}, "eth0\nlo\n"},
		{"address", []string{"sh", "-c", "ip -o -4 address show eth0 | awk '{print $4}'"}, n2.Address().String() + "/24\n"},
		{"root of control groups", []string{"sh", "-c", "grep -v '^0:' /proc/1/cgroup | cut -d: -f3 | sort -u"}, rootGroup(t)},
		{"volatile /run", []string{"sh", "-c", "grep -c ' /run tmpfs ' /proc/mounts"}, "1\n"},
		{"tools are read-only", []string{"sh", "-c", "touch /lab/bin/x 2>/dev/null || echo refused"}, "refused\n"},
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			if got := run(t, n2, c.argv...); got != c.want {
				t.Errorf("%v: got %q, want %q", c.argv, got, c.want)
			}
		})
	}
	t.Run("settings of the host are out of reach", func(t *testing.T) {
		const file = "/proc/sys/vm/overcommit_memory"
		before, err := os.ReadFile(file)
		must(t, err)
		run(t, n2, "sh", "-c", "echo 2 > "+file)
		after, err := os.ReadFile(file)
		must(t, err)
		if got := run(t, n2, "cat", file); got != "2\n" {
			t.Errorf("node reads %q after writing 2", got)
		}
		if other := run(t, n1, "cat", file); string(before) != string(after) || other != string(before) {
			t.Errorf("a node's write changed the host from %q to %q, another node to %q", before, after, other)
		}
	})
	t.Run("atoll gets what an init system gives it", func(t *testing.T) {
		s, err := n2.Status(testContext(t))
		must(t, err)
		env, err := os.ReadFile(filepath.Join("/proc", itoa(s.PID), "environ"))
		must(t, err)
		want := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\x00LANG=C.UTF-8\x00NOTIFY_SOCKET=/run/lab/notify.sock\x00"
		if string(env) != want {
			t.Errorf("environment %q", env)
		}
		files, err := filepath.Glob(filepath.Join("/proc", itoa(s.PID), "fd", "*"))
		must(t, err)
		for _, file := range files {
			if target, _ := os.Readlink(file); strings.HasPrefix(target, "pipe:") {
				t.Errorf("file %s of atoll is a %s of the lab's caller", file, target)
			}
		}
	})
	t.Run("own machine id", func(t *testing.T) {
		if a, b := run(t, n1, "cat", "/etc/machine-id"), run(t, n2, "cat", "/etc/machine-id"); a == b || len(a) != 33 {
			t.Errorf("machine ids %q and %q", a, b)
		}
	})
}

// rootGroup is what a node on this host sees of its own v1 control groups: nothing above them.
func rootGroup(t *testing.T) string {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	if strings.HasPrefix(string(own), "0:") {
		return "" // v2 only: no such lines
	}
	return "/\n"
}

func TestStopLeavesChildrenAlone(t *testing.T) {
	l := newLab(t, lab.Options{})
	ctx := mustUp(t, l)
	n := l.Site(1).Node(1)
	s, err := n.Status(ctx)
	must(t, err)
	if s.State != lab.StateRunning || !s.Notified {
		t.Errorf("status before stop: %+v", s)
	}
	if _, err := os.Stat(filepath.Join("/proc", itoa(s.PID))); s.PID == 0 || err != nil {
		t.Errorf("no process %d on the host", s.PID)
	}
	must(t, n.Stop(ctx))
	s, err = n.Status(ctx)
	must(t, err)
	if s.State != lab.StateStopped || s.Exit != 0 {
		t.Errorf("status after stop: %+v", s)
	}
	if got := run(t, n, "sh", "-c", "ps -o args | grep -c '^/proc/self/exe child'"); got != "1\n" {
		t.Errorf("children left after stop: %q", got)
	}
	must(t, n.Start(ctx))
	must(t, n.WaitReady(ctx))
	if err := n.Start(ctx); err == nil {
		t.Error("second start was accepted")
	}
}

func TestEndOfAtollIsSeen(t *testing.T) {
	l := newLab(t, lab.Options{})
	ctx := testContext(t)
	n := l.Site(1).Node(1)
	must(t, n.Configure(func(c *lab.Config) { c.Role = "fail" })) // the stand-in ends with code 7
	must(t, n.Start(ctx))
	code, err := n.WaitExit(ctx)
	must(t, err)
	if code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if err := n.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), "exit code 7: I was told to fail") {
		t.Errorf("WaitReady of a node that ended: %v", err)
	}

	t.Run("restarted when the node says so", func(t *testing.T) {
		must(t, n.Kill(ctx))
		must(t, n.Configure(func(c *lab.Config) { c.Role, c.RestartAfter = "server", 10*time.Millisecond }))
		must(t, n.Start(ctx))
		must(t, n.WaitReady(ctx))
		before, err := n.Status(ctx)
		must(t, err)
		must(t, n.Signal(ctx, unix.SIGKILL))
		for {
			s, err := n.Status(ctx)
			must(t, err)
			if s.State == lab.StateRunning && s.PID != before.PID && s.PID != 0 {
				break
			}
		}
		must(t, n.WaitReady(ctx))
	})
}

func TestKillIsAPowerCut(t *testing.T) {
	l := newLab(t, lab.Options{Nodes: 2})
	ctx := mustUp(t, l)
	n, other := l.Site(1).Node(1), l.Site(1).Node(2)
	run(t, n, "sh", "-c", "echo x > /run/volatile; echo x > /var/lib/kept; mkdir /sys/fs/cgroup/pids/left; setsid sleep 1000 &")
	identity := run(t, n, "cat", "/var/lib/atoll/identity")

	must(t, l.Kill(ctx, n, other))
	for _, n := range []*lab.Node{n, other} {
		if pids, err := n.Processes(); err != nil || len(pids) > 0 {
			t.Errorf("%s without power has processes %v, %v", n.Name(), pids, err)
		}
		if s, err := n.Status(ctx); err != nil || s.State != lab.StateOff {
			t.Errorf("status %+v, %v", s, err)
		}
	}
	if _, err := n.Exec(ctx, "true"); !errors.Is(err, lab.ErrOff) || remedy.Of(err) == "" {
		t.Errorf("exec without power: %v", err)
	}
	must(t, n.Kill(ctx)) // twice is fine

	must(t, n.Start(ctx))
	must(t, n.WaitReady(ctx))
	if got := run(t, n, "cat", "/var/lib/atoll/identity"); got != identity {
		t.Error("the disk did not survive")
	}
	if got := run(t, n, "sh", "-c", "ls /run /var/lib; ls -d /sys/fs/cgroup/pids/left 2>&1 || true"); strings.Contains(got, "volatile") ||
		!strings.Contains(got, "kept") || !strings.Contains(got, "No such file") {
		t.Errorf("after power is back: %s", got)
	}

	must(t, n.Blank(ctx))
	must(t, n.Start(ctx))
	must(t, n.WaitReady(ctx))
	if got := run(t, n, "cat", "/var/lib/atoll/identity"); got == identity {
		t.Error("a blank node has the old disk")
	}
}

func TestLinks(t *testing.T) {
	l := newLab(t, lab.Options{Sites: 2, Nodes: 2})
	ctx := mustUp(t, l)
	s1 := l.Site(1)
	n1, n2, far := s1.Node(1), s1.Node(2), l.Site(2).Node(1)
	reaches := func(from, to *lab.Node) bool {
		_, err := from.Exec(ctx, "ping", "-c", "1", "-W", "1", to.Address().String())
		return err == nil
	}
	type view struct{ lan, wan, host bool } // n1 to n2, n1 to the other site, host to n1
	look := func() view {
		conn, err := unixDial(n1.Address().String() + ":6443")
		if err == nil {
			conn.Close()
		}
		return view{lan: reaches(n1, n2), wan: reaches(n1, far), host: err == nil}
	}
	whole := view{true, true, true}
	steps := []struct {
		name      string
		cut, heal func() error
		want      view
	}{
		{"lan of a node", n1.CutLAN, n1.HealLAN, view{false, false, false}},
		{"lan of the other node", n2.CutLAN, n2.HealLAN, view{false, true, true}},
		{"lan of the site", s1.CutLAN, s1.HealLAN, view{false, false, false}},
		{"wan of the site", s1.CutWAN, s1.HealWAN, view{true, false, true}},
		{"wan of a node", n1.CutWAN, n1.HealWAN, view{true, false, true}},
		{"wan of the other node", n2.CutWAN, n2.HealWAN, whole},
		{"wan of the far site", l.Site(2).CutWAN, l.Site(2).HealWAN, view{true, false, true}},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			must(t, step.cut())
			if got := look(); got != step.want {
				t.Errorf("cut: %+v, want %+v", got, step.want)
			}
			if got := run(t, n1, "cat", "/sys/class/net/eth0/carrier"); got != "1\n" {
				t.Error("the node sees that its link is cut")
			}
			must(t, step.heal())
			// A host that asks in vain for a neighbour's hardware address asks once a second.
			got := look()
			for deadline := time.Now().Add(5 * time.Second); got != whole && time.Now().Before(deadline); {
				got = look()
			}
			if got != whole {
				t.Errorf("healed: %+v", got)
			}
		})
	}
	t.Run("a cut lasts over power cycles", func(t *testing.T) {
		must(t, n1.CutLAN())
		must(t, n1.Kill(ctx))
		must(t, n1.Start(ctx))
		if reaches(n1, n2) {
			t.Error("the port is open again")
		}
		// The lab itself still gets in.
		must(t, n1.WaitReady(ctx))
		must(t, n1.HealLAN())
		healed := reaches(n1, n2)
		for deadline := time.Now().Add(5 * time.Second); !healed && time.Now().Before(deadline); {
			healed = reaches(n1, n2)
		}
		if !healed {
			t.Error("heal did not open the port")
		}
	})
}

func TestDiskOfLimitedSize(t *testing.T) {
	l := newLab(t, lab.Options{DiskMB: 32, Files: map[string]string{"/var/lib/atoll/server/manifests/a.yaml": "a: 1\n"}})
	ctx := mustUp(t, l)
	n := l.Site(1).Node(1)
	if got := run(t, n, "cat", "/var/lib/atoll/server/manifests/a.yaml"); got != "a: 1\n" {
		t.Errorf("file of a new disk: %q", got)
	}
	t.Run("fills up", func(t *testing.T) {
		_, err := n.Exec(ctx, "dd", "if=/dev/zero", "of=/var/big", "bs=1M", "count=64")
		if err == nil || !strings.Contains(err.Error(), "No space left") {
			t.Errorf("64 MB on a disk of 32: %v", err)
		}
		run(t, n, "rm", "/var/big")
	})
	t.Run("a power cut loses what was not synced, and only that", func(t *testing.T) {
		run(t, n, "sh", "-c", "echo kept > /var/synced; sync; echo lost > /var/unsynced")
		must(t, n.Kill(ctx))
		must(t, n.Start(ctx))
		if got := run(t, n, "cat", "/var/synced"); got != "kept\n" {
			t.Errorf("synced file: %q", got)
		}
		if got := run(t, n, "sh", "-c", "cat /var/unsynced 2>/dev/null || true"); got != "" {
			t.Errorf("a file that was not synced is there: %q", got)
		}
	})
	t.Run("files are not written around the disk", func(t *testing.T) {
		must(t, n.Kill(ctx))
		if err := n.WriteFile("/var/lib/x", nil, 0o600); err == nil {
			t.Error("a file on a disk without power was written")
		}
		must(t, n.WriteFile("/etc/atoll/config.yaml", []byte("x: 1\n"), 0o600))
		must(t, n.PowerOn(ctx))
		must(t, n.WriteFile("/var/lib/x", []byte("y"), 0o600))
		if got := run(t, n, "cat", "/var/lib/x", "/etc/atoll/config.yaml"); got != "yx: 1\n" {
			t.Errorf("files that the host wrote: %q", got)
		}
	})
}

func TestReadOnlyDisk(t *testing.T) {
	for name, size := range map[string]int{"folder": 0, "limited": 32} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, lab.Options{DiskMB: size})
			ctx := testContext(t)
			n := l.Site(1).Node(1)
			must(t, n.Configure(func(c *lab.Config) { c.ReadOnly = true }))
			must(t, n.PowerOn(ctx))
			if _, err := n.Exec(ctx, "touch", "/var/lib/x"); err == nil || !strings.Contains(err.Error(), "Read-only") {
				t.Errorf("write on a read-only disk: %v", err)
			}
			must(t, n.Kill(ctx))
			must(t, n.Configure(func(c *lab.Config) { c.ReadOnly = false }))
			must(t, n.PowerOn(ctx))
			run(t, n, "touch", "/var/lib/x")
		})
	}
}

func TestExec(t *testing.T) {
	l := newLab(t, lab.Options{})
	ctx := testContext(t)
	n := l.Site(1).Node(1)
	must(t, n.PowerOn(ctx))

	out, err := n.ExecInput(ctx, []byte("in"), "sh", "-c", "cat; echo out; echo bad >&2; exit 3")
	var exit *lab.ExitError
	if out != "inout\n" || !errors.As(err, &exit) || exit.Code != 3 || exit.Stderr != "bad\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := n.Exec(ctx, "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("missing program: %v", err)
	}
	if _, err := n.Exec(ctx, "sh", "-c", "kill -TERM $$"); !errors.As(err, &exit) || exit.Code != 128+15 {
		t.Errorf("ended by a signal: %v", err)
	}
	t.Run("killed with its caller", func(t *testing.T) {
		short, cancel := lab.Within(100*time.Millisecond, "sleep")
		defer cancel()
		if _, err := n.Exec(short, "sh", "-c", "sleep 1111 & sleep 2222"); err == nil {
			t.Error("the call returned without an error")
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			left := run(t, n, "sh", "-c", "ps -o args | grep '^sleep' || true")
			if left == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("left behind: %s", left)
			}
		}
	})
	t.Run("what it leaves in the background runs on, and is reaped", func(t *testing.T) {
		run(t, n, "sh", "-c", "setsid sleep 0.1 & exit 0")
		for deadline := time.Now().Add(5 * time.Second); strings.Contains(run(t, n, "ps", "-o", "stat,args"), "sleep"); {
			if time.Now().After(deadline) {
				t.Fatal("a zombie stays")
			}
		}
	})
}

func TestDialFromInside(t *testing.T) {
	l := newLab(t, lab.Options{})
	ctx := mustUp(t, l)
	n := l.Site(1).Node(1)
	must(t, n.WriteFile("/tmp/www/x", []byte("inside"), 0o644))
	run(t, n, "httpd", "-p", "127.0.0.1:8080", "-h", "/tmp/www")
	client := &http.Client{Transport: &http.Transport{DialContext: n.Dial}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://127.0.0.1:8080/x")
	must(t, err)
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "inside" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	if _, err := n.Dial(ctx, "tcp", "127.0.0.1:9"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial a closed port: %v", err)
	}
}

func TestKubeconfigWorksOnTheHost(t *testing.T) {
	l := newLab(t, lab.Options{})
	mustUp(t, l)
	path, err := l.Site(1).Kubeconfig()
	must(t, err)
	data, err := os.ReadFile(path)
	must(t, err)
	if want := "https://" + l.Site(1).Node(1).Address().String() + ":6443"; !strings.Contains(string(data), want) {
		t.Errorf("no %s in\n%s", want, data)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestUpgradeReplacesTheBinary(t *testing.T) {
	l := newLab(t, lab.Options{})
	ctx := mustUp(t, l)
	n := l.Site(1).Node(1)
	before, err := os.ReadFile(built.standin)
	must(t, err)
	other := filepath.Join(t.TempDir(), "atoll")
	must(t, os.WriteFile(other, append(slices.Clone(before), "other version"...), 0o755))
	must(t, n.SetBinary(other))
	must(t, n.WaitReady(ctx)) // the old one runs on
	must(t, n.Restart(ctx))
	must(t, n.WaitReady(ctx))
	if got := run(t, n, "tail", "-c", "13", "/usr/local/bin/atoll"); got != "other version" {
		t.Errorf("binary ends with %q", got)
	}
	if after, err := os.ReadFile(built.standin); err != nil || !slices.Equal(before, after) {
		t.Errorf("the built binary was changed: %v", err)
	}
}

func TestParseName(t *testing.T) {
	for _, tt := range []struct {
		name       string
		site, node int
	}{
		{"s1", 1, 0}, {"s12/n3", 12, 3},
		{"", 0, 0}, {"s", 0, 0}, {"s0", 0, 0}, {"s01", 0, 0}, {"s1/", 0, 0}, {"s1/n", 0, 0}, {"n1", 0, 0}, {"s1/n1/x", 0, 0},
		{"s99999999999999999999", 0, 0}, {"s-1", 0, 0}, {"s1/s1", 0, 0},
	} {
		site, node, err := lab.ParseName(tt.name)
		if (err != nil) != (tt.site == 0) || site != tt.site || node != tt.node {
			t.Errorf("%q: %d, %d, %v", tt.name, site, node, err)
		}
	}
}
