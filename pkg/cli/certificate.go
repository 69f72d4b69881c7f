package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/pki"
)

// dataDirOf finds the data folder as a node would: flag, configuration file, environment, default.
func dataDirOf(c *cli.Context) (string, error) {
	in := config.NewInput(c, "", os.Environ(), os.Hostname)
	in.Args = nil // arguments are the command's own, such as the id of a token
	loaded, err := config.Load(in)
	if err != nil {
		return "", errUsage{err}
	}
	return loaded.Config.DataDir, nil
}

func certificateCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:  "certificate",
		Usage: "look at the certificates of this node, or make new ones",
		Subcommands: []*cli.Command{
			{
				Name:        "check",
				Usage:       "list all certificates with their ends; exit code 3 when one is not good",
				Description: "Examples:\n\n   sudo atoll certificate check\n   sudo atoll certificate check -o json",
				Flags:       append([]cli.Flag{outputFlag("table or json")}, config.FlagsNamed("data-dir")...),
				Action: func(c *cli.Context) error {
					dir, err := dataDirOf(c)
					if err != nil {
						return err
					}
					return printCertificates(s, pki.Check(dir, time.Now()), c.String("output"))
				},
			},
			{
				Name:        "rotate",
				Usage:       "make new keys and certificates; a running node does it within a minute, without a restart",
				Description: "Example:\n\n   sudo atoll certificate rotate",
				Flags:       config.FlagsNamed("data-dir"),
				Action: func(c *cli.Context) error {
					dir, err := dataDirOf(c)
					if err != nil {
						return err
					}
					if err := pki.Rotate(dir); err != nil {
						return err
					}
					fmt.Fprintln(s.Err, "A running node makes new certificates within a minute; a stopped one when it starts. The authorities stay.")
					return nil
				},
			},
		},
	}
}

func printCertificates(s Streams, infos []pki.Info, format string) error {
	if format == "json" {
		out := json.NewEncoder(s.Out)
		out.SetIndent("", "  ")
		if err := out.Encode(infos); err != nil {
			return err
		}
	} else {
		tw := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "CERTIFICATE\tSTATE\tDAYS\tEND\tSUBJECT")
		for _, i := range infos {
			fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\n", i.Name, i.State, i.Days, i.NotAfter.Format(time.DateOnly), i.Subject)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, i := range infos {
		if i.State != pki.StateOK && i.State != pki.StateDue {
			return errProblems
		}
	}
	return nil
}
