package cli

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/node"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/status"
)

func outputFlag(formats string) *cli.StringFlag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "format: " + formats, Value: "table"}
}

func statusCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "tell whether this node works, and if not, why and what to do",
		Description: "Exit code 3 when the node is not healthy.\n\nExamples:\n\n   sudo atoll status\n   sudo atoll status -o json",
		Flags:       []cli.Flag{outputFlag("table or json")},
		Action: func(c *cli.Context) error {
			format := c.String("output")
			if format != "table" && format != "json" {
				return errUsage{remedy.Wrap(fmt.Errorf("there is no output format %q", format), "use table or json")}
			}
			report, err := status.Ask(c.Context, node.StatusSocket)
			if err != nil {
				report = status.Report{Summary: err.Error(), Problems: []status.Problem{status.FromError(status.Failing, err)}}
			}
			if format == "json" {
				out := json.NewEncoder(s.Out)
				out.SetIndent("", "  ")
				if err := out.Encode(report); err != nil {
					return err
				}
			} else if err != nil {
				fmt.Fprintf(s.Out, "NOT OK: %v\nTry: %s\n", err, remedy.Of(err))
			} else {
				status.Print(s.Out, report)
			}
			if !report.Healthy {
				return errProblems
			}
			return nil
		},
	}
}
