package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/formation"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

func tokenCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "manage the tokens with which nodes join this site",
		Subcommands: []*cli.Command{
			tokenCreate(s), tokenList(s), tokenDelete(s), tokenGenerate(s), tokenRotate(s),
		},
	}
}

// tokenStore reaches the tokens of the running site.
func tokenStore(c *cli.Context) (*formation.Secrets, string, error) {
	dir, err := dataDirOf(c)
	if err != nil {
		return nil, "", err
	}
	file := pki.PathsIn(dir).AdminKubeconfig
	if _, err := os.Stat(file); err != nil {
		return nil, "", remedy.Wrap(fmt.Errorf("this machine is no server: %w", err), "run this with sudo on a server of the site, after `atoll server` was started")
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, "", err
	}
	cfg.Timeout = 15 * time.Second
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, "", err
	}
	return formation.NewSecrets(client.CoreV1()), dir, nil
}

func tokenCreate(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "create",
		Usage:       "make a token that lets agents join until it expires",
		Description: "Examples:\n\n   sudo atoll token create\n   sudo atoll token create --ttl 30m --description \"new till\"",
		Flags: append([]cli.Flag{
			&cli.DurationFlag{Name: "ttl", Usage: "how long it is valid; 0 is for ever", Value: 24 * time.Hour},
			&cli.StringFlag{Name: "description", Usage: "what it is for"},
		}, config.FlagsNamed("data-dir")...),
		Action: func(c *cli.Context) error {
			store, dir, err := tokenStore(c)
			if err != nil {
				return err
			}
			made, err := store.CreateToken(c.Context, c.Duration("ttl"), c.String("description"))
			if err != nil {
				return err
			}
			hash, err := pki.CAHash(dir)
			if err != nil {
				return err
			}
			full, err := pki.NewToken(hash, "", made.Text())
			if err != nil {
				return err
			}
			fmt.Fprintln(s.Out, full.Full())
			return nil
		},
	}
}

func tokenList(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "list",
		Usage:       "list tokens that expire; their secrets are not shown",
		Description: "Example:\n\n   sudo atoll token list",
		Flags:       append([]cli.Flag{outputFlag("table or json")}, config.FlagsNamed("data-dir")...),
		Action: func(c *cli.Context) error {
			store, _, err := tokenStore(c)
			if err != nil {
				return err
			}
			tokens, err := store.Tokens(c.Context)
			if err != nil {
				return err
			}
			if c.String("output") == "json" {
				out := json.NewEncoder(s.Out)
				out.SetIndent("", "  ")
				return out.Encode(tokens)
			}
			tw := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "ID\tEXPIRES\tDESCRIPTION")
			for _, t := range tokens {
				expires := "never"
				if !t.Expires.IsZero() {
					expires = t.Expires.Format(time.RFC3339)
					if t.Expires.Before(time.Now()) {
						expires += " (expired)"
					}
				}
				fmt.Fprintf(tw, "%s\t%s\t%s\n", t.ID, expires, t.Description)
			}
			return tw.Flush()
		},
	}
}

func tokenDelete(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "delete",
		Usage:       "make a token worthless; nodes that joined with it stay",
		ArgsUsage:   "ID",
		Description: "Example:\n\n   sudo atoll token delete abcdef",
		Flags:       config.FlagsNamed("data-dir"),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return errUsage{remedy.Wrap(fmt.Errorf("name one token"), "`atoll token list` shows their ids")}
			}
			store, _, err := tokenStore(c)
			if err != nil {
				return err
			}
			if err := store.DeleteToken(c.Context, c.Args().First()); err != nil {
				return err
			}
			fmt.Fprintln(s.Err, "deleted")
			return nil
		},
	}
}

func tokenGenerate(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "generate",
		Usage:       "print a secret that can be given as --token to the first server; nothing is stored",
		Description: "Example:\n\n   atoll token generate",
		Action: func(*cli.Context) error {
			fmt.Fprintln(s.Out, pki.GenerateSecret())
			return nil
		},
	}
}

func tokenRotate(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "rotate",
		Usage:       "replace the secret of the server or agent token; nodes that have joined stay",
		Description: "The new token is made up unless --new-token-file names one.\n\nExample:\n\n   sudo atoll token rotate",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "agent", Usage: "replace the agent token instead of the server's"},
			&cli.StringFlag{Name: "new-token-file", Usage: "file with the new secret"},
		}, config.FlagsNamed("data-dir")...),
		Action: func(c *cli.Context) error {
			dir, err := dataDirOf(c)
			if err != nil {
				return err
			}
			user, file := pki.UserServer, pki.PathsIn(dir).ServerToken
			if c.Bool("agent") {
				user, file = pki.UserAgent, pki.PathsIn(dir).AgentToken
			}
			old, err := pki.ReadToken(file)
			if err != nil {
				return remedy.Wrap(err, "run this with sudo on a server of the site")
			}
			next := ""
			if name := c.String("new-token-file"); name != "" {
				t, err := pki.ReadToken(name)
				if err != nil {
					return err
				}
				next = t.Full()
			}
			made, err := pki.RotateToken(dir, user, old.Full(), next)
			if err != nil {
				return err
			}
			fmt.Fprintln(s.Out, made.Full())
			return nil
		},
	}
}
