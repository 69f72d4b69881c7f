package registries_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/runtime/registries"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sprintAll(v any) string {
	data, _ := json.Marshal(v)
	return fmt.Sprintf("%v %+v %#v %s", v, v, v, data)
}

// tree lists the files below dir.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			name, _ := filepath.Rel(dir, path)
			out = append(out, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs.d")
	first, err := load(t, "mirrors: {docker.io: {endpoint: [m.example.com]}, 'a.b:5000': {endpoint: [m.example.com]}, '*': {endpoint: [m.example.com]}}")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Write(dir); err != nil {
		t.Fatal(err)
	}
	if got, want := tree(t, dir), []string{"_default/hosts.toml", "a.b:5000/hosts.toml", "docker.io/hosts.toml"}; !slices.Equal(got, want) {
		t.Fatalf("files %v, want %v", got, want)
	}
	info, err := os.Stat(filepath.Join(dir, "docker.io", "hosts.toml"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	// The same again writes nothing.
	if err := first.Write(dir); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(filepath.Join(dir, "docker.io", "hosts.toml")); err != nil || !os.SameFile(info, again) {
		t.Errorf("a file that is right was written again, %v", err)
	}

	// What others put there stays, and so does what a power cut leaves of our own not.
	write(t, filepath.Join(dir, "mine.example.com", "hosts.toml"), "server = \"https://x\"\n")
	write(t, filepath.Join(dir, "certs.example.com", "ca.crt"), "x")
	write(t, filepath.Join(dir, "torn.example.com", ".hosts.toml.tmp-123"), "x")
	write(t, filepath.Join(dir, "file"), "x")
	ours, err := os.ReadFile(filepath.Join(dir, "docker.io", "hosts.toml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "both.example.com", "hosts.toml"), string(ours))
	write(t, filepath.Join(dir, "both.example.com", "client.key"), "x")
	if err := os.Mkdir(filepath.Join(dir, "empty.example.com"), 0o755); err != nil {
		t.Fatal(err)
	}
	second, err := load(t, "mirrors: {docker.io: {endpoint: [n.example.com]}}")
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Write(dir); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"both.example.com/client.key", "both.example.com/hosts.toml", "certs.example.com/ca.crt", "docker.io/hosts.toml", "file", "mine.example.com/hosts.toml",
	}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "empty.example.com")); err == nil {
		t.Error("an empty folder, which hides _default, is still there")
	}
	if data, err := os.ReadFile(filepath.Join(dir, "docker.io", "hosts.toml")); err != nil || !strings.Contains(string(data), "n.example.com") {
		t.Errorf("not updated: %s, %v", data, err)
	}
}

func TestWriteDoesNotReplaceForeignFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "docker.io", "hosts.toml")
	write(t, file, "server = \"https://x\"\n")
	c, err := load(t, "mirrors: {docker.io: {endpoint: [m.example.com]}}")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(dir); err == nil || !strings.Contains(err.Error(), file) || remedy.Of(err) == "" {
		t.Errorf("Write = %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "server = \"https://x\"\n" {
		t.Errorf("file is now %s, %v", data, err)
	}
}

func TestWriteAuth(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.d", "10-registries.toml")
	with, err := load(t, "configs: {a.b: {auth: {username: u, password: p}}}")
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		config  registries.Config
		changed bool
	}{{registries.Config{}, false}, {with, true}, {with, false}, {registries.Config{}, true}, {registries.Config{}, false}} {
		changed, err := step.config.WriteAuth(file)
		if err != nil || changed != step.changed {
			t.Errorf("step %d: changed %v, %v", i, changed, err)
		}
		info, err := os.Stat(file)
		if exists := err == nil; exists != (step.config.AuthTOML() != nil) {
			t.Errorf("step %d: file exists: %v", i, exists)
		} else if exists && info.Mode().Perm() != 0o600 {
			t.Errorf("step %d: mode %v", i, info.Mode())
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"mirrors: {docker.io: {endpoint: [m.example.com], rewrite: {'(.*)': 'x/$1'}}}", "mirrors:\n  a: &a\n    endpoint: [*a]\n",
		"configs: {'*': {tls: {insecure_skip_verify: yes}}}", "configs: {a.b: {auth: {username: \"\\0\\x7f\", password: ü}}}", "x: *x", "&a [*a]", "mirrors: &m {b: *m}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := registries.Parse("r.yaml", data)
		if err != nil || c.Validate() != nil {
			return
		}
		files, err := c.Files()
		if err != nil {
			t.Fatalf("a valid file cannot be written: %v", err)
		}
		for folder, text := range files {
			if !filepath.IsLocal(folder) || strings.ContainsAny(folder, "/\x00") {
				t.Errorf("folder %q", folder)
			}
			if err := toml.Unmarshal(text, new(map[string]any)); err != nil {
				t.Errorf("%v in\n%s", err, text)
			}
		}
		readAuth(t, c.AuthTOML())
		for _, name := range slices.Collect(maps.Keys(files)) {
			if name == "*" {
				t.Error("a folder for *")
			}
		}
	})
}
