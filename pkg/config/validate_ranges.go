package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// ranges checks the address ranges of pods and services and the addresses inside them.
func (v *validator) ranges() {
	// A node gets a /24 for its pods; the controller manager wants at most 2^16 of those. Services need ten addresses for the DNS
	// address to exist, and the API server takes at most 2^20.
	pods := v.oneRange("cluster-cidr", v.ClusterCIDR, 8, 24)
	services := v.oneRange("service-cidr", v.ServiceCIDR, 12, 28)
	if pods && services && v.ClusterCIDR.Overlaps(v.ServiceCIDR) {
		v.fail(v.blame("service-cidr", "cluster-cidr"), "choose two ranges without a common address, such as 10.42.0.0/16 and 10.43.0.0/16",
			"service-cidr %s overlaps cluster-cidr %s", v.ServiceCIDR, v.ClusterCIDR)
	}
	if services && v.ClusterDNS.IsValid() {
		try := fmt.Sprintf("set cluster-dns to an address inside service-cidr, such as %s, or remove it", nth(v.ServiceCIDR, 10))
		switch {
		case !v.ServiceCIDR.Contains(v.ClusterDNS):
			v.fail("cluster-dns", try, "cluster-dns %s lies outside service-cidr %s", v.ClusterDNS, v.ServiceCIDR)
		case v.ClusterDNS == v.ServiceCIDR.Addr():
			v.fail("cluster-dns", try, "cluster-dns %s is the network address of service-cidr %s", v.ClusterDNS, v.ServiceCIDR)
		case v.ClusterDNS == v.APIServiceIP():
			v.fail("cluster-dns", try, "cluster-dns %s is the first address of service-cidr, which the API itself has", v.ClusterDNS)
		case v.ClusterDNS == last(v.ServiceCIDR):
			v.fail("cluster-dns", try, "cluster-dns %s is the broadcast address of service-cidr %s", v.ClusterDNS, v.ServiceCIDR)
		}
	}
	if len(validation.IsDNS1123Subdomain(v.ClusterDomain)) > 0 {
		v.fail("cluster-domain", "set cluster-domain to a DNS name in lower case, such as cluster.local", "cluster-domain %q is not a DNS name", clip(v.ClusterDomain))
	}
}

// oneRange checks one address range by itself and tells whether it can be compared with others.
func (v *validator) oneRange(setting string, p netip.Prefix, largest, smallest int) bool {
	try := fmt.Sprintf("set %s to a private IPv4 range, such as 10.42.0.0/16", setting)
	switch {
	case !p.IsValid():
		v.fail(setting, try, "%s is empty", setting)
	case !p.Addr().Is4():
		v.fail(setting, try, "%s %s is not IPv4, and atoll is IPv4 only for now", setting, p)
	case p != p.Masked():
		v.fail(setting, fmt.Sprintf("write %s as %s", setting, p.Masked()), "%s %s is an address inside a range, not the start of one", setting, p)
	case p.Bits() < largest || p.Bits() > smallest:
		v.fail(setting, fmt.Sprintf("choose a size for %s from /%d to /%d", setting, largest, smallest), "%s %s has an unusable size", setting, p)
	case p.Overlaps(netip.MustParsePrefix("127.0.0.0/8")) || p.Overlaps(netip.MustParsePrefix("224.0.0.0/3")) || p.Overlaps(netip.MustParsePrefix("169.254.0.0/16")) || p.Overlaps(netip.MustParsePrefix("0.0.0.0/8")):
		v.fail(setting, try, "%s %s holds loopback, link-local or multicast addresses", setting, p)
	default:
		return true
	}
	return false
}

// last returns the highest address of an IPv4 range.
func last(p netip.Prefix) netip.Addr { return nth(p, 1<<(32-p.Bits())-1) }

// absentParts are parts of K3s that people disable by habit and that atoll does not have.
func absentParts() []string {
	return []string{"traefik", "traefik-crd", "runtimes", "ccm", "helm-controller", "gateway-api-crd"}
}

