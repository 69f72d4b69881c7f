package install_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var kinds = []string{"debian", "debian-wget", "alpine"}

func TestInstallServer(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b, s := newBox(t, kind), newServer(t)
			s.publish("", standins.v1)
			r := b.ok(b.install([]string{s.url(), `ATOLL_TOKEN=it's "$5" \o/`, "HTTPS_PROXY=http://proxy:3128", "SECRET=no"},
				"server", "--tls-san", "shop 7.example", "--node-label=price=5%$"))
			if b.read("usr/local/bin/atoll") != string(standins.v1Inside) || b.perm("usr/local/bin/atoll") != 0o755 {
				t.Error("the program is not the one that was inside the download")
			}
			contains(t, "output", r.out, "installed /usr/local/bin/atoll: atoll v1 (stand-in)\n", "next:")
			for _, name := range []string{"atoll-killall.sh", "atoll-uninstall.sh"} {
				if b.perm("usr/local/bin/"+name) != 0o755 {
					t.Errorf("%s is not executable", name)
				}
				shellcheck(t, b.path("usr/local/bin/"+name))
			}
			for _, name := range []string{"kubectl", "ctr"} {
				if to, _ := os.Readlink(b.path("usr/local/bin/" + name)); to != "atoll" {
					t.Errorf("%s links to %q", name, to)
				}
			}
			if left, _ := filepath.Glob(b.path("usr/local/bin/.*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			envFile := "etc/systemd/system/atoll.service.env"
			if kind == "alpine" {
				envFile = "etc/atoll/atoll.env"
				checkOpenRC(t, b)
			} else {
				checkSystemd(t, b)
			}
			if b.perm(envFile) != 0o600 {
				t.Errorf("mode of %s is %o", envFile, b.perm(envFile))
			}
			contains(t, "environment", b.read(envFile), `ATOLL_TOKEN="it's \"\$5\" \\o/"`, `HTTPS_PROXY="http://proxy:3128"`)
			lacks(t, "environment", b.read(envFile), "SECRET", "INSTALL_")
			back := b.run(nil, nil, nil, "/bin/sh", "-c", ". /"+envFile+` && printf '%s' "$ATOLL_TOKEN"`)
			if back.out != `it's "$5" \o/` {
				t.Errorf("the token reads back as %q", back.out)
			}
		})
	}
}

func checkSystemd(t *testing.T, b *box) {
	unit := b.read("etc/systemd/system/atoll.service")
	contains(t, "unit", unit, "Type=notify\n", "KillMode=process\n", "Delegate=yes\n", "LimitNOFILE=1048576\n", "TasksMax=infinity\n",
		"TimeoutStartSec=0\n", "Restart=always\nRestartSec=5s\n", "modprobe -q", "WantedBy=multi-user.target\n",
		"EnvironmentFile=-/etc/systemd/system/atoll.service.env\n",
		`ExecStart=/usr/local/bin/atoll server --tls-san "shop 7.example" "--node-label=price=5%%$$"`+"\n")
	if b.perm("etc/systemd/system/atoll.service") != 0o644 {
		t.Error("the unit is not readable by all")
	}
	want := "systemctl daemon-reload\nsystemctl enable atoll\nsystemctl restart --no-block atoll\nsystemctl is-active --quiet atoll\n"
	if calls := b.calls(); calls != want {
		t.Errorf("systemctl was called so:\n%s", calls)
	}
	// systemd's own parser, where there is one, must not complain about a line of the unit.
	if path, err := exec.LookPath("systemd-analyze"); err == nil {
		out, _ := exec.Command(path, "verify", "--root="+b.root, "atoll.service").CombinedOutput()
		lacks(t, "systemd-analyze verify", string(out), "atoll.service:1", "atoll.service:2")
	}
}

