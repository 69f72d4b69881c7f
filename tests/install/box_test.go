// Package install_test runs scripts/install.sh as a user does: piped into a shell, as root, in a root folder of its own,
// against a real HTTP server.
//
// Two kinds of root are built from what this machine has: "debian" (dash, GNU tools, curl or wget, systemd) and "alpine"
// (BusyBox for everything, OpenRC). systemctl, rc-service and rc-update are small scripts that write down their calls.
// The program that is installed is a stand-in (testdata/standin) in the form that is downloaded and in the plain form.
package install_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const script = "../../scripts/install.sh"

// programs holds stand-ins by name: v1, v2 (packed), and what is inside them; broken ones.
type programs struct{ v1, v1Inside, v2, v2Inside, broken, badUnpack []byte }

var (
	shared   string // folder of this test run
	standins programs
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Println("skipped: the tests of the installer need root, for chroot")
			return 0
		}
		dir, err := os.MkdirTemp("", "atoll-install-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		shared = dir
		standins = buildStandins(dir)
		return m.Run()
	}())
}

func buildStandins(dir string) programs {
	build := func(version, mode string) []byte {
		out := filepath.Join(dir, "standin")
		cmd := exec.Command("go", "build", "-trimpath", "-o", out,
			"-ldflags", "-s -w -X main.version="+version+" -X main.mode="+mode, "./testdata/standin")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("build the stand-in: %v\n%s", err, msg))
		}
		return must(os.ReadFile(out))
	}
	pack := func(inside []byte) []byte {
		out := append(build("packed", "packed"), inside...)
		return binary.LittleEndian.AppendUint64(out, uint64(len(inside)))
	}
	p := programs{v1Inside: build("v1", ""), v2Inside: build("v2", ""), broken: build("v3", "broken"), badUnpack: build("v3", "bad-unpack")}
	p.v1, p.v2 = pack(p.v1Inside), pack(p.v2Inside)
	return p
}

// box is a machine to install on.
type box struct {
	t    *testing.T
	root string
	init string // systemd, openrc
}

var debianTools = []string{"awk", "basename", "cat", "chmod", "cp", "cut", "dash", "df", "dirname", "env", "find", "flock", "grep", "head", "id", "ln",
	"mkdir", "mktemp", "mv", "od", "printf", "readlink", "rm", "rmdir", "sed", "sha256sum", "mount", "sort", "sync", "tail", "touch", "tr", "uname", "wc", "xargs"}

// newBox makes a root: "debian", "debian-wget" or "alpine".
func newBox(t *testing.T, kind string) *box {
	t.Helper()
	base, err := baseOf(kind)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, root: filepath.Join(t.TempDir(), "root"), init: "systemd"}
	if msg, err := exec.Command("cp", "-a", base, b.root).CombinedOutput(); err != nil {
		t.Fatalf("copy the root: %v\n%s", err, msg)
	}
	if kind == "alpine" {
		b.init = "openrc"
	}
	return b
}

var (
	basesMu sync.Mutex
	bases   = map[string]string{}
)

func baseOf(kind string) (string, error) {
	basesMu.Lock()
	defer basesMu.Unlock()
	if dir, ok := bases[kind]; ok {
		return dir, nil
	}
	dir := filepath.Join(shared, kind)
	for _, d := range []string{"bin", "dev", "etc/logrotate.d", "proc", "sys", "run/netns", "run/mount", "tmp", "usr/local/bin", "var/lib", "var/log", "sbin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	if err := syscall.Mknod(filepath.Join(dir, "dev/null"), syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		return "", fmt.Errorf("make /dev/null: %w", err)
	}
	_ = os.Chmod(filepath.Join(dir, "dev/null"), 0o666)
	var err error
	switch kind {
	case "alpine":
		err = fillAlpine(dir)
	case "debian":
		err = fillDebian(dir, "curl")
	case "debian-wget":
		err = fillDebian(dir, "wget")
	}
	if err != nil {
		return "", err
	}
	bases[kind] = dir
	return dir, nil
}

func fillAlpine(dir string) error {
	if err := copyProgram(dir, "busybox"); err != nil {
		return fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	applets, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			_ = os.Symlink("busybox", filepath.Join(dir, "bin", name))
		}
	}
	for _, name := range []string{"rc-service", "rc-update"} {
		if err := copyFile("testdata/rc-service", filepath.Join(dir, "sbin", name)); err != nil {
			return err
		}
	}
	return copyFile("testdata/rc-service", filepath.Join(dir, "sbin/openrc-run"))
}

