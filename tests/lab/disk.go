package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/atollhq/atoll/pkg/remedy"
)

func (n *Node) root() string      { return filepath.Join(n.dir(), "root") }
func (n *Node) diskImage() string { return filepath.Join(n.dir(), "disk.img") }

// imagesFolder is where atoll looks for archives to load.
const imagesFolder = "/var/lib/atoll/agent/images"

// create makes the node's folder with an empty disk.
func (n *Node) create(lab record) error {
	if err := os.MkdirAll(n.dir(), 0o755); err != nil {
		return fmt.Errorf("make node %s: %w", n.Name(), err)
	}
	r := nodeRecord{Version: recordVersion, Config: n.defaultConfig(lab)}
	if err := n.save(r); err != nil {
		return err
	}
	return n.newDisk(r.Config)
}

// defaultConfig makes the first node, or the first few, a server, and lets the others join it.
func (n *Node) defaultConfig(lab record) Config {
	o := lab.Options
	c := Config{
		Role: "server", Args: o.ServerArgs, Env: o.Env, Binary: o.Binary, Files: o.Files, Images: o.Images,
		DiskMB: o.DiskMB, RestartAfter: o.RestartAfter,
	}
	if n.number > o.Servers {
		c.Role, c.Args = "agent", o.AgentArgs
	}
	if n.number > 1 {
		first := lab.plan().Node(n.site.number, 1)
		c.Args = append([]string{"--server", fmt.Sprintf("https://%s:6443", first), "--token", lab.Token}, c.Args...)
	} else if o.Nodes > 1 {
		c.Args = append([]string{"--token", lab.Token}, c.Args...)
	}
	return c
}

// Blank gives the node a new, empty disk, as if the box had been replaced. It cuts the power first; the node stays off.
func (n *Node) Blank(ctx context.Context) error {
	if err := n.Kill(ctx); err != nil {
		return err
	}
	return n.update(func(r *nodeRecord) error { return n.newDisk(r.Config) })
}

// newDisk replaces the node's disk. The new one gets its name at the end: an interrupted call leaves a node without a disk, not one
// with half a disk.
func (n *Node) newDisk(c Config) error {
	fail := func(err error) error { return fmt.Errorf("make disk of %s: %w", n.Name(), err) }
	temp := n.root() + ".new"
	for _, path := range []string{n.root(), n.diskImage(), temp} {
		if err := os.RemoveAll(path); err != nil {
			return fail(err)
		}
	}
	if err := layOut(temp, n.Hostname(), n.Address().String()); err != nil {
		return fail(err)
	}
	if err := linkOrCopy(c.Binary, filepath.Join(temp, "usr/local/bin/atoll")); err != nil {
		return fail(err)
	}
	for _, image := range c.Images {
		to := filepath.Join(temp, imagesFolder, filepath.Base(image))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fail(err)
		}
		if err := linkOrCopy(image, to); err != nil {
			return fail(err)
		}
	}
	if err := addFiles(temp, c.Files); err != nil {
		return fail(err)
	}
	if c.DiskMB > 0 {
		if err := n.makeImage(filepath.Join(temp, "var"), c.DiskMB); err != nil {
			return fail(err)
		}
	}
	if err := os.Rename(temp, n.root()); err != nil {
		return fail(err)
	}
	return nil
}

