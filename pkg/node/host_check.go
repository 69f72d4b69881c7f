package node

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/hostcheck"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/status"
)

// HostCheck says what is checked of a machine that is to run a node with these settings.
func HostCheck(cfg config.Config, built time.Time) hostcheck.Config {
	bind := netip.IPv4Unspecified()
	if cfg.BindAddress.IsValid() {
		bind = cfg.BindAddress
	}
	return hostcheck.Config{
		DataDir: cfg.DataDir, KubeletDir: KubeletDir, Snapshotter: cfg.Snapshotter, VXLAN: cfg.FlannelBackend == "vxlan",
		ResolvConf: cfg.ResolvConf, Ports: hostcheck.Ports(cfg.Role != config.Agent, bind, cfg.HTTPSPort), Built: built,
	}
}

// checkHost refuses to start where a node could not work, and remembers the rest for the status page.
func (n *Node) checkHost(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cfg := HostCheck(n.cfg, n.clock.Built)
	cfg.Starting, cfg.NFT = true, n.bundle.Paths().Bin+"/nft"
	results := hostcheck.Run(ctx, cfg)
	if err := hostcheck.Required(results); err != nil {
		return remedy.Wrap(fmt.Errorf("this machine cannot run a node: %w", err), "`atoll check-config` shows all checks")
	}
	for _, r := range results {
		if r.Level == hostcheck.Warn || r.Level == hostcheck.Fail {
			n.log.Warn("host check", "check", r.Name, "finding", r.Detail, "try", r.Remedy)
			n.host = append(n.host, status.Problem{Severity: status.Note, Text: r.Name + ": " + r.Detail, Remedy: r.Remedy})
		}
	}
	return nil
}
