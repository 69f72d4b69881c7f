// Package suite builds the upstream conformance suite of Kubernetes and runs its tests, a batch at a time.
//
// A batch is a list of tests named one by one, so that what ran and what did not is known exactly, also when a batch runs out of time.
// Results of all batches are kept in one file, by test: a run that was ended goes on where it was.
package suite

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Flags of every build of this repository: other flags would make a build cache of their own.
var buildFlags = []string{"-p", "2", "-tags", "providerless,osusergo,netgo", "-trimpath"}

// Programs are the built parts.
type Programs struct {
	E2E, Ginkgo string // paths
}

// Build compiles the suite and its runner into the folder bin. module is the folder of this Go module.
func Build(ctx context.Context, module, bin string) (Programs, error) {
	p := Programs{E2E: filepath.Join(bin, "e2e.test"), Ginkgo: filepath.Join(bin, "ginkgo")}
	version, err := goOutput(ctx, module, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return p, err
	}
	stamp := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		minor := strings.Split(version, ".")[1]
		stamp += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=1 -X %[1]s.gitMinor=%[3]s -X %[1]s.gitTreeState=clean", pkg, version, minor)
	}
	// Vet would check every dependency too, for longer than the suite takes to compile.
	args := append([]string{"test", "-vet=off", "-c"}, buildFlags...)
	if _, err := goOutput(ctx, module, append(args, "-ldflags", stamp, "-o", p.E2E, "k8s.io/kubernetes/test/e2e")...); err != nil {
		return p, fmt.Errorf("build the suite: %w", err)
	}
	return p, BuildProgram(ctx, module, "github.com/onsi/ginkgo/v2/ginkgo", p.Ginkgo)
}

// BuildProgram compiles one program of the module's tools, static and stripped.
func BuildProgram(ctx context.Context, module, pkg, out string) error {
	args := append([]string{"build"}, buildFlags...)
	if _, err := goOutput(ctx, module, append(args, "-ldflags", "-s -w", "-o", out, pkg)...); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	return nil
}

func goOutput(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// Test is the full name of a test.
type Test string

// Conformance reports whether the test is one that every Kubernetes must pass.
func (t Test) Conformance() bool { return strings.Contains(string(t), "[Conformance]") }

// Serial reports whether nothing else may run beside the test.
func (t Test) Serial() bool {
	return strings.Contains(string(t), "[Serial]") || strings.Contains(string(t), "[Disruptive]")
}

// Group is the special interest group that owns the test, "network" for example.
func (t Test) Group() string {
	if _, rest, ok := strings.Cut(string(t), "[sig-"); ok {
		group, _, _ := strings.Cut(rest, "]")
		return group
	}
	return "other"
}

// List returns the conformance tests of the suite, sorted.
func (p Programs) List(ctx context.Context) ([]Test, error) {
	cmd := exec.CommandContext(ctx, p.E2E, "-list-tests")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests of the suite: %w", err)
	}
	var tests []Test
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if t := testName(lines.Text()); t.Conformance() {
			tests = append(tests, t)
		}
	}
	slices.Sort(tests)
	return slices.Compact(tests), lines.Err()
}

var location = regexp.MustCompile(`^\s*\S+\.go:\d+: `)

// testName takes the name out of a line of the suite's list, which may start with a place in the source.
func testName(line string) Test {
	return Test(strings.TrimSpace(location.ReplaceAllString(line, "")))
}

// Batch is a number of tests that run together.
type Batch struct {
	Name  string // "network" or "network-serial"
	Tests []Test
}

// Serial reports whether the tests run one after the other.
func (b Batch) Serial() bool { return len(b.Tests) > 0 && b.Tests[0].Serial() }

// Plan sorts tests into batches: by group, those that may run side by side first.
func Plan(tests []Test) []Batch {
	var batches []Batch
	for _, serial := range []bool{false, true} {
		byGroup := map[string][]Test{}
		for _, t := range tests {
			if t.Serial() == serial {
				byGroup[t.Group()] = append(byGroup[t.Group()], t)
			}
		}
		var groups []string
		for g := range byGroup {
			groups = append(groups, g)
		}
		slices.Sort(groups)
		for _, g := range groups {
			name := g
			if serial {
				name += "-serial"
			}
			batches = append(batches, Batch{Name: name, Tests: byGroup[g]})
		}
	}
	return batches
}

// Select keeps the tests that match focus (when set) and not skip (when set).
func Select(tests []Test, focus, skip *regexp.Regexp) []Test {
	return slices.DeleteFunc(slices.Clone(tests), func(t Test) bool {
		return focus != nil && !focus.MatchString(string(t)) || skip != nil && skip.MatchString(string(t))
	})
}
