// Command summary reads the output of `go test -json` and prints what a person wants of it: one line for each package, everything
// that a failed test wrote, every skipped test with its reason, and at the end how many tests ran.
//
// It ends with exit code 1 when a test failed or none ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// tally is what has been seen so far.
type tally struct {
	passed, failed, skipped int
	output                  map[string][]string // by package and test
}

func main() {
	t := tally{output: map[string][]string{}}
	if err := t.read(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "Error: read test events:", err)
		os.Exit(1)
	}
	fmt.Printf("tests: %d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if t.failed > 0 || t.passed == 0 {
		os.Exit(1)
	}
}

func (t *tally) read(r io.Reader, w io.Writer) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(w, lines.Text()) // a compiler's message
			continue
		}
		t.add(e, w)
	}
	return lines.Err()
}

func (t *tally) add(e event, w io.Writer) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		t.output[key] = append(t.output[key], e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	if e.Test == "" {
		t.endOfPackage(e, key, w)
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		fmt.Fprintf(w, "--- FAIL: %s %s (%.1f s)\n%s", e.Package, e.Test, e.Elapsed, strings.Join(t.output[key], ""))
	case "skip":
		t.skipped++
		fmt.Fprintf(w, "skipped: %s %s: %s\n", e.Package, e.Test, reason(t.output[key]))
	}
	delete(t.output, key)
}

func (t *tally) endOfPackage(e event, key string, w io.Writer) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(w, "ok    %s (%.1f s)\n", e.Package, e.Elapsed)
	case "fail":
		if t.failed == 0 {
			t.failed++ // it did not compile, or ended outside a test
		}
		fmt.Fprintf(w, "FAIL  %s\n%s", e.Package, strings.Join(t.output[key], ""))
	}
	delete(t.output, key)
}

// reason finds what a test said before it was skipped.
func reason(output []string) string {
	for _, line := range output {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}
