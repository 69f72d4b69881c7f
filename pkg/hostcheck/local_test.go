package hostcheck_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/pkg/hostcheck"
)

// TestThisMachine runs everything for real. What the machine lacks is told; what must hold anywhere is tested.
func TestThisMachine(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	held := listener.Addr().(*net.TCPAddr).Port
	began := time.Now()
	results := hostcheck.Run(t.Context(), hostcheck.Config{
		DataDir: filepath.Join(dir, "not", "yet"), KubeletDir: "/var/lib/kubelet", VXLAN: true, Built: time.Now().Add(-time.Hour),
		Ports: []hostcheck.Port{{Number: held, Addr: netip.MustParseAddr("127.0.0.1"), For: "test"}},
	})
	took := time.Since(began)
	found := map[string]hostcheck.Result{}
	for _, r := range results {
		t.Logf("%-18s %-5s %s", r.Name, r.Level, r.Detail)
		found[r.Name] = r
		if r.Level != hostcheck.OK && r.Level != hostcheck.Note && r.Remedy == "" {
			t.Errorf("%s has no remedy", r.Name)
		}
	}
	if took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if p := found["ports"]; p.Level != hostcheck.Fail || !strings.Contains(p.Detail, strings.TrimSpace(string(name))) {
		t.Errorf("a port that this test holds: %+v", p)
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root")
	}
	for _, name := range []string{"root", "kernel", "namespaces", "data-folder", "veth"} {
		if found[name].Level != hostcheck.OK {
			t.Errorf("%s: %+v", name, found[name])
		}
	}
}

// TestTrialsThatFail makes sure that a trial can fail, and that a kernel that lacks something is told from one that refuses it.
func TestTrialsThatFail(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range []struct {
		name, arg string
		ctx       context.Context
		trial     hostcheck.Trial
		unknown   bool
	}{
		{"kind of link", "atollnone", t.Context(), hostcheck.TryLink, true},
		{"module", "atollnone", t.Context(), hostcheck.TryModule, false},
		{"nft program", "/bin/false", t.Context(), hostcheck.TryNFTables, false},
		{"overlay in /proc", "/proc", t.Context(), hostcheck.TryOverlay, false},
		{"file in /proc", "/proc", t.Context(), hostcheck.TryCreate, false},
		{"file that is not there", "/proc/none", t.Context(), hostcheck.TryOpen, false},
		{"no such trial", "", t.Context(), "jump", false},
		{"no time", "/proc/self/mountinfo", ended, hostcheck.TryModule, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := hostcheck.Local.Try(row.ctx, row.trial, row.arg)
			if err == nil || errors.Is(err, hostcheck.ErrUnknown) != row.unknown {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestMain holds a trap of Go in place: a trial must not be made on the process's first thread. Go cannot end that one, so it would
// stay in the network that was thrown away, which is what all of /proc/self shows from then on. With one processor, what is started
// here runs on this very thread.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		before, _ := os.Readlink("/proc/self/ns/net")
		processors := runtime.GOMAXPROCS(1)
		hostcheck.Run(context.Background(), hostcheck.Config{})
		runtime.GOMAXPROCS(processors)
		if after, _ := os.Readlink("/proc/self/ns/net"); after != before {
			fmt.Println("FAIL: the process is in another network than before: a trial was made on its first thread")
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}
