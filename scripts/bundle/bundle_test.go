// Package bundle_test tries the small programs that the bundle's build makes and uses. The large ones are upstream's; that they
// run is tested in pkg/runtime/bundle, from the packed result.
package bundle_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run fails the test when the command does, and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestMulticallRunsEachCommandByItsName(t *testing.T) {
	dir := t.TempDir()
	const own = "github.com/atollhq/atoll/scripts/bundle/cmd/"
	run(t, "go", "run", "./cmd/multicall", "-out", dir, "-into", "both", own+"pack", own+"elfclosure")
	program := filepath.Join(dir, "both")
	run(t, "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "./both")
	for name, want := range map[string]string{"pack": "-manifest", "elfclosure": "-root", "other": "pack, elfclosure"} {
		link := filepath.Join(dir, name)
		_ = os.RemoveAll(link) // the prepared sources have these names too
		if err := os.Symlink(program, link); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(link).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

func TestImageIsWholeAndTheSameEachTime(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "pause")
	if err := os.WriteFile(program, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	var images [2][]byte
	for i := range images {
		out := filepath.Join(dir, "image.tar")
		run(t, "go", "run", "./cmd/ociimage", "-arch", "arm64", "-name", "example.com/a:1,example.com/b:2", "-out", out, program)
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		images[i] = text
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two builds differ")
	}
	files := map[string][]byte{}
	archive := tar.NewReader(bytes.NewReader(images[0]))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if sum, isBlob := strings.CutPrefix(name, "blobs/sha256/"); isBlob && fmt.Sprintf("%x", sha256.Sum256(text)) != sum {
			t.Errorf("%s has another content than its name says", name)
		}
	}
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range index.Manifests {
		names = append(names, m.Annotations["io.containerd.image.name"])
		if files["blobs/sha256/"+strings.TrimPrefix(m.Digest, "sha256:")] == nil {
			t.Errorf("manifest %s is not in the archive", m.Digest)
		}
	}
	if got := strings.Join(names, " "); got != "example.com/a:1 example.com/b:2" {
		t.Errorf("names: %s", got)
	}
}

// ownNamespaces starts this test once more as root of new user, mount, pid and network namespaces, where it can mount what it likes.
func ownNamespaces(t *testing.T) (inside bool) {
	t.Helper()
	if os.Getenv("BUNDLE_TEST_INSIDE") == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "BUNDLE_TEST_INSIDE="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return false
}

func TestMountAndUmount(t *testing.T) {
	if !ownNamespaces(t) {
		return
	}
	tools := t.TempDir()
	run(t, "go", "build", "-o", filepath.Join(tools, "hosttools"), "./hosttools")
	mount, umount := filepath.Join(tools, "mount"), filepath.Join(tools, "umount")
	for _, link := range []string{mount, umount, filepath.Join(tools, "modprobe")} {
		if err := os.Symlink("hosttools", link); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	for _, path := range []string{source, target} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The first is the kubelet's form, word for word.
	run(t, mount, "--no-canonicalize", "-t", "tmpfs", "-o", "size=1048576,noexec,_netdev,x-systemd.automount", "tmpfs", source)
	mustShow(t, source, "noexec", "size=1024k", "- tmpfs")
	run(t, mount, "--no-canonicalize", "-o", "bind", source, target)
	mustShow(t, target, "rw,", "noexec")
	run(t, mount, "--no-canonicalize", "-o", "bind,remount,ro,noexec", source, target)
	mustShow(t, target, "ro,")
	mustShow(t, source, "rw,")
	run(t, umount, target)

	run(t, mount, "-ro", "nosuid,nodev", "--rbind", source, target)
	mustShow(t, target, "ro,nosuid,nodev")
	run(t, mount, "--make-rshared", target)
	mustShow(t, target, "shared:")
	run(t, mount, "--make-private", target)
	mustNotShow(t, target, "shared:")
	inner := filepath.Join(source, "with space")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, mount, "-t", "tmpfs", "none", inner)
	if listed := run(t, mount); !strings.Contains(listed, target+" tmpfs ro") {
		t.Errorf("mount without arguments lists %s", listed)
	}
	run(t, umount, "-R", source)
	run(t, umount, "-f", "-l", target)

	failures := []struct {
		args []string
		code int
		want string
	}{
		{[]string{umount, source}, 32, "umount: " + source + ": not mounted"},
		{[]string{umount, filepath.Join(dir, "none")}, 32, "no such file"},
		{[]string{umount}, 1, "give the mount point"},
		{[]string{umount, "--what", source}, 1, "unknown option --what"},
		{[]string{mount, source}, 1, "no fstab"},
		{[]string{mount, "-t"}, 1, "-t wants a value"},
		{[]string{mount, "-z", source, target}, 1, "unknown option -z"},
		{[]string{mount, "--make-rich", target}, 1, "unknown option --make-rich"},
		{[]string{mount, "a", "b", "c"}, 1, "too many operands"},
		{[]string{mount, "-t", "nosuchfs", "none", target}, 32, "no such device"},
		{[]string{mount, "-o", "bind", filepath.Join(dir, "none"), target}, 32, "no such file"},
		{[]string{filepath.Join(tools, "modprobe"), "no-such-module"}, 1, "modprobe: no-such-module:"},
		{[]string{filepath.Join(tools, "modprobe"), "-q", "no-such-module"}, 1, ""},
		{[]string{filepath.Join(tools, "hosttools")}, 1, "start this program as"},
	}
	for _, f := range failures {
		out, err := exec.Command(f.args[0], f.args[1:]...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != f.code || !strings.Contains(string(out), f.want) || f.want == "" && len(out) > 0 {
			t.Errorf("%v: %v: %s; want exit %d and %q", f.args, err, out, f.code, f.want)
		}
	}
}

// mountOf returns the line of the latest mount on path, or "".
func mountOf(t *testing.T, path string) (line string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(table)) {
		if strings.Contains(l, " "+path+" ") {
			line = l
		}
	}
	return line
}

func mustShow(t *testing.T, path string, words ...string) {
	t.Helper()
	for _, word := range words {
		if line := mountOf(t, path); !strings.Contains(line, word) {
			t.Errorf("%s: no %q in %q", path, word, line)
		}
	}
}

func mustNotShow(t *testing.T, path, word string) {
	t.Helper()
	if line := mountOf(t, path); strings.Contains(line, word) {
		t.Errorf("%s: %q in %q", path, word, line)
	}
}

// TestPause starts pause as process 1 of a pid namespace, hands it orphans and asks it to end.
func TestPause(t *testing.T) {
	program := filepath.Join(t.TempDir(), "pause")
	run(t, "gcc", "-Os", "-ffreestanding", "-nostdlib", "-static", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-o", program, "pause/pause.c")
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := exec.Command(program)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := fmt.Sprint(cmd.Process.Pid)
		// The shells' children outlive them and become children of process 1.
		for range 5 {
			run(t, "nsenter", "-t", pid, "-U", "-p", "sh", "-c", "true & true &")
		}
		children := filepath.Join("/proc", pid, "task", pid, "children")
		eventually(t, func() error {
			left, err := os.ReadFile(children)
			if err != nil || len(left) > 0 {
				return fmt.Errorf("children not collected: %s (%v)", left, err)
			}
			return nil
		})
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("after %v: %v", signal, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%v did not end it", signal)
			_ = cmd.Process.Kill()
			<-ended
		}
	}
}

// eventually tries for five seconds.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Error(err)
}
