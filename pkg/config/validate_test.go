package config_test

import (
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/config"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestValidate(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*config.Config)
		want   string // "" when it is fine
	}{
		{"default", func(*config.Config) {}, ""},

		{"verbosity too high", func(c *config.Config) { c.Verbosity = 11 }, "v is 11"},
		{"verbosity negative", func(c *config.Config) { c.Verbosity = -1 }, "v is -1"},
		{"verbosity at its bound", func(c *config.Config) { c.Verbosity = 10 }, ""},
		{"alsologtostderr alone", func(c *config.Config) { c.AlsoLogToStderr = true }, "alsologtostderr is set without log"},
		{"alsologtostderr with log", func(c *config.Config) { c.AlsoLogToStderr, c.LogFile = true, "/var/log/atoll.log" }, ""},

		{"no data folder", func(c *config.Config) { c.DataDir = "" }, "data-dir is empty"},
		{"relative data folder", func(c *config.Config) { c.DataDir = "data" }, `data-dir "data" is not an absolute path`},
		{"root as data folder", func(c *config.Config) { c.DataDir = "/" }, "data-dir is the root folder"},
		{"relative token file", func(c *config.Config) { c.TokenFile = "token" }, "token-file"},
		{"no kubeconfig", func(c *config.Config) { c.Kubeconfig = "" }, "write-kubeconfig is empty"},

		{"token and file", func(c *config.Config) { c.Token, c.TokenFile = config.NewSecret("a"), "/token" }, "token and token-file are both set"},
		{"agent token and file", func(c *config.Config) { c.AgentToken, c.AgentTokenFile = config.NewSecret("a"), "/token" }, "agent-token and agent-token-file are both set"},
		{"token with a line break", func(c *config.Config) { c.Token = config.NewSecret("hush\nhush") }, "token has a space or line break"},
		{"agent without anything", func(c *config.Config) { c.Role = config.Agent }, "an agent needs a server"},
		{"agent without a token", func(c *config.Config) { c.Role, c.Server = config.Agent, "https://a:6443" }, "joining https://a:6443 needs a token"},
		{"agent without a server", func(c *config.Config) { c.Role, c.Token = config.Agent, config.NewSecret("a") }, "an agent needs a server"},
		{"agent with a token file", func(c *config.Config) { c.Role, c.Server, c.TokenFile = config.Agent, "https://a:6443", "/token" }, ""},
		{"joining server without a token", func(c *config.Config) { c.Server = "https://a:6443" }, "needs a token"},
		{"server URL with http", joining("http://a:6443"), "does not start with https://"},
		{"server without a scheme", joining("10.0.0.1:6443"), "server is not a URL"},
		{"server as a bare name", joining("a.example"), "does not start with https://"},
		{"server without an address", joining("https://:6443"), "names no address"},
		{"server with a path", joining("https://a:6443/k8s"), "has more than an address and a port"},
		{"server with a slash", joining("https://a:6443/"), ""},
		{"server with a password", joining("https://u:hushhush@a:6443"), "has more than an address and a port"},
		{"server with port 0", joining("https://a:0"), "has no valid port"},
		{"server with port 65536", joining("https://a:65536"), "has no valid port"},
		{"server with IPv6", joining("https://[fd00::1]:6443"), ""},

		{"node name with capitals", func(c *config.Config) { c.NodeName = "Till" }, `node-name "Till" is not a valid name`},
		{"node name with an underscore", func(c *config.Config) { c.NodeName = "till_1" }, "node-name"},
		{"node name too long", func(c *config.Config) { c.NodeName = strings.Repeat("a", 254) }, "node-name"},
		{"node name with dots", func(c *config.Config) { c.NodeName = "till-1.shop.example" }, ""},
		{"no node name", func(c *config.Config) { c.NodeName = "" }, "node-name"},
		{"label key with a space", label("a b", "c"), `node-label "a b=c" is malformed`},
		{"label value with a slash", label("a", "b/c"), "node-label"},
		{"label value too long", label("a", strings.Repeat("b", 64)), "node-label"},
		{"label with a domain", label("shop.example/till", "1"), ""},
		{"label without a value", label("till", ""), ""},
		{"label of Kubernetes", label("node-role.kubernetes.io/worker", "true"), "Kubernetes does not let a node give itself labels"},
		{"label of Kubernetes that is allowed", label("topology.kubernetes.io/zone", "a"), ""},
		{"label for NodeRestriction", label("node-restriction.kubernetes.io/x", "a"), "Kubernetes does not let a node"},
		{"label below node.kubernetes.io", label("x.node.kubernetes.io/y", "a"), ""},
		{"taint with an unknown effect", func(c *config.Config) { c.NodeTaints = []config.Taint{{Key: "a", Effect: "NoRun"}} }, `node-taint "a=:NoRun" is malformed`},
		{"taint without a key", func(c *config.Config) { c.NodeTaints = []config.Taint{{Value: "a", Effect: "NoExecute"}} }, "node-taint"},
		{"loopback node address", nodeIP("127.0.0.1"), "not an address that other nodes can reach"},
		{"unspecified node address", nodeIP("0.0.0.0"), "not an address that other nodes can reach"},
		{"multicast node address", nodeIP("224.0.0.1"), "not an address that other nodes can reach"},
		{"broadcast node address", nodeIP("255.255.255.255"), "not an address that other nodes can reach"},
		{"IPv6 node address", nodeIP("fd00::1"), "IPv4 only"},
		{"IPv4 in IPv6", nodeIP("::ffff:10.0.0.1"), "IPv4 only"},
		{"node address among pods", nodeIP("10.42.3.4"), "node-ip 10.42.3.4 lies inside cluster-cidr 10.42.0.0/16"},
		{"node address among services", nodeIP("10.43.3.4"), "node-ip 10.43.3.4 lies inside service-cidr 10.43.0.0/16"},
		{"external address among pods", func(c *config.Config) { c.NodeExternalIP = []netip.Addr{addr("10.42.0.1")} }, "node-external-ip 10.42.0.1 lies inside"},

		{"IPv6 bind address", func(c *config.Config) { c.BindAddress = addr("::") }, "bind-address"},
		{"no bind address", func(c *config.Config) { c.BindAddress = netip.Addr{} }, "bind-address"},
		{"loopback bind address", func(c *config.Config) { c.BindAddress = addr("127.0.0.1") }, ""},
		{"advertise loopback", func(c *config.Config) { c.AdvertiseAddress = addr("127.0.0.1") }, "advertise-address 127.0.0.1 is not an address"},
		{"port 0", func(c *config.Config) { c.HTTPSPort = 0 }, "https-listen-port is 0"},
		{"port 65536", func(c *config.Config) { c.HTTPSPort = 65536 }, "https-listen-port is 65536"},
		{"port of the kubelet", func(c *config.Config) { c.HTTPSPort = 10250 }, "https-listen-port 10250 is used by the kubelet"},
		{"port 443", func(c *config.Config) { c.HTTPSPort = 443 }, ""},
		{"advertised port", func(c *config.Config) { c.AdvertisePort = 70000 }, "advertise-port is 70000"},
		{"name with a scheme", san("https://a.example"), "tls-san"},
		{"name with a port", san("a.example:6443"), "tls-san"},
		{"name with a space", san("a b"), "tls-san"},
		{"wildcard name", san("*.shop.example"), ""},
		{"name with capitals", san("Store.Example"), ""},
		{"name with a dot at its end", san("store.example."), ""},
		{"IPv6 address", san("fd00::1"), ""},

		{"backwards port range", ports(32767, 30000), "empty"},
		{"port range from 0", ports(0, 100), "starts at 0"},
		{"port range with the API", ports(6000, 7000), "holds https-listen-port 6443"},
		{"port range with the kubelet", ports(10000, 10255), "holds port 10248 of the kubelet"},
		{"one port", ports(30000, 30000), ""},

		{"pods and services overlap", cidrs("10.42.0.0/16", "10.42.128.0/20"), "service-cidr 10.42.128.0/20 overlaps cluster-cidr 10.42.0.0/16"},
		{"pods inside services", cidrs("10.43.8.0/22", "10.43.0.0/16"), "overlaps"},
		{"neighbours", cidrs("10.42.0.0/17", "10.42.128.0/17"), ""},
		{"host bits", cidrs("10.42.1.0/16", "10.43.0.0/16"), "cluster-cidr 10.42.1.0/16 is an address inside a range"},
		{"pods too few", cidrs("10.42.0.0/25", "10.43.0.0/16"), "cluster-cidr 10.42.0.0/25 has an unusable size"},
		{"pods smallest", cidrs("10.42.0.0/24", "10.43.0.0/16"), ""},
		{"pods largest", cidrs("10.0.0.0/8", "172.16.0.0/12"), ""},
		{"pods too many", cidrs("10.0.0.0/7", "172.16.0.0/12"), "cluster-cidr 10.0.0.0/7 has an unusable size"},
		{"everything", cidrs("0.0.0.0/0", "10.43.0.0/16"), "unusable size"},
		{"services too few", cidrs("10.42.0.0/16", "10.43.0.0/29"), "service-cidr 10.43.0.0/29 has an unusable size"},
		{"services smallest", cidrs("10.42.0.0/16", "10.43.0.0/28"), ""},
		{"services too many", cidrs("10.42.0.0/16", "172.0.0.0/11"), "unusable size"},
		{"loopback pods", cidrs("127.1.0.0/16", "10.43.0.0/16"), "loopback"},
		{"IPv6 pods", cidrs("fd00::/48", "10.43.0.0/16"), "IPv4 only"},
		{"no pods", func(c *config.Config) { c.ClusterCIDR = netip.Prefix{} }, "cluster-cidr is empty"},
		{"DNS outside", dns("10.44.0.10"), "cluster-dns 10.44.0.10 lies outside service-cidr 10.43.0.0/16"},
		{"DNS at the API's address", dns("10.43.0.1"), "which the API itself has"},
		{"DNS at the network address", dns("10.43.0.0"), "network address"},
		{"DNS at the broadcast address", dns("10.43.255.255"), "broadcast address"},
		{"DNS elsewhere inside", dns("10.43.0.53"), ""},
		{"domain with an underscore", func(c *config.Config) { c.ClusterDomain = "cluster_local" }, "cluster-domain"},
		{"no domain", func(c *config.Config) { c.ClusterDomain = "" }, "cluster-domain"},

		{"disable one letter off", disable("corends"), `disable names "corends", which is no part of atoll; the nearest is coredns`},
		{"disable nothing near", disable("pizza"), "disable takes: coredns, servicelb, local-storage, metrics-server, network-policy"},
		{"disable what K3s has", disable("traefik"), ""},
		{"disable everything", disable("coredns", "servicelb", "local-storage", "metrics-server", "network-policy"), ""},
		{"argument without a name", func(c *config.Config) { c.KubeletArgs = []string{"=1"} }, `kubelet-arg "=1" names no flag`},
		{"argument in two words", func(c *config.Config) { c.APIServerArgs = []string{"--v 2"} }, "kube-apiserver-arg"},
		{"argument with dashes", func(c *config.Config) { c.SchedulerArgs = []string{"--v=2"} }, ""},
		{"policy without audit", func(c *config.Config) { c.Audit, c.AuditPolicyFile = false, "/policy" }, "audit is false"},
		{"pod security in other words", func(c *config.Config) { c.PodSecurity = "restrictive" }, `pod-security is "restrictive", the nearest is restricted`},
		{"backend none", func(c *config.Config) { c.FlannelBackend = "none" }, "flannel-backend none is not supported: another pod network"},
		{"backend misspelt", func(c *config.Config) { c.FlannelBackend = "hostgw" }, "the nearest is host-gw"},
		{"snapshotter of K3s", func(c *config.Config) { c.Snapshotter = "stargz" }, "snapshotter stargz is not supported: lazy pulling"},

		{"Postgres", endpoint("postgres://u:hushhush@db:5432/atoll?sslmode=disable"), ""},
		{"MySQL", endpoint("mysql://u:hushhush@tcp(db:3306)/atoll"), ""},
		{"NATS", endpoint("nats://a:4222,nats://b:4222?bucket=x"), ""},
		{"etcd", endpoint("https://a:2379,https://b:2379"), ""},
		{"etcd without a second address", endpoint("https://a:2379,"), "not a URL"},
		{"database without a scheme", endpoint("u:hushhush@tcp(db:3306)/atoll"), "datastore-endpoint does not start with one of"},
		{"unknown database", endpoint("oracle://hushhush"), "datastore-endpoint does not start with one of"},
		{"CA without a database", func(c *config.Config) { c.DatastoreCAFile = "/ca" }, "datastore-cafile is set without datastore-endpoint"},
		{"certificate without a key", func(c *config.Config) {
			c.DatastoreEndpoint, c.DatastoreCertFile = config.NewSecret("https://a:2379"), "/cert"
		}, "only one of"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := config.Default()
			c.NodeName = "till-1"
			row.change(&c)
			err := c.Validate()
			if row.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, row.want)
			if err != nil && strings.Contains(err.Error(), "hushhush") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func joining(url string) func(*config.Config) {
	return func(c *config.Config) { c.Server, c.Token = url, config.NewSecret("a") }
}

func label(key, value string) func(*config.Config) {
	return func(c *config.Config) { c.NodeLabels = map[string]string{key: value} }
}

func nodeIP(a string) func(*config.Config) {
	return func(c *config.Config) { c.NodeIP = []netip.Addr{addr(a)} }
}

func san(name string) func(*config.Config) {
	return func(c *config.Config) { c.TLSSAN = []string{name} }
}

func ports(first, last uint16) func(*config.Config) {
	return func(c *config.Config) { c.NodePortRange = config.PortRange{First: first, Last: last} }
}

func cidrs(pods, services string) func(*config.Config) {
	return func(c *config.Config) { c.ClusterCIDR, c.ServiceCIDR = prefix(pods), prefix(services) }
}

func dns(a string) func(*config.Config) {
	return func(c *config.Config) { c.ClusterDNS = addr(a) }
}

func disable(names ...string) func(*config.Config) {
	return func(c *config.Config) { c.Disable = names }
}

func endpoint(url string) func(*config.Config) {
	return func(c *config.Config) { c.DatastoreEndpoint = config.NewSecret(url) }
}

func TestWarnings(t *testing.T) {
	for _, row := range []struct{ name, yaml, want string }{
		{"traefik", "disable: traefik\n", "disable: traefik can be removed: it is not part of atoll"},
		{"localhost", "node-name: localhost\n", "this node is called localhost"},
		{"server without a port", "server: https://a.example\ntoken: a\n", "443 is used"},
		{"kubeconfig for all to write", "write-kubeconfig-mode: 666\n", "lets others change the file"},
		{"kubeconfig for all to read", "write-kubeconfig-mode: 644\n", ""},
		{"plain secrets", "secrets-encryption: false\n", "Secret objects lie on disk as they are"},
		{"nothing special", "debug: true\n", ""},
	} {
		l, err := config.Load(server(t, row.yaml))
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if row.want == "" && len(l.Warnings) > 0 || row.want != "" && (len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], row.want)) {
			t.Errorf("%s: warnings %q, want %q", row.name, l.Warnings, row.want)
		}
	}
}

