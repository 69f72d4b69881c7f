package config_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/remedy"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares got with a checked-in file, or rewrites that with -update.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with -update", err)
	}
	if got == string(want) {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		var g, w string
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if g != w {
			t.Fatalf("%s is not current (rewrite it with -update); first difference in line %d:\n have %q\n want %q", path, i+1, w, g)
		}
	}
}

// write makes files below a new folder and returns the folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func hostname(name string) func() (string, error) {
	return func() (string, error) { return name, nil }
}

// server is the input of a server with one configuration file.
func server(t *testing.T, yaml string) config.Input {
	t.Helper()
	dir := write(t, map[string]string{"config.yaml": yaml})
	return config.Input{Role: config.Server, File: filepath.Join(dir, "config.yaml"), Hostname: hostname("box")}
}

// wantError checks that err has each text, that it counts as asked wrongly, and that it carries a remedy.
func wantError(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", texts)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) && !slices.ContainsFunc(remedy.All(err), func(r string) bool { return strings.Contains(r, text) }) {
			t.Errorf("error does not have %q:\n%v\nremedies: %q", text, err, remedy.All(err))
		}
	}
	if !errors.Is(err, config.ErrInvalid) {
		t.Errorf("error is not ErrInvalid: %v", err)
	}
	if len(remedy.All(err)) == 0 {
		t.Errorf("error has no remedy: %v", err)
	}
}
