// Package apiserver runs upstream's kube-apiserver, unchanged, as a component of this process.
//
// It serves on a listener that the caller owns, because the port is shared with the supervisor. It cannot be started twice in one
// process. On a stop it drains requests, cuts watches after two seconds, and returns.
package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/atollhq/atoll/pkg/kube/process"
)

// Config is what the API server needs from the node.
type Config struct {
	Args     process.Args // kube-apiserver's own flags
	UserArgs []string     // --kube-apiserver-arg, "name=value"; win over Args
	Listener net.Listener // serves the API; closed by the server when it stops
}

// New returns the component. It is ready when /readyz says so.
func New(cfg Config, log *slog.Logger) *Server { return &Server{cfg: cfg, log: log} }

// Server is one API server.
type Server struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Server) Name() string { return "kube-apiserver" }

// Run implements run.Component.
func (s *Server) Run(ctx context.Context, ready func()) error {
	ctx = process.Context(ctx, s.Name())
	opts := options.NewServerRunOptions()
	if _, err := process.Parse(s.Name(), s.cfg.Args.With(s.cfg.UserArgs), opts.Flags()); err != nil {
		return err
	}
	opts.SecureServing.Listener = s.cfg.Listener
	globals := opts.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := globals.Set(); err != nil {
		return fmt.Errorf("set feature gates: %w", err)
	}
	completed, err := opts.Complete(ctx)
	if err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return fmt.Errorf("check options: %w", utilerrors.NewAggregate(errs))
	}
	globals.AddMetrics()

	config, err := app.NewConfig(completed)
	if err != nil {
		return err
	}
	chain, err := config.Complete()
	if err != nil {
		return err
	}
	server, err := app.CreateServerChain(chain)
	if err != nil {
		return err
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return err
	}
	go s.signalReady(ctx, server.GenericAPIServer.LoopbackClientConfig, ready)
	return prepared.Run(ctx)
}

// signalReady asks /readyz until it answers ok. A failing poststart hook ends the process by itself, so there is no time limit here.
func (s *Server) signalReady(ctx context.Context, loopback *rest.Config, ready func()) {
	client, err := kubernetes.NewForConfig(loopback)
	if err != nil {
		s.log.Error("cannot ask the API server whether it is ready", "err", err)
		return
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").Timeout(2 * time.Second).DoRaw(ctx); err == nil {
			ready()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
