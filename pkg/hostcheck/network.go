package hostcheck

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// Modules that the kernel would load by itself where its helper program is the one of the machine.
var nftModules = []string{"nf_tables", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_fib_ipv4", "nft_fib_ipv6", "nft_numgen", "nft_reject_ipv4", "nft_reject_ipv6"}

func checkNFTables(ctx context.Context, m *machine) finding {
	err := m.tryWith(ctx, nftModules, TryNFTables, m.NFT)
	switch {
	case missing(err):
		return fail("modprobe nf_tables, or boot a kernel with CONFIG_NF_TABLES", "the kernel does not have it, and Services are made of it")
	case errors.Is(err, fs.ErrPermission):
		return fail("start the container with --privileged", "may not be used here: %v", err)
	case err != nil:
		return fail("boot a kernel with CONFIG_NF_TABLES_IPV4, NFT_CT, NFT_NAT, NFT_MASQ, NFT_FIB_IPV4, NFT_NUMGEN and NFT_REJECT", "the kernel does not take the rules that Services are made of: %v", err)
	}
	return ok("takes the rules of Services and policies")
}

func checkConntrack(ctx context.Context, m *machine) finding {
	const file = "/proc/sys/net/netfilter/nf_conntrack_max"
	if !m.exists(file) {
		_ = m.try(ctx, TryModule, "nf_conntrack")
	}
	n, err := m.number(file)
	switch {
	case err != nil:
		return warn("modprobe nf_conntrack, or boot a kernel with CONFIG_NF_CONNTRACK", "the kernel does not track connections, and Services need that")
	case n < 16384:
		return note("sysctl -w net.netfilter.nf_conntrack_max=131072", "room for %d connections", n)
	}
	return ok("room for %d connections", n)
}

func checkVeth(ctx context.Context, m *machine) finding {
	err := m.tryWith(ctx, []string{"veth"}, TryLink, "veth")
	switch {
	case missing(err):
		return fail("modprobe veth, or boot a kernel with CONFIG_VETH", "the kernel cannot make links between pods and node")
	case err != nil:
		return fail("in a container, start that with --privileged", "cannot make a link between pod and node: %v", err)
	}
	return ok("can be made")
}

func checkVXLAN(ctx context.Context, m *machine) finding {
	if !m.VXLAN {
		return finding{}
	}
	err := m.tryWith(ctx, []string{"vxlan"}, TryLink, "vxlan")
	switch {
	case missing(err):
		return warn("modprobe vxlan, boot a kernel with CONFIG_VXLAN, or use --flannel-backend host-gw where all nodes are in one network", "the kernel does not have it: pods reach no pods of other nodes")
	case err != nil:
		return warn("use --flannel-backend host-gw where all nodes are in one network", "cannot be made, so pods reach no pods of other nodes: %v", err)
	}
	return ok("can be made")
}

func checkBridge(ctx context.Context, m *machine) finding {
	if err := m.tryWith(ctx, []string{"bridge"}, TryLink, "bridge"); err != nil {
		return note("modprobe bridge, or boot a kernel with CONFIG_BRIDGE, if you add a network of your own that uses one", "cannot be made; atoll's own network does without: %v", err)
	}
	return ok("can be made")
}

func checkForwarding(ctx context.Context, m *machine) finding {
	const file = "/proc/sys/net/ipv4/ip_forward"
	on, err := m.read(file)
	if err == nil && on == "1" {
		return ok("on")
	}
	if err == nil {
		err = m.try(ctx, TryOpen, file)
	}
	if err != nil {
		return fail("sysctl -w net.ipv4.ip_forward=1 on the host, or let the container write to /proc/sys", "off, and it cannot be switched on: %v", err)
	}
	return ok("off, and can be switched on")
}

func checkDefaultRoute(_ context.Context, m *machine) finding {
	four, _ := m.read("/proc/thread-self/net/route")
	for line := range strings.Lines(four) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			return ok("by %s", f[0])
		}
	}
	six, _ := m.read("/proc/thread-self/net/ipv6_route")
	for line := range strings.Lines(six) {
		f := strings.Fields(line)
		if len(f) == 10 && strings.Trim(f[0], "0") == "" && f[1] == "00" && f[9] != "lo" {
			return ok("by %s, for IPv6", f[9])
		}
	}
	return note("set --node-ip if the node has several addresses", "none: nothing outside the local network can be reached, which atoll can do without")
}

