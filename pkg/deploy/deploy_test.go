package deploy_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/atollhq/atoll/pkg/deploy"
)

// A part that cannot reach the API server waits, and ends when asked.
func TestRunWithoutAPIServer(t *testing.T) {
	dir := t.TempDir()
	cfg := deploy.Config{
		Client: &rest.Config{Host: "https://127.0.0.1:1"}, Node: "n1", Folder: filepath.Join(dir, "manifests"), IdentityFile: filepath.Join(dir, "cred", "id"),
		Packaged: fstest.MapFS{"a.yaml": {Data: []byte(cm("a"))}},
	}
	var identities []string
	for range 2 {
		m := deploy.New(cfg, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		if err := m.Run(ctx, func() { t.Error("ready") }); err != nil {
			t.Error(err)
		}
		cancel()
		id, err := os.ReadFile(cfg.IdentityFile)
		if err != nil {
			t.Fatal(err)
		}
		identities = append(identities, string(id))
	}
	if identities[0] == "" || identities[0] != identities[1] {
		t.Errorf("identities %q", identities)
	}
	if info, err := os.Stat(cfg.Folder); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]deploy.Config{
		"a folder that cannot be made":     {Folder: filepath.Join(dir, "file", "x"), IdentityFile: filepath.Join(dir, "id")},
		"an identity that cannot be saved": {Folder: filepath.Join(dir, "m"), IdentityFile: filepath.Join(dir, "file", "id")},
		"a value that is missing":          {Folder: filepath.Join(dir, "m"), IdentityFile: filepath.Join(dir, "id"), Packaged: fstest.MapFS{"a.yaml": {Data: []byte("%{X}%")}}},
	} {
		cfg.Client = &rest.Config{Host: "https://127.0.0.1:1"}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if err := deploy.New(cfg, slog.New(slog.DiscardHandler)).Run(ctx, func() {}); err == nil {
			t.Errorf("%s: no error", name)
		}
		cancel()
	}
}

// The kernel tells about changes, in new subfolders too.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	w := deploy.NewWatch(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	defer func() { cancel(); <-done; w.Close() }()
	w.Folders([]string{dir})
	expect := func(what string, change func() error) {
		t.Helper()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.Changed():
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not told", what)
		}
	}
	sub := filepath.Join(dir, "sub")
	expect("a new folder", func() error { return os.Mkdir(sub, 0o755) })
	w.Folders([]string{dir, sub})
	expect("a new file", func() error { return os.WriteFile(filepath.Join(sub, "a.yaml"), nil, 0o600) })
	expect("a removed file", func() error { return os.Remove(filepath.Join(sub, "a.yaml")) })
}
