package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/config"
)

func configCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "look at the settings of this node",
		Subcommands: []*cli.Command{{
			Name:        "view",
			Usage:       "print every setting with its value and where that came from",
			Description: "Examples:\n\n   atoll config view\n   atoll config view --role agent -o json",
			Flags: append([]cli.Flag{
				outputFlag("table or json"),
				&cli.StringFlag{Name: "role", Usage: "server or agent", Value: string(config.Server)},
			}, config.FlagsNamed("data-dir")...),
			Action: func(c *cli.Context) error {
				loaded, err := config.Load(config.NewInput(c, config.Role(c.String("role")), os.Environ(), os.Hostname))
				if loaded == nil {
					return errUsage{err}
				}
				for _, w := range loaded.Warnings {
					fmt.Fprintln(s.Err, "Warning:", w)
				}
				values := loaded.View()
				if c.String("output") == "json" {
					out := json.NewEncoder(s.Out)
					out.SetIndent("", "  ")
					if err := out.Encode(values); err != nil {
						return err
					}
				} else {
					tw := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
					fmt.Fprintln(tw, "SETTING\tVALUE\tFROM")
					for _, v := range values {
						fmt.Fprintf(tw, "%s\t%s\t%s\n", v.Name, v.Value, v.Origin)
					}
					if err := tw.Flush(); err != nil {
						return err
					}
				}
				if err != nil {
					return errUsage{err}
				}
				return nil
			},
		}},
	}
}
