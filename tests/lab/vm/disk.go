package vm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Marks in the console's output around what the script says.
const (
	markBegin = "lab-vm-script-begins"
	markEnd   = "lab-vm-script-ends:"
)

// diskModules are what the kernel needs before it sees its disk, in the order of loading. The rest is on the disk.
var diskModules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"}

// firstInit runs in the initial RAM disk: it finds the real disk.
const firstInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /dev /mnt
/bin/busybox mount -t devtmpfs dev /dev
for m in %s; do [ ! -e /$m.ko ] || /bin/busybox insmod /$m.ko; done
/bin/busybox mount -t ext4 /dev/vda /mnt
/bin/busybox cp /script /mnt/script
exec /bin/busybox switch_root /mnt /sbin/init
`

// secondInit is the machine's PID 1: mounts, as any Linux has them, then the script, then power off.
const secondInit = `#!/bin/sh
export PATH=/bin:/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname vm
echo ` + markBegin + `
sh /script
echo ` + markEnd + `$?
sync
poweroff -f
`

// packInitrd makes the initial RAM disk: busybox, the disk's drivers and the script.
func (h Host) packInitrd(ctx context.Context, work, to, script string) error {
	dir := filepath.Join(work, "initrd")
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return err
	}
	if err := copyFile(h.Busybox, filepath.Join(dir, "bin/busybox"), 0o755); err != nil {
		return err
	}
	for _, name := range diskModules {
		file, err := h.module(name)
		if err != nil {
			return err
		}
		if file == "" {
			continue // built in
		}
		if err := copyFile(file, filepath.Join(dir, name+".ko"), 0o644); err != nil {
			return err
		}
	}
	init := fmt.Sprintf(firstInit, strings.Join(diskModules, " "))
	if err := os.WriteFile(filepath.Join(dir, "init"), []byte(init), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte(script), 0o755); err != nil {
		return err
	}
	return runIn(ctx, dir, h.Busybox, "sh", "-c", "find . | "+h.Busybox+" cpio -o -H newc | "+h.Busybox+" gzip -1 > "+to)
}

// module finds a module's file; "" means that it is part of the kernel.
func (h Host) module(name string) (found string, err error) {
	err = filepath.WalkDir(h.Modules, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == name+".ko" {
			found = path
			return filepath.SkipAll
		}
		return err
	})
	return found, err
}

// makeDisk lays the root file system out in the folder root and makes an image of it.
func (h Host) makeDisk(ctx context.Context, root string, m Machine) error {
	for _, dir := range []string{"bin", "sbin", "usr/bin", "proc", "sys", "dev", "run", "tmp", "etc", "root", "var/lib", "lib/modules"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := h.installBusybox(ctx, root); err != nil {
		return err
	}
	version := filepath.Base(h.Modules)
	if err := os.CopyFS(filepath.Join(root, "lib/modules", version), os.DirFS(h.Modules)); err != nil {
		return err
	}
	if err := runIn(ctx, "/", h.Busybox, "depmod", "-b", root, version); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "sbin/init"), []byte(secondInit), 0o755); err != nil {
		return err
	}
	for to, from := range m.Files {
		to = filepath.Join(root, filepath.Clean("/"+to))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		if err := copyFile(from, to, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return runIn(ctx, "/", "/usr/sbin/mkfs.ext4", "-q", "-F", "-d", root, m.Disk, fmt.Sprintf("%dM", m.DiskMB))
}

func (h Host) installBusybox(ctx context.Context, root string) error {
	if err := copyFile(h.Busybox, filepath.Join(root, "bin/busybox"), 0o755); err != nil {
		return err
	}
	list, err := exec.CommandContext(ctx, h.Busybox, "--list").Output()
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name == "busybox" || name == "init" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	// The kernel looks for this one when it wants a module.
	return os.Symlink("../bin/busybox", filepath.Join(root, "sbin/modprobe"))
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
