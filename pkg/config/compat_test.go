package config_test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/config"
)

// The file of a K3s user with a few years of habits, moved to /etc/atoll: it loads, and what it asks for is there.
func TestFileOfAK3sUserLoads(t *testing.T) {
	l, err := config.Load(server(t, `# /etc/rancher/k3s/config.yaml, moved
token: "K10deadbeef::server:hush"
write-kubeconfig-mode: "0644"
tls-san:
  - store-0421.shop.example
  - 10.4.21.10
node-name: store-0421-a
node-ip: 10.4.21.11
node-label:
  - "site=store-0421"
  - "topology.kubernetes.io/zone=store-0421"
node-taint:
  - "CriticalAddonsOnly=true:NoExecute"
cluster-cidr: 10.52.0.0/16
service-cidr: 10.53.0.0/16
cluster-dns: 10.53.0.10
cluster-domain: cluster.local
flannel-backend: host-gw
flannel-iface: eth0
disable:
  - traefik
  - servicelb
disable-cloud-controller: true
disable-helm-controller: true
disable-network-policy: true
secrets-encryption: true
kube-apiserver-arg:
  - "anonymous-auth=false"
  - "audit-log-maxage=30"
kube-controller-manager-arg: "bind-address=127.0.0.1"
kubelet-arg:
  - "eviction-hard=memory.available<100Mi,nodefs.available<5%"
  - "max-pods=60"
protect-kernel-defaults: true
selinux: false
rootless: false
docker: false
embedded-registry: false
etcd-disable-snapshots: true
private-registry: /etc/atoll/registries.yaml
resolv-conf: /run/systemd/resolve/resolv.conf
debug: false
v: 1
`))
	if err != nil {
		t.Fatal(err)
	}
	c := l.Config
	for _, check := range []struct {
		name string
		ok   bool
	}{
		{"token", c.Token.Reveal() == "K10deadbeef::server:hush"},
		{"write-kubeconfig-mode", c.KubeconfigMode == 0o644},
		{"tls-san", slices.Equal(c.TLSSAN, []string{"store-0421.shop.example", "10.4.21.10"})},
		{"node-ip", slices.Equal(c.NodeIP, []netip.Addr{netip.MustParseAddr("10.4.21.11")})},
		{"node-label", c.NodeLabels["topology.kubernetes.io/zone"] == "store-0421" && len(c.NodeLabels) == 2},
		{"node-taint", slices.Equal(c.NodeTaints, []config.Taint{{Key: "CriticalAddonsOnly", Value: "true", Effect: "NoExecute"}})},
		{"cluster-dns", c.DNSAddress() == netip.MustParseAddr("10.53.0.10")},
		{"disable", c.Disabled(config.ServiceLB) && c.Disabled(config.NetworkPolicy) && !c.Disabled(config.CoreDNS)},
		{"kubelet-arg", len(c.KubeletArgs) == 2 && strings.Contains(c.KubeletArgs[0], ",")},
		{"kube-controller-manager-arg", slices.Equal(c.ControllerManagerArgs, []string{"bind-address=127.0.0.1"})},
		{"protect-kernel-defaults", c.ProtectKernelDefaults},
	} {
		if !check.ok {
			t.Errorf("%s is not what the file says: %+v", check.name, c)
		}
	}
	for _, name := range []string{"traefik", "disable-cloud-controller", "disable-helm-controller", "selinux", "rootless", "docker", "embedded-registry", "etcd-disable-snapshots"} {
		if n := count(l.Warnings, name+" can be removed"); n != 1 {
			t.Errorf("%d warnings about %s, want 1: %q", n, name, l.Warnings)
		}
	}
	if len(l.Warnings) != 8 {
		t.Errorf("%d warnings, want 8: %q", len(l.Warnings), l.Warnings)
	}
}

func count(list []string, text string) int {
	n := 0
	for _, s := range list {
		if strings.Contains(s, text) {
			n++
		}
	}
	return n
}

// The same for a file of the kind that K3s documents for several servers with embedded etcd. It cannot be honoured, and each line
// that cannot says so.
func TestFileOfAnEtcdUserIsExplained(t *testing.T) {
	_, err := config.Load(server(t, `cluster-init: true
token: hush
etcd-expose-metrics: true
etcd-snapshot-schedule-cron: "0 */5 * * *"
etcd-snapshot-retention: 12
etcd-s3: true
etcd-s3-bucket: backups
flannel-backend: wireguard-native
egress-selector-mode: agent
`))
	wantError(t, err, "config.yaml:1: cluster-init is not supported", "config.yaml:3: etcd-expose-metrics", "config.yaml:4: etcd-snapshot-schedule-cron", "config.yaml:5: etcd-snapshot-retention",
		"config.yaml:6: etcd-s3 is", "config.yaml:7: etcd-s3-bucket", "config.yaml:9: egress-selector-mode")
	_, err = config.Load(server(t, "flannel-backend: wireguard-native\n"))
	wantError(t, err, "config.yaml:1: flannel-backend wireguard-native is not supported", "vxlan, host-gw")
}

// The example of the K3s documentation for several files, with the values that it promises.
func TestDropInsOfTheK3sDocumentation(t *testing.T) {
	dir := write(t, map[string]string{
		"config.yaml":              "token: boop\nnode-label:\n  - foo=bar\n  - bar=baz\n",
		"config.yaml.d/test1.yaml": "write-kubeconfig-mode: 600\nnode-taint:\n  - alice=bob:NoExecute\n",
		"config.yaml.d/test2.yaml": "write-kubeconfig-mode: 777\nnode-label:\n  - other=what\n  - foo=three\nnode-taint+:\n  - charlie=delta:NoSchedule\n",
	})
	l, err := config.Load(config.Input{Role: config.Server, File: filepath.Join(dir, "config.yaml"), Hostname: hostname("box")})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"write-kubeconfig-mode": "0777", "node-label": "foo=three,other=what", "node-taint": "alice=bob:NoExecute,charlie=delta:NoSchedule",
	} {
		if got := value(t, l, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if l.Config.Token.Reveal() != "boop" {
		t.Error("the token is lost")
	}
}

// What K3s users put into INSTALL_K3S_EXEC.
func TestCommandLineOfAK3sUser(t *testing.T) {
	l, err := command(t, config.Server, nil, "--disable", "traefik,servicelb", "--disable-cloud-controller", "--write-kubeconfig-mode=644", "--node-ip", "10.1.1.1", "--tls-san", "k.example",
		"--kubelet-arg=cloud-provider=external", "--flannel-iface=eth1")
	if err != nil {
		t.Fatal(err)
	}
	if !l.Config.Disabled(config.ServiceLB) || len(l.Warnings) != 2 {
		t.Errorf("disable %q, warnings %q", l.Config.Disable, l.Warnings)
	}
	l, err = command(t, config.Agent, []string{"ATOLL_URL=https://10.1.1.1:6443", "ATOLL_TOKEN=hush"}, "--node-label", "a=b")
	if err != nil {
		t.Fatal(err)
	}
	if l.Config.Server != "https://10.1.1.1:6443" || l.Config.Token.Reveal() != "hush" {
		t.Errorf("agent: %+v", l.Config)
	}
}