func checkOpenRC(t *testing.T, b *box) {
	rc := b.read("etc/init.d/atoll")
	contains(t, "init script", rc, "supervisor=supervise-daemon\n", "respawn_max=0\n", "command='/usr/local/bin/atoll'\n")
	if b.perm("etc/init.d/atoll") != 0o755 {
		t.Error("the init script is not executable")
	}
	// OpenRC evaluates command and command_args: the program must get its arguments whole.
	r := b.run(nil, nil, nil, "/bin/sh", "-c", `. /etc/init.d/atoll; eval "set -- $command_args"; for a in "$@"; do echo "<$a>"; done`)
	if want := "<server>\n<--tls-san>\n<shop 7.example>\n<--node-label=price=5%$>\n"; r.out != want {
		t.Errorf("arguments arrive as\n%s", r.out)
	}
	contains(t, "logrotate", b.read("etc/logrotate.d/atoll"), "/var/log/atoll.log {", "copytruncate")
	contains(t, "calls", b.calls(), "rc-update add atoll default\n", "rc-service atoll restart\n")
}

func shellcheck(t *testing.T, paths ...string) {
	t.Helper()
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Fatal("shellcheck is missing: apt-get install shellcheck")
	}
	if out, err := exec.Command("shellcheck", append([]string{"-s", "sh"}, paths...)...).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}

func TestScriptsAreClean(t *testing.T) {
	shellcheck(t, script, "testdata/systemctl", "testdata/rc-service")
}

func TestRunningAgainUpgradesAndKeepsSettings(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b, s := newBox(t, kind), newServer(t)
			unit, env := "etc/systemd/system/atoll-shop.service", "etc/systemd/system/atoll-shop.service.env"
			restart := "systemctl restart --no-block atoll-shop\n"
			if kind == "alpine" {
				unit, env, restart = "etc/init.d/atoll-shop", "etc/atoll/atoll-shop.env", "rc-service atoll-shop restart\n"
			}
			s.publish("", standins.v1)
			b.ok(b.install([]string{s.url(), "INSTALL_ATOLL_NAME=shop", "INSTALL_ATOLL_BIN_DIR=/opt/bin", "INSTALL_ATOLL_SYMLINK=skip",
				"INSTALL_ATOLL_EXEC=server --disable 'a b'", "ATOLL_TOKEN=first", "http_proxy="}, "--node-name", "till 1"))
			unitBefore, envBefore := b.read(unit), b.read(env)
			contains(t, "unit", unitBefore, "a b", "till 1", "/opt/bin/atoll")
			b.calls()

			s.publish("", standins.v2)
			b.ok(b.install(nil))
			if b.read("opt/bin/atoll") != string(standins.v2Inside) {
				t.Error("the program was not upgraded")
			}
			if b.read(unit) != unitBefore || b.read(env) != envBefore {
				t.Errorf("settings changed:\n%s\n%s", b.read(unit), b.read(env))
			}
			contains(t, "calls", b.calls(), restart)

			downloads := s.count(programPath)
			contains(t, "output", b.ok(b.install(nil)).out, "up to date", "nothing changed")
			if s.count(programPath) != downloads {
				t.Error("the same program was downloaded again")
			}
			lacks(t, "calls", b.calls(), restart)
			b.ok(b.install([]string{"INSTALL_ATOLL_FORCE_RESTART=true"}))
			contains(t, "calls", b.calls(), restart)

			b.ok(b.install([]string{"ATOLL_TOKEN=", "ATOLL_NODE_NAME=till2"}, "--tls-san=x"))
			contains(t, "unit", b.read(unit), "server", "--tls-san=x")
			lacks(t, "unit", b.read(unit), "till 1")
			if got := b.read(env); got != "ATOLL_NODE_NAME=\"till2\"\n" {
				t.Errorf("environment is %q", got)
			}
			contains(t, "calls", b.calls(), restart)

			b.ok(b.install([]string{"INSTALL_ATOLL_NAME="}))
			if b.exists(unit) || b.exists(env) || !b.exists(strings.Replace(unit, "-shop", "", 1)) {
				t.Error("after a new name there are both services, or none")
			}
			contains(t, "environment", b.read(strings.Replace(env, "-shop", "", 1)), "till2")
		})
	}
}

