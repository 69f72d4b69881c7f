// Package dns answers the cluster's DNS on every node, with CoreDNS as a library inside this process.
//
// It listens on the node's own address in the pod range, port 53, which only pods and the node itself reach. The Service kube-dns
// points to it through an EndpointSlice that each node writes for itself; a pod asks its own node, and another one while that is
// not ready. Names outside the cluster go to the servers in the host's resolv.conf. When there are none (no WAN, no DHCP), the
// cluster's own names still work and others fail at once.
//
// Files of the owner: <custom>/*.override adds directives to the main server block, <custom>/*.server adds blocks.
package dns

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	// Plugins that the Corefile may use.
	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Config is what the DNS server needs from the node.
type Config struct {
	Listen     func(context.Context) (netip.Addr, error) // waits for the address to listen on
	Domain     string
	Kubeconfig string
	ResolvConf string // the host's; re-read every minute
	Custom     string // folder of the owner's files
	// Started is called after CoreDNS has been set up, which takes klog's output for itself.
	Started func()
	// Publish tells the cluster that this node answers DNS on addr. It is called until it succeeds.
	Publish func(ctx context.Context, addr netip.Addr) error
}

// New returns the component. It is ready when queries are answered.
func New(cfg Config, log *slog.Logger) *Server { return &Server{cfg: cfg, log: log} }

// Server is the node's DNS server.
type Server struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Server) Name() string { return "dns" }

// Run implements run.Component.
func (s *Server) Run(ctx context.Context, ready func()) error {
	addr, err := s.cfg.Listen(ctx)
	if err != nil {
		return nil //nolint:nilerr // only when ctx has ended
	}
	caddy.Quiet, dnsserver.Quiet = true, true
	corefile, err := s.corefile(addr)
	if err != nil {
		return err
	}
	instance, err := caddy.Start(input(corefile))
	if err != nil {
		return remedy.Wrap(fmt.Errorf("start DNS on %s: %w", addr, err), "stop what else holds port 53 on %s, and check the files in %s", addr, s.cfg.Custom)
	}
	defer func() { _ = instance.Stop() }() // a later instance replaces it
	s.cfg.Started()
	ready()
	s.publish(ctx, addr)

	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		next, err := s.corefile(addr)
		if err != nil || bytes.Equal(next, corefile) {
			continue
		}
		restarted, err := instance.Restart(input(next))
		if err != nil {
			s.log.Warn("DNS keeps its settings, the new ones do not work", "err", err)
			continue
		}
		instance, corefile = restarted, next
		s.cfg.Started()
		s.log.Info("DNS settings changed", "upstreams", upstreams(s.cfg.ResolvConf))
	}
}

func (s *Server) publish(ctx context.Context, addr netip.Addr) {
	for ctx.Err() == nil {
		err := s.cfg.Publish(ctx, addr)
		if err == nil {
			return
		}
		s.log.Debug("cannot publish the DNS endpoint yet", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func input(corefile []byte) caddy.Input {
	return caddy.CaddyfileInput{Contents: corefile, Filepath: "Corefile", ServerTypeName: "dns"}
}

var corefileTemplate = template.Must(template.New("Corefile").Parse(`.:53 {
    bind {{.Listen}}
    errors
    kubernetes {{.Domain}} in-addr.arpa ip6.arpa {
        kubeconfig {{.Kubeconfig}}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }
{{- if .Upstreams}}
    forward .{{range .Upstreams}} {{.}}{{end}} {
        max_concurrent 1000
    }
{{- end}}
    cache 30 {
        disable success {{.Domain}}
        disable denial {{.Domain}}
    }
    loadbalance
{{- if .Overrides}}
    import {{.Custom}}/*.override
{{- end}}
}
{{- if .Servers}}
import {{.Custom}}/*.server
{{- end}}
`))

func (s *Server) corefile(addr netip.Addr) ([]byte, error) {
	var out bytes.Buffer
	err := corefileTemplate.Execute(&out, map[string]any{
		"Listen": addr, "Domain": s.cfg.Domain, "Kubeconfig": s.cfg.Kubeconfig, "Upstreams": upstreams(s.cfg.ResolvConf),
		"Custom": s.cfg.Custom, "Overrides": hasFiles(s.cfg.Custom, ".override"), "Servers": hasFiles(s.cfg.Custom, ".server"),
	})
	if err != nil {
		return nil, fmt.Errorf("render Corefile: %w", err)
	}
	return out.Bytes(), nil
}

// hasFiles tells whether folder has a file with that ending; an import that matches nothing would be an error.
func hasFiles(folder, ending string) bool {
	entries, err := os.ReadDir(folder)
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ending) })
}

// upstreams returns the name servers of a resolv.conf. Those on loopback would be this server itself or one that pods cannot
// reach, and are left out.
func upstreams(resolvConf string) []string {
	data, err := os.ReadFile(resolvConf)
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err != nil || addr.IsLoopback() || slices.Contains(out, addr.String()) {
			continue
		}
		out = append(out, addr.String())
	}
	if len(out) > 15 {
		out = out[:15] // the forward plugin takes no more
	}
	return out
}
