// Package remedy attaches to an error what a person can do about it.
//
// An error that somebody will read states cause and remedy. The cause is the error chain itself; the remedy travels with it
// and is shown on a line of its own by the command line, the API and the status page.
package remedy

import (
	"errors"
	"fmt"
	"io"
)

type remediedError struct {
	err error
	try string
}

func (e *remediedError) Error() string { return e.err.Error() }
func (e *remediedError) Unwrap() error { return e.err }

// Wrap returns err with a remedy: an imperative sentence without a full stop, formatted like fmt.Sprintf.
// The text of err does not change. Wrap(nil, ...) is nil.
func Wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &remediedError{err: err, try: fmt.Sprintf(format, args...)}
}

// Of returns the remedy nearest to the top of the chain of err, or "" when it carries none.
// The outermost wins because the outer caller knows more about what the person was doing.
func Of(err error) string {
	var r *remediedError
	if errors.As(err, &r) {
		return r.try
	}
	return ""
}

// All returns every distinct remedy in the tree of err, outermost first; joined errors contribute one each.
func All(err error) []string {
	var out []string
	seen := map[string]bool{}
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		if r, ok := err.(*remediedError); ok && !seen[r.try] { //nolint:errorlint // walks the tree by hand
			seen[r.try] = true
			out = append(out, r.try)
		}
		switch u := err.(type) { //nolint:errorlint // walks the tree by hand
		case interface{ Unwrap() error }:
			walk(u.Unwrap())
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				walk(e)
			}
		}
	}
	walk(err)
	return out
}

// Fprint writes err for a person: "Error: ..." and, for each remedy, a line "Try:   ...". Joined errors are written one by one,
// each with its own remedies.
func Fprint(w io.Writer, err error) {
	for _, e := range parts(err) {
		fmt.Fprintf(w, "Error: %v\n", e)
		for _, try := range All(e) {
			fmt.Fprintf(w, "Try:   %s\n", try)
		}
	}
}

// parts takes joined errors apart; what an outer error says before them is lost only when it says nothing of its own.
func parts(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // looks at this error alone
	if !ok || err.Error() != errors.Join(joined.Unwrap()...).Error() {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, parts(e)...)
	}
	return out
}
