package install_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestUninstall(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b, s := newBox(t, kind), newServer(t)
			s.publish("", standins.v1)
			if b.init == "systemd" {
				_ = os.MkdirAll(b.path("etc/systemd/system"), 0o755)
			} else {
				_ = os.MkdirAll(b.path("etc/init.d"), 0o755)
			}
			before := b.tree()
			install := func() {
				b.ok(b.install([]string{s.url(), "ATOLL_TOKEN=x"}, "server", "--data-dir", "/srv/at oll"))
				for _, dir := range []string{"srv/at oll/server/db", "var/lib/kubelet/pods", "run/atoll/containerd", "var/log/pods/a"} {
					if err := os.MkdirAll(b.path(dir), 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			install()
			r := b.inside("/usr/local/bin/atoll-uninstall.sh </dev/null")
			if r.code != 2 || !b.exists("usr/local/bin/atoll") || !b.exists("srv/at oll/server/db") {
				t.Errorf("without --yes and without a terminal: exit code %d\n%s", r.code, r.out)
			}
			contains(t, "output", r.out, "Error: This removes atoll", "/srv/at oll", "Try:   run it with --yes")
			if r := b.inside("/usr/local/bin/atoll-uninstall.sh --yse"); r.code != 2 {
				t.Errorf("an unknown argument: exit code %d", r.code)
			}

			b.calls()
			b.ok(b.inside("/usr/local/bin/atoll-uninstall.sh --yes --keep-data"))
			if b.exists("usr/local/bin/atoll") || !b.exists("srv/at oll/server/db") || !b.exists("etc/atoll/install.conf") {
				t.Error("--keep-data: the program stays or data is gone")
			}
			stop := "systemctl stop atoll\n"
			if kind == "alpine" {
				stop = "rc-service atoll stop\n"
			}
			contains(t, "calls", b.calls(), stop)

			install()
			b.ok(b.inside("/usr/local/bin/atoll-uninstall.sh --yes"))
			_ = os.Remove(b.path("srv")) // made by this test
			sameTree(t, before, b.tree())
			if enabled, _ := filepath.Glob(b.path("var/fake/enabled-*")); len(enabled) > 0 {
				t.Errorf("still enabled: %v", enabled)
			}
		})
	}
}

// inside runs a command line in namespaces of its own (mounts, processes, network) with /proc and /sys there.
func (b *box) inside(line string) result {
	b.t.Helper()
	setup := "mount -t proc proc /proc && mount -t sysfs sysfs /sys && mkdir -p /cgroups && mount -t cgroup2 none /cgroups && "
	attr := &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Cloneflags: syscall.CLONE_NEWPID}
	r := b.run(nil, attr, nil, "/bin/sh", "-c", setup+line)
	_ = os.Remove(b.path("cgroups"))
	return r
}

// Everything that belongs to the node goes; a neighbour's processes, mounts, links and tables stay.
func TestKillall(t *testing.T) {
	for _, kind := range kinds[1:] {
		t.Run(kind, func(t *testing.T) {
			b, s := newBox(t, kind), newServer(t)
			s.publish("", standins.v1)
			b.ok(b.install([]string{s.url()}))
			for _, tool := range []string{"ip", "nft", "mount", "umount", "sleep"} {
				_ = os.Remove(b.path("bin/" + tool))
				if err := copyProgram(b.root, tool); err != nil {
					t.Fatal(err)
				}
			}
			for _, to := range []string{"var/lib/atoll/data/0123/bin/containerd-shim-runc-v2", "bin/pod-process", "var/lib/other/containerd-shim-runc-v2"} {
				if err := os.MkdirAll(filepath.Dir(b.path(to)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(b.path(to), standins.v1Inside, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			scene := must(os.ReadFile("testdata/node-with-pods.sh"))
			if err := os.WriteFile(b.path("tmp/scene"), scene, 0o755); err != nil {
				t.Fatal(err)
			}
			r := b.inside("/bin/sh /tmp/scene")
			_ = os.Remove("/sys/fs/cgroup/unified/atoll-install-test")
			if r.code != 0 {
				t.Fatalf("exit code %d:\n%s", r.code, r.out)
			}
			_, after, found := strings.Cut(r.out, "=== after\n")
			if !found {
				t.Fatalf("the scene broke off:\n%s", r.out)
			}
			var got []string
			for line := range strings.Lines(after) {
				got = append(got, strings.TrimSpace(line))
			}
			slices.Sort(got)
			want := []string{
				"link eth-neighbour", "mount /run/netns/cni-neighbour", "mount /var/lib/other", "mount /var/lib/kubelet",
				"process /usr/local/bin/atoll sleep", "process /var/lib/other/containerd-shim-runc-v2 sleep",
				"route 10.43.9.0/24", "rule neighbour-0000000000000000", "table inet neighbour", "table ip cni_hostport",
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("left:\n%s\nwanted:\n%s\nall output:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), r.out)
			}
		})
	}
}