func TestDerived(t *testing.T) {
	c := config.Default()
	for _, row := range []struct{ name, got, want string }{
		{"API service", c.APIServiceIP().String(), "10.43.0.1"},
		{"DNS", c.DNSAddress().String(), "10.43.0.10"},
		{"port", strconv.Itoa(c.AdvertisedPort()), "6443"},
		{"address of the node", c.AdvertisedAddress(addr("10.0.0.7")).String(), "10.0.0.7"},
		{"URL", c.LocalURL(), "https://127.0.0.1:6443"},
		{"volumes", c.StoragePath(), "/var/lib/atoll/storage"},
	} {
		if row.got != row.want {
			t.Errorf("default %s = %s, want %s", row.name, row.got, row.want)
		}
	}
	c.ServiceCIDR, c.ClusterDNS, c.AdvertisePort, c.BindAddress, c.LocalStoragePath = prefix("192.168.7.240/28"), addr("192.168.7.250"), 443, addr("10.0.0.7"), "/volumes"
	c.NodeIP, c.NodeExternalIP = []netip.Addr{addr("10.0.0.8")}, []netip.Addr{addr("203.0.113.9")}
	for _, row := range []struct{ name, got, want string }{
		{"API service", c.APIServiceIP().String(), "192.168.7.241"},
		{"DNS", c.DNSAddress().String(), "192.168.7.250"},
		{"port", strconv.Itoa(c.AdvertisedPort()), "443"},
		{"address", c.AdvertisedAddress(addr("10.0.0.7")).String(), "203.0.113.9"},
		{"URL", c.LocalURL(), "https://10.0.0.7:6443"},
		{"volumes", c.StoragePath(), "/volumes"},
	} {
		if row.got != row.want {
			t.Errorf("chosen %s = %s, want %s", row.name, row.got, row.want)
		}
	}
	c.NodeExternalIP = nil
	if got := c.AdvertisedAddress(addr("10.0.0.7")); got != addr("10.0.0.8") {
		t.Errorf("advertised address with node-ip = %s", got)
	}
	c.AdvertiseAddress = addr("10.0.0.9")
	if got := c.AdvertisedAddress(addr("10.0.0.7")); got != addr("10.0.0.9") {
		t.Errorf("advertised address with advertise-address = %s", got)
	}
	c.ServiceCIDR = netip.Prefix{}
	if c.APIServiceIP().IsValid() {
		t.Error("a range that is not there has a first address")
	}
}