func TestAgent(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b, s := newBox(t, kind), newServer(t)
			s.publish("", standins.v1)
			r := b.install([]string{s.url(), "ATOLL_URL=https://10.0.0.1:6443"})
			if r.code != 1 || b.exists("etc/systemd/system/atoll-agent.service") || b.exists("etc/init.d/atoll-agent") {
				t.Errorf("an agent without a token: exit code %d\n%s", r.code, r.out)
			}
			contains(t, "output", r.out, "Error: an agent needs the token", "Try:   set ATOLL_TOKEN")

			b.ok(b.install([]string{s.url(), "ATOLL_URL=https://10.0.0.1:6443"}, "--token", "joined", "--node-label=a=b"))
			unit, env := "etc/systemd/system/atoll-agent.service", "etc/systemd/system/atoll-agent.service.env"
			if kind == "alpine" {
				unit, env = "etc/init.d/atoll-agent", "etc/atoll/atoll-agent.env"
			} else {
				contains(t, "unit", b.read(unit), "Type=exec\n", "ExecStart=/usr/local/bin/atoll agent --node-label=a=b\n")
			}
			lacks(t, "unit", b.read(unit), "joined")
			contains(t, "environment", b.read(env), `ATOLL_TOKEN="joined"`, `ATOLL_URL="https://10.0.0.1:6443"`)
			unitBefore := b.read(unit)
			b.ok(b.install(nil))
			if b.read(unit) != unitBefore {
				t.Errorf("running it again changed the agent:\n%s", b.read(unit))
			}
		})
	}
}

func TestServerDoesNotBecomeAnAgentByAccident(t *testing.T) {
	b, s := newBox(t, "debian"), newServer(t)
	s.publish("", standins.v1)
	b.ok(b.install([]string{s.url()}))
	r := b.install([]string{"ATOLL_URL=https://10.0.0.1:6443", "ATOLL_TOKEN=x"})
	contains(t, "output", r.out, "Error: this node is a server", "INSTALL_ATOLL_EXEC=server")
	b.ok(b.install([]string{"ATOLL_URL=https://10.0.0.1:6443", "ATOLL_TOKEN=x", "INSTALL_ATOLL_EXEC=server"}))
	contains(t, "environment", b.read("etc/systemd/system/atoll.service.env"), "ATOLL_URL")
	b.calls()
	b.ok(b.install([]string{"INSTALL_ATOLL_EXEC=agent"}))
	if b.exists("etc/systemd/system/atoll.service") || !b.exists("etc/systemd/system/atoll-agent.service") {
		t.Error("asked to be an agent, it is not one alone")
	}
	contains(t, "calls", b.calls(), "systemctl disable --now atoll\n", "systemctl restart --no-block atoll-agent\n")
}

