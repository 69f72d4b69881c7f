package config

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Part is a component that --disable can leave out.
type Part string

// The parts that --disable knows.
const (
	CoreDNS       Part = "coredns"
	ServiceLB     Part = "servicelb"
	LocalStorage  Part = "local-storage"
	MetricsServer Part = "metrics-server"
	NetworkPolicy Part = "network-policy"
)

func parts() []string {
	return []string{string(CoreDNS), string(ServiceLB), string(LocalStorage), string(MetricsServer), string(NetworkPolicy)}
}

// Disabled tells whether the owner left the part out.
func (c Config) Disabled(p Part) bool {
	return slices.Contains(c.Disable, string(p)) || p == NetworkPolicy && c.DisableNetworkPolicy
}

// APIServiceIP is the address of the Service kubernetes.default: the first of the service range.
func (c Config) APIServiceIP() netip.Addr { return nth(c.ServiceCIDR, 1) }

// DNSAddress is the service address of the cluster's DNS: what cluster-dns says, else the tenth of the service range.
func (c Config) DNSAddress() netip.Addr {
	if c.ClusterDNS.IsValid() {
		return c.ClusterDNS
	}
	return nth(c.ServiceCIDR, 10)
}

// nth returns the nth address of an IPv4 range, counted from the network address; the zero Addr when the range is no IPv4 range
// or has fewer.
func nth(p netip.Prefix, n uint32) netip.Addr {
	if !p.IsValid() || !p.Addr().Is4() {
		return netip.Addr{}
	}
	base := p.Masked().Addr().As4()
	sum := uint64(binary.BigEndian.Uint32(base[:])) + uint64(n)
	if sum > 0xffffffff {
		return netip.Addr{}
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(sum))
	if a := netip.AddrFrom4(b); p.Contains(a) {
		return a
	}
	return netip.Addr{}
}

// AdvertisedPort is the port of the API that other nodes and pods use.
func (c Config) AdvertisedPort() int {
	if c.AdvertisePort != 0 {
		return c.AdvertisePort
	}
	return c.HTTPSPort
}

// AdvertisedAddress is the address of the API that other nodes and pods use; nodeIP is what the node found out about itself,
// for when the owner said nothing.
func (c Config) AdvertisedAddress(nodeIP netip.Addr) netip.Addr {
	switch {
	case c.AdvertiseAddress.IsValid():
		return c.AdvertiseAddress
	case len(c.NodeExternalIP) > 0:
		return c.NodeExternalIP[0]
	case len(c.NodeIP) > 0:
		return c.NodeIP[0]
	}
	return nodeIP
}

// LocalURL is how programs on this machine reach the API of this server.
func (c Config) LocalURL() string {
	host := "127.0.0.1"
	if c.BindAddress.IsValid() && !c.BindAddress.IsUnspecified() {
		host = c.BindAddress.String()
	}
	return "https://" + net.JoinHostPort(host, strconv.Itoa(c.HTTPSPort))
}

// StoragePath is the folder in which local volumes are made.
func (c Config) StoragePath() string {
	if c.LocalStoragePath != "" {
		return c.LocalStoragePath
	}
	return filepath.Join(c.DataDir, "storage")
}

// maxTokenBytes bounds a token file; a token has about a hundred bytes.
const maxTokenBytes = 4 << 10

// JoinToken returns the token, read from token-file if that is set; empty when neither is.
func (c Config) JoinToken() (Secret, error) { return secretOr("token-file", c.Token, c.TokenFile) }

// JoinAgentToken returns the agent token, read from agent-token-file if that is set; empty when neither is.
func (c Config) JoinAgentToken() (Secret, error) {
	return secretOr("agent-token-file", c.AgentToken, c.AgentTokenFile)
}

func secretOr(name string, s Secret, path string) (Secret, error) {
	if !s.IsEmpty() || path == "" {
		return s, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return Secret{}, &problem{name, remedy.Wrap(fmt.Errorf("read %s: %w", name, err), "create the file, or set %s to the right one", name)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return Secret{}, &problem{name, remedy.Wrap(fmt.Errorf("read %s: %w", name, err), "set %s to a readable file", name)}
	}
	text := strings.TrimSpace(string(data))
	if text == "" || len(data) > maxTokenBytes || strings.ContainsAny(text, "\r\n") {
		return Secret{}, problemf(name, "write the token and nothing else into "+path, "%s %s does not hold one token", name, path)
	}
	return NewSecret(text), nil
}
