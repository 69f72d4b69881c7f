package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/hostcheck"
	"github.com/atollhq/atoll/pkg/node"
)

func checkConfigCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "check-config",
		Usage:       "check the settings and whether this machine can run a node",
		Description: "Exit code 3 when something keeps a node from working. Run it as root: some checks try things out.\n\nExamples:\n\n   sudo atoll check-config\n   sudo atoll check-config --role agent -o json",
		Flags: append([]cli.Flag{
			outputFlag("table or json"),
			&cli.StringFlag{Name: "role", Usage: "server or agent", Value: string(config.Server)},
		}, config.FlagsNamed("data-dir")...),
		Action: func(c *cli.Context) error {
			// An agent's settings are only complete with server and token, which need not be here yet.
			loaded, err := config.Load(config.NewInput(c, "", os.Environ(), os.Hostname))
			if err != nil {
				return errUsage{err}
			}
			cfg := loaded.Config
			cfg.Role = config.Role(c.String("role"))
			results := hostcheck.Run(c.Context, node.HostCheck(cfg, builtAt()))
			if err := printChecks(s, results, c.String("output")); err != nil {
				return err
			}
			if hostcheck.Worst(results) == hostcheck.Fail {
				return errProblems
			}
			return nil
		},
	}
}

func printChecks(s Streams, results []hostcheck.Result, format string) error {
	if format == "json" {
		out := json.NewEncoder(s.Out)
		out.SetIndent("", "  ")
		return out.Encode(results)
	}
	tw := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CHECK\tRESULT\tDETAIL")
	for _, r := range results {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", r.Name, r.Level, r.Detail)
		if r.Level != hostcheck.OK && r.Remedy != "" {
			fmt.Fprintf(tw, "\t\tTry: %s\n", r.Remedy)
		}
	}
	return tw.Flush()
}
