package wiring

import (
	"errors"
	"fmt"
	"net"
	"os"

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
	if err := world.Do(func() error { return setPort(LineName(site), open) }); err != nil {
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

// Splice takes port out of its bridge and puts a new one, "x" and its name, in its place. It returns the two open ends, which a
// wire connects: towards what is plugged into port, and towards the bridge. Splicing a port again starts anew.
//
// The port itself stays up, so whoever is plugged into it notices nothing.
func Splice(ns Namespace, port, bridge string) (near, far string, err error) {
	inner, outer := "x"+port, "y"+port
	err = ns.Do(func() error {
		if err := unsplice(port, bridge); err != nil {
			return err
		}
		if err := addCable(inner, nil, outer, nil, 0); err != nil {
			return err
		}
		for _, name := range []string{port, outer} {
			if err := muteOpenEnd(name); err != nil {
				return err
			}
		}
		b, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return plug(inner, b)
	})
	if err != nil {
		return "", "", fmt.Errorf("splice %s: %w", port, err)
	}
	return port, outer, nil
}

// Unsplice undoes Splice; it is fine when there is nothing to undo.
func Unsplice(ns Namespace, port, bridge string) error {
	if err := ns.Do(func() error { return unsplice(port, bridge) }); err != nil {
		return fmt.Errorf("unsplice %s: %w", port, err)
	}
	return nil
}

func unsplice(port, bridge string) error {
	if err := removeLink("x" + port); err != nil { // its other end goes with it
		return err
	}
	link, err := netlink.LinkByName(port)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil // the node is off
	}
	if err != nil {
		return err
	}
	b, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	if link.Attrs().MasterIndex == b.Attrs().Index {
		return nil
	}
	return plug(port, b)
}

// muteOpenEnd takes an interface out of its bridge and keeps the router's own network stack from answering on it: frames are for the
// wire only.
func muteOpenEnd(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetARPOff(link); err != nil {
		return err
	}
	// Shows the setting of the calling thread's network namespace. Without IPv6 there is no such file.
	err = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := netlink.LinkSetNoMaster(link); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
