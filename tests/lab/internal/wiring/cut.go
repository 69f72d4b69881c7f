package wiring

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetLAN opens or blocks the port of one node on its site's switch. Nothing tells the node: the link stays up.
func SetLAN(router Namespace, node int, open bool) error {
	if err := router.Do(func() error { return setPort(PortName(node), open) }); err != nil {
		return fmt.Errorf("switch port of n%d: %w", node, err)
	}
	return nil
}

// SetWAN opens or blocks a site's line at the provider's end: the router's link stays up too.
func SetWAN(world Namespace, site int, open bool) error {
	if err := world.Do(func() error { return setPort(fmt.Sprintf("w%d", site), open) }); err != nil {
		return fmt.Errorf("line of s%d: %w", site, err)
	}
	return nil
}

// SetNodeWAN allows or forbids one node to use its site's line. Both directions are dropped in silence by the router.
func SetNodeWAN(p Plan, router Namespace, site, node int, open bool) error {
	err := router.Do(func() error {
		for _, rule := range nodeWANRules(p, site, node) {
			err := netlink.RuleDel(rule) // also before adding: rules can be there twice
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			if !open {
				if err := netlink.RuleAdd(rule); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("line for s%d/n%d: %w", site, node, err)
	}
	return nil
}

// nodeWANRules drop what the node sends towards the line and what comes from the line for it. The node's traffic to the host
// (management) and to its own LAN is left alone.
func nodeWANRules(p Plan, site, node int) []*netlink.Rule {
	one := &net.IPNet{IP: p.Node(site, node).AsSlice(), Mask: net.CIDRMask(32, 32)}
	mgmt := &net.IPNet{IP: p.Host().AsSlice(), Mask: net.CIDRMask(32, 32)}

	toHost := netlink.NewRule()
	toHost.Priority, toHost.IifName, toHost.Src, toHost.Dst, toHost.Table = 100+10*node, "lan", one, mgmt, unix.RT_TABLE_MAIN
	out := netlink.NewRule()
	out.Priority, out.IifName, out.Src, out.Type = 101+10*node, "lan", one, unix.RTN_BLACKHOLE
	in := netlink.NewRule()
	in.Priority, in.IifName, in.Dst, in.Type = 102+10*node, "wan0", one, unix.RTN_BLACKHOLE
	return []*netlink.Rule{toHost, out, in}
}
