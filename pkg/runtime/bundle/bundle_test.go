package bundle_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/runtime/bundle"
)

// files is a small bundle: a value that starts with -> is a link.
var files = map[string]string{
	"bin/runc":         strings.Repeat("#!program\n", 5000),
	"bin/hosttools":    "tools",
	"bin/nft":          "->hosttools",
	"bin/aux/mount":    "->../hosttools",
	"images/pause.tar": strings.Repeat("layer", 9999),
}

// payload packs what the build would: the archive holds inArchive, the manifest lists inManifest.
func payload(t *testing.T, inArchive, inManifest map[string]string) fstest.MapFS {
	t.Helper()
	var archive, manifest bytes.Buffer
	compressor, err := zstd.NewWriter(&archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(compressor)
	for _, name := range slices.Sorted(maps.Keys(inArchive)) {
		text := inArchive[name]
		header := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}
		if target, ok := strings.CutPrefix(text, "->"); ok {
			header, text = &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, ""
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), compressor.Close()); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(inManifest)) {
		text := inManifest[name]
		if target, ok := strings.CutPrefix(text, "->"); ok {
			fmt.Fprintf(&manifest, "link %s %s\n", target, name)
		} else {
			fmt.Fprintf(&manifest, "file 755 %d %x %s\n", len(text), sha256.Sum256([]byte(text)), name)
		}
	}
	return fstest.MapFS{"bundle.tar.zst": {Data: archive.Bytes()}, "MANIFEST": {Data: manifest.Bytes()}}
}

