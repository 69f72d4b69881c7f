package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options say where and how tests run.
type Options struct {
	Kubeconfig string        // of the cluster
	Kubectl    string        // path of a program that is kubectl
	Nodes      int           // of the cluster
	Procs      int           // tests side by side
	Limit      time.Duration // for one batch
	Out        string        // folder for the batch's log and reports
}

// Outcome is what became of a test.
type Outcome string

// Outcomes. A test that was ended by the limit of its batch counts as failed, one that had no turn as not run.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped" // by itself: it wants what the cluster does not have
	NotRun  Outcome = "not run"
)

// Result is one test's.
type Result struct {
	Outcome Outcome   `json:"outcome"`
	Seconds float64   `json:"seconds"`
	Began   time.Time `json:"began,omitzero"`
	Why     string    `json:"why,omitempty"`   // of a failure
	Where   string    `json:"where,omitempty"` // file and line
}

// Run runs a batch and returns what became of each of its tests. The error is for a batch that could not be run at all.
func (p Programs) Run(ctx context.Context, b Batch, o Options) (map[Test]Result, error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.Out, "output.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	report := filepath.Join(o.Out, "report.json")
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}

	cmd := exec.CommandContext(ctx, p.Ginkgo, p.arguments(b, o)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = o.Out
	// The runner ends its tests in order when interrupted; the group ends what is left.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 2 * time.Minute
	runErr := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	results, err := readReport(report, b)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("batch %s: %w; see %s", b.Name, err, log.Name()), runErr, ctx.Err())
	}
	return results, ctx.Err()
}

func (p Programs) arguments(b Batch, o Options) []string {
	procs := o.Procs
	if b.Serial() {
		procs = 1
	}
	names := make([]string, len(b.Tests))
	for i, t := range b.Tests {
		names[i] = regexp.QuoteMeta(string(t))
	}
	return []string{
		"--procs=" + strconv.Itoa(procs), "--no-color", "-v", "--silence-skips",
		"--timeout=" + o.Limit.String(), "--grace-period=1m",
		// Ginkgo puts the suite's own name before a test's: there is no ^.
		"--focus=(" + strings.Join(names, "|") + ")$",
		"--output-dir=" + o.Out, "--json-report=report.json",
		p.E2E, "--",
		"-kubeconfig=" + o.Kubeconfig, "-kubectl-path=" + o.Kubectl, "-provider=skeleton", "-num-nodes=" + strconv.Itoa(o.Nodes),
		"-report-dir=" + o.Out, "-disable-log-dump=true",
	}
}

// report is the part of Ginkgo's JSON report that is used here.
type report []struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeText            string
		LeafNodeType            string
		State                   string
		StartTime               time.Time
		RunTime                 time.Duration
		Failure                 struct {
			Message  string
			Location struct {
				FileName   string
				LineNumber int
			}
		}
	}
}

func readReport(path string, b Batch) (map[Test]Result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	results := map[Test]Result{}
	for _, t := range b.Tests {
		results[t] = Result{Outcome: NotRun}
	}
	for _, suite := range r {
		for _, s := range suite.SpecReports {
			name := Test(strings.TrimSpace(strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")))
			if _, ours := results[name]; !ours || s.LeafNodeType != "It" {
				continue
			}
			result := Result{Outcome: outcome(s.State, s.RunTime), Seconds: s.RunTime.Round(100 * time.Millisecond).Seconds(), Began: s.StartTime}
			if result.Outcome != Passed {
				result.Why = s.Failure.Message
				if f := s.Failure.Location; f.FileName != "" {
					result.Where = fmt.Sprintf("%s:%d", trimModule(f.FileName), f.LineNumber)
				}
			}
			if result.Outcome == NotRun {
				result = Result{Outcome: NotRun}
			}
			results[name] = result
		}
	}
	return results, nil
}

func outcome(state string, took time.Duration) Outcome {
	switch {
	case state == "passed":
		return Passed
	case state == "skipped" && took > 0:
		return Skipped
	case state == "skipped", state == "pending", state == "":
		return NotRun
	default: // failed, panicked, interrupted, timedout, aborted
		return Failed
	}
}

// trimModule cuts the folder of the module cache from a path.
func trimModule(path string) string {
	if i := strings.Index(path, "/test/"); i >= 0 {
		return path[i+1:]
	}
	return path
}
