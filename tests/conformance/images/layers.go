package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/atollhq/atoll/tests/conformance/suite"
)

// packages are the Debian packages of the root file system that most images share: what tests run in their pods.
var packages = []string{
	"base-files", "bash", "dash", "coreutils", "grep", "sed", "mawk", "findutils", "hostname", "procps", "util-linux", "mount", "tar",
	"libc-bin", "libnss-myhostname", "curl", "bind9-dnsutils", "netcat-openbsd", "iproute2", "iputils-ping", "iperf", "socat", "nginx-light",
}

// layer fills the empty folder dir with the files of a layer.
type layer func(ctx context.Context, s sources, dir string) error

// sources are where files come from.
type sources struct {
	root   string // of the repository
	module string // folder of this Go module
	suite  string // folder of the suite's Go module
	work   string // for what is kept between builds
}

func layers() map[string]layer {
	const images = "k8s.io/kubernetes/test/images/"
	return map[string]layer{
		"debian":           debian,
		"busybox":          busybox,
		"nginx":            nginx,
		"agnhost":          agnhost,
		"kitten":           kitten,
		"nautilus":         served("nautilus"),
		"nonewprivs":       program(images+"nonewprivs", "usr/local/bin/nnp", 0o6755),
		"etcd":             program("go.etcd.io/etcd/server/v3", "usr/local/bin/etcd", 0o755),
		"sample-apiserver": program("k8s.io/sample-apiserver", "sample-apiserver", 0o755),
	}
}

// program is a layer of one Go program.
func program(pkg, path string, mode fs.FileMode) layer {
	return func(ctx context.Context, s sources, dir string) error {
		out := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		if err := suite.BuildProgram(ctx, s.module, pkg, out); err != nil {
			return err
		}
		return os.Chmod(out, unixMode(mode))
	}
}

// unixMode turns the bits of chmod(2) into Go's.
func unixMode(mode fs.FileMode) fs.FileMode {
	m := mode & 0o777
	if mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// served is a layer of the files that agnhost's web server shows.
func served(name string) layer {
	return func(_ context.Context, s sources, dir string) error {
		for _, file := range []string{name + ".jpg", "data.json"} {
			if err := copyFile(filepath.Join(s.suite, "test/images", name, "html", file), filepath.Join(dir, file), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
}

// kitten is also mounted as a volume, by a test that knows the volume by the name of the original's distribution.
func kitten(ctx context.Context, s sources, dir string) error {
	return errors.Join(served("kitten")(ctx, s, dir), text(dir, "etc/os-release", "NAME=\"Debian in the place of Alpine Linux\"\nID=debian\n"))
}

func agnhost(ctx context.Context, s sources, dir string) error {
	if err := program("k8s.io/kubernetes/test/images/agnhost", "agnhost", 0o755)(ctx, s, dir); err != nil {
		return err
	}
	for _, file := range []string{"localhost.crt", "localhost.key"} {
		if err := copyFile(filepath.Join(s.suite, "test/images/agnhost/porter", file), filepath.Join(dir, file), 0o644); err != nil {
			return err
		}
	}
	users := users + "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
	groups := groups + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"
	return errors.Join(
		os.Symlink("agnhost", filepath.Join(dir, "agnhost-2")),
		os.Mkdir(filepath.Join(dir, "uploads"), 0o755),
		text(dir, "etc/passwd", users), text(dir, "etc/group", groups),
	)
}

func nginx(_ context.Context, _ sources, dir string) error {
	return errors.Join(
		text(dir, "etc/nginx/nginx.conf", nginxConf),
		// The log is the container's output, as in the original.
		os.MkdirAll(filepath.Join(dir, "var/log/nginx"), 0o755),
		os.Symlink("/dev/stdout", filepath.Join(dir, "var/log/nginx/access.log")),
		os.Symlink("/dev/stderr", filepath.Join(dir, "var/log/nginx/error.log")),
	)
}

const nginxConf = `user www-data;
worker_processes 1;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log /var/log/nginx/access.log;
	server {
		listen 80;
		location / { root /usr/share/nginx/html; index index.html; }
	}
}
`

// Users and groups of the images. Debian writes these files in installation scripts, which are not run here.
const (
	users  = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	groups = "root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n"
)

func debian(ctx context.Context, s sources, dir string) error {
	if err := unpackDebs(ctx, s, dir, packages...); err != nil {
		return err
	}
	for _, waste := range []string{"usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/i18n", "var/lib/dpkg"} {
		if err := os.RemoveAll(filepath.Join(dir, waste)); err != nil {
			return err
		}
	}
	if err := common(dir); err != nil {
		return err
	}
	// What installation scripts would link.
	for link, target := range map[string]string{
		"bin/sh": "dash", "bin/nc": "nc.openbsd", "bin/netcat": "nc.openbsd", "usr/bin/awk": "mawk", "usr/local/bin/iperf": "/usr/bin/iperf",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func busybox(ctx context.Context, s sources, dir string) error {
	unpacked := filepath.Join(s.work, "unpacked")
	if err := os.RemoveAll(unpacked); err != nil {
		return err
	}
	if err := unpackDebs(ctx, s, unpacked, "busybox-static", "bash-static"); err != nil {
		return err
	}
	program := filepath.Join(dir, "bin/busybox")
	if err := copyFile(filepath.Join(unpacked, "bin/busybox"), program, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return fmt.Errorf("ask busybox for its commands: %w", err)
	}
	if err := copyFile(filepath.Join(unpacked, "bin/bash-static"), filepath.Join(dir, "bin/bash"), 0o755); err != nil {
		return err
	}
	if err := suite.BuildProgram(ctx, s.module, "./images/sh", filepath.Join(dir, "bin/sh")); err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(out)) {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// Some tests name a command by another path.
	for _, link := range []string{"usr/bin", "usr/sbin", "sbin"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(link)), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/bin", filepath.Join(dir, link)); err != nil {
			return err
		}
	}
	return common(dir)
}

// common adds what every root file system has.
func common(dir string) error {
	for _, folder := range []string{"tmp", "var/tmp", "root", "home", "run", "proc", "sys", "dev", "etc", "usr/local/bin", "var/www"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		os.Chmod(filepath.Join(dir, "tmp"), 0o777|fs.ModeSticky), os.Chmod(filepath.Join(dir, "var/tmp"), 0o777|fs.ModeSticky),
		text(dir, "etc/passwd", users), text(dir, "etc/group", groups), text(dir, "etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
	)
}

// unpackDebs puts the files of Debian packages, with all they depend on, into the folder dir.
func unpackDebs(ctx context.Context, s sources, dir string, names ...string) error {
	download := filepath.Join(s.work, "debs")
	cmd := exec.CommandContext(ctx, filepath.Join(s.root, "scripts/bundle/debs.sh"), append([]string{download}, names...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch Debian packages: %w\n%s", err, out)
	}
	defer os.RemoveAll(download)
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(filepath.Join(download, "root"), dir)
}

func text(dir, path, content string) error {
	path = filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

func copyFile(from, to string, mode fs.FileMode) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to, content, mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}
