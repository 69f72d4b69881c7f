// Package overlay carries pod traffic between the nodes of a site, with flannel as a library inside this process.
//
// Nodes of one LAN reach each other's pods by plain routes; a VXLAN tunnel is used only where a router is between them.
// Each node says in annotations of its node object where it is; flannel's watch of the nodes does the rest. Routes stay in the kernel
// when the process ends.
package overlay

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw" // registers the backend "host-gw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"  // registers the backend "vxlan"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	subnetkube "github.com/flannel-io/flannel/pkg/subnet/kube"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// Header is what a VXLAN tunnel takes of a packet, in bytes.
const Header = 50

// Config is what the overlay needs from the node.
type Config struct {
	Kubeconfig  string
	NodeName    string
	NodeIP      netip.Addr
	Interface   string       // for traffic between nodes; the one with NodeIP when empty
	ClusterCIDR netip.Prefix // all pods of the site
	Backend     string       // "vxlan" or "host-gw"
	ConfFile    string       // where flannel's settings are written
}

// New returns the component. It is ready when this node's routes can be set up.
func New(cfg Config, log *slog.Logger) *Overlay { return &Overlay{cfg: cfg, log: log} }

// Overlay is the node's part of the network between nodes.
type Overlay struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Overlay) Name() string { return "overlay" }

// Run implements run.Component.
func (o *Overlay) Run(ctx context.Context, ready func()) error {
	conf, err := NetConf(o.cfg.ClusterCIDR, o.cfg.Backend)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.cfg.ConfFile), 0o700); err != nil {
		return fmt.Errorf("make flannel's folder: %w", err)
	}
	if _, err := atomicfile.WriteIfChanged(o.cfg.ConfFile, conf, 0o600); err != nil {
		return err
	}
	// flannel's subnet manager takes the node's name from the environment and from nowhere else.
	if err := os.Setenv("NODE_NAME", o.cfg.NodeName); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	manager, err := subnetkube.NewSubnetManager(ctx, "", o.cfg.Kubeconfig, "flannel.alpha.coreos.com", o.cfg.ConfFile, false)
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	settings, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return fmt.Errorf("read flannel's settings: %w", err)
	}
	stack, err := ipmatch.GetIPFamily(settings.EnableIPv4, settings.EnableIPv6)
	if err != nil {
		return err
	}
	iface, err := ipmatch.LookupExtIface(o.lookup(), "", "", stack, ipmatch.PublicIPOpts{PublicIP: o.cfg.NodeIP.String()})
	if err != nil {
		return remedy.Wrap(fmt.Errorf("find the interface for traffic between nodes: %w", err), "set --flannel-iface or --node-ip")
	}
	be, err := backend.NewManager(ctx, manager, iface).GetBackend(settings.BackendType)
	if err != nil {
		return fmt.Errorf("backend %s: %w", settings.BackendType, err)
	}
	var wg sync.WaitGroup
	network, err := be.RegisterNetwork(ctx, &wg, settings)
	if err != nil {
		return fmt.Errorf("join the network between nodes: %w", err)
	}
	if err := manager.CompleteLease(ctx, network.Lease(), &wg); err != nil {
		return fmt.Errorf("publish this node's part of the network: %w", err)
	}
	ready()
	network.Run(ctx)
	cancel()
	wg.Wait()
	return nil
}

func (o *Overlay) lookup() string {
	if o.cfg.Interface != "" {
		return o.cfg.Interface
	}
	return o.cfg.NodeIP.String()
}

// NetConf renders flannel's settings.
func NetConf(pods netip.Prefix, backendName string) ([]byte, error) {
	type backendConf struct {
		Type          string
		DirectRouting bool `json:",omitempty"`
	}
	return json.MarshalIndent(struct {
		Network string
		Backend backendConf
	}{pods.String(), backendConf{Type: backendName, DirectRouting: backendName == "vxlan"}}, "", "  ")
}