func TestSources(t *testing.T) {
	t.Parallel()
	t.Run("plain program over https", func(t *testing.T) {
		b, s := newBox(t, "debian"), newServer(t)
		s.publish("", standins.v1Inside)
		tls := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
		tls.Config.ErrorLog = log.New(io.Discard, "", 0)
		tls.StartTLS()
		defer tls.Close()
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw})
		if err := os.WriteFile(b.path("etc/ca.pem"), ca, 0o644); err != nil {
			t.Fatal(err)
		}
		b.ok(b.install([]string{"INSTALL_ATOLL_URL=" + tls.URL + "/", "CURL_CA_BUNDLE=/etc/ca.pem"}))
		if b.read("usr/local/bin/atoll") != string(standins.v1Inside) {
			t.Error("wrong program")
		}
		r := b.install([]string{"INSTALL_ATOLL_URL=" + tls.URL})
		contains(t, "output of an untrusted server", r.out, "Error: download", "Try:   check INSTALL_ATOLL_URL")
	})
	t.Run("a version", func(t *testing.T) {
		b, s := newBox(t, "debian"), newServer(t)
		s.publish("", standins.v1)
		s.publish("/v2+atoll1", standins.v2)
		b.ok(b.install([]string{s.url(), "INSTALL_ATOLL_VERSION=v2+atoll1"}))
		if b.read("usr/local/bin/atoll") != string(standins.v2Inside) {
			t.Error("wrong version")
		}
		b.ok(b.install(nil))
		if b.read("usr/local/bin/atoll") != string(standins.v1Inside) {
			t.Error("the version was kept")
		}
	})
	t.Run("a local file", func(t *testing.T) {
		b := newBox(t, "alpine")
		sum := sha256.Sum256(standins.v2)
		for name, data := range map[string][]byte{"stick" + programPath: standins.v1, "stick" + sumPath: []byte(hex.EncodeToString(sum[:]) + " *atoll-linux-" + programPath[len("/atoll-linux-"):] + "\n")} {
			if err := os.MkdirAll(b.path("stick"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(b.path(name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := b.install([]string{"INSTALL_ATOLL_LOCAL_FILE=/stick" + programPath})
		contains(t, "output", r.out, "has the checksum", "nothing was changed")
		if err := os.WriteFile(b.path("stick"+programPath), standins.v2, 0o644); err != nil {
			t.Fatal(err)
		}
		b.ok(b.install([]string{"INSTALL_ATOLL_LOCAL_FILE=/stick" + programPath}))
		if b.read("usr/local/bin/atoll") != string(standins.v2Inside) {
			t.Error("wrong program")
		}
	})
	t.Run("a program that is there", func(t *testing.T) {
		b := newBox(t, "debian")
		if err := os.WriteFile(b.path("usr/local/bin/atoll"), standins.v1Inside, 0o755); err != nil {
			t.Fatal(err)
		}
		b.ok(b.install([]string{"INSTALL_ATOLL_SKIP_DOWNLOAD=true", "INSTALL_ATOLL_SKIP_START=true"}))
		lacks(t, "calls", b.calls(), "restart")
		b.ok(b.install([]string{"INSTALL_ATOLL_SKIP_DOWNLOAD=true"}))
		contains(t, "calls after the first run without start", b.calls(), "restart")
	})
	t.Run("a link that drops", func(t *testing.T) {
		b, s := newBox(t, "debian"), newServer(t)
		s.publish("", standins.v1)
		s.cut[programPath] = 100_000
		dropped := make(chan struct{})
		s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				s.mu.Lock()
				delete(s.cut, programPath)
				s.mu.Unlock()
				select {
				case <-dropped:
				default:
					close(dropped)
				}
			}
			s.serve(w, r)
		})
		contains(t, "output", b.ok(b.install([]string{s.url()})).out, "interrupted, trying again")
		select {
		case <-dropped:
		default:
			t.Error("the download began afresh instead of going on")
		}
	})
}

func TestBelowAnotherRoot(t *testing.T) {
	for _, kind := range kinds[1:] {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b, s := newBox(t, kind), newServer(t)
			s.publish("", standins.v1)
			if kind == "alpine" {
				_ = os.MkdirAll(b.path("image/sbin"), 0o755)
				_ = copyFile("testdata/rc-service", b.path("image/sbin/openrc-run"))
			}
			before := b.tree()
			b.ok(b.install([]string{s.url(), "INSTALL_ATOLL_ROOT=/image"}))
			for _, line := range b.tree() {
				if !strings.HasPrefix(line, "image") && !strings.Contains(strings.Join(before, "\n"), line) {
					t.Errorf("touched outside of its root: %s", line)
				}
			}
			if b.read("image/usr/local/bin/atoll") != string(standins.v1Inside) {
				t.Error("wrong program")
			}
			if kind == "alpine" {
				if to, _ := os.Readlink(b.path("image/etc/runlevels/default/atoll")); to != "/etc/init.d/atoll" {
					t.Errorf("enabled as %q", to)
				}
			} else if calls := b.calls(); calls != "systemctl --root=/image enable atoll\n" {
				t.Errorf("calls: %s", calls)
			}
			lacks(t, "script", b.read("image/usr/local/bin/atoll-uninstall.sh"), "/image")
		})
	}
}

