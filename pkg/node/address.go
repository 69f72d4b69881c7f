package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/remedy"
)

// errNoAddress means that no network interface has an address that others could use.
var errNoAddress = remedy.Wrap(errors.New("no network interface has an address"), "plug in the network cable, or set --node-ip")

// nodeAddress returns the node's address: what the owner said, else that of the default route, else the first that any real
// interface has. A shop whose line is down has no default route but still a LAN.
func nodeAddress(cfg config.Config) (netip.Addr, error) {
	if len(cfg.NodeIP) > 0 {
		return cfg.NodeIP[0], nil
	}
	if addr, ok := addressOfDefaultRoute(); ok {
		return addr, nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list network interfaces: %w", err)
	}
	for _, link := range links {
		if ours(link) {
			continue
		}
		if addr, ok := firstAddress(link); ok {
			return addr, nil
		}
	}
	return netip.Addr{}, errNoAddress
}

// awaitAddress waits for nodeAddress: at boot the network may come up after this process.
func awaitAddress(ctx context.Context, cfg config.Config, log *slog.Logger) (netip.Addr, error) {
	for said := false; ; said = true {
		addr, err := nodeAddress(cfg)
		if err == nil {
			return addr, nil
		}
		if !said {
			log.Warn("waiting for the network", "err", err, "try", remedy.Of(err))
		}
		select {
		case <-ctx.Done():
			return netip.Addr{}, err
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func addressOfDefaultRoute() (netip.Addr, bool) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if src, ok := netip.AddrFromSlice(r.Src.To4()); ok {
			return src, true
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			if addr, ok := firstAddress(link); ok {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

func firstAddress(link netlink.Link) (netip.Addr, bool) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok && addr.IsGlobalUnicast() {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// ours tells whether an interface was made for pods or tunnels, or is the loopback.
func ours(link netlink.Link) bool {
	name := link.Attrs().Name
	return name == "lo" || strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "flannel") || strings.HasPrefix(name, "cni") || strings.HasPrefix(name, "docker")
}

// mtuFor returns the MTU of pod interfaces: that of the interface with addr, less what a VXLAN header takes, because pods of
// another subnet are reached through one.
func mtuFor(addr netip.Addr, overhead int) int {
	links, err := netlink.LinkList()
	if err != nil {
		return 0
	}
	for _, link := range links {
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if got, ok := netip.AddrFromSlice(a.IP.To4()); ok && got == addr && link.Attrs().MTU > overhead {
				return link.Attrs().MTU - overhead
			}
		}
	}
	return 0
}
