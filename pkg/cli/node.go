package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/node"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/version"
)

func serverCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:         "server",
		Usage:        "run a server: control plane, datastore and workloads",
		Description:  "Examples:\n\n   atoll server\n   atoll server --tls-san shop.example --node-label zone=till",
		Flags:        config.Flags(config.Server),
		BashComplete: completeSettings(s, config.Server),
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return errUsage{config.UsageError(config.Server, err)}
		},
		Action: func(c *cli.Context) error {
			n, err := loadNode(c, config.Server, s)
			if err != nil {
				return err
			}
			return explainStart(n.RunServer(c.Context), "start server")
		},
	}
}

func agentCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:         "agent",
		Usage:        "run an agent: workloads only, joined to a server",
		Description:  "Example:\n\n   atoll agent --server https://10.0.0.11:6443 --token-file /etc/atoll/token",
		Flags:        config.Flags(config.Agent),
		BashComplete: completeSettings(s, config.Agent),
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return errUsage{config.UsageError(config.Agent, err)}
		},
		Action: func(c *cli.Context) error {
			n, err := loadNode(c, config.Agent, s)
			if err != nil {
				return err
			}
			return explainStart(n.RunAgent(c.Context), "start agent")
		},
	}
}

func explainStart(err error, doing string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func loadNode(c *cli.Context, role config.Role, s Streams) (*node.Node, error) {
	loaded, err := config.Load(config.NewInput(c, role, os.Environ(), os.Hostname))
	if err != nil {
		return nil, errUsage{err}
	}
	if err := checkTokens(loaded.Config); err != nil {
		return nil, errUsage{err}
	}
	out, err := logOutput(loaded.Config, s.Err)
	if err != nil {
		return nil, err
	}
	level := slog.LevelInfo
	if loaded.Config.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	for _, w := range loaded.Warnings {
		log.Warn(w)
	}
	log.Info("starting", "role", role, "version", version.Version, "node", loaded.Config.NodeName, "files", loaded.Files)
	return node.New(loaded.Config, builtAt(), log), nil
}

// checkTokens looks at the form of the tokens that were given, before anything is made on the disk.
func checkTokens(cfg config.Config) error {
	for _, read := range []func() (config.Secret, error){cfg.JoinToken, cfg.JoinAgentToken} {
		secret, err := read()
		if err != nil {
			return err
		}
		if secret.IsEmpty() {
			continue
		}
		if _, err := pki.ParseToken(secret.Reveal()); err != nil {
			return err
		}
	}
	return nil
}

// builtAt is the earliest time that it can be: no clock of ours is right that says less.
func builtAt() time.Time {
	exe, err := os.Executable()
	if err != nil {
		return time.Time{}
	}
	info, err := os.Stat(exe)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func logOutput(cfg config.Config, stderr io.Writer) (io.Writer, error) {
	if cfg.LogFile == "" {
		return stderr, nil
	}
	f, err := os.OpenFile(cfg.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, remedy.Wrap(fmt.Errorf("open log file: %w", err), "make its folder, or choose another file with --log")
	}
	if cfg.AlsoLogToStderr {
		return io.MultiWriter(f, stderr), nil
	}
	return f, nil
}
