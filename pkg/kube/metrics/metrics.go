// Package metrics runs upstream's metrics-server in this process: what `kubectl top` and autoscaling read.
//
// It listens on loopback only; the API server beside it reaches it through an aggregated API whose Service is an external name for
// localhost. Every server of a site has its own.
package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"sigs.k8s.io/metrics-server/cmd/metrics-server/app/options"

	"github.com/atollhq/atoll/pkg/kube/process"
)

// Port on loopback; the aggregated API's Service names it too.
const Port = 10261

// Resolution is the time between two readings of a node.
const Resolution = 15 * time.Second

// Config is what the metrics server needs from the node.
type Config struct {
	Kubeconfig        string // may read nodes, pods and nodes/metrics, and ask for authorization
	CertFile, KeyFile string // to serve with
	KubeletCA         string
	ClientCA          string // of users who come directly
	RequestHeaderCA   string // of the API server in front, which names the user
	RequestHeaderName string
}

// New returns the component. It is ready when it listens.
func New(cfg Config, log *slog.Logger) *Server { return &Server{cfg: cfg, log: log} }

// Server is one metrics server.
type Server struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Server) Name() string { return "metrics-server" }

// Run implements run.Component.
func (s *Server) Run(ctx context.Context, ready func()) error {
	opts := options.NewOptions()
	args := process.Args{
		"kubeconfig":                      s.cfg.Kubeconfig,
		"authentication-kubeconfig":       s.cfg.Kubeconfig,
		"authorization-kubeconfig":        s.cfg.Kubeconfig,
		"bind-address":                    "127.0.0.1",
		"secure-port":                     fmt.Sprint(Port),
		"tls-cert-file":                   s.cfg.CertFile,
		"tls-private-key-file":            s.cfg.KeyFile,
		"kubelet-certificate-authority":   s.cfg.KubeletCA,
		"kubelet-preferred-address-types": "InternalIP,Hostname",
		"metric-resolution":               Resolution.String(),
		// What it would look up in the cluster is in files here, and so it needs no order of starting.
		"authentication-skip-lookup":         "true",
		"client-ca-file":                     s.cfg.ClientCA,
		"requestheader-client-ca-file":       s.cfg.RequestHeaderCA,
		"requestheader-allowed-names":        s.cfg.RequestHeaderName,
		"requestheader-username-headers":     "X-Remote-User",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"profiling":                          "false",
	}
	if _, err := process.Parse(s.Name(), args, opts.Flags()); err != nil {
		return err
	}
	config, err := opts.ServerConfig()
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	server, err := config.Complete()
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	go func() {
		for ctx.Err() == nil {
			conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", Port), time.Second)
			if err == nil {
				conn.Close()
				ready()
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return server.RunUntil(ctx.Done())
}
