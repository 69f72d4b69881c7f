// Package vm runs a shell script in a small virtual machine, to show what works on another kind of host: Debian's own kernel with
// loadable modules, control groups v2 only, and nothing but busybox.
//
// The kernel is taken from Debian's package, qemu from Debian too. The root file system is an ext4 image made from files that the
// caller names. Without hardware virtualization the processor is emulated, which is about ten to twenty times slower: right for
// "does it work at all", wrong for figures.
//
// A machine that is killed loses what its kernel had not written to the image yet: a true power cut for the file systems in it.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/pkg/remedy"
)

// kernelPackage is Debian's kernel for virtual machines: it depends on the package of the newest version.
const kernelPackage = "linux-image-cloud-amd64"

// Host is what machines are made of.
type Host struct {
	Kernel  string // vmlinuz
	Modules string // folder lib/modules/<version> that belongs to it
	Busybox string // static
	QEMU    string
	Accel   string // "kvm" or "tcg"
}

// Prepare finds qemu and busybox, and fetches the kernel into dir unless it is there.
func Prepare(ctx context.Context, dir string) (Host, error) {
	h := Host{Busybox: "/bin/busybox", Accel: accelerator()}
	var err error
	if h.QEMU, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return h, remedy.Wrap(fmt.Errorf("find qemu: %w", err), "apt-get install --no-install-recommends qemu-system-x86 busybox-static")
	}
	if _, err := os.Stat(h.Busybox); err != nil {
		return h, remedy.Wrap(fmt.Errorf("find busybox: %w", err), "apt-get install busybox-static")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return h, err
	}
	if !h.findKernel(dir) {
		if err := fetchKernel(ctx, dir); err != nil {
			return h, remedy.Wrap(fmt.Errorf("fetch Debian's kernel: %w", err), "check that apt-get download %s works", kernelPackage)
		}
		if !h.findKernel(dir) {
			return h, fmt.Errorf("no kernel in the packages that %s depends on", kernelPackage)
		}
	}
	return h, nil
}

// accelerator chooses hardware virtualization only where the processor has it. /dev/kvm alone says nothing: some clouds offer a kind
// that ordinary kernels cannot boot on.
func accelerator() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "tcg"
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return "tcg"
	}
	for _, flag := range []string{" vmx ", " svm "} {
		if bytes.Contains(info, []byte(flag)) {
			return "kvm"
		}
	}
	return "tcg"
}

func (h *Host) findKernel(dir string) bool {
	kernels, _ := filepath.Glob(filepath.Join(dir, "kernel/boot/vmlinuz-*")) // the pattern is valid
	for _, k := range kernels {
		modules := filepath.Join(dir, "kernel/lib/modules", strings.TrimPrefix(filepath.Base(k), "vmlinuz-"))
		if _, err := os.Stat(modules); err == nil {
			h.Kernel, h.Modules = k, modules
			return true
		}
	}
	return false
}

// fetchKernel downloads the package and unpacks it. Nothing is installed.
func fetchKernel(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", kernelPackage).Output()
	if err != nil {
		return fmt.Errorf("ask for the newest kernel: %w", err)
	}
	var name string
	for line := range strings.Lines(string(out)) {
		if dep, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			name = "linux-image-" + dep
		}
	}
	if name == "" {
		return errors.New("no such package is known")
	}
	temp, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := runIn(ctx, temp, "apt-get", "download", name); err != nil {
		return err
	}
	packages, _ := filepath.Glob(filepath.Join(temp, "*.deb")) // the pattern is valid
	if len(packages) != 1 {
		return fmt.Errorf("%s was not downloaded", name)
	}
	if err := runIn(ctx, temp, "dpkg", "-x", packages[0], "kernel"); err != nil {
		return err
	}
	return os.Rename(filepath.Join(temp, "kernel"), filepath.Join(dir, "kernel"))
}

// Machine is one virtual machine to run.
type Machine struct {
	Script   string            // for busybox sh, as root; its exit code ends the machine
	Files    map[string]string // by path in the machine: files of the host
	Disk     string            // image file; made when it does not exist, used again when it does
	DiskMB   int               // default 2048
	MemoryMB int               // default 4096
	CPUs     int               // default 2
	Output   io.Writer         // what the script writes
}

// Run boots the machine, runs the script and returns its exit code. When ctx ends, the machine loses power.
func (h Host) Run(ctx context.Context, m Machine) (code int, err error) {
	work, err := os.MkdirTemp("", "lab-vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	if m.Disk == "" {
		m.Disk = filepath.Join(work, "disk.img")
	}
	for p, value := range map[*int]int{&m.DiskMB: 2048, &m.MemoryMB: 4096, &m.CPUs: 2} {
		if *p == 0 {
			*p = value
		}
	}
	initrd := filepath.Join(work, "initrd.gz")
	if err := h.packInitrd(ctx, work, initrd, m.Script); err != nil {
		return 0, fmt.Errorf("pack start-up files: %w", err)
	}
	if _, err := os.Stat(m.Disk); errors.Is(err, os.ErrNotExist) {
		if err := h.makeDisk(ctx, filepath.Join(work, "root"), m); err != nil {
			return 0, fmt.Errorf("make disk: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, h.QEMU,
		"-accel", h.Accel, "-cpu", "max", "-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.MemoryMB),
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-nic", "none",
		"-kernel", h.Kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=1 quiet",
		"-drive", "format=raw,if=virtio,file="+m.Disk)
	out := &console{to: m.Output}
	var problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &problems
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err != nil:
		return 0, fmt.Errorf("run machine: %w: %s", err, problems.Bytes())
	case !out.ended:
		return 0, fmt.Errorf("the machine ended before its script did; its last words: %s", out.tail)
	}
	return out.code, nil
}

func runIn(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}
