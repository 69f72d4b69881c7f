package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Validate checks every setting and the relations between them. All problems are reported at once, each with a remedy.
// It looks at nothing outside c: whether files exist and ports are free is for those who open them.
func (c Config) Validate() error {
	v := &validator{Config: c}
	v.words()
	v.logging()
	v.paths()
	v.cluster()
	v.node()
	v.listener()
	v.ranges()
	v.components()
	v.datastore()
	return errors.Join(v.errs...)
}

type validator struct {
	Config
	errs []error
}

// fail notes a problem with a setting; try is the remedy.
func (v *validator) fail(setting, try, format string, args ...any) {
	v.errs = append(v.errs, problemf(setting, try, format, args...))
}

// blame returns the first of the settings that its owner changed: a relation between two is seldom the default's fault.
func (v *validator) blame(names ...string) string {
	for _, name := range names {
		if s, ok := find(settings(), name); ok && s.show(v.Config) != s.show(Default()) {
			return name
		}
	}
	return names[0]
}

// words checks every setting that must be one of a few words.
func (v *validator) words() {
	for _, s := range settings() {
		word := s.show(v.Config)
		if len(s.oneOf) == 0 || slices.Contains(s.oneOf, word) {
			continue
		}
		try := fmt.Sprintf("set %s to one of: %s", s.name, strings.Join(s.oneOf, ", "))
		if why, ok := refusedWord(s.name, word); ok {
			v.fail(s.name, try, "%s %s is not supported: %s", s.name, word, why)
			continue
		}
		if near := Nearest(word, s.oneOf); near != "" {
			v.fail(s.name, try, "%s is %q, the nearest is %s", s.name, clip(word), near)
			continue
		}
		v.fail(s.name, try, "%s is %q", s.name, clip(word))
	}
}

// refusedWord tells why a word that K3s takes is not one of ours.
func refusedWord(setting, word string) (why string, ok bool) {
	why, ok = map[string]string{
		"flannel-backend none":             "another pod network cannot be put in place of the built-in one yet",
		"flannel-backend wireguard-native": "atoll does not manage WireGuard keys; vxlan crosses routers, host-gw is for one LAN",
		"flannel-backend wireguard":        "atoll does not manage WireGuard keys; vxlan crosses routers, host-gw is for one LAN",
		"flannel-backend ipsec":            "K3s itself gave it up",
		"snapshotter fuse-overlayfs":       "atoll runs as root and needs no FUSE",
		"snapshotter stargz":               "lazy pulling needs a registry that is always in reach",
		"snapshotter btrfs":                "it is not part of atoll; overlayfs works on btrfs",
		"snapshotter zfs":                  "it is not part of atoll; overlayfs works on ZFS 2.2 and later",
	}[setting+" "+word]
	return why, ok
}

func (v *validator) logging() {
	if v.Verbosity < 0 || v.Verbosity > 10 {
		v.fail("v", "set v to a number from 0 (quiet) to 10 (everything)", "v is %d", v.Verbosity)
	}
	if v.AlsoLogToStderr && v.LogFile == "" {
		v.fail("alsologtostderr", "set log to a file, or remove alsologtostderr: standard error is where the log goes anyway", "alsologtostderr is set without log")
	}
}

func (v *validator) paths() {
	for _, p := range []struct {
		setting, path string
		must          bool
	}{
		{"data-dir", v.DataDir, true},
		{"log", v.LogFile, false},
		{"token-file", v.TokenFile, false},
		{"agent-token-file", v.AgentTokenFile, false},
		{"resolv-conf", v.ResolvConf, false},
		{"private-registry", v.PrivateRegistry, true},
		{"write-kubeconfig", v.Kubeconfig, v.Role == Server},
		{"default-local-storage-path", v.LocalStoragePath, false},
		{"datastore-cafile", v.DatastoreCAFile, false},
		{"datastore-certfile", v.DatastoreCertFile, false},
		{"datastore-keyfile", v.DatastoreKeyFile, false},
		{"audit-policy-file", v.AuditPolicyFile, false},
	} {
		switch {
		case p.path == "" && p.must:
			v.fail(p.setting, fmt.Sprintf("give %s a path, or remove it to have the default", p.setting), "%s is empty", p.setting)
		case p.path != "" && !filepath.IsAbs(p.path):
			// A service starts in another folder than the shell in which the path was tried.
			v.fail(p.setting, fmt.Sprintf("write %s from the root, starting with /", p.setting), "%s %q is not an absolute path", p.setting, clip(p.path))
		}
	}
	if v.DataDir == "/" {
		v.fail("data-dir", "name a folder of its own, such as "+DefaultDataDir, "data-dir is the root folder")
	}
}

