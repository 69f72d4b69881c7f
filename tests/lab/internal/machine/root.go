package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// enterRoot builds the node's file system in s.Root and makes it the root. Every mount is private to this mount namespace, so the
// host sees none of them and all of them end with the node.
func enterRoot(s Spec) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount(s.Root, s.Root, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := mountData(s); err != nil {
		return err
	}
	steps := []func(root string) error{mountKernel, mountControlGroups, mountDevices, mountVolatile, shieldHostSettings}
	for _, step := range steps {
		if err := step(s.Root); err != nil {
			return err
		}
	}
	tools := filepath.Join(s.Root, "lab/bin")
	if err := mount(s.Tools, tools, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// A bind mount becomes read-only in a second step only.
	if err := mount("", tools, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := pivot(s.Root); err != nil {
		return err
	}
	// The kubelet hands mounts on to containers and back, as on a host with systemd.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	// The old root is stacked on the new one and taken off again: no folder is needed for it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot into %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return unix.Chdir("/")
}

// mountKernel mounts what the kernel offers: processes and devices as this node's namespaces show them.
func mountKernel(root string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mount("proc", filepath.Join(root, "proc"), "proc", flags, ""); err != nil {
		return err
	}
	return mount("sysfs", filepath.Join(root, "sys"), "sysfs", flags, "")
}

// mountControlGroups shows the node its own groups as the whole tree: the mounts are rooted in this control group namespace.
func mountControlGroups(root string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	dir := filepath.Join(root, "sys/fs/cgroup")
	v1 := v1Hierarchies(string(own))
	if len(v1) == 0 {
		return mount("cgroup2", dir, "cgroup2", flags, "")
	}
	if err := mount("tmpfs", dir, "tmpfs", flags, "mode=0755"); err != nil {
		return err
	}
	for _, controllers := range v1 {
		name, options := strings.TrimPrefix(controllers, "name="), controllers
		if name != controllers {
			options = "none," + controllers
		}
		at := filepath.Join(dir, name)
		if err := mountAt(name, at, "cgroup", flags, options); err != nil {
			return err
		}
		// Controllers that share a hierarchy have names of their own too.
		if alone := strings.Split(name, ","); len(alone) > 1 {
			for _, c := range alone {
				if err := os.Symlink(name, filepath.Join(dir, c)); err != nil {
					return err
				}
			}
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/unified"); err != nil {
		return nil // v1 only
	}
	return mountAt("cgroup2", filepath.Join(dir, "unified"), "cgroup2", flags, "")
}

func v1Hierarchies(own string) []string {
	var list []string
	for line := range strings.Lines(own) {
		if parts := strings.SplitN(line, ":", 3); len(parts) == 3 && parts[1] != "" {
			list = append(list, parts[1])
		}
	}
	return list
}

// device is a node in /dev, by its fixed kernel numbers.
type device struct {
	name         string
	mode         uint32
	major, minor uint32
}

var devices = []device{
	{"null", 0o666, 1, 3}, {"zero", 0o666, 1, 5}, {"full", 0o666, 1, 7}, {"random", 0o666, 1, 8}, {"urandom", 0o666, 1, 9},
	{"tty", 0o666, 5, 0}, {"kmsg", 0o644, 1, 11}, {"fuse", 0o666, 10, 229}, {"net/tun", 0o666, 10, 200},
}

func mountDevices(root string) error {
	dev := filepath.Join(root, "dev")
	if err := mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=1m"); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dev, "net"), 0o755); err != nil {
		return err
	}
	for _, d := range devices {
		path := filepath.Join(dev, d.name)
		if err := unix.Mknod(path, unix.S_IFCHR|d.mode, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make device %s: %w", d.name, err)
		}
		if err := os.Chmod(path, fs.FileMode(d.mode)); err != nil { // the umask was applied
			return err
		}
	}
	links := map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx", "core": "/proc/kcore",
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := mountAt("devpts", filepath.Join(dev, "pts"), "devpts", flags, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return err
	}
	if err := mountAt("shm", filepath.Join(dev, "shm"), "tmpfs", flags|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	err := mountAt("mqueue", filepath.Join(dev, "mqueue"), "mqueue", flags|unix.MS_NODEV, "")
	if errors.Is(err, unix.ENODEV) {
		return nil // a kernel without message queues
	}
	return err
}

// mountVolatile mounts what a reboot empties.
func mountVolatile(root string) error {
	if err := mount("run", filepath.Join(root, "run"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=25%"); err != nil {
		return err
	}
	if err := mount("tmp", filepath.Join(root, "tmp"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=25%"); err != nil {
		return err
	}
	lab := filepath.Join(root, "lab")
	if err := mount("lab", lab, "tmpfs", unix.MS_NOSUID, "mode=0755,size=1m"); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Join(lab, "bin"), filepath.Join(root, filepath.Dir(notifySocket))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// hostSettings are kernel settings without a namespace that a kubelet writes. Changing them would change the host.
var hostSettings = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// shieldHostSettings puts a file of the node's own over each of hostSettings, with the host's value in it.
//
// A second, untouched proc is mounted at /lab/proc: the kernel lets a user namespace mount proc only where an unobscured one is
// visible already, and pods with user namespaces need that.
func shieldHostSettings(root string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mountAt("proc", filepath.Join(root, "lab/proc"), "proc", flags, ""); err != nil {
		return err
	}
	for _, name := range hostSettings {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		own := filepath.Join(root, "lab/sys", name)
		if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(own, value, 0o644); err != nil {
			return err
		}
		if err := mount(own, filepath.Join(root, "proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func mountAt(source, target, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return mount(source, target, kind, flags, options)
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		what := kind
		if what == "" {
			what = "folder " + source
		}
		return fmt.Errorf("mount %s at %s: %w", what, target, err)
	}
	return nil
}
