package install_test

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Each failure has one clear error with a remedy, and leaves what was installed as it was.
func TestFailures(t *testing.T) {
	type row struct {
		name   string
		kinds  []string // one of each shell when empty
		fresh  bool     // nothing was installed before
		change func(b *box, s *server)
		attr   *syscall.SysProcAttr
		env    []string
		args   []string
		err    string
		try    string
	}
	rows := []row{
		{name: "checksum mismatch", change: func(b *box, s *server) { s.files[programPath] = append(slices.Clone(standins.v2), 'x') },
			err: "has the checksum", try: "run this again; if it stays so"},
		{name: "download always cut short", kinds: kinds[:2], change: func(b *box, s *server) { s.cut[programPath] = 1000 }, err: "download http", try: "check INSTALL_ATOLL_URL"},
		{name: "no such file", change: func(b *box, s *server) { delete(s.files, programPath) }, err: "download http", try: "check INSTALL_ATOLL_URL"},
		{name: "no checksums", change: func(b *box, s *server) { delete(s.files, sumPath) }, err: "download http", try: "check INSTALL_ATOLL_URL"},
		{name: "login page", change: func(b *box, s *server) { s.files[sumPath] = []byte("<html>Welcome to the hotel</html>") },
			err: "names no checksum of atoll-linux-", try: "a login page of the network"},
		{name: "nobody answers", kinds: kinds[:2], env: []string{"INSTALL_ATOLL_URL=http://127.0.0.1:1"}, err: "download http", try: "check INSTALL_ATOLL_URL"},
		{name: "not a program", change: func(b *box, s *server) { s.publish("", []byte("hello")) }, err: "is not a program", try: "check where it comes from"},
		{name: "for another processor", change: func(b *box, s *server) {
			other := slices.Clone(standins.v2)
			other[18] ^= 0x40
			s.publish("", other)
		}, err: "is made for another processor", try: "use the file for " + runtime.GOARCH},
		{name: "does not run", change: func(b *box, s *server) { s.publish("", standins.broken) }, err: "the new program does not run: illegal instruction", try: "nothing was changed"},
		{name: "carried data damaged", change: func(b *box, s *server) { s.publish("", standins.badUnpack) }, err: "carried data is damaged", try: "something else"},
		{name: "unsupported processor", kinds: kinds[:1], change: func(b *box, s *server) { b.replace("uname", "#!/bin/sh\n[ $1 = -m ] && echo riscv64 || echo Linux\n") },
			err: "this machine's processor is riscv64", try: "x86_64 (amd64) or aarch64 (arm64)"},
		{name: "another system", kinds: kinds[:1], change: func(b *box, s *server) { b.replace("uname", "#!/bin/sh\necho FreeBSD\n") }, err: "this is FreeBSD", try: "on a Linux machine"},
		{name: "little space", kinds: kinds[:1], change: func(b *box, s *server) {
			b.replace("df", "#!/bin/sh\necho header\necho /dev/sda1 1000000 990000 10000 99% /\n")
		}, err: "has 9 MiB free, 300 are needed", try: "free some space"},
		{name: "no init system", change: func(b *box, s *server) {
			_ = os.RemoveAll(b.path("run/systemd"))
			_ = os.Remove(b.path("sbin/openrc-run"))
		}, err: "neither systemd nor OpenRC", try: "INSTALL_ATOLL_SKIP_ENABLE=true"},
		{name: "no downloader", kinds: []string{"debian"}, change: func(b *box, s *server) { _ = os.Remove(b.path("bin/curl")) },
			err: "neither curl nor wget", try: "install one of them"},
		{name: "not root", attr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, err: "this needs root", try: "sudo sh -"},
		{name: "unknown variable", env: []string{"INSTALL_ATOLL_SKIP_STRAT=true"}, err: "unknown variable INSTALL_ATOLL_SKIP_STRAT", try: "SKIP_START"},
		{name: "bad name", env: []string{"INSTALL_ATOLL_NAME=a b"}, err: "INSTALL_ATOLL_NAME is 'a b'", try: "letters, digits"},
		{name: "bad command", args: []string{"sevrer"}, err: "'sevrer' is not something to run", try: "begin with server or agent"},
		{name: "open quote", env: []string{"INSTALL_ATOLL_EXEC=server --x 'y"}, err: "has an open quote", try: "close it"},
		{name: "line break in a flag", args: []string{"--x=a\nb"}, err: "contains a line break", try: "config.yaml"},
		{name: "line break in a variable", env: []string{"ATOLL_X=a\nb"}, err: "ATOLL_X contains a line break", try: "config.yaml"},
		{name: "odd address", env: []string{"INSTALL_ATOLL_URL=ftp://x"}, err: "INSTALL_ATOLL_URL is 'ftp://x'", try: "https://"},
		{name: "no address", fresh: true, env: []string{"INSTALL_ATOLL_URL="}, err: "INSTALL_ATOLL_URL is not set", try: "https://hub.example"},
		{name: "nothing there to use", fresh: true, env: []string{"INSTALL_ATOLL_SKIP_DOWNLOAD=true"}, err: "there is no program /usr/local/bin/atoll", try: "put it there"},
		{name: "no local file", env: []string{"INSTALL_ATOLL_LOCAL_FILE=/no/such"}, err: "there is no file /no/such", try: "full path"},
	}
	for _, r := range rows {
		if len(r.kinds) == 0 {
			r.kinds = kinds[1:]
		}
		for _, kind := range r.kinds {
			t.Run(r.name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				b, s := newBox(t, kind), newServer(t)
				env := []string{s.url()}
				if !r.fresh {
					s.publish("", standins.v1)
					b.ok(b.install([]string{s.url(), "ATOLL_TOKEN=old"}, "server", "--old"))
				}
				s.publish("", standins.v2)
				if r.change != nil {
					r.change(b, s)
				}
				before := b.tree()
				b.calls()
				got := b.pipe(must(os.ReadFile(script)), r.attr, append(env, r.env...), r.args...)
				if got.code != 1 {
					t.Errorf("exit code %d", got.code)
				}
				contains(t, "output", got.out, "Error: ", r.err, "\nTry:   ", r.try)
				if n := strings.Count(got.out, "Error: "); n != 1 {
					t.Errorf("%d errors:\n%s", n, got.out)
				}
				if calls := b.calls(); calls != "" {
					t.Errorf("the service was touched: %s", calls)
				}
				if !r.fresh {
					sameTree(t, before, b.tree())
				}
			})
		}
	}
}