func (v *validator) cluster() {
	if !v.Token.IsEmpty() && v.TokenFile != "" {
		v.fail("token-file", "keep either token or token-file", "token and token-file are both set")
	}
	if !v.AgentToken.IsEmpty() && v.AgentTokenFile != "" {
		v.fail("agent-token-file", "keep either agent-token or agent-token-file", "agent-token and agent-token-file are both set")
	}
	for _, t := range []struct {
		setting string
		token   Secret
	}{{"token", v.Token}, {"agent-token", v.AgentToken}} {
		if strings.ContainsFunc(t.token.Reveal(), func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			v.fail(t.setting, fmt.Sprintf("copy the %s again, as one word", t.setting), "%s has a space or line break in it", t.setting)
		}
	}
	hasToken := !v.Token.IsEmpty() || v.TokenFile != ""
	switch {
	case v.Role == Agent && v.Server == "":
		v.fail("server", "set server to https://ADDRESS:6443 of a server (flag --server, key server or ATOLL_URL)", "an agent needs a server to join")
	case v.Role != "" && v.Server != "" && !hasToken:
		v.fail("token", "set token to the content of server/token in the data folder of that server (flag --token, key token or ATOLL_TOKEN)", "joining %s needs a token", clip(v.Server))
	case v.Role == Agent && !hasToken:
		v.fail("token", "set token to the content of server/token in the data folder of a server (flag --token, key token or ATOLL_TOKEN)", "an agent needs a token to join")
	}
	v.serverURL()
}

func (v *validator) serverURL() {
	if v.Server == "" {
		return
	}
	const try = "write server as https://ADDRESS:6443"
	u, err := url.Parse(v.Server)
	switch {
	case err != nil:
		v.fail("server", try, "server is not a URL")
	case u.Scheme != "https":
		v.fail("server", try, "server %q does not start with https://", clip(u.Redacted()))
	case u.Hostname() == "":
		v.fail("server", try, "server %q names no address", clip(u.Redacted()))
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		v.fail("server", try+" and nothing more; the token goes into token", "server %q has more than an address and a port", clip(u.Redacted()))
	case u.Port() != "" && !validPort(u.Port()):
		v.fail("server", try, "server %q has no valid port", clip(u.Redacted()))
	}
}

func validPort(text string) bool {
	n, err := strconv.Atoi(text)
	return err == nil && n > 0 && n < 65536
}

func (v *validator) node() {
	if v.NodeName != "" || v.Role != "" {
		if msgs := validation.IsDNS1123Subdomain(v.NodeName); len(msgs) > 0 {
			v.fail("node-name", "set node-name to lower-case letters, digits and dashes, such as till-1", "node-name %q is not a valid name of a node", clip(v.NodeName))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(v.NodeLabels)) {
		value := v.NodeLabels[key]
		if len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(value)) > 0 {
			v.fail("node-label", "write node-label as KEY=VALUE of at most 63 letters, digits, dashes, dots and underscores; a key may have a DNS name and a slash in front",
				"node-label %q is malformed", clip(key+"="+value))
			continue
		}
		v.restrictedLabel(key)
	}
	for _, t := range v.NodeTaints {
		if len(validation.IsQualifiedName(t.Key)) > 0 || len(validation.IsValidLabelValue(t.Value)) > 0 || !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, t.Effect) {
			v.fail("node-taint", "write node-taint as KEY=VALUE:EFFECT with the effect NoSchedule, PreferNoSchedule or NoExecute", "node-taint %q is malformed", clip(t.String()))
		}
	}
	for _, list := range []struct {
		setting string
		addrs   []netip.Addr
	}{{"node-ip", v.NodeIP}, {"node-external-ip", v.NodeExternalIP}} {
		for _, a := range list.addrs {
			v.nodeAddress(list.setting, a)
		}
	}
}

