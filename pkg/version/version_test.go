package version_test

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/version"
)

func TestUnstampedBuildSaysSo(t *testing.T) {
	got := version.String()
	for _, want := range []string{"atoll v0.0.0-dev", "commit unknown", runtime.Version(), runtime.GOARCH} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not contain %q", got, want)
		}
	}
}

// The names are used in linker flags, where a misspelt one is silently ignored.
func TestLinkerSetsTheNamesThatTheBuildUses(t *testing.T) {
	program := filepath.Join(t.TempDir(), "show")
	flags := "-X github.com/atollhq/atoll/pkg/version.Version=v9.8.7 -X github.com/atollhq/atoll/pkg/version.Commit=" + strings.Repeat("a1", 20)
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", flags, "-o", program, "./testdata/show").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(program).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "atoll v9.8.7 (commit a1a1a1a1a1a1, go") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestOfAModuleThatIsNotLinked(t *testing.T) {
	if got := version.Of("example.com/none"); got != "" {
		t.Errorf("got %q", got)
	}
}
