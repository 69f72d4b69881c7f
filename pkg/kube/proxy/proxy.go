// Package proxy runs upstream's kube-proxy, unchanged, in nftables mode, as a component of this process.
//
// kube-proxy can be neither stopped nor started again inside a process: give it run.Lingers. Its rules stay in the kernel when the
// process ends, so services go on working during a restart.
package proxy

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"

	"github.com/atollhq/atoll/pkg/kube/process"
)

// Config is what kube-proxy needs from the node.
type Config struct {
	Args     process.Args // kube-proxy's own flags
	UserArgs []string     // --kube-proxy-arg; win over Args
	Healthz  string       // host:port of the health endpoint that Args sets
}

// New returns the component. It is ready when its rules have been written once.
func New(cfg Config, log *slog.Logger) *Proxy { return &Proxy{cfg: cfg, log: log} }

// Proxy is the node's service proxy.
type Proxy struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Proxy) Name() string { return "kube-proxy" }

// Run implements run.Component, except that it does not return when ctx ends.
func (p *Proxy) Run(ctx context.Context, ready func()) error {
	ctx = process.Context(ctx, p.Name())
	if err := nameProtocols(protocolsFile); err != nil {
		p.log.Warn("services may lose changes for some seconds after a restart", "err", err)
	}
	opts := app.NewOptions()
	own := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	opts.AddFlags(own)
	fs, err := process.Parse(p.Name(), p.cfg.Args.With(p.cfg.UserArgs), cliflag.NamedFlagSets{Order: []string{"kube-proxy"}, FlagSets: map[string]*pflag.FlagSet{"kube-proxy": own}})
	if err != nil {
		return err
	}
	if err := opts.Complete(fs); err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if err := opts.Validate(); err != nil {
		return fmt.Errorf("check options: %w", err)
	}
	go process.AwaitHealthy(ctx, "http://"+p.cfg.Healthz+"/healthz", ready)
	return opts.Run(ctx)
}