// restrictedLabel refuses the labels that the kubelet refuses: a node that may give itself any Kubernetes label could draw pods
// to itself that were meant for others.
func (v *validator) restrictedLabel(key string) {
	domain, _, ok := strings.Cut(key, "/")
	if !ok || !(domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") || domain == "k8s.io" || strings.HasSuffix(domain, ".k8s.io")) {
		return
	}
	if domain == "kubelet.kubernetes.io" || strings.HasSuffix(domain, ".kubelet.kubernetes.io") || domain == "node.kubernetes.io" || strings.HasSuffix(domain, ".node.kubernetes.io") {
		return
	}
	allowed := []string{
		"beta.kubernetes.io/arch", "beta.kubernetes.io/instance-type", "beta.kubernetes.io/os", "failure-domain.beta.kubernetes.io/region",
		"failure-domain.beta.kubernetes.io/zone", "kubernetes.io/arch", "kubernetes.io/hostname", "kubernetes.io/os",
		"node.kubernetes.io/instance-type", "topology.kubernetes.io/region", "topology.kubernetes.io/zone",
	}
	if !slices.Contains(allowed, key) {
		v.fail("node-label", fmt.Sprintf("set it once the node is there: atoll kubectl label node %s %s=...", v.NodeName, key),
			"node-label %s: Kubernetes does not let a node give itself labels of %s", clip(key), clip(domain))
	}
}

// nodeAddress checks an address under which others are to reach this machine.
func (v *validator) nodeAddress(setting string, a netip.Addr) {
	try := fmt.Sprintf("set %s to the IPv4 address of this machine in the LAN", setting)
	switch {
	case a.Is6() || a.Zone() != "":
		v.fail(setting, try, "%s %s is not IPv4, and atoll is IPv4 only for now", setting, a)
	case a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		v.fail(setting, try, "%s %s is not an address that other nodes can reach", setting, a)
	case v.ClusterCIDR.Contains(a):
		v.fail(setting, "choose another cluster-cidr, outside the network of this machine", "%s %s lies inside cluster-cidr %s", setting, a, v.ClusterCIDR)
	case v.ServiceCIDR.Contains(a):
		v.fail(setting, "choose another service-cidr, outside the network of this machine", "%s %s lies inside service-cidr %s", setting, a, v.ServiceCIDR)
	}
}

func (v *validator) listener() {
	if v.BindAddress.IsMulticast() || v.BindAddress.Is6() || !v.BindAddress.IsValid() {
		v.fail("bind-address", "set bind-address to an IPv4 address of this machine, or 0.0.0.0 for all", "bind-address %q cannot be listened on", v.BindAddress)
	}
	if v.AdvertiseAddress.IsValid() {
		v.nodeAddress("advertise-address", v.AdvertiseAddress)
	}
	taken := map[int]string{10250: "the kubelet", 10248: "the kubelet", 10249: "kube-proxy", 10256: "kube-proxy", 10257: "the controller manager", 10259: "the scheduler"}
	switch owner, isTaken := taken[v.HTTPSPort]; {
	case v.HTTPSPort < 1 || v.HTTPSPort > 65535:
		v.fail("https-listen-port", "set https-listen-port to a number from 1 to 65535", "https-listen-port is %d", v.HTTPSPort)
	case isTaken:
		v.fail("https-listen-port", "choose another https-listen-port, such as 6443", "https-listen-port %d is used by %s", v.HTTPSPort, owner)
	}
	if v.AdvertisePort < 0 || v.AdvertisePort > 65535 {
		v.fail("advertise-port", "set advertise-port to a number from 1 to 65535", "advertise-port is %d", v.AdvertisePort)
	}
	for _, name := range v.TLSSAN {
		if _, err := netip.ParseAddr(name); err == nil {
			continue
		}
		host := strings.ToLower(strings.TrimSuffix(name, "."))
		if len(validation.IsDNS1123Subdomain(host)) > 0 && len(validation.IsWildcardDNS1123Subdomain(host)) > 0 {
			v.fail("tls-san", "write tls-san as a DNS name or an IP address, without https:// and without a port", "tls-san %q is neither a DNS name nor an address", clip(name))
		}
	}
	r := v.NodePortRange
	switch {
	case r.First == 0 || r.First > r.Last:
		v.fail("service-node-port-range", "write service-node-port-range as FIRST-LAST, such as 30000-32767", "service-node-port-range %s is empty or starts at 0", r)
	case r.Contains(v.HTTPSPort):
		v.fail(v.blame("service-node-port-range", "https-listen-port"), "choose another service-node-port-range, or another https-listen-port", "service-node-port-range %s holds https-listen-port %d", r, v.HTTPSPort)
	default:
		for _, port := range slices.Sorted(maps.Keys(taken)) {
			if r.Contains(port) {
				v.fail("service-node-port-range", "choose a range that leaves out 10248 to 10259", "service-node-port-range %s holds port %d of %s", r, port, taken[port])
				break
			}
		}
	}
}
