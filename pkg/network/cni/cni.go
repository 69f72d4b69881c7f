// Package cni gives the node's pods their network: a routed veth each, with an address out of the node's part of the pod range.
//
// The part is assigned by the controller manager. It is remembered on disk, so that a node that starts again needs nobody to start
// its pods. There is no bridge: every packet of a pod crosses the host's forward path, where policies can see it.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// Config is what the pod network needs from the node.
type Config struct {
	Client     kubernetes.Interface
	NodeName   string
	ConfFile   string // CNI configuration list, read by containerd
	AddressDir string // reservations of addresses; must be lost at a reboot, as the pods are
	MTU        int    // of pod interfaces; 0 leaves the kernel's
	Policy     string // socket of the network policy controller, which is asked before a pod starts; "" when there is none
}

// New returns the component. It is ready when pods can be given addresses.
func New(cfg Config, log *slog.Logger) *Network {
	return &Network{cfg: cfg, log: log, known: make(chan struct{})}
}

// Network is the node's part of the pod network.
type Network struct {
	cfg   Config
	log   *slog.Logger
	known chan struct{} // closed when cidr is set
	cidr  netip.Prefix
}

// Name implements run.Component.
func (*Network) Name() string { return "pod-network" }

// PodCIDR waits until the node has its part of the pod range.
func (n *Network) PodCIDR(ctx context.Context) (netip.Prefix, error) {
	select {
	case <-n.known:
		return n.cidr, nil
	case <-ctx.Done():
		return netip.Prefix{}, ctx.Err()
	}
}

// Gateway is the first address of a node's part of the pod range; the node itself answers on it.
func Gateway(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

// Run implements run.Component.
func (n *Network) Run(ctx context.Context, ready func()) error {
	cidr, err := remembered(n.cfg.ConfFile)
	if err != nil {
		n.log.Info("waiting for addresses for pods", "why", err)
		if cidr, err = n.assigned(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	if err := n.apply(cidr); err != nil {
		return err
	}
	n.cidr = cidr
	close(n.known)
	ready()
	n.watchForChange(ctx, cidr)
	return nil
}

// apply writes the CNI configuration and puts the gateway address on the node.
func (n *Network) apply(cidr netip.Prefix) error {
	conf, err := Conf(cidr, n.cfg.MTU, n.cfg.AddressDir, n.cfg.Policy)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(n.cfg.ConfFile), 0o755); err != nil {
		return fmt.Errorf("make CNI folder: %w", err)
	}
	if _, err := atomicfile.WriteIfChanged(n.cfg.ConfFile, conf, 0o600); err != nil {
		return err
	}
	return addLocalAddress(Gateway(cidr))
}

// assigned waits for the node object to say which addresses it has.
func (n *Network) assigned(ctx context.Context) (netip.Prefix, error) {
	for ctx.Err() == nil {
		w, err := n.cfg.Client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", n.cfg.NodeName).String()})
		if err == nil {
			for event := range w.ResultChan() {
				if cidr, ok := podCIDR(event.Object); ok {
					w.Stop()
					return cidr, nil
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return netip.Prefix{}, ctx.Err()
}

// watchForChange ends when ctx does. A node object that was deleted and made again may have other addresses; running pods
// keep theirs, new pods get new ones.
func (n *Network) watchForChange(ctx context.Context, current netip.Prefix) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		node, err := n.cfg.Client.CoreV1().Nodes().Get(ctx, n.cfg.NodeName, metav1.GetOptions{ResourceVersion: "0"})
		if err != nil {
			continue
		}
		if cidr, ok := podCIDR(node); ok && cidr != current {
			n.log.Warn("the node has other pod addresses now; pods keep their old ones until they are made again", "was", current, "is", cidr)
			if err := n.apply(cidr); err != nil {
				n.log.Warn("cannot change the pod network", "err", err)
				continue
			}
			current = cidr
		}
	}
}

// conf is what we write of a CNI configuration list, and read back.
type conf struct {
	CNIVersion string           `json:"cniVersion"`
	Name       string           `json:"name"`
	Plugins    []map[string]any `json:"plugins"`
}

// Conf renders the CNI configuration for a node with these pod addresses.
func Conf(cidr netip.Prefix, mtu int, addressDir, policySocket string) ([]byte, error) {
	if !cidr.IsValid() || !cidr.Addr().Is4() {
		return nil, fmt.Errorf("pod addresses %v are not an IPv4 range", cidr)
	}
	ptp := map[string]any{
		"type": "ptp",
		"ipam": map[string]any{
			"type":    "host-local",
			"dataDir": addressDir,
			"ranges":  [][]map[string]string{{{"subnet": cidr.Masked().String()}}},
			"routes":  []map[string]string{{"dst": "0.0.0.0/0"}},
		},
	}
	if mtu > 0 {
		ptp["mtu"] = mtu
	}
	portmap := map[string]any{"type": "portmap", "backend": "nftables", "capabilities": map[string]bool{"portMappings": true}}
	plugins := []map[string]any{ptp, portmap}
	if policySocket != "" {
		plugins = append(plugins, map[string]any{"type": "atoll-policy", "socket": policySocket})
	}
	return json.MarshalIndent(conf{CNIVersion: "1.0.0", Name: "atoll", Plugins: plugins}, "", "  ")
}

// remembered returns the pod addresses in a configuration that Conf wrote.
func remembered(file string) (netip.Prefix, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return netip.Prefix{}, err
	}
	var c struct {
		Plugins []struct {
			IPAM struct {
				Ranges [][]struct {
					Subnet netip.Prefix `json:"subnet"`
				} `json:"ranges"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return netip.Prefix{}, fmt.Errorf("read %s: %w", file, err)
	}
	for _, p := range c.Plugins {
		for _, r := range p.IPAM.Ranges {
			if len(r) > 0 && r[0].Subnet.IsValid() {
				return r[0].Subnet, nil
			}
		}
	}
	return netip.Prefix{}, errors.New("no pod addresses in " + file)
}

// addLocalAddress makes the node answer on addr, without an interface of its own: the kernel may have none to spare.
func addLocalAddress(addr netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	err = netlink.AddrReplace(lo, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: unix.RT_SCOPE_HOST})
	if err != nil && !strings.Contains(err.Error(), "exists") {
		return fmt.Errorf("put %s on the loopback interface: %w", addr, err)
	}
	return nil
}
