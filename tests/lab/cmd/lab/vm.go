package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/tests/lab/vm"
)

func vmCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "vm", Usage: "run a script in a virtual machine with Debian's kernel and control groups v2", ArgsUsage: "SCRIPT",
		Description: "The machine has busybox, this command as lab, atoll, and the test images in /root. It is emulated where the processor\n" +
			"offers no virtualization, and then slow. Example:\n\n" +
			"   scripts/lab vm 'lab --dir /lab up --binary /usr/bin/atoll --no-images --image /root/hello.tar; lab --dir /lab status'",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "binary", Value: filepath.Join(home(), "bin", "atoll"), Usage: "the atoll to take along"},
			&cli.StringSliceFlag{Name: "file", Usage: "FROM:TO, one more file to take along (repeat)"},
			&cli.IntFlag{Name: "disk", Value: 6144, Usage: "size of the machine's disk in MB"},
			&cli.IntFlag{Name: "memory", Value: 6144, Usage: "memory in MB"},
			&cli.DurationFlag{Name: "timeout", Usage: "switch the machine off after so long; default: never"},
		},
		Action: runVM,
	}}
}

func runVM(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("usage: lab vm SCRIPT")
	}
	ctx := c.Context
	host, err := vm.Prepare(ctx, filepath.Join(home(), "out", "vm"))
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	files := map[string]string{"/usr/bin/lab": self, "/usr/bin/atoll": c.String("binary")}
	archives, err := filepath.Glob(filepath.Join(home(), "out", "images", "*.tar"))
	if err != nil {
		return err
	}
	for _, a := range archives {
		files["/root/"+filepath.Base(a)] = a
	}
	for _, f := range c.StringSlice("file") {
		from, to, ok := strings.Cut(f, ":")
		if !ok {
			return fmt.Errorf("--file %s: say FROM:TO", f)
		}
		files[to] = from
	}
	ctx, cancel := withTimeout(ctx, c.Duration("timeout"))
	defer cancel()
	fmt.Fprintf(os.Stderr, "booting a virtual machine (%s)\n", host.Accel)
	code, err := host.Run(ctx, vm.Machine{
		Script: c.Args().First(), Files: files, DiskMB: c.Int("disk"), MemoryMB: c.Int("memory"), Output: os.Stdout,
	})
	if err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}
