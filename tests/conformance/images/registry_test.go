package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/atollhq/atoll/tests/conformance/images"
)

// TestPull packs an image and pulls it from the registry, as containerd does from a mirror.
func TestPull(t *testing.T) {
	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	if err := os.MkdirAll(filepath.Join(files, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(files, "bin/x"), []byte("hello"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("x", filepath.Join(files, "bin/y")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "images.tar")
	if err := images.PackForTest("registry.test/a/b:1", files, filepath.Join(dir, "layer"), path); err != nil {
		t.Fatal(err)
	}
	registry, err := images.OpenRegistry(path)
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	server := httptest.NewServer(registry)
	defer server.Close()
	get := func(path string, want int) []byte {
		t.Helper()
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%s: %s, %v, want %d", path, resp.Status, err, want)
		}
		return body
	}

	get("/v2/", http.StatusOK)
	get("/v2/a/b/manifests/2?ns=registry.test", http.StatusNotFound)
	get("/v2/a/b/manifests/1?ns=another.test", http.StatusNotFound)
	var manifest struct{ Layers []struct{ Digest string } }
	if err := json.Unmarshal(get("/v2/a/b/manifests/1?ns=registry.test", http.StatusOK), &manifest); err != nil || len(manifest.Layers) != 1 {
		t.Fatalf("manifest is %+v, %v", manifest, err)
	}
	layer := tar.NewReader(bytes.NewReader(get("/v2/a/b/blobs/"+manifest.Layers[0].Digest, http.StatusOK)))
	got := map[string]string{}
	for {
		h, err := layer.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(layer)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(text) + h.Linkname
	}
	want := map[string]string{"bin/": "", "bin/x": "hello", "bin/y": "x"}
	if len(got) != len(want) {
		t.Errorf("the layer has %v, want %v", got, want)
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s is %q, want %q", name, got[name], text)
		}
	}
}
