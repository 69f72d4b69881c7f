package cgroup_test

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/runtime/cgroup"
)

// inside is set in the process that plays the container.
const inside = "ATOLL_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(m.Run())
	}
	if err := prepareInside(os.Getenv(inside)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestReadsThisMachine compares what is read from mountinfo with what the kernel says of the folder.
func TestReadsThisMachine(t *testing.T) {
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroup.Dir, &fs); err != nil {
		t.Skipf("no control groups here: %v", err)
	}
	state, err := cgroup.Read("/")
	if err != nil {
		t.Fatal(err)
	}
	if v2 := fs.Type == unix.CGROUP2_SUPER_MAGIC; state.V2 != v2 {
		t.Errorf("version 2: %v, want %v", state.V2, v2)
	}
	if state.V2 && len(state.Controllers) == 0 {
		t.Errorf("no controllers in %+v", state)
	}
	for _, s := range cgroup.Plan(state) {
		t.Logf("a node would: %s", s)
	}
}

// TestContainer plays a container on version 2: a group of its own whose root holds the process, as a runtime leaves it.
func TestContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	top := unified()
	handed, err := os.ReadFile(filepath.Join(top, "cgroup.subtree_control"))
	if top == "" || err != nil || len(strings.Fields(string(handed))) == 0 {
		t.Skip("needs version 2 with a controller that the root hands down")
	}
	group := filepath.Join(top, fmt.Sprintf("atoll-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(filepath.Join(group, "kubepods"))
		_ = os.Remove(filepath.Join(group, "init"))
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), inside+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// unified returns where version 2 is mounted, or "".
func unified() string {
	for _, dir := range []string{cgroup.Dir, cgroup.Dir + "/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return ""
}

// prepareInside sees its group as the root, prepares it twice, and does what the kubelet does then.
func prepareInside(root string) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	at := filepath.Join(root, cgroup.Dir)
	proc := filepath.Join(root, "proc/self")
	for _, dir := range []string{at, proc} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("cgroup2", at, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := os.WriteFile(filepath.Join(proc, "mountinfo"), []byte(v2Mount), 0o644); err != nil {
		return err
	}
	before, err := cgroup.Read(root)
	if err != nil {
		return err
	}
	if !before.Contained || before.Processes == 0 || len(before.Controllers) == 0 || len(before.Enabled) != 0 {
		return fmt.Errorf("not like a container: %+v", before)
	}
	for range 2 {
		if err := cgroup.Prepare(cgroup.Config{Root: root}, slog.New(slog.NewTextHandler(os.Stdout, nil))); err != nil {
			return err
		}
	}
	after, err := cgroup.Read(root)
	if err != nil {
		return err
	}
	if after.Processes != 0 || !slices.Equal(after.Enabled, before.Controllers) {
		return fmt.Errorf("not prepared: %+v", after)
	}
	pods := filepath.Join(at, "kubepods")
	if err := os.Mkdir(pods, 0o755); err != nil {
		return err
	}
	handed, err := os.ReadFile(filepath.Join(pods, "cgroup.controllers"))
	if err != nil {
		return err
	}
	if !slices.Equal(strings.Fields(string(handed)), before.Controllers) {
		return fmt.Errorf("the kubelet's group has %s", handed)
	}
	return nil
}
