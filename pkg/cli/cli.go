// Package cli is the command tree of atoll: what people and init systems type.
//
// Results go to Streams.Out, everything else to Streams.Err. Exit codes: 0 done, 1 failed, 2 asked wrongly (flags, configuration),
// 3 a check ran and found problems.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/version"
)

// Streams are where a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exit codes of every command.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitProblems = 3
)

// errUsage marks errors that the caller can cure by asking differently.
type errUsage struct{ error }

func (e errUsage) Unwrap() error { return e.error }

// errProblems is returned by checks that ran and found something; what they found is already on the page.
var errProblems = errors.New("problems found")

// Main runs one command line, the program's name first, and returns the exit code.
func Main(ctx context.Context, s Streams, args []string) int {
	err := run(ctx, s, args)
	var usage errUsage
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errProblems):
		return exitProblems
	case errors.As(err, &usage), errors.Is(err, config.ErrInvalid):
		remedy.Fprint(s.Err, err)
		return exitUsage
	default:
		remedy.Fprint(s.Err, err)
		return exitFailed
	}
}

// asItself lists the programs that atoll is when called by their name, through a link.
var asItself = []string{"kubectl", "ctr"}

func run(ctx context.Context, s Streams, args []string) error {
	if name := filepath.Base(args[0]); slices.Contains(asItself, name) {
		args = append([]string{"atoll", name}, args[1:]...)
	}
	return newApp(s).RunContext(ctx, args)
}

func newApp(s Streams) *cli.App {
	app := cli.NewApp()
	app.Name = "atoll"
	app.Usage = "a Kubernetes site of small boxes that lives on its own"
	app.Version = version.Version
	app.HideHelpCommand = true
	app.EnableBashCompletion = true
	app.Reader, app.Writer, app.ErrWriter = s.In, s.Out, s.Err
	app.ExitErrHandler = func(*cli.Context, error) {} // Main decides about exit codes
	app.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return errUsage{err} }
	app.CommandNotFound = nil
	app.Commands = []*cli.Command{
		serverCommand(s), agentCommand(s),
		statusCommand(s), kubectlCommand(), ctrCommand(),
		tokenCommand(s), certificateCommand(s), configCommand(s), checkConfigCommand(s),
		completionCommand(s), versionCommand(s), containerdCommand(),
	}
	app.Action = func(c *cli.Context) error {
		if c.Args().Present() {
			return errUsage{unknownCommand(app, c.Args().First())}
		}
		return cli.ShowAppHelp(c)
	}
	for _, c := range app.Commands {
		setUsageErrors(c)
	}
	return app
}

// setUsageErrors makes every command that has no handler of its own report wrong flags like the others.
func setUsageErrors(c *cli.Command) {
	if c.OnUsageError == nil {
		c.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
			return errUsage{remedy.Wrap(err, "see `atoll %s --help`", c.Name)}
		}
	}
	for _, sub := range c.Subcommands {
		setUsageErrors(sub)
	}
}

func unknownCommand(app *cli.App, name string) error {
	var names []string
	for _, c := range app.Commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	err := fmt.Errorf("there is no command %q", name)
	if near := config.Nearest(name, names); near != "" {
		return remedy.Wrap(err, "did you mean `atoll %s`?", near)
	}
	return remedy.Wrap(err, "see `atoll --help`")
}

func versionCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version of atoll and of what it carries",
		Action: func(*cli.Context) error {
			fmt.Fprintln(s.Out, version.String())
			for _, m := range []string{"k8s.io/kubernetes", "github.com/containerd/containerd/v2", "github.com/k3s-io/kine", "modernc.org/sqlite", "github.com/coredns/coredns"} {
				if v := version.Of(m); v != "" {
					fmt.Fprintf(s.Out, "  %s %s\n", m, v)
				}
			}
			return nil
		},
	}
}