// replace puts a small script in the place of a tool.
func (b *box) replace(tool, text string) {
	_ = os.Remove(b.path("bin/" + tool))
	if err := os.WriteFile(b.path("bin/"+tool), []byte(text), 0o755); err != nil {
		b.t.Fatal(err)
	}
}

// Real file systems that refuse to be written.
func TestFileSystemThatRefuses(t *testing.T) {
	mount := func(t *testing.T, b *box, size string, flags uintptr) {
		dir := b.path("usr/local/bin")
		if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, size); err != nil {
			t.Skipf("this machine cannot mount a tmpfs: %v", err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	}
	rows := []struct {
		name, size string
		flags      uintptr
		err, try   string
	}{
		{"read-only", "", syscall.MS_RDONLY, "cannot write to /usr/local/bin", "the file system is read-only"},
		{"disk fills up", "size=512k", 0, "download http", "the disk is full"},
		{"no programs may run", "size=50m", syscall.MS_NOEXEC, "", "noexec"},
	}
	for _, r := range rows {
		for _, kind := range kinds {
			t.Run(r.name+"/"+kind, func(t *testing.T) {
				b, s := newBox(t, kind), newServer(t)
				s.publish("", standins.v1)
				mount(t, b, r.size, r.flags)
				// The check of free space would come first: it sees plenty here.
				b.replace("df", "#!/bin/sh\necho header\necho /dev/sda1 1000000 0 1000000 0% /\n")
				got := b.install([]string{s.url()})
				if got.code != 1 {
					t.Errorf("exit code %d", got.code)
				}
				contains(t, "output", got.out, "Error: ", r.err, "Try:   ", r.try)
				if left, _ := os.ReadDir(b.path("usr/local/bin")); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
				if b.exists("etc/systemd/system/atoll.service") || b.exists("etc/init.d/atoll") {
					t.Error("a service was installed")
				}
			})
		}
	}
	t.Run("read-only, but there is /opt/bin", func(t *testing.T) {
		b, s := newBox(t, "debian"), newServer(t)
		s.publish("", standins.v1)
		mount(t, b, "", syscall.MS_RDONLY)
		if err := os.MkdirAll(b.path("opt/bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		b.ok(b.install([]string{s.url()}))
		if b.read("opt/bin/atoll") != string(standins.v1Inside) {
			t.Error("not installed there")
		}
		contains(t, "unit", b.read("etc/systemd/system/atoll.service"), "ExecStart=/opt/bin/atoll server")
		b.ok(b.install(nil))
	})
}

func TestWithoutInitSystem(t *testing.T) {
	b, s := newBox(t, "debian"), newServer(t)
	s.publish("", standins.v1)
	_ = os.RemoveAll(b.path("run/systemd"))
	b.ok(b.install([]string{s.url(), "INSTALL_ATOLL_SKIP_ENABLE=true"}))
	if calls := b.calls(); calls != "" || b.read("usr/local/bin/atoll") != string(standins.v1Inside) {
		t.Errorf("calls: %s", calls)
	}
	if units, _ := filepath.Glob(b.path("etc/systemd/system/*.service")); len(units) > 0 {
		t.Errorf("units: %v", units)
	}
}
