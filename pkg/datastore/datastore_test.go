package datastore_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/atollhq/atoll/pkg/datastore"
)

// open runs a datastore until the test or the returned stop ends it.
func open(t *testing.T, dir string) (*clientv3.Client, func()) {
	t.Helper()
	store := datastore.New(datastore.Config{Dir: dir, Socket: filepath.Join(dir, "kine.sock")}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- store.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("Run = %v", err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{store.Servers()}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		_ = client.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	t.Cleanup(stop)
	return client, stop
}

func create(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	resp, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
	if err != nil || !resp.Succeeded {
		t.Fatalf("create %s: %v, %v", key, resp, err)
	}
}

func TestKeepsObjectsOverARestart(t *testing.T) {
	dir := t.TempDir()
	client, stop := open(t, dir)
	create(t, client, "/registry/a", "1")
	stop()

	client, _ = open(t, dir)
	got, err := client.Get(t.Context(), "/registry/a")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "1" {
		t.Errorf("after the restart: %v, %v", got, err)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	info, err := os.Stat(filepath.Join(dir, "kine.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
}

func TestDamagedFileIsRefusedAndKept(t *testing.T) {
	for _, row := range []struct {
		name   string
		damage func([]byte) []byte
	}{
		{"garbage in the header", func(b []byte) []byte { copy(b, "this is no database"); return b }},
		{"garbage in the middle", func(b []byte) []byte {
			for i := 4096; i < len(b); i++ {
				b[i] = 0xa5
			}
			return b
		}},
		{"cut in half", func(b []byte) []byte { return b[:len(b)/2] }},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			client, stop := open(t, dir)
			create(t, client, "/registry/a", "1")
			stop()
			file := filepath.Join(dir, "state.db")
			for _, suffix := range []string{"-wal", "-shm"} {
				if info, err := os.Stat(file + suffix); err == nil && info.Size() > 0 {
					t.Fatalf("%s was not folded into the database at the stop", suffix)
				}
			}
			good, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			bad := row.damage(good)
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			store := datastore.New(datastore.Config{Dir: dir, Socket: filepath.Join(dir, "s")}, slog.New(slog.DiscardHandler))
			if err := store.Run(t.Context(), func() {}); !errors.Is(err, datastore.ErrDamaged) {
				t.Errorf("Run = %v, want ErrDamaged", err)
			}
			if after, err := os.ReadFile(file); err != nil || string(after) != string(bad) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}
