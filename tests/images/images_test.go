package images_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollhq/atoll/tests/images"
)

// TestArchivesAreWholeImages follows an archive from its index to the program, as a container runtime does.
func TestArchivesAreWholeImages(t *testing.T) {
	out := t.TempDir()
	archives, err := images.Build(t.Context(), "../..", out)
	if err != nil {
		t.Fatal(err)
	}
	if len(archives) != len(images.All()) {
		t.Fatalf("built %v", archives)
	}
	for _, path := range archives {
		t.Run(filepath.Base(path), func(t *testing.T) {
			want := images.All()[filepath.Base(path)]
			files := untar(t, path)
			var index struct {
				Manifests []struct {
					Digest      string
					Annotations map[string]string
				}
			}
			decode(t, files["index.json"].data, &index)
			if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != want.Ref {
				t.Fatalf("index %+v", index)
			}
			var manifest struct {
				Config struct{ Digest string }
				Layers []struct{ Digest string }
			}
			decode(t, blob(t, files, index.Manifests[0].Digest), &manifest)
			var config struct {
				Config struct{ Entrypoint []string }
				RootFS struct {
					DiffIDs []string `json:"diff_ids"`
				}
			}
			decode(t, blob(t, files, manifest.Config.Digest), &config)
			if len(manifest.Layers) != 1 || config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
				t.Fatalf("layers %v, config %+v", manifest.Layers, config)
			}
			layer := untarBytes(t, blob(t, files, manifest.Layers[0].Digest))
			program, ok := layer[strings.TrimPrefix(config.Config.Entrypoint[0], "/")]
			if !ok || program.mode&0o111 == 0 || len(program.data) == 0 {
				t.Errorf("no program %v in the layer", config.Config.Entrypoint)
			}
		})
	}
	t.Run("unchanged archives are not written again", func(t *testing.T) {
		before := stat(t, archives[0])
		if _, err := images.Build(t.Context(), "../..", out); err != nil {
			t.Fatal(err)
		}
		if after := stat(t, archives[0]); !os.SameFile(before, after) {
			t.Error("the archive was replaced")
		}
	})
	t.Run("programs run", func(t *testing.T) {
		got, err := exec.Command(filepath.Join(out, "programs", "hello"), "once").Output()
		if err != nil || !strings.HasPrefix(string(got), "hello from ") {
			t.Errorf("hello: %q, %v", got, err)
		}
		tool := filepath.Join(out, "programs", "tool")
		if got, err := exec.Command(tool, "cat", "/proc/self/comm").Output(); string(got) != "tool\n" || err != nil {
			t.Errorf("tool cat: %q, %v", got, err)
		}
		var exit *exec.ExitError
		if err := exec.Command(tool, "fail", "9").Run(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
			t.Errorf("tool fail: %v", err)
		}
		if err := exec.Command(tool, "no-such").Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("tool with an unknown command: %v", err)
		}
	})
}

type file struct {
	mode int64
	data []byte
}

func untar(t *testing.T, path string) map[string]file {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return untarBytes(t, data)
}

func untarBytes(t *testing.T, data []byte) map[string]file {
	t.Helper()
	files := map[string]file{}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = file{mode: h.Mode, data: content}
	}
}

// blob returns the content with a digest, and fails when the content is something else.
func blob(t *testing.T, files map[string]file, digest string) []byte {
	t.Helper()
	name := strings.TrimPrefix(digest, "sha256:")
	f, ok := files["blobs/sha256/"+name]
	if sum := sha256.Sum256(f.data); !ok || hex.EncodeToString(sum[:]) != name {
		t.Fatalf("blob %s is missing or wrong", digest)
	}
	return f.data
}

func decode(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