func open(t *testing.T, from fstest.MapFS, dataDir string) (*bundle.Bundle, *bytes.Buffer) {
	t.Helper()
	var logged bytes.Buffer
	b, err := bundle.OpenFrom(from, dataDir, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b, &logged
}

func unpack(t *testing.T, b *bundle.Bundle) bundle.Paths {
	t.Helper()
	paths, err := b.Unpack()
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// mustHoldFiles fails unless root has exactly what files says.
func mustHoldFiles(t *testing.T, root string) {
	t.Helper()
	for name, want := range files {
		path := filepath.Join(root, name)
		if target, ok := strings.CutPrefix(want, "->"); ok {
			if got, err := os.Readlink(path); err != nil || got != target {
				t.Errorf("%s links to %q (%v), want %q", name, got, err, target)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes (%v), want %d", name, len(got), err, len(want))
		}
		if info, err := os.Stat(path); err == nil && info.Mode().Perm() != 0o755 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

func mustHaveNoLeftovers(t *testing.T, dataDir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dataDir, "data", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestUnpackOnceAndReuse(t *testing.T) {
	dir := t.TempDir()
	b, _ := open(t, payload(t, files, files), dir)
	paths := unpack(t, b)
	mustHoldFiles(t, paths.Root)
	mustHaveNoLeftovers(t, dir)
	first := inode(t, filepath.Join(paths.Bin, "runc"))
	unpack(t, b) // not settled: hashed
	if err := b.Settle(); err != nil {
		t.Fatal(err)
	}
	unpack(t, b) // settled: only looked at
	if again := inode(t, filepath.Join(paths.Bin, "runc")); again != first {
		t.Error("whole files were unpacked again")
	}
	mustHoldFiles(t, paths.Root)
	if got, want := paths.Path("/usr/bin:/bin"), paths.Bin+":/usr/bin:/bin:"+paths.Aux; got != want {
		t.Errorf("PATH is %s, want %s", got, want)
	}
}

func TestDamageOnDiskIsRepaired(t *testing.T) {
	overwrite := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			// The times are put back: a disk that goes bad does not tell.
			path := filepath.Join(root, name)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(path, []byte(text), 0o755), os.Chtimes(path, info.ModTime(), info.ModTime())); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]func(t *testing.T, root string){
		"same size, other bytes": overwrite("bin/hosttools", "slool"),
		"truncated":              overwrite("bin/runc", "#!prog"),
		"empty":                  overwrite("images/pause.tar", ""),
		"file gone":              func(_ *testing.T, root string) { _ = os.Remove(filepath.Join(root, "bin/runc")) },
		"not executable":         func(_ *testing.T, root string) { _ = os.Chmod(filepath.Join(root, "bin/runc"), 0o644) },
		"link gone":              func(_ *testing.T, root string) { _ = os.Remove(filepath.Join(root, "bin/nft")) },
		"link elsewhere": func(_ *testing.T, root string) {
			_ = os.Remove(filepath.Join(root, "bin/nft"))
			_ = os.Symlink("runc", filepath.Join(root, "bin/nft"))
		},
		"folder empty": func(_ *testing.T, root string) { _ = os.RemoveAll(filepath.Join(root, "bin")) },
		"record torn":  overwrite(".verified", "1 2 3"),
	}
	for name, damage := range tests {
		for _, settled := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, settled %v", name, settled), func(t *testing.T) {
				dir := t.TempDir()
				b, logged := open(t, payload(t, files, files), dir)
				root := unpack(t, b).Root
				if err := b.Settle(); err != nil {
					t.Fatal(err)
				}
				damage(t, root)
				if !settled {
					_ = os.Remove(filepath.Join(root, ".verified"))
				}
				unpack(t, b)
				mustHoldFiles(t, root)
				mustHaveNoLeftovers(t, dir)
				if name != "record torn" && !strings.Contains(logged.String(), "damaged") {
					t.Errorf("no warning in the log: %q", logged)
				}
			})
		}
	}
}

func TestSettleRepairsWhatItFinds(t *testing.T) {
	b, logged := open(t, payload(t, files, files), t.TempDir())
	root := unpack(t, b).Root
	if err := os.WriteFile(filepath.Join(root, "bin/hosttools"), []byte("slool"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.Settle(); err != nil {
		t.Fatal(err)
	}
	mustHoldFiles(t, root)
	if !strings.Contains(logged.String(), "damaged") {
		t.Errorf("no warning in the log: %q", logged)
	}
}

func TestDamagedPayloadIsRefused(t *testing.T) {
	changed := func(change func(map[string]string)) map[string]string {
		copied := maps.Clone(files)
		change(copied)
		return copied
	}
	edit := func(change func([]byte) []byte) fstest.MapFS {
		p := payload(t, files, files)
		p["bundle.tar.zst"].Data = change(bytes.Clone(p["bundle.tar.zst"].Data))
		return p
	}
	tests := map[string]fstest.MapFS{
		"truncated":      edit(func(p []byte) []byte { return p[:len(p)*2/3] }),
		"last byte gone": edit(func(p []byte) []byte { return p[:len(p)-1] }),
		"empty":          edit(func([]byte) []byte { return nil }),
		"one bit":        edit(func(p []byte) []byte { p[len(p)/2] ^= 4; return p }),
		"not zstd":       edit(func([]byte) []byte { return []byte("<html>404</html>") }),
		"no archive":     {"MANIFEST": payload(t, files, files)["MANIFEST"]},
		"other content":  payload(t, changed(func(m map[string]string) { m["bin/hosttools"] = "fools" }), files),
		"file too many":  payload(t, changed(func(m map[string]string) { m["bin/more"] = "x" }), files),
		"file too few":   payload(t, changed(func(m map[string]string) { delete(m, "bin/runc") }), files),
	}
	for name, p := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b, _ := open(t, p, dir)
			_, err := b.Unpack()
			if !errors.Is(err, bundle.ErrDamaged) || !strings.Contains(remedy.Of(err), "download atoll again") {
				t.Errorf("got %v, remedy %q", err, remedy.Of(err))
			}
			if left, _ := os.ReadDir(filepath.Join(dir, "data")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestManifestThatCannotBeTrusted(t *testing.T) {
	sum := strings.Repeat("0", 64)
	for name, text := range map[string]string{
		"empty":                 "",
		"words missing":         "file 755 3\n",
		"path leads out":        "file 755 3 " + sum + " ../../etc/passwd\n",
		"absolute path":         "file 755 3 " + sum + " /etc/passwd\n",
		"link leads out":        "link ../../../etc bin/x\n",
		"size is negative":      "file 755 -3 " + sum + " bin/x\n",
		"checksum is too short": "file 755 3 00 bin/x\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bundle.OpenFrom(fstest.MapFS{"MANIFEST": {Data: []byte(text)}}, t.TempDir(), slog.New(slog.DiscardHandler))
			if !errors.Is(err, bundle.ErrDamaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBuiltWithoutPayload(t *testing.T) {
	_, err := bundle.OpenFrom(fstest.MapFS{"README": {}}, t.TempDir(), slog.New(slog.DiscardHandler))
	if !errors.Is(err, bundle.ErrMissing) || !strings.Contains(remedy.Of(err), "make build") {
		t.Errorf("got %v, remedy %q", err, remedy.Of(err))
	}
}

func TestLeftoversOfAPowerCutGo(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, "data", ".unpacking-123", "bin")
	if err := errors.Join(os.MkdirAll(half, 0o755), os.WriteFile(filepath.Join(half, "runc"), []byte("half"), 0o755)); err != nil {
		t.Fatal(err)
	}
	b, _ := open(t, payload(t, files, files), dir)
	mustHoldFiles(t, unpack(t, b).Root)
	mustHaveNoLeftovers(t, dir)
}

func TestManyAtOnce(t *testing.T) {
	dir, from := t.TempDir(), payload(t, files, files)
	var wg sync.WaitGroup
	inodes := make([]uint64, 8)
	for i := range inodes {
		wg.Go(func() {
			b, err := bundle.OpenFrom(from, dir, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
				return
			}
			paths, err := b.Unpack()
			if err != nil {
				t.Error(err)
				return
			}
			var st syscall.Stat_t
			if err := syscall.Stat(filepath.Join(paths.Bin, "runc"), &st); err != nil {
				t.Error(err)
			}
			inodes[i] = st.Ino
			if err := b.Settle(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if slices.Min(inodes) != slices.Max(inodes) {
		t.Errorf("unpacked more than once: %v", inodes)
	}
	mustHaveNoLeftovers(t, dir)
}

func TestOldVersionsGoUnlessInUse(t *testing.T) {
	dir := t.TempDir()
	old := func(digit string, age time.Duration) string {
		path := filepath.Join(dir, "data", strings.Repeat(digit, 64))
		at := time.Now().Add(-age)
		if err := errors.Join(os.MkdirAll(filepath.Join(path, "bin"), 0o755), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	previous, running, unused := old("a", time.Hour), old("b", 3*time.Hour), old("c", 2*time.Hour)
	stranger := filepath.Join(dir, "data", "notes")
	if err := os.Mkdir(stranger, 0o755); err != nil {
		t.Fatal(err)
	}
	shim := filepath.Join(running, "bin", "shim")
	program, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shim, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shim, "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-3 * time.Hour)
	if err := os.Chtimes(running, at, at); err != nil {
		t.Fatal(err)
	}
	b, _ := open(t, payload(t, files, files), dir)
	settleAndExpect := func(want ...string) {
		t.Helper()
		root := unpack(t, b).Root
		if err := b.Settle(); err != nil {
			t.Fatal(err)
		}
		got, err := filepath.Glob(filepath.Join(dir, "data", "*"))
		if want = append(want, root, stranger); err != nil || !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("left: %v (%v), want %v", got, err, want)
		}
	}
	settleAndExpect(previous, running)
	if _, err := os.Stat(unused); err == nil {
		t.Errorf("%s is still there", unused)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	settleAndExpect(previous)
}

// TestBadDisks needs file systems of its own. The test starts itself again in a private mount namespace, where nothing that it
// mounts is seen by others.
func TestBadDisks(t *testing.T) {
	tests := []struct{ name, options, cause, try string }{
		{"read-only", "ro", "read-only file system", "writable"},
		{"full", "size=64k", "no space left", "free 1 MiB"},
		{"noexec", "noexec", "noexec", "mount it without noexec"},
	}
	if at := os.Getenv("BUNDLE_TEST_MOUNT"); at != "" {
		dir, options, _ := strings.Cut(at, "=")
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		mountAgain(t, dir, options)
		b, _ := open(t, payload(t, files, files), dir)
		_, err := b.Unpack()
		fmt.Printf("cause: %v\ntry: %s\n", err, remedy.Of(err))
		return
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestBadDisks$")
			cmd.Env = append(os.Environ(), "BUNDLE_TEST_MOUNT="+t.TempDir()+"="+test.options)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), test.cause) || !strings.Contains(string(out), test.try) {
				t.Errorf("want cause %q and remedy %q, got (%v): %s", test.cause, test.try, err, out)
			}
		})
	}
}

// mountAgain gives the tmpfs on dir an option of mount(8).
func mountAgain(t *testing.T, dir, options string) {
	t.Helper()
	flags, data := uintptr(syscall.MS_REMOUNT), ""
	switch options {
	case "ro":
		flags |= syscall.MS_RDONLY
	case "noexec":
		flags |= syscall.MS_NOEXEC
	default:
		data = options
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, data); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyDiskWithAGoodFolderWillDo(t *testing.T) {
	if os.Getuid() != 0 {
		// Without root the permission bits do what a read-only disk does.
		dir := t.TempDir()
		b, _ := open(t, payload(t, files, files), dir)
		unpack(t, b)
		if err := os.Chmod(filepath.Join(dir, "data"), 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "data"), 0o755) })
		unpack(t, b)
		return
	}
	if dir := os.Getenv("BUNDLE_TEST_READONLY"); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		b, _ := open(t, payload(t, files, files), dir)
		unpack(t, b)
		mountAgain(t, dir, "ro")
		mustHoldFiles(t, unpack(t, b).Root)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestReadOnlyDiskWithAGoodFolderWillDo$")
	cmd.Env = append(os.Environ(), "BUNDLE_TEST_READONLY="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestCarried takes the payload that is really embedded.
func TestCarried(t *testing.T) {
	b, err := bundle.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if errors.Is(err, bundle.ErrMissing) {
		t.Skip("no payload: run `make build` first")
	}
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	paths := unpack(t, b)
	t.Logf("unpacked in %v", time.Since(began))
	began = time.Now()
	unpack(t, b)
	t.Logf("hashed in %v", time.Since(began))
	began = time.Now()
	if err := b.Settle(); err != nil {
		t.Fatal(err)
	}
	t.Logf("settled in %v", time.Since(began))
	began = time.Now()
	unpack(t, b)
	t.Logf("looked at in %v", time.Since(began))
	for _, command := range [][]string{{"runc", "--version"}, {"containerd-shim-runc-v2", "-v"}, {"nft", "--version"}} {
		cmd := exec.Command(filepath.Join(paths.Bin, command[0]), command[1:]...)
		cmd.Env = []string{}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", command, err, out)
		}
	}
	for _, plugin := range []string{"ptp", "bridge", "host-local", "loopback", "portmap", "bandwidth", "firewall"} {
		cmd := exec.Command(filepath.Join(paths.CNI, plugin))
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte(`"1.0.0"`)) {
			t.Errorf("%s: %v: %s", plugin, err, out)
		}
	}
}
