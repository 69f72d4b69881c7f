package lab_test

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/atollhq/atoll/tests/lab"
)

// programs are built once: the lab's own command, and a stand-in that is enough of an atoll to test the lab.
type programs struct{ command, standin string }

var built programs // written by TestMain only

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerDir); dir != "" {
		os.Exit(ownLab(dir))
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	root, err := lab.Repository()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "lab-programs-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	built = programs{command: filepath.Join(dir, "lab"), standin: filepath.Join(dir, "standin")}
	for out, pkg := range map[string]string{built.command: "./tests/lab/cmd/lab", built.standin: "./tests/lab/internal/standin"} {
		cmd := exec.Command("go", "build", "-tags", "providerless,osusergo,netgo", "-trimpath", "-o", out, pkg)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		}
	}
	return m.Run(), nil
}

// newLab builds a lab of stand-ins.
func newLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Command, o.Binary = built.command, built.standin
	if o.Images == nil {
		o.Images = []string{}
	}
	return lab.New(t, o)
}

// context10 bounds one test's steps; nothing here needs more than a second on an idle machine.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := lab.Within(30*time.Second, "the test")
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustUp(t *testing.T, l *lab.Lab) context.Context {
	t.Helper()
	ctx := testContext(t)
	must(t, l.Up(ctx))
	return ctx
}

func run(t *testing.T, n *lab.Node, argv ...string) string {
	t.Helper()
	out, err := n.Exec(testContext(t), argv...)
	must(t, err)
	return out
}

// hostState lists everything on the host that a lab could leave behind.
func hostState(t *testing.T) []string {
	t.Helper()
	var state []string
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "atoll-lab") {
			state = append(state, "interface "+l.Attrs().Name)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	must(t, err)
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP[0] == 10 && !r.Dst.IP.Equal(net.IPv4(10, 0, 0, 0)) {
			state = append(state, "route "+r.Dst.String())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		state = append(state, "mount "+strings.Fields(line)[4])
	}
	for _, dir := range []string{"/run/netns", "/run/atoll-lab"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			state = append(state, dir+"/"+e.Name())
		}
	}
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	must(t, err)
	state = append(state, "inotify "+string(limit))
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, loop := range loops {
		image, _ := os.ReadFile(loop)
		state = append(state, "disk "+string(image))
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "atoll-lab") {
			state = append(state, "group "+path)
			return fs.SkipDir
		}
		return nil // a group of somebody else may vanish while we look
	})
	must(t, err)
	state = append(state, labProcesses(t)...)
	slices.Sort(state)
	return state
}

// labProcesses finds the lab's processes by the program that they run, wherever they are.
func labProcesses(t *testing.T) []string {
	t.Helper()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	must(t, err)
	var found []string
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil && (target == built.command || strings.HasSuffix(target, "/usr/local/bin/atoll")) {
			found = append(found, "process "+exe+" "+target)
		}
	}
	return found
}

// wantSame fails when the host is not as it was. It waits a little: the kernel finishes some removals in the background.
// Only what this test process made is compared: other labs may come and go meanwhile.
func wantSame(t *testing.T, before []string) {
	t.Helper()
	var extra []string
	for range 100 {
		extra = nil
		for _, s := range hostState(t) {
			if !slices.Contains(before, s) {
				extra = append(extra, s)
			}
		}
		if len(extra) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind:\n%s", strings.Join(extra, "\n"))
}
