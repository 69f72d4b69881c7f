// Package e2e_test keeps the promises that atoll makes to its users: it runs the built binary in the lab, with real containerd and
// real pods. README.md lists the promises; each is an ordered list of named subtests, and later ones build on what earlier ones left.
//
// Nothing waits for a fixed time. What must happen is looked for again and again until a deadline that grows with the load of the
// machine; what must not happen is looked at after something that proves it could have.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/tests/images"
	"github.com/atollhq/atoll/tests/lab"
)

// Settings for people who work on the tests.
const (
	envBinary = "ATOLL_E2E_BINARY" // another atoll than bin/atoll
	envLab    = "ATOLL_E2E_LAB"    // number of the lab, 1 to 15; any free one when unset
	envSoak   = "ATOLL_SOAK"       // when set, the long versions of some tests
)

// newLab makes a lab with the binary under test. All nodes are off.
func newLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Binary = os.Getenv(envBinary)
	if number := os.Getenv(envLab); number != "" {
		id, err := strconv.Atoi(number)
		must(t, err)
		o.ID = id
	}
	return lab.New(t, o)
}

// atollBinary is the binary under test on the host.
func atollBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(envBinary); path != "" {
		return path
	}
	return filepath.Join(repository(t), "bin", "atoll")
}

func repository(t *testing.T) string {
	t.Helper()
	root, err := lab.Repository()
	must(t, err)
	return root
}

// archives builds the test images and returns their archives by image.
func archives(t *testing.T) map[string]string {
	t.Helper()
	root := repository(t)
	_, err := images.Build(t.Context(), root, filepath.Join(root, "out", "images"))
	must(t, err)
	out := map[string]string{}
	for name, image := range images.All() {
		out[image.Ref] = filepath.Join(root, "out", "images", name)
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patient stretches a time that an idle machine keeps by the number of tasks that wait for a core of this one.
func patient(d time.Duration) time.Duration {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return d
	}
	load, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	if err != nil {
		return d
	}
	return time.Duration(float64(d) * min(8, max(1, load/float64(runtime.NumCPU()))))
}

// within returns a context for one step. d is for an idle machine.
func within(t *testing.T, d time.Duration, what string) context.Context {
	t.Helper()
	d = patient(d)
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("%s took longer than %s", what, d.Round(time.Second)))
	t.Cleanup(cancel)
	return ctx
}

// errFinal ends eventually at once.
type errFinal struct{ error }

// eventually calls look until it returns nil, and fails the test when that takes longer than d on an idle machine.
func eventually(t *testing.T, d time.Duration, what string, look func(context.Context) error) {
	t.Helper()
	if err := poll(within(t, d, what), look); err != nil {
		t.Fatal(err)
	}
}

func poll(ctx context.Context, look func(context.Context) error) error {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	for last := errors.New("nothing seen yet"); ; {
		err := look(ctx)
		var final errFinal
		if err == nil || errors.As(err, &final) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; last seen: %w", context.Cause(ctx), last)
		}
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last seen: %w", context.Cause(ctx), last)
		case <-tick.C:
		}
	}
}

// step is one subtest of an ordered list.
type step[T any] struct {
	name string
	run  func(*testing.T, T)
}

// inOrder runs steps one after the other. A step that fails does not end the list: the next may tell more.
func inOrder[T any](t *testing.T, on T, steps []step[T]) {
	t.Helper()
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) { s.run(t, on) })
	}
}

// onNode runs a program on a node and returns its standard output.
func onNode(t *testing.T, n *lab.Node, argv ...string) string {
	t.Helper()
	out, err := n.Exec(within(t, 60*time.Second, strings.Join(argv, " ")), argv...)
	must(t, err)
	return out
}

// result is how a program on a node ended.
type result struct {
	code        int
	out, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.code, r.out, r.stderr)
}

// runOnNode is onNode for programs that may fail.
func runOnNode(t *testing.T, n *lab.Node, argv ...string) result {
	t.Helper()
	out, err := n.Exec(within(t, 60*time.Second, strings.Join(argv, " ")), argv...)
	var exit *lab.ExitError
	if errors.As(err, &exit) {
		return result{exit.Code, out, exit.Stderr}
	}
	must(t, err)
	return result{0, out, ""}
}

// wantContains fails the test for each part that text lacks.
func wantContains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s lacks %q:\n%s", what, part, text)
		}
	}
}

// wantNoPanic fails the test when text looks like what a Go program writes that has crashed.
func wantNoPanic(t *testing.T, text string) {
	t.Helper()
	for _, sign := range []string{"panic:", "fatal error:", "\ngoroutine ", "SIGSEGV", "DATA RACE"} {
		if at := strings.Index(text, sign); at >= 0 {
			t.Errorf("a crash: %s", text[max(0, at-200):min(len(text), at+2000)])
		}
	}
}
