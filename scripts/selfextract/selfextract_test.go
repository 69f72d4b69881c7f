package main_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/atollhq/atoll/scripts/selfextract/frame"
)

// full stands in for the full atoll: it says that it runs, with which arguments.
const full = "#!/bin/sh\necho full atoll runs: \"$@\"\n"

// stub builds the program under test once for all tests of the package.
func stub(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stub")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// download joins the stub with content, under the checksum of announced.
func download(t *testing.T, stub []byte, content, announced string) []byte {
	t.Helper()
	compressor, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	compressed := compressor.EncodeAll([]byte(content), nil)
	err = frame.Write(&b, bytes.NewReader(stub), bytes.NewReader(compressed), int64(len(announced)), sha256.Sum256([]byte(announced)))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// place puts a download into a folder of its own.
func place(t *testing.T, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "atoll-linux-amd64")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSelfExtract(t *testing.T) {
	program := stub(t)
	good := download(t, program, full, full)

	t.Run("first run replaces itself and goes on", func(t *testing.T) {
		path := place(t, good)
		for range 2 {
			out, err := exec.Command(path, "version", "two words").CombinedOutput()
			if err != nil || string(out) != "full atoll runs: version two words\n" {
				t.Fatalf("%v: %s", err, out)
			}
		}
		mustHold(t, path, full)
		mustBeAlone(t, path)
	})

	t.Run("unpack to a path", func(t *testing.T) {
		path := place(t, good)
		target := filepath.Join(t.TempDir(), "atoll")
		if err := os.WriteFile(target, []byte("older"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, "--unpack-to", target).CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%v: %s", err, out)
		}
		mustHold(t, target, full)
		mustHold(t, path, string(good))
		mustBeAlone(t, target)
		if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("mode %v (%v)", info.Mode(), err)
		}
	})

	t.Run("started through a link", func(t *testing.T) {
		path := place(t, good)
		link := filepath.Join(t.TempDir(), "atoll")
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(link, "x").CombinedOutput(); err != nil || string(out) != "full atoll runs: x\n" {
			t.Fatalf("%v: %s", err, out)
		}
		mustHold(t, path, full)
		if _, err := os.Readlink(link); err != nil {
			t.Error("the link was replaced:", err)
		}
	})

	damage := map[string]struct {
		text []byte
		want string
	}{
		"trailer cut off":          {good[:len(good)-1], "not complete"},
		"half of it":               {good[:len(program)+40], "not complete"},
		"something appended":       {append(bytes.Clone(good), "</html>"...), "not complete"},
		"part in the middle gone":  {append(bytes.Clone(good[:len(program)+5]), good[len(program)+9:]...), "not complete"},
		"a bit changed":            {flip(good, len(program)+20), "damaged"},
		"first byte changed":       {flip(good, len(program)), "damaged"},
		"other content":            {download(t, program, full+"# more\n", full), "does not match its checksum"},
		"shorter than announced":   {download(t, program, full, full+"# more\n"), "does not match its checksum"},
		"checksum itself changed":  {flip(good, len(good)-1), "does not match its checksum"},
		"announced length changed": {flip(good, len(good)-sha256.Size-8), "does not match its checksum"},
	}
	for name, test := range damage {
		t.Run(name, func(t *testing.T) {
			path := place(t, test.text)
			target := filepath.Join(filepath.Dir(path), "target")
			for _, args := range [][]string{{"version"}, {"--unpack-to", target}} {
				out, err := exec.Command(path, args...).CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), test.want) || !strings.Contains(string(out), "Try:   download atoll again") {
					t.Errorf("%v: %v: %s", args, err, out)
				}
			}
			mustHold(t, path, string(test.text))
			mustBeAlone(t, path)
		})
	}

	t.Run("unpack-to without a path", func(t *testing.T) {
		out, err := exec.Command(place(t, good), "--unpack-to").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "takes one path") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestReadOnlyFolder runs the download from a read-only mount in a mount namespace of its own.
func TestReadOnlyFolder(t *testing.T) {
	if dir := os.Getenv("SELFEXTRACT_TEST_READONLY"); dir != "" {
		readOnlyChild(t, dir)
		return
	}
	path := place(t, download(t, stub(t), full, full))
	if err := os.Chmod(filepath.Dir(path), 0o555); err != nil { // for those who are not root
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Dir(path), 0o755) })
	inMountNamespace(t, "SELFEXTRACT_TEST_READONLY="+filepath.Dir(path), "TMPDIR="+t.TempDir(), "XDG_CACHE_HOME="+t.TempDir())
}

func TestFullDisk(t *testing.T) {
	big := full + strings.Repeat("# comment\n", 100_000)
	if dir := os.Getenv("SELFEXTRACT_TEST_FULL"); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(filepath.Join(filepath.Dir(dir), "atoll-linux-amd64"), "--unpack-to", filepath.Join(dir, "atoll")).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "no space left") || !strings.Contains(string(out), "Try:   free 1 MiB in "+dir) {
			t.Errorf("%v: %s", err, out)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v (%v)", left, err)
		}
		return
	}
	dir := filepath.Join(filepath.Dir(place(t, download(t, stub(t), big, big))), "small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	inMountNamespace(t, "SELFEXTRACT_TEST_FULL="+dir)
}

// inMountNamespace runs the calling test once more where it may mount and nobody else sees it, with more environment.
func inMountNamespace(t *testing.T, env ...string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 4711, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 4711, HostID: os.Getgid(), Size: 1}},
		AmbientCaps: []uintptr{21}} // CAP_SYS_ADMIN, in the new namespace only
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func readOnlyChild(t *testing.T, dir string) {
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "atoll-linux-amd64")
	run := func() {
		t.Helper()
		out, err := exec.Command(path, "version").CombinedOutput()
		if err != nil || string(out) != "full atoll runs: version\n" {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run()
	cached, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "atoll", "*", "atoll"))
	if err != nil || len(cached) != 1 {
		t.Fatalf("cached: %v (%v)", cached, err)
	}
	// A cached program that is not what it should be is not run.
	if err := os.WriteFile(cached[0], []byte("#!/bin/sh\necho wrong\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run()
	// Nor is one from a folder that others can write; the next folder is taken.
	if err := os.Chmod(filepath.Dir(cached[0]), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cached[0], []byte("#!/bin/sh\necho wrong\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run()
	if inTmp, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "atoll-*", "*", "atoll")); err != nil || len(inTmp) != 1 {
		t.Errorf("in TMPDIR: %v (%v)", inTmp, err)
	}
}

func flip(text []byte, at int) []byte {
	text = bytes.Clone(text)
	text[at] ^= 1
	return text
}

func mustHold(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s has %d bytes (%v), want %d", path, len(got), err, len(want))
	}
}

// mustBeAlone fails when something half done lies beside path.
func mustBeAlone(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside %s: %v (%v)", path, entries, err)
	}
}
