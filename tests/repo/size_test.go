// Package repo_test holds rules about the repository as a whole and what it builds.
package repo_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// downloadBudgetBytes is what a shop behind a slow line can be asked to fetch.
const downloadBudgetBytes = 60 << 20

func TestDownloadSize(t *testing.T) {
	paths, err := filepath.Glob("../../dist/atoll-linux-*")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		if _, err := os.Stat("../../dist"); errors.Is(err, fs.ErrNotExist) {
			t.Skip("nothing to measure: run `make dist` first")
		}
		t.Fatal("dist/ has no download in it")
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f MiB", filepath.Base(path), float64(info.Size())/(1<<20))
		if info.Size() > downloadBudgetBytes {
			t.Errorf("%s has %d bytes, %d more than the budget; see scripts/build for what goes in", filepath.Base(path), info.Size(), info.Size()-downloadBudgetBytes)
		}
	}
}
