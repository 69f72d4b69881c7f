package hostcheck_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
		DataDir: filepath.Join(dir, "not", "yet"), KubeletDir: "/var/lib/kubelet", VXLAN: true, Built: time.Unix(0, 0),
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
	t.Log("took", took)
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