func (v *validator) components() {
	known := parts()
	for _, name := range v.Disable {
		if slices.Contains(known, name) || slices.Contains(absentParts(), name) {
			continue
		}
		try := "disable takes: " + strings.Join(known, ", ")
		if near := Nearest(name, known); near != "" {
			v.fail("disable", try, "disable names %q, which is no part of atoll; the nearest is %s", clip(name), near)
			continue
		}
		v.fail("disable", try, "disable names %q, which is no part of atoll", clip(name))
	}
	for _, list := range []struct {
		setting string
		args    []string
	}{
		{"kubelet-arg", v.KubeletArgs}, {"kube-proxy-arg", v.KubeProxyArgs}, {"kube-apiserver-arg", v.APIServerArgs},
		{"kube-controller-manager-arg", v.ControllerManagerArgs}, {"kube-scheduler-arg", v.SchedulerArgs},
	} {
		for _, arg := range list.args {
			name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			if name == "" || strings.ContainsAny(name, " \t\r\n") {
				v.fail(list.setting, fmt.Sprintf("write %s as NAME=VALUE, with the name of an upstream flag", list.setting), "%s %q names no flag", list.setting, clip(arg))
			}
		}
	}
	if v.AuditPolicyFile != "" && !v.Audit {
		v.fail("audit-policy-file", "remove audit-policy-file, or set audit to true", "audit-policy-file is set although audit is false")
	}
}

func (v *validator) datastore() {
	files := []struct{ setting, path string }{
		{"datastore-cafile", v.DatastoreCAFile}, {"datastore-certfile", v.DatastoreCertFile}, {"datastore-keyfile", v.DatastoreKeyFile},
	}
	if v.DatastoreEndpoint.IsEmpty() {
		for _, f := range files {
			if f.path != "" {
				v.fail(f.setting, fmt.Sprintf("set datastore-endpoint, or remove %s", f.setting), "%s is set without datastore-endpoint", f.setting)
			}
		}
		return
	}
	if (v.DatastoreCertFile == "") != (v.DatastoreKeyFile == "") {
		v.fail("datastore-keyfile", "set both datastore-certfile and datastore-keyfile, or neither", "only one of datastore-certfile and datastore-keyfile is set")
	}
	// The endpoint holds a password: no part of it but the scheme is quoted. MySQL's form has parentheses that net/url refuses.
	scheme, _, ok := strings.Cut(v.DatastoreEndpoint.Reveal(), "://")
	known := []string{"sqlite", "postgres", "postgresql", "mysql", "nats", "http", "https"}
	const try = "write datastore-endpoint as postgres://USER:PASSWORD@ADDRESS:5432/DATABASE, mysql://, nats:// or https:// of etcd, or remove it to use SQLite"
	if !ok || !slices.Contains(known, scheme) {
		v.fail("datastore-endpoint", try, "datastore-endpoint does not start with one of: %s://", strings.Join(known, "://, "))
		return
	}
	if scheme == "http" || scheme == "https" {
		for endpoint := range strings.SplitSeq(v.DatastoreEndpoint.Reveal(), ",") {
			if u, err := url.Parse(endpoint); err != nil || u.Host == "" {
				v.fail("datastore-endpoint", try, "datastore-endpoint holds an etcd address that is not a URL")
			}
		}
	}
}

// warnings lists what is accepted but will surprise.
func (c Config) warnings() []string {
	var out []string
	for _, name := range c.Disable {
		if slices.Contains(absentParts(), name) {
			out = append(out, fmt.Sprintf("disable: %s can be removed: it is not part of atoll", name))
		}
	}
	if c.NodeName == "localhost" || strings.HasPrefix(c.NodeName, "localhost.") {
		out = append(out, fmt.Sprintf("this node is called %s, as a second machine may be: set node-name", c.NodeName))
	}
	if u, err := url.Parse(c.Server); err == nil && c.Server != "" && u.Port() == "" {
		out = append(out, fmt.Sprintf("server %s has no port, so 443 is used; atoll servers listen on 6443 unless told otherwise", c.Server))
	}
	if c.KubeconfigMode&0o022 != 0 {
		out = append(out, fmt.Sprintf("write-kubeconfig-mode %s lets others change the file with which root runs kubectl", c.KubeconfigMode))
	}
	if c.Role == Server && !c.SecretsEncryption {
		out = append(out, "secrets-encryption is false: Secret objects lie on disk as they are")
	}
	return out
}
