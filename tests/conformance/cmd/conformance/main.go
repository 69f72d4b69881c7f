// Command conformance builds the upstream conformance suite with its images, runs it on a site of the lab and writes what became of each
// test to out/conformance. It is called as scripts/conformance.
//
// Exit codes: 0 every test that ran passed, 1 could not run, 2 asked wrongly, 3 tests failed or had no turn.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/atollhq/atoll/tests/conformance/images"
	"github.com/atollhq/atoll/tests/conformance/suite"
)

// options are the command line's.
type options struct {
	focus, skip    *regexp.Regexp
	procs          int
	site, dir      string
	id, nodes      int
	binary         string
	kubeconfig     string
	out            string
	limit          time.Duration
	buildOnly      bool
	list           bool
	resume, down   bool
	parallel, solo bool
}

var (
	errUsage  = errors.New("asked wrongly")
	errFailed = errors.New("tests failed or had no turn")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case errors.Is(err, errFailed):
		os.Exit(3)
	default:
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func parse(args []string, home string) (options, error) {
	o := options{}
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	var focus, skip string
	f.StringVar(&focus, "focus", "", "run only tests whose name matches this `regexp`")
	f.StringVar(&skip, "skip", "", "leave out tests whose name matches this `regexp`")
	f.IntVar(&o.procs, "procs", 4, "tests side by side")
	f.StringVar(&o.site, "site", "s1", "`site` of the lab to run on")
	f.StringVar(&o.dir, "lab", filepath.Join(home, "out/lab-conformance"), "`folder` of the lab; it is built there when it is not up")
	f.IntVar(&o.id, "id", 3, "`number` of the lab when it is built")
	f.IntVar(&o.nodes, "nodes", 1, "nodes of the lab's site when it is built")
	f.StringVar(&o.binary, "binary", filepath.Join(home, "bin/atoll"), "the `atoll` to test, and its kubectl")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "run on the cluster of this `file` instead of a lab; its nodes must have the images")
	f.StringVar(&o.out, "out", filepath.Join(home, "out/conformance"), "`folder` for results")
	f.DurationVar(&o.limit, "limit", 40*time.Minute, "end a batch after so long; its other tests count as not run")
	f.BoolVar(&o.buildOnly, "build-only", false, "build the suite and the images, run nothing")
	f.BoolVar(&o.list, "list", false, "print the tests that would run")
	f.BoolVar(&o.resume, "resume", false, "keep the results of the last run, and run what has not passed yet")
	f.BoolVar(&o.down, "down", false, "remove the lab at the end")
	f.BoolVar(&o.parallel, "no-serial", false, "leave out the tests that must run alone")
	f.BoolVar(&o.solo, "serial", false, "run only the tests that must run alone")
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, errUsage
	}
	wrong := func(format string, args ...any) (options, error) {
		fmt.Fprintf(os.Stderr, "Error: "+format+"\nTry:   scripts/conformance --help\n", args...)
		return o, errUsage
	}
	if f.NArg() > 0 {
		return wrong("unknown argument %q", f.Arg(0))
	}
	if o.procs < 1 || o.nodes < 1 {
		return wrong("--procs %d, --nodes %d: must be at least 1", o.procs, o.nodes)
	}
	var err error
	if o.focus, err = compile(focus); err != nil {
		return wrong("--focus: %v", err)
	}
	if o.skip, err = compile(skip); err != nil {
		return wrong("--skip: %v", err)
	}
	for _, path := range []*string{&o.dir, &o.binary, &o.out} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	return o, nil
}

const usage = `Runs the conformance tests of Kubernetes on a node, all or some. Needs Go, apt and root.

  scripts/conformance                                       all of them, on one node
  scripts/conformance --nodes 2 --focus 'untainted nodes'   one that wants two
  scripts/conformance --focus 'sig-network.*Services'       some
  scripts/conformance --resume                              those that have not passed

`

// compile makes a regular expression; nil for none.
func compile(text string) (*regexp.Regexp, error) {
	if text == "" {
		return nil, nil
	}
	return regexp.Compile(text)
}