func fillDebian(dir, downloader string) error {
	for _, name := range append(debianTools, downloader) {
		if err := copyProgram(dir, name); err != nil {
			return err
		}
	}
	_ = os.Symlink("dash", filepath.Join(dir, "bin/sh"))
	// Nobody waits here: the pauses between tries are of no use to a test.
	if err := os.WriteFile(filepath.Join(dir, "bin/sleep"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		return err
	}
	_ = os.MkdirAll(filepath.Join(dir, "run/systemd/system"), 0o755)
	return copyFile("testdata/systemctl", filepath.Join(dir, "bin/systemctl"))
}

var libraryPath = regexp.MustCompile(`(/\S+) \(0x`)

// copyProgram copies a program of this machine and the libraries that it needs.
func copyProgram(dir, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	libs, _ := exec.Command("ldd", path).CombinedOutput() // fails for a static program
	for _, m := range libraryPath.FindAllStringSubmatch(string(libs), -1) {
		if err := copyFile(m[1], filepath.Join(dir, m[1])); err != nil {
			return err
		}
	}
	return copyFile(path, filepath.Join(dir, "bin", name))
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	_ = os.Remove(to) // may be a link
	return os.WriteFile(to, data, 0o755)
}

type result struct {
	out  string
	code int
}

// install pipes the installer into the box's shell.
func (b *box) install(env []string, args ...string) result {
	b.t.Helper()
	return b.pipe(must(os.ReadFile(script)), nil, env, args...)
}

func (b *box) pipe(text []byte, attr *syscall.SysProcAttr, env []string, args ...string) result {
	b.t.Helper()
	return b.run(text, attr, env, append([]string{"/bin/sh", "-s", "-"}, args...)...)
}

// run runs a command in the box.
func (b *box) run(stdin []byte, attr *syscall.SysProcAttr, env []string, command ...string) result {
	b.t.Helper()
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Chroot = b.root
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir, cmd.SysProcAttr, cmd.WaitDelay = "/", attr, time.Second
	cmd.Env = append([]string{"PATH=/usr/local/bin:/bin", "HOME=/"}, env...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatalf("run %v: %v", command, err)
	}
	return result{out: string(out), code: cmd.ProcessState.ExitCode()}
}

// ok fails the test unless the installation went well.
func (b *box) ok(r result) result {
	b.t.Helper()
	if r.code != 0 {
		b.t.Fatalf("exit code %d, output:\n%s", r.code, r.out)
	}
	return r
}

func (b *box) path(name string) string { return filepath.Join(b.root, name) }

func (b *box) read(name string) string {
	b.t.Helper()
	data, err := os.ReadFile(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

func (b *box) exists(name string) bool {
	_, err := os.Lstat(b.path(name))
	return err == nil
}

func (b *box) perm(name string) fs.FileMode {
	b.t.Helper()
	info, err := os.Stat(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return info.Mode().Perm()
}

// calls returns what the init system was asked since the last time.
func (b *box) calls() string {
	data, _ := os.ReadFile(b.path("var/fake/calls"))
	_ = os.Remove(b.path("var/fake/calls"))
	return string(data)
}

// tree lists every file of the box with mode and content, except what the fake init system notes.
func (b *box) tree() []string {
	b.t.Helper()
	var out []string
	err := filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(b.root, path)
		if rel == "var/fake" {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum := ""
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			h := sha256.Sum256(data)
			sum = hex.EncodeToString(h[:4])
		}
		out = append(out, fmt.Sprintf("%s %s %s", rel, info.Mode(), sum))
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	sort.Strings(out)
	return out
}

// server hands out files by path and counts the requests.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	cut   map[string]int // answers to this path break off after so many bytes, once per request
	hits  map[string]int
}

func newServer(t *testing.T) *server {
	s := &server{files: map[string][]byte{}, cut: map[string]int{}, hits: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // connections that break off are what is tested
	t.Cleanup(s.Close)
	return s
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.hits[r.URL.Path]++
	data, found := s.files[r.URL.Path]
	cut, isCut := s.cut[r.URL.Path]
	s.mu.Unlock()
	switch {
	case !found:
		http.NotFound(w, r)
	case isCut:
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:cut])
		panic(http.ErrAbortHandler)
	default:
		http.ServeContent(w, r, "", must(os.Stat(script)).ModTime(), bytes.NewReader(data))
	}
}

func (s *server) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hits[path]
}

const (
	programPath = "/atoll-linux-" + runtime.GOARCH
	sumPath     = "/sha256sum-" + runtime.GOARCH + ".txt"
)

// publish puts a program and its checksum below folder ("" or "/v2").
func (s *server) publish(folder string, program []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := sha256.Sum256(program)
	s.files[folder+programPath] = program
	s.files[folder+sumPath] = []byte("00 some-other-file\n" + hex.EncodeToString(sum[:]) + "  dist" + programPath + "\n")
}

func (s *server) url() string { return "INSTALL_ATOLL_URL=" + s.URL }

func contains(t *testing.T, what, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s lacks %q:\n%s", what, want, text)
		}
	}
}

func lacks(t *testing.T, what, text string, unwanted ...string) {
	t.Helper()
	for _, u := range unwanted {
		if strings.Contains(text, u) {
			t.Errorf("%s contains %q:\n%s", what, u, text)
		}
	}
}

func sameTree(t *testing.T, before, after []string) {
	t.Helper()
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("new or changed: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("gone or changed: %s", line)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