func addFiles(dir string, files map[string]string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for path, text := range files {
		if err := writeIn(root, strings.TrimPrefix(filepath.Clean(path), "/"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// makeImage turns the folder var into an ext4 file system of its own, and empties the folder.
func (n *Node) makeImage(varDir string, sizeMB int) error {
	image := n.diskImage()
	cmd := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-d", varDir, image, fmt.Sprintf("%dM", sizeMB))
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
		return remedy.Wrap(err, "install the package e2fsprogs, and choose a disk that is large enough")
	}
	if err := os.RemoveAll(varDir); err != nil {
		return err
	}
	return os.Mkdir(varDir, 0o755)
}

// layOut makes the folders and files that any installed Linux has, and nothing else: no package, no shell, no library.
func layOut(root, hostname, address string) error {
	folders := []string{
		"dev", "etc", "lab", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "usr/lib", "usr/local/bin", "usr/local/sbin",
		"var/lib", "var/log", "var/cache", "var/tmp", "opt", "mnt", "srv", "home",
	}
	for _, name := range folders {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	for name, mode := range map[string]os.FileMode{"root": 0o700, "tmp": 0o777 | os.ModeSticky, "var/tmp": 0o777 | os.ModeSticky} {
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			return err
		}
	}
	links := map[string]string{
		"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "var/run": "/run", "var/lock": "/run/lock",
		"etc/mtab": "../proc/self/mounts",
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	files := map[string]string{
		"etc/hostname":   hostname + "\n",
		"etc/hosts":      "127.0.0.1 localhost\n" + address + " " + hostname + "\n",
		"etc/machine-id": hex.EncodeToString(id) + "\n",
		// There is no name server: the site must work without one.
		"etc/resolv.conf": "",
		"etc/passwd":      "root:x:0:0:root:/root:/lab/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"etc/group":       "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
		"etc/os-release":  "NAME=\"atoll lab\"\nPRETTY_NAME=\"atoll lab node\"\nID=atoll-lab\nVERSION_ID=1\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// SetBinary puts another atoll into the node, as an upgrade would: an atoll that runs keeps its old one until its next start.
func (n *Node) SetBinary(path string) error {
	return n.update(func(r *nodeRecord) error {
		if err := linkOrCopy(path, filepath.Join(n.root(), "usr/local/bin/atoll")); err != nil {
			return fmt.Errorf("put binary into %s: %w", n.Name(), err)
		}
		r.Config.Binary = path
		return nil
	})
}

// openRoot opens the node's file system for reading and writing from the host. While the node has power that is through PID 1, so
// that /run, /tmp and a disk of its own are seen too. Links that lead out of it are refused: they would lead to the host's files.
func (n *Node) openRoot(path string) (root *os.Root, name string, err error) {
	if !filepath.IsAbs(path) {
		return nil, "", fmt.Errorf("path %q on %s is not absolute", path, n.Name())
	}
	r, err := n.record()
	if err != nil {
		return nil, "", err
	}
	dir := n.root()
	switch {
	case r.Init.alive():
		dir = fmt.Sprintf("/proc/%d/root", r.Init.PID)
	case r.Config.DiskMB > 0 && strings.HasPrefix(filepath.Clean(path), "/var/"):
		return nil, "", remedy.Wrap(fmt.Errorf("%s of %s is on a disk of its own, and the node is off", path, n.Name()), "call PowerOn first")
	}
	root, err = os.OpenRoot(dir)
	return root, strings.TrimPrefix(filepath.Clean(path), "/"), err
}

// ReadFile reads a file of the node, also while it is off.
func (n *Node) ReadFile(path string) ([]byte, error) {
	root, name, err := n.openRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.ReadFile(name)
}

// WriteFile writes a file of the node, also while it is off, and makes missing folders.
func (n *Node) WriteFile(path string, data []byte, mode os.FileMode) error {
	root, name, err := n.openRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	return writeIn(root, name, data, mode)
}

func writeIn(root *os.Root, name string, data []byte, mode os.FileMode) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return root.WriteFile(name, data, mode)
}

// waitDiskFree waits until the kernel has let go of the node's image. Two mounts of one image would destroy it.
func (n *Node) waitDiskFree(ctx context.Context, r nodeRecord) error {
	if r.Config.DiskMB == 0 {
		return nil
	}
	return poll(ctx, func() error {
		loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			return err
		}
		for _, loop := range loops {
			file, err := os.ReadFile(loop)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil && strings.TrimSuffix(strings.TrimSpace(string(file)), " (deleted)") == n.diskImage() {
				return fmt.Errorf("disk of %s is still in use as %s", n.Name(), strings.Split(loop, "/")[3])
			}
		}
		return nil
	})
}
