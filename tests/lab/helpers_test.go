package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/atollhq/atoll/tests/lab"
)

// programs are built once: the lab's own command, and a stand-in that is enough of an atoll to test the lab.
// dir is where they are, and all labs of these tests.
type programs struct{ dir, command, standin string }

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
	built = programs{dir: dir, command: filepath.Join(dir, "lab"), standin: filepath.Join(dir, "standin")}
	for out, pkg := range map[string]string{built.command: "./tests/lab/cmd/lab", built.standin: "./tests/lab/internal/standin"} {
		cmd := exec.Command("go", "build", "-tags", "providerless,osusergo,netgo", "-trimpath", "-o", out, pkg)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		}
	}
	return m.Run(), nil
}

// labDir returns a name for a lab's folder. The lab itself makes and removes it.
func labDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(built.dir, "lab-")
	must(t, err)
	must(t, os.Remove(dir))
	return dir
}

// newLab builds a lab of stand-ins.
func newLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Command, o.Binary, o.Dir = built.command, built.standin, labDir(t)
	if o.Images == nil {
		o.Images = []string{}
	}
	return lab.New(t, o)
}

// testContext bounds one test's steps; nothing here needs more than a second on an idle machine.
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

// hostState lists everything on the host that a lab could leave behind. What belongs to other people's labs is left out: they come and
// go meanwhile.
func hostState(t *testing.T) []string {
	t.Helper()
	foreign := foreignLabs(t)
	var state []string
	add := func(id int, text string) {
		if !foreign[id] {
			state = append(state, text)
		}
	}
	// A list that changed meanwhile comes with an error; whoever needs a true one asks again anyway.
	links, err := netlink.LinkList()
	if !errors.Is(err, netlink.ErrDumpInterrupted) {
		must(t, err)
	}
	for _, l := range links {
		if id, ok := strings.CutPrefix(l.Attrs().Name, "atoll-lab"); ok {
			add(atoi(id), "interface "+l.Attrs().Name)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if !errors.Is(err, netlink.ErrDumpInterrupted) {
		must(t, err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP[0] == 10 && r.Dst.IP[1] >= 77 {
			add(int(r.Dst.IP[1])-77, "route "+r.Dst.String())
		}
	}
	must(t, filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if id, ok := strings.CutPrefix(filepath.Base(path), "atoll-lab"); ok && err == nil {
			add(atoi(id), "group "+path)
			return fs.SkipDir
		}
		return nil // a group of somebody else may vanish while we look
	}))
	entries, _ := os.ReadDir("/run/atoll-lab")
	for _, e := range entries {
		id, isLab := strings.CutSuffix(e.Name(), ".json")
		if isLab && id != "limits" {
			add(atoi(id), "registered "+e.Name())
		} else if len(foreign) == 0 {
			state = append(state, "registry's "+e.Name())
		}
	}
	if len(foreign) == 0 {
		limit, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
		must(t, err)
		state = append(state, "inotify limit "+string(limit))
	}
	state = append(state, ownMountsAndProcesses(t)...)
	slices.Sort(state)
	return state
}

// ownMountsAndProcesses looks for what has this test's folder in its name.
func ownMountsAndProcesses(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/sys/block/loop*/loop/backing_file", "/proc/self/mountinfo"} {
		files, err := filepath.Glob(pattern)
		must(t, err)
		for _, file := range files {
			text, _ := os.ReadFile(file) // may be gone
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, built.dir) {
					found = append(found, file+": "+line)
				}
			}
		}
	}
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	must(t, err)
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil && strings.HasPrefix(target, built.dir) {
			found = append(found, "process "+exe+" "+target)
		}
	}
	return found
}

// foreignLabs returns the numbers of labs that this test program did not make.
func foreignLabs(t *testing.T) map[int]bool {
	t.Helper()
	files, err := filepath.Glob("/run/atoll-lab/[0-9]*.json")
	must(t, err)
	foreign := map[int]bool{}
	for _, file := range files {
		var e struct {
			ID  int
			Dir string
		}
		data, _ := os.ReadFile(file) // may be gone
		if json.Unmarshal(data, &e) == nil && !strings.HasPrefix(e.Dir, built.dir) {
			foreign[e.ID] = true
		}
	}
	return foreign
}

// atoi returns -1 for what is no number.
func atoi(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return n
}

// wantSame fails when there is more on the host than before. It waits a little: the kernel finishes some removals in the background.
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