func checkResolvConf(_ context.Context, m *machine) finding {
	file := m.ResolvConf
	if file == "" {
		file = "/etc/resolv.conf"
	}
	servers, err := m.nameServers(file)
	switch {
	case err != nil:
		return note("create it with a line `nameserver ADDRESS`", "no %s: names outside the cluster are not found", file)
	case len(servers) == 0:
		return note("add a line `nameserver ADDRESS` to "+file, "%s names no server: names outside the cluster are not found", file)
	case usable(servers):
		return ok("%s names %s", file, strings.Join(servers, ", "))
	}
	const resolved = "/run/systemd/resolve/resolv.conf"
	if real, err := m.nameServers(resolved); err == nil && m.ResolvConf == "" && usable(real) {
		return ok("%s names %s", resolved, strings.Join(real, ", "))
	}
	return warn("name a server that pods can reach: write a file with it and give that with --resolv-conf", "%s names only servers on this machine's loopback, which pods cannot reach", file)
}

func (m *machine) nameServers(file string) (out []string, err error) {
	text, err := m.read(file)
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out, err
}

// usable tells whether pods can reach one of the servers.
func usable(servers []string) bool {
	for _, s := range servers {
		if addr, err := netip.ParseAddr(s); err == nil && !addr.IsLoopback() {
			return true
		}
	}
	return false
}

func checkFirewall(_ context.Context, m *machine) finding {
	const open = "let it pass 10.42.0.0/16 and 10.43.0.0/16 (or what you chose) and the ports 6443 and 10250 and, between nodes, UDP 8472; or switch it off"
	if conf, err := m.read("/etc/ufw/ufw.conf"); err == nil && strings.Contains("\n"+conf+"\n", "\nENABLED=yes\n") {
		return warn(open, "ufw is on, and drops traffic that is forwarded to and from pods")
	}
	if m.exists("/run/firewalld") {
		return warn(open, "firewalld is on, and may drop traffic to and from pods")
	}
	return ok("none that is known to stop pods")
}

func checkPorts(_ context.Context, m *machine) finding {
	if len(m.Ports) == 0 {
		return finding{}
	}
	listeners := m.listeners()
	var held, own []string
	for _, p := range m.Ports {
		l, taken := conflict(p, listeners)
		if !taken {
			continue
		}
		pid, name := m.holder(l.inode)
		text := strconv.Itoa(p.Number) + " (" + p.For + ")"
		switch {
		case name == "":
			held = append(held, text)
		case name == "atoll" && !m.Starting:
			own = append(own, text)
		default:
			held = append(held, text+" by "+name+" (process "+pid+")")
		}
	}
	switch {
	case len(held) > 0:
		return fail("stop what holds them; the API's port can be another with --https-listen-port", "in use: %s", strings.Join(held, ", "))
	case len(own) > 0:
		return note("", "atoll runs already and holds %s", strings.Join(own, ", "))
	}
	return ok("free")
}

// listener is a socket that waits for connections.
type listener struct {
	addr  netip.AddrPort
	inode string
}

// conflict returns the listener that keeps others from the port.
func conflict(p Port, listeners []listener) (listener, bool) {
	for _, l := range listeners {
		a := l.addr.Addr()
		if int(l.addr.Port()) == p.Number && (a.IsUnspecified() || !p.Addr.IsValid() || p.Addr.IsUnspecified() || a == p.Addr) {
			return l, true
		}
	}
	return listener{}, false
}

func (m *machine) listeners() (out []listener) {
	const listens = "0A"
	for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		text, _ := m.read(file)
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != listens {
				continue
			}
			if addr, ok := parseSocketAddr(f[1]); ok {
				out = append(out, listener{addr, f[9]})
			}
		}
	}
	return out
}

// parseSocketAddr reads an address as /proc/net/tcp has it: words of four bytes in the order of the machine, which on all that
// atoll runs on is the last byte first.
func parseSocketAddr(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil || len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, false
	}
	b := make([]byte, len(host)/2)
	for i := range b {
		v, err := strconv.ParseUint(host[2*i:2*i+2], 16, 8)
		if err != nil {
			return netip.AddrPort{}, false
		}
		b[i/4*4+3-i%4] = byte(v)
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), true
}

// holder finds the process that has a socket open, by its inode.
func (m *machine) holder(inode string) (pid, name string) {
	processes, _ := fs.Glob(m.Files, "proc/[0-9]*")
	for _, process := range processes {
		fds, _ := fs.ReadDir(m.Files, path.Join(process, "fd"))
		for _, fd := range fds {
			if target, err := fs.ReadLink(m.Files, path.Join(process, "fd", fd.Name())); err == nil && target == "socket:["+inode+"]" {
				name, _ := m.read("/" + process + "/comm")
				return path.Base(process), name
			}
		}
	}
	return "", ""
}
