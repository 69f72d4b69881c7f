// Command lab builds and runs sites of real nodes on this machine. It is called as scripts/lab.
//
// The same program is the inside of the lab: PID 1 of every node, the holders of the networks, and the guard of test labs. Those are
// subcommands that help does not show.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/remedy"
)

// exitCode ends the program with a code and without a message: a program on a node has said what it had to say.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := app().RunContext(ctx, os.Args)
	stop()
	var code exitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		remedy.Fprint(os.Stderr, err)
		os.Exit(1)
	}
}

func app() *cli.App {
	return &cli.App{
		Name:            "lab",
		Usage:           "run sites of real nodes on this machine",
		HideHelpCommand: true,
		ExitErrHandler:  func(*cli.Context, error) {}, // main does it
		Description: "Sites are called s1, s2, ..., nodes s1/n1, s1/n2, ... The first node of a site is a server, the others join it.\n" +
			"Needs root. Everything is in one folder, and \"down\" removes exactly what was made, also after a crash.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Value: filepath.Join(home(), "out", "lab"), Usage: "folder of the lab"},
		},
		Commands: slices.Concat(buildCommands(), nodeCommands(), vmCommands(), innerCommands()),
	}
}

// home is the repository, as scripts/lab knows it.
func home() string {
	if dir := os.Getenv("ATOLL_LAB_HOME"); dir != "" {
		return dir
	}
	return "."
}
