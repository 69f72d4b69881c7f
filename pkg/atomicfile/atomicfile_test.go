package atomicfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

func TestWriteReplacesAndLeavesNoTemporaryFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, want := range []string{"one", "two"} {
		if err := atomicfile.Write(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Errorf("%d files left in the folder, want 1", len(entries))
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("permissions %v", info.Mode())
	}
}

func TestWriteFailsWithoutFolder(t *testing.T) {
	if err := atomicfile.Write(filepath.Join(t.TempDir(), "no", "f"), nil, 0o600); err == nil {
		t.Error("no error for a missing folder")
	}
}

func TestWriteIfChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, row := range []struct {
		name string
		data string
		perm os.FileMode
		want bool
	}{
		{"first", "a", 0o600, true},
		{"same", "a", 0o600, false},
		{"permissions differ", "a", 0o644, true},
		{"content differs", "b", 0o644, true},
	} {
		changed, err := atomicfile.WriteIfChanged(path, []byte(row.data), row.perm)
		if err != nil || changed != row.want {
			t.Errorf("%s: changed %v, %v; want %v", row.name, changed, err, row.want)
		}
	}
}
