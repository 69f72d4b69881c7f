package proxy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/kube/proxy"
)

func TestNameProtocols(t *testing.T) {
	path := filepath.Join(t.TempDir(), "protocols")
	if err := proxy.NameProtocols(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), "\ntcp\t6\t") || !strings.Contains(string(text), "\nudp\t17\t") {
		t.Errorf("new list: %q, %v", text, err)
	}
	if err := os.WriteFile(path, []byte("own 253 OWN\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := proxy.NameProtocols(path); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "own 253 OWN\n" {
		t.Errorf("the machine's own list became %q, %v", text, err)
	}
	if err := proxy.NameProtocols(filepath.Join(path, "x")); err == nil {
		t.Error("no error for a path that cannot be")
	}
}