var start = time.Now()

func step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%5.0f s] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}

func run(ctx context.Context, args []string) error {
	home := os.Getenv("ATOLL_HOME")
	if home == "" {
		return errors.New("call scripts/conformance")
	}
	o, err := parse(args, home)
	if err != nil {
		return err
	}
	bin := filepath.Join(home, "out/conformance-bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	step("suite: compile (some minutes the first time)")
	programs, err := suite.Build(ctx, filepath.Join(home, "tests/conformance"), bin)
	if err != nil {
		return err
	}
	all, err := programs.List(ctx)
	if err != nil {
		return err
	}
	tests := chosen(all, o)
	if o.list {
		for _, t := range tests {
			fmt.Println(t)
		}
		return nil
	}
	archive, err := images.Build(ctx, home, filepath.Join(home, "out/images/conformance"), step)
	if err != nil || o.buildOnly {
		return err
	}
	if len(tests) == 0 {
		return fmt.Errorf("none of the %d conformance tests was chosen", len(all))
	}
	c, err := findCluster(ctx, home, o, archive)
	if err != nil {
		return err
	}
	err = testCluster(ctx, programs, all, tests, c, o, home, archive)
	if o.down && o.kubeconfig == "" {
		err = errors.Join(err, lab(context.WithoutCancel(ctx), home, o, "down"))
	}
	return err
}

// testCluster runs the tests on a cluster that is up.
func testCluster(ctx context.Context, programs suite.Programs, all, tests []suite.Test, c *cluster, o options, home, archive string) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	if o.kubeconfig == "" {
		stop, err := c.offerPulls(ctx, home, o, archive)
		if err != nil {
			return err
		}
		defer stop()
		if err := c.check(ctx); err != nil {
			return err
		}
	}
	return runBatches(ctx, programs, all, tests, c, o)
}

// chosen are the tests that the options ask for.
func chosen(all []suite.Test, o options) []suite.Test {
	var tests []suite.Test
	for _, t := range suite.Select(all, o.focus, o.skip) {
		if t.Serial() && o.parallel || !t.Serial() && o.solo {
			continue
		}
		tests = append(tests, t)
	}
	return tests
}

func runBatches(ctx context.Context, programs suite.Programs, all, tests []suite.Test, c *cluster, o options) error {
	results := suite.Results{}
	if o.resume {
		var err error
		if results, err = suite.Load(o.out); err != nil {
			return err
		}
		tests = results.Left(tests)
	} else if err := os.RemoveAll(o.out); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	step("%d of %d conformance tests on %s, %d node(s)", len(tests), len(all), c.version, len(c.names))
	for _, b := range suite.Plan(tests) {
		step("batch %s: %d tests; see %s", b.Name, len(b.Tests), filepath.Join(o.out, b.Name, "output.log"))
		began := time.Now()
		done, err := programs.Run(ctx, b, suite.Options{
			Kubeconfig: c.kubeconfig, Kubectl: c.kubectl, Nodes: len(c.names), Procs: o.procs, Limit: o.limit, Out: filepath.Join(o.out, b.Name),
		})
		results.Add(done)
		if saveErr := results.Save(o.out); saveErr != nil {
			return errors.Join(err, saveErr)
		}
		if err != nil {
			return err
		}
		r := suite.Results(done)
		step("batch %s: %d passed, %d failed, %d skipped, %d not run, in %s", b.Name, r.Count(suite.Passed), r.Count(suite.Failed),
			r.Count(suite.Skipped), r.Count(suite.NotRun), time.Since(began).Round(time.Second))
	}
	results.Print(os.Stdout)
	if results.Count(suite.Failed)+results.Count(suite.NotRun) > 0 {
		return errFailed
	}
	return nil
}

// lab runs a command of the lab.
func lab(ctx context.Context, home string, o options, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(home, "scripts/lab"), append([]string{"--dir", o.dir}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("scripts/lab %s: %w", args[0], err)
	}
	return nil
}