func TestTokenFiles(t *testing.T) {
	dir := write(t, map[string]string{"good": "hush\n", "empty": "\n", "two": "hush\nhush\n", "big": strings.Repeat("h", 5000)})
	for _, row := range []struct{ name, file, want, error string }{
		{"one line", "good", "hush", ""},
		{"empty", "empty", "", "does not hold one token"},
		{"two lines", "two", "", "does not hold one token"},
		{"too large", "big", "", "does not hold one token"},
		{"missing", "no", "", "no such file"},
	} {
		c := config.Default()
		c.TokenFile, c.AgentTokenFile = filepath.Join(dir, row.file), filepath.Join(dir, row.file)
		for _, read := range []func() (config.Secret, error){c.JoinToken, c.JoinAgentToken} {
			got, err := read()
			if row.error != "" {
				wantError(t, err, row.error)
				continue
			}
			if err != nil || got.Reveal() != row.want {
				t.Errorf("%s: %q, %v", row.name, got.Reveal(), err)
			}
		}
	}
	c := config.Default()
	if s, err := c.JoinToken(); err != nil || !s.IsEmpty() {
		t.Errorf("no token: %v, %v", s, err)
	}
	c.Token = config.NewSecret("direct")
	if s, _ := c.JoinToken(); s.Reveal() != "direct" {
		t.Error("the token itself is lost")
	}
}
