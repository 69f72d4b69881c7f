// Command atoll is a whole Kubernetes site in one program. See README.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/atollhq/atoll/pkg/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(cli.Main(ctx, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, os.Args))
}