func TestServiceThatDoesNotStay(t *testing.T) {
	b, s := newBox(t, "debian"), newServer(t)
	s.publish("", standins.v1)
	_ = os.MkdirAll(b.path("var/fake"), 0o755)
	if err := os.WriteFile(b.path("var/fake/crash"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := b.install([]string{s.url()})
	if r.code != 1 {
		t.Errorf("exit code %d", r.code)
	}
	contains(t, "output", r.out, "Error: atoll was installed, but does not stay up", "Try:   see journalctl -u atoll")
	_ = os.Remove(b.path("var/fake/crash"))
	b.ok(b.install(nil))
}

func TestSecondInstallationIsRefused(t *testing.T) {
	b, s := newBox(t, "debian"), newServer(t)
	s.publish("", standins.v1)
	b.ok(b.install([]string{s.url()}))
	lock, err := os.OpenFile(b.path("etc/atoll/install.lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	contains(t, "output", b.install(nil).out, "Error: another installation of atoll is running")
}

func TestScriptThatArrivesInPartDoesNothing(t *testing.T) {
	t.Parallel()
	text := must(os.ReadFile(script))
	for _, kind := range kinds[1:] {
		b, s := newBox(t, kind), newServer(t)
		s.publish("", standins.v1)
		before := b.tree()
		for i := 1; i <= 40; i++ {
			// The last piece lacks the line that starts the work by its final characters.
			at := min(len(text)*i/40, len(text)-len("main \"$@\" </dev/null\n"))
			b.pipe(text[:at], nil, []string{s.url()})
		}
		sameTree(t, before, b.tree())
		if hits := s.count(sumPath); hits != 0 {
			t.Errorf("%d downloads", hits)
		}
	}
}

// A power cut or a kill between any two renames leaves whole files, and running it again completes the upgrade.
func TestKilledAtEveryRename(t *testing.T) {
	t.Parallel()
	killer := `#!/bin/dash
n=$(($(cat /var/fake/renames 2>/dev/null || echo 0) + 1))
echo $n >/var/fake/renames
[ $n -ne 0$KILL_BEFORE ] || kill -KILL 0
/bin/mv.real "$@"
[ $n -ne 0$KILL_AFTER ] || kill -KILL 0
`
	s := newServer(t)
	finished := false
	for n := 1; !finished; n++ {
		for _, when := range []string{"KILL_BEFORE", "KILL_AFTER"} {
			b := newBox(t, "debian")
			s.publish("", standins.v1)
			b.ok(b.install([]string{s.url(), "ATOLL_TOKEN=kept"}, "server", "--one"))
			if err := os.Rename(b.path("bin/mv"), b.path("bin/mv.real")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(b.path("bin/mv"), []byte(killer), 0o755); err != nil {
				t.Fatal(err)
			}
			s.publish("", standins.v2)
			b.calls()
			r := b.pipe(must(os.ReadFile(script)), &syscall.SysProcAttr{Setpgid: true}, []string{fmt.Sprintf("%s=%d", when, n), "ATOLL_X=1"}, "server", "--two")
			finished = r.code == 0
			if program := b.read("usr/local/bin/atoll"); program != string(standins.v1Inside) && program != string(standins.v2Inside) {
				t.Errorf("%s %d: the program is neither the old nor the new one", when, n)
			}
			contains(t, "environment", b.read("etc/systemd/system/atoll.service.env"), "kept")
			if unit := b.read("etc/systemd/system/atoll.service"); !strings.HasSuffix(unit, "multi-user.target\n") {
				t.Errorf("%s %d: half a unit", when, n)
			}
			b.ok(b.install([]string{"ATOLL_X=1"}, "server", "--two"))
			if b.read("usr/local/bin/atoll") != string(standins.v2Inside) {
				t.Errorf("%s %d: not upgraded by the next run", when, n)
			}
			contains(t, "unit", b.read("etc/systemd/system/atoll.service"), "atoll server --two\n")
			contains(t, "environment", b.read("etc/systemd/system/atoll.service.env"), "kept", "ATOLL_X")
			contains(t, "calls", b.calls(), "systemctl restart --no-block atoll\n")
			if left, _ := filepath.Glob(b.path("usr/local/bin/.atoll-install*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		}
		if n > 20 {
			t.Fatal("the installation never came to its end")
		}
	}
}
