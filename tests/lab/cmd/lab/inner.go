package main

import (
	"os"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/tests/lab"
	"github.com/atollhq/atoll/tests/lab/internal/machine"
)

// innerCommands are run by the lab itself.
func innerCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "boot", Hidden: true, Usage: "start PID 1 of a node", Action: func(c *cli.Context) error {
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			return lab.Boot(c.Args().Get(0), c.Args().Get(1), exe, os.Stdout)
		}},
		{Name: "init", Hidden: true, Usage: "be PID 1 of a node", Action: func(*cli.Context) error {
			return machine.Init()
		}},
		{Name: "hold", Hidden: true, Usage: "keep a network", Action: func(*cli.Context) error {
			return machine.Hold(os.Stdin, os.Stdout)
		}},
		{Name: "wire", Hidden: true, Usage: "connect two interfaces badly", Action: func(c *cli.Context) error {
			return lab.Wire(c.Context, os.Stdin, os.Stdout, c.Args().Get(0), c.Args().Get(1), c.Args().Get(2))
		}},
		{Name: "guard", Hidden: true, Usage: "remove a lab when its owner ends", Action: func(c *cli.Context) error {
			id, err := strconv.Atoi(c.Args().Get(0))
			if err != nil {
				return err
			}
			return lab.Guard(c.Context, os.Stdin, id, c.Args().Get(1))
		}},
	}
}
