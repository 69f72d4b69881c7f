package suite

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Results are the outcomes of a run so far, over all batches.
type Results map[Test]Result

// Load reads the results of an earlier run from its folder; there may be none.
func Load(dir string) (Results, error) {
	text, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Results{}, nil
	}
	if err != nil {
		return nil, err
	}
	r := Results{}
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read earlier results: %w", err)
	}
	return r, nil
}

// Add takes over the results of a batch. A test that had no turn does not wipe out what is known of it.
func (r Results) Add(batch map[Test]Result) {
	for t, result := range batch {
		if _, known := r[t]; result.Outcome != NotRun || !known {
			r[t] = result
		}
	}
}

// Count returns the number of tests with an outcome.
func (r Results) Count(o Outcome) int {
	n := 0
	for _, result := range r {
		if result.Outcome == o {
			n++
		}
	}
	return n
}

// Left returns the tests of the list that have not passed.
func (r Results) Left(tests []Test) []Test {
	return slices.DeleteFunc(slices.Clone(tests), func(t Test) bool { return r[t].Outcome == Passed })
}

// Save writes results.json, one list of tests per outcome with their times, and summary.txt to the folder.
func (r Results) Save(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "results.json"), append(text, '\n')); err != nil {
		return err
	}
	for file, o := range map[string]Outcome{"passed.txt": Passed, "failed.txt": Failed, "skipped.txt": Skipped, "not-run.txt": NotRun} {
		var list strings.Builder
		for _, t := range slices.Sorted(maps.Keys(r)) {
			if result := r[t]; result.Outcome == o {
				fmt.Fprintf(&list, "%7.1f s  %s\n", result.Seconds, t)
			}
		}
		if err := write(filepath.Join(dir, file), []byte(list.String())); err != nil {
			return err
		}
	}
	var summary strings.Builder
	r.Print(&summary)
	return write(filepath.Join(dir, "summary.txt"), []byte(summary.String()))
}

// write replaces a file whole, so that a run that is ended leaves the results before or after a batch.
func write(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Print writes a summary for people: totals by group, then each failure with its first lines.
func (r Results) Print(w io.Writer) {
	type row struct{ passed, failed, skipped, notRun int }
	rows, total := map[string]*row{}, &row{}
	for t, result := range r {
		if rows[t.Group()] == nil {
			rows[t.Group()] = &row{}
		}
		for _, x := range []*row{rows[t.Group()], total} {
			switch result.Outcome {
			case Passed:
				x.passed++
			case Failed:
				x.failed++
			case Skipped:
				x.skipped++
			default:
				x.notRun++
			}
		}
	}
	line := func(name string, x *row) {
		fmt.Fprintf(w, "%-20s %6d %6d %7d %7d\n", name, x.passed, x.failed, x.skipped, x.notRun)
	}
	fmt.Fprintf(w, "%-20s %6s %6s %7s %7s\n", "group", "passed", "failed", "skipped", "not run")
	for _, g := range slices.Sorted(maps.Keys(rows)) {
		line(g, rows[g])
	}
	line("all", total)
	for _, t := range slices.SortedFunc(maps.Keys(r), cmp.Compare[Test]) {
		if result := r[t]; result.Outcome == Failed {
			fmt.Fprintf(w, "\nfailed: %s\n  at %s after %.1f s\n  %s\n", t, result.Where, result.Seconds, strings.ReplaceAll(head(result.Why, 6), "\n", "\n  "))
		}
	}
}

func head(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[:min(lines, len(all))], "\n")
}
