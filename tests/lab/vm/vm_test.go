package vm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/tests/lab"
	"github.com/atollhq/atoll/tests/lab/vm"
)

// prepare skips the test where no machine can be had, and says why.
func prepare(t *testing.T) (vm.Host, string) {
	t.Helper()
	root, err := lab.Repository()
	if err != nil {
		t.Fatal(err)
	}
	host, err := vm.Prepare(t.Context(), filepath.Join(root, "out", "vm"))
	if err != nil {
		t.Skipf("no virtual machine here: %v", err)
	}
	return host, root
}

func run(t *testing.T, h vm.Host, m vm.Machine) (string, int) {
	t.Helper()
	var out bytes.Buffer
	m.Output = &out
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	code, err := h.Run(ctx, m)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return out.String(), code
}

func TestScriptRunsOnControlGroupsV2(t *testing.T) {
	h, _ := prepare(t)
	out, code := run(t, h, vm.Machine{Script: "cat /sys/fs/cgroup/cgroup.controllers; cut -d: -f1 /proc/self/cgroup; exit 3"})
	if code != 3 || !strings.HasSuffix(out, "\n0\n") || !strings.Contains(out, "memory") {
		t.Errorf("exit code %d, output %q", code, out)
	}
}

// TestPowerCutLosesTheUnsynced kills a machine and looks at its disk with the next one.
func TestPowerCutLosesTheUnsynced(t *testing.T) {
	h, _ := prepare(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	ctx, cut := context.WithCancelCause(t.Context())
	defer cut(nil)
	said := writerFunc(func(p []byte) {
		if bytes.Contains(p, []byte("now")) {
			cut(errPower)
		}
	})
	script := "echo kept > /root/synced; sync; echo lost > /root/unsynced; echo now; sleep 1000"
	if _, err := h.Run(ctx, vm.Machine{Disk: disk, Script: script, Output: said}); !errors.Is(err, errPower) {
		t.Fatalf("machine ended with %v", err)
	}
	out, _ := run(t, h, vm.Machine{Disk: disk, Script: "cat /root/synced; ls /root"})
	if out != "kept\nsynced\n" {
		t.Errorf("after the power cut: %q", out)
	}
}

var errPower = fmt.Errorf("power cut")

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// TestLabOnControlGroupsV2 runs the lab itself in the machine, with stand-ins for atoll.
func TestLabOnControlGroupsV2(t *testing.T) {
	h, root := prepare(t)
	dir := t.TempDir()
	command, standin := filepath.Join(dir, "lab"), filepath.Join(dir, "standin")
	for out, pkg := range map[string]string{command: "./tests/lab/cmd/lab", standin: "./tests/lab/internal/standin"} {
		if err := lab.BuildStatic(t.Context(), root, pkg, out); err != nil {
			t.Fatal(err)
		}
	}
	out, code := run(t, h, vm.Machine{
		Files: map[string]string{"/usr/bin/lab": command, "/usr/bin/standin": standin},
		Script: `set -e
lab="lab --dir /lab"
$lab up --binary /usr/bin/standin --no-images --nodes 2
$lab status
$lab exec s1/n1 -- cat /sys/fs/cgroup/cgroup.subtree_control
$lab exec s1/n1 -- sh -c 'cat /proc/[0-9]*/cgroup | sort -u'
$lab kill s1/n1
$lab start s1/n1
$lab cut lan s1/n2
$lab exec s1/n1 -- ping -c 1 -W 1 10.77.1.12 || echo cut
$lab heal lan s1/n2
$lab down
find /sys/fs/cgroup -name 'atoll*'
ip -o link | grep -c atoll || true
mount | grep -c /lab || true
`})
	t.Log(out)
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, want := range []string{"s1/n2 is Ready", "0::/system.slice/atoll.service", "memory", "cut\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if !strings.HasSuffix(out, "\n0\n0\n") || strings.Contains(out, "/sys/fs/cgroup/atoll") {
		t.Error("something was left behind")
	}
}
