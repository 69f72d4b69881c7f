package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// keepFiles sees to it that files which we inherited open (a CI's pipe, say) are not inherited by the lab's long-lived processes.
// Files that Go opens are kept from children anyway.
func keepFiles() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep open files to this process: %w", err)
	}
	return nil
}

// holdGroup is the control group of the processes that hold the networks.
const holdGroup = "hold"

// hold makes a network namespace and a process that keeps it.
func (l *Lab) hold(r *record, name string) (wiring.Namespace, error) {
	h := helper{args: []string{"hold", name}, flags: unix.CLONE_NEWNET}
	p, err := h.start(*r, func(p process) error {
		r.Holders[name] = p
		return writeJSON(l.file(), r)
	})
	if err != nil {
		return wiring.Namespace{}, fmt.Errorf("make network of %s: %w", name, err)
	}
	return wiring.Namespace{PID: p.PID}, nil
}

// helper is a long-lived process of the lab's command. Until it gets a line on its standard input it ends when we do; it gets the
// line once it is in the lab's control groups and on record. It says "ok" when it is at work.
type helper struct {
	args  []string
	flags uintptr // namespaces to make
	// in, when set, is the namespace to start in.
	in wiring.Namespace
}

func (h helper) start(r record, note func(process) error) (process, error) {
	if err := r.Tree.CreateGroup(holdGroup); err != nil {
		return process{}, err
	}
	cmd := exec.Command(r.Options.Command, h.args...)
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: h.flags}
	in, err := cmd.StdinPipe()
	if err != nil {
		return process{}, err
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return process{}, err
	}
	start := cmd.Start
	if h.in.PID != 0 {
		start = func() error { return h.in.Do(cmd.Start) } // a child starts in the namespaces of the thread that makes it
	}
	if err := start(); err != nil {
		return process{}, err
	}
	if err := r.Tree.Join(holdGroup, cmd.Process.Pid); err != nil {
		return process{}, err
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		return process{}, err
	}
	if err := note(p); err != nil {
		return process{}, err
	}
	if _, err := fmt.Fprintln(in, "go"); err != nil {
		return process{}, err
	}
	if answer, err := bufio.NewReader(out).ReadString('\n'); err != nil || answer != "ok\n" {
		return process{}, fmt.Errorf("%s: its process ended at once", strings.Join(h.args, " "))
	}
	go func() { _ = cmd.Wait() }() // no zombie while this process lives
	return p, nil
}

// namespace returns a network that is held, or says that its holder is gone.
func (r record) namespace(name string) (wiring.Namespace, error) {
	p := r.Holders[name]
	if !p.alive() {
		return wiring.Namespace{}, fmt.Errorf("the network of %s is gone: its process was killed", name)
	}
	return wiring.Namespace{PID: p.PID}, nil
}

// startGuard starts a process that removes the lab when this one is gone. It learns that from a pipe, which the kernel closes.
func (l *Lab) startGuard(r *record) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(r.Options.Command, "guard", fmt.Sprint(r.ID), r.UID)
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a signal to the test's process group must not hit it
	if err := cmd.Start(); err != nil {
		_ = write.Close()
		return fmt.Errorf("start guard: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	l.guard = write
	return nil
}

// Guard waits for in to end, and then removes lab id unless that was done already. It is the body of the guard process.
func Guard(ctx context.Context, in io.Reader, id int, uid string) error {
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	list, err := entries()
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.ID == id && e.UID == uid {
			return removeLab(ctx, e)
		}
	}
	return nil
}

// modules are parts of the kernel that nodes and the lab use. Inside of a node there is no program to load them.
var modules = []string{"overlay", "loop", "veth", "bridge", "tun", "fuse", "vxlan", "nf_tables", "nf_conntrack"}

// loadModules loads them on the host, as any machine that runs containers has them. A kernel without loadable modules has all built in
// or lacks them for good, so failures are left to whoever needs the module.
func loadModules(ctx context.Context) {
	if _, err := os.Stat("/proc/modules"); err != nil {
		return
	}
	cmd := exec.CommandContext(ctx, "modprobe", append([]string{"-a", "-q"}, modules...)...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:"+os.Getenv("PATH"))
	_ = cmd.Run()
}

// installTools puts a static busybox, with links for its programs, into the folder that nodes show as /lab/bin. It installs
// Debian's package when the host has none. A lab without tools works; the reason comes back as a note.
func (l *Lab) installTools(ctx context.Context) (note string, err error) {
	dir := filepath.Join(l.dir, "tools")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); err != nil {
		l.step("installing the Debian package busybox-static, for scripts/lab exec")
		cmd := exec.CommandContext(ctx, "apt-get", "install", "--yes", "--no-install-recommends", "busybox-static")
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Sprintf("nodes have no shell: install busybox-static failed: %v: %s", err, lastLine(out)), nil
		}
	}
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return "nodes have no shell: " + err.Error(), nil
	}
	if err := linkOrCopy(busybox, filepath.Join(dir, "busybox")); err != nil {
		return "", err
	}
	for name := range strings.FieldsSeq(string(list)) {
		if err := os.Symlink("busybox", filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	return "", nil
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// linkOrCopy gives the file at from a second name, or copies it when the names are on different disks. A link costs nothing and
// shares the page cache between nodes.
func linkOrCopy(from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	temp := to + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if os.Link(from, temp) != nil {
		if err := copyFile(from, temp); err != nil {
			return err
		}
	}
	// As an upgrade would do it: a program that runs keeps its old file.
	if err := os.Rename(temp, to); err != nil {
		return err
	}
	return os.RemoveAll(temp) // rename does nothing when both names are the same file already
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// BuildCommand builds the lab's command from source into the file out, for tests. It takes a moment when nothing has changed.
func BuildCommand(ctx context.Context, root, out string) error {
	return BuildStatic(ctx, root, "./tests/lab/cmd/lab", out)
}

// BuildStatic builds a program of this repository. It uses the flags of the whole repository, so that the build cache is shared.
func BuildStatic(ctx context.Context, root, pkg, out string) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "providerless,osusergo,netgo", "-trimpath", "-o", out, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	// Two go commands that write the same file could leave a mix.
	return locked(out+".lock", func() error {
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, text.Bytes())
		}
		return nil
	})
}
