package cli

import (
	"os"

	"github.com/urfave/cli/v2"
	kubectl "k8s.io/kubectl/pkg/cmd"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/node"
	"github.com/atollhq/atoll/pkg/runtime/containerd"
)

// kubectlCommand is upstream's kubectl. Without a kubeconfig of the caller's it uses the one of this server.
func kubectlCommand() *cli.Command {
	return &cli.Command{
		Name:            "kubectl",
		Usage:           "talk to the site's own Kubernetes API",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			// kubectl reads os.Args and the environment itself.
			os.Args = append([]string{"kubectl"}, c.Args().Slice()...)
			if os.Getenv("KUBECONFIG") == "" {
				if _, err := os.Stat(config.DefaultKubeconfig); err == nil {
					if err := os.Setenv("KUBECONFIG", config.DefaultKubeconfig); err != nil {
						return err
					}
				}
			}
			cmd := kubectl.NewDefaultKubectlCommand()
			cmd.SetContext(c.Context)
			if err := cmd.ExecuteContext(c.Context); err != nil {
				os.Exit(1) // kubectl has said what was wrong
			}
			return nil
		},
	}
}

func ctrCommand() *cli.Command {
	return &cli.Command{
		Name:            "ctr",
		Usage:           "look into this node's containerd",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			return containerd.Ctr(c.Context, node.ContainerdSocket, c.Args().Slice())
		},
	}
}

// containerdCommand is the child process that a node starts.
func containerdCommand() *cli.Command {
	return &cli.Command{
		Name:            "containerd",
		Hidden:          true,
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			return containerd.Main(c.Context, append([]string{"containerd"}, c.Args().Slice()...))
		},
	}
}
