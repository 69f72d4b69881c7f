// Package wiring is the lab's cabling: network namespaces, bridges, cables, and what may be cut.
//
//	host ── atoll-lab0 ─┐ world: bridge "mgmt"      bridge "wan" 10.77.254.1
//	                    └──────┬─────────┐            ┌────┴────┐
//	              router s1: "mgmt0"     s2          "wan0"     s2
//	              bridge "lan" 10.77.1.1
//	              ports "n1", "n2", ...  ── eth0 of the nodes, 10.77.1.11, 10.77.1.12, ...
//
// Each site has a router with a namespace of its own: it is the default gateway of the site's nodes and their switch at once. Its
// uplink wan0 is the site's line to the world; mgmt0 is a second way by which only the host reaches the site, so that cutting the
// line does not cut off the person who looks at it. Nothing but one interface is visible on the host. There is no way to the
// Internet and no address translation.
//
// A namespace is held open by a process (package hold in the lab's command), not by a mounted file: when the lab's processes are
// gone, so are its networks.
package wiring

import (
	"fmt"
	"net"
	"net/netip"
)

// Limits of the address plan.
const (
	MaxLabs  = 16
	MaxSites = 99
	MaxNodes = 99
)

// Plan is the address plan of one lab: 10.<77+lab>.0.0/16.
type Plan struct {
	Lab int // 0 to MaxLabs-1
}

func (p Plan) addr(third, fourth int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(77 + p.Lab), byte(third), byte(fourth)})
}

// Range is everything that the lab uses.
func (p Plan) Range() netip.Prefix { return netip.PrefixFrom(p.addr(0, 0), 16) }

// SiteRange is the LAN of a site.
func (p Plan) SiteRange(site int) netip.Prefix { return netip.PrefixFrom(p.addr(site, 0), 24) }

// Gateway is the router's address on a site's LAN.
func (p Plan) Gateway(site int) netip.Addr { return p.addr(site, 1) }

// Node is the address of a node.
func (p Plan) Node(site, node int) netip.Addr { return p.addr(site, 10+node) }

// World is the far end of every site's line.
func (p Plan) World() netip.Addr { return p.addr(254, 1) }

// Uplink is the router's address on the line.
func (p Plan) Uplink(site int) netip.Addr { return p.addr(254, 10+site) }

// Host is the host's own address in the lab.
func (p Plan) Host() netip.Addr { return p.addr(255, 1) }

func (p Plan) routerMgmt(site int) netip.Addr { return p.addr(255, 10+site) }

// HostInterface is the one interface that the lab makes on the host.
func (p Plan) HostInterface() string { return fmt.Sprintf("atoll-lab%d", p.Lab) }

// Interface is the node's name for its network card.
const Interface = "eth0"

// hardware gives every card a fixed address, so that a node keeps it over power cycles.
func (p Plan) hardware(kind, site, node int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x77, byte(p.Lab), byte(kind), byte(site), byte(node)}
}

// Kinds of cards, for hardware.
const (
	cardNode = 1 + iota
	cardPort
	cardLAN
	cardUplink
	cardLine
	cardWAN
	cardMgmt
	cardHost
)
