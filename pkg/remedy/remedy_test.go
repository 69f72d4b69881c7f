package remedy_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/remedy"
)

func TestWrapKeepsTextAndChain(t *testing.T) {
	err := fmt.Errorf("start server: %w", remedy.Wrap(fmt.Errorf("open %s: %w", "x", fs.ErrNotExist), "create %s", "x"))
	if got, want := err.Error(), "start server: open x: file does not exist"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is no longer in the chain")
	}
	if got := remedy.Of(err); got != "create x" {
		t.Errorf("remedy = %q", got)
	}
	if remedy.Wrap(nil, "nothing") != nil {
		t.Error("Wrap(nil) is not nil")
	}
}

func TestFprintShowsEveryRemedyOnce(t *testing.T) {
	a := remedy.Wrap(errors.New("a"), "do A")
	b := remedy.Wrap(errors.New("b"), "do B")
	var out strings.Builder
	remedy.Fprint(&out, fmt.Errorf("start: %w", errors.Join(a, b, a)))
	if got, want := strings.Count(out.String(), "Try:"), 2; got != want {
		t.Errorf("%d remedies shown, want %d:\n%s", got, want, out.String())
	}
}

func TestFprintPairsProblemsWithRemedies(t *testing.T) {
	var out strings.Builder
	remedy.Fprint(&out, errors.Join(remedy.Wrap(errors.New("a"), "do A"), remedy.Wrap(errors.New("b"), "do B")))
	if got, want := out.String(), "Error: a\nTry:   do A\nError: b\nTry:   do B\n"; got != want {
		t.Errorf("printed\n%swant\n%s", got, want)
	}
}
