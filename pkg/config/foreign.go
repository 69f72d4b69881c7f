package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/atollhq/atoll/pkg/remedy"
)

// foreign is a K3s setting that atoll does not have.
type foreign struct {
	name       string
	takesValue bool
	harmless   []string // values that ask for what atoll does anyway
	why        string   // completes "NAME is not supported: "
	instead    string   // what to do, in the imperative
}

// variable is the environment variable that a K3s user would set for it.
func (f foreign) variable() string {
	return "ATOLL_" + strings.ToUpper(strings.ReplaceAll(f.name, "-", "_"))
}

// foreigners lists the K3s settings that atoll does not have. Which exist was read in the K3s documentation, docs/cli/server.md and agent.md.
func foreigners() []foreign {
	off := []string{"false"}
	either := []string{"true", "false"}
	const (
		noEtcd     = "atoll has no etcd inside; its datastore is SQLite, or the database that datastore-endpoint names"
		noS3       = "atoll does not upload snapshots to S3"
		noCloud    = "atoll has no cloud controller manager"
		noHelm     = "atoll has no Helm controller"
		noTunnel   = "the API server of atoll reaches kubelets directly and has no tunnel"
		oneRuntime = "atoll carries its own containerd and runs pods with nothing else"
		noBalancer = "an atoll agent has no local load balancer in front of the servers"
		allInOne   = "every atoll server runs the whole control plane and workloads"
		noVPN      = "atoll does not set up a VPN"
		remove     = "remove it"
		backup     = "remove it, and copy server/db, server/token and server/tls of the data folder while atoll is stopped"
	)
	list := []foreign{
		{"cluster-init", false, off, noEtcd, "remove it: a server that is given no --server starts a cluster by itself"},
		{"cluster-reset", false, off, "a running cluster is not reset by a start flag", "use atoll member recover"},
		{"cluster-reset-restore-path", true, nil, "a cluster is not restored by a start flag", "use atoll member recover"},
		{"cluster-secret", true, nil, "K3s itself gave it up", "use token"},
		{"etcd-arg", true, nil, noEtcd, remove},
		{"etcd-expose-metrics", false, off, noEtcd, "remove it, and read the datastore's metrics at /metrics of the API"},
		{"etcd-disable-snapshots", false, []string{"true"}, noEtcd, remove},
		{"disable-etcd", false, off, noEtcd, remove},
		{"kine-tls", false, off, "the datastore listens on a Unix socket of this machine only", remove},
		{"secrets-encryption-provider", true, nil, "atoll chooses the cipher for Secret objects itself", "remove it, and keep secrets-encryption at true"},

		{"tls-san-security", false, []string{"true"}, "the server certificate never takes a name that nobody configured", "remove it, and list each name in tls-san"},
		{"egress-selector-mode", true, []string{"disabled"}, noTunnel, "remove it, and let servers reach port 10250 of every node"},
		{"flannel-ipv6-masq", false, off, "atoll is IPv4 only for now", remove},
		{"flannel-external-ip", false, off, "traffic between nodes uses their node addresses", "remove it, and set node-ip to the address that other nodes reach"},
		{"flannel-conf", true, nil, "atoll writes the configuration of flannel itself", "use cluster-cidr, flannel-backend and flannel-iface"},
		{"flannel-cni-conf", true, nil, "atoll writes the CNI configuration itself", remove},
		{"no-flannel", false, off, "atoll brings its own pod network", remove},
		{"servicelb-namespace", true, []string{"kube-system"}, "the service load balancer of atoll has no pods", remove},
		{"node-internal-dns", true, nil, "atoll does not put DNS names into the addresses of a node", "remove it, and add the name to tls-san if the API is to answer to it"},
		{"node-external-dns", true, nil, "atoll does not put DNS names into the addresses of a node", "remove it, and add the name to tls-san if the API is to answer to it"},
		{"lb-server-port", true, nil, noBalancer, remove},
		{"disable-apiserver-lb", false, either, noBalancer, remove},
		{"vpn-auth", true, nil, noVPN, "set up the VPN on the machine, and name its address in node-ip and its interface in flannel-iface"},
		{"vpn-auth-file", true, nil, noVPN, "set up the VPN on the machine, and name its address in node-ip and its interface in flannel-iface"},

		{"disable-agent", false, off, allInOne, "remove it; to keep pods away use node-taint node-role.kubernetes.io/control-plane=:NoSchedule"},
		{"disable-apiserver", false, off, allInOne, remove},
		{"disable-controller-manager", false, off, allInOne, remove},
		{"disable-scheduler", false, off, allInOne, "remove it; pods that name another scheduler in schedulerName are left to that one"},
		{"disable-kube-proxy", false, off, "services, load balancer and DNS of atoll rely on kube-proxy", remove},
		{"disable-cloud-controller", false, either, noCloud, "remove it; to turn off load balancers use disable: servicelb"},
		{"disable-helm-controller", false, either, noHelm, remove},
		{"kube-cloud-controller-manager-arg", true, nil, noCloud, remove},
		{"kube-cloud-controller-arg", true, nil, noCloud, remove},
		{"kube-controller-arg", true, nil, "K3s itself renamed it", "use kube-controller-manager-arg"},
		{"helm-job-image", true, nil, noHelm, remove},
		{"embedded-registry", false, off, "atoll has no registry mirror between nodes", "remove it, and put image archives into agent/images of the data folder or name a mirror in registries.yaml"},
		{"supervisor-metrics", false, off, "metrics of all parts are at /metrics of the API for those who may read them", remove},

		{"docker", false, off, oneRuntime, "remove it; images of Docker can be loaded with docker save and atoll ctr images import"},
		{"container-runtime-endpoint", true, nil, oneRuntime, remove},
		{"image-service-endpoint", true, nil, oneRuntime, remove},
		{"default-runtime", true, []string{"runc"}, "atoll runs pods with the runc that it carries", remove},
		{"nonroot-devices", false, off, "the containerd of atoll keeps the owner of devices", "remove it, and grant the group of the device in the pod with supplementalGroups"},
		{"disable-default-registry-endpoint", false, off, "atoll asks the registry itself when no mirror has an image", remove},
		{"system-default-registry", true, nil, "atoll pulls no system images", "remove it; for images of workloads name a mirror in registries.yaml"},
		{"airgap-extra-registry", true, nil, "archives in agent/images keep the names that they were saved with", "save the archive with the names that the pods use"},
		{"image-credential-provider-bin-dir", true, nil, "atoll has no setting of its own for it", "use kubelet-arg: image-credential-provider-bin-dir=FOLDER"},
		{"image-credential-provider-config", true, nil, "atoll has no setting of its own for it", "use kubelet-arg: image-credential-provider-config=FILE"},
		{"selinux", false, off, "atoll brings no SELinux policy yet", "remove it, and run the machine with SELinux permissive"},
		{"disable-selinux", false, either, "atoll does not use SELinux", remove},
		{"rootless", false, off, "atoll manages mounts, networks and cgroups of the machine and needs root", "remove it, and start atoll as root"},
		{"write-kubeconfig-name", true, []string{"default"}, "the context in the kubeconfig is always called default", "remove it, and use atoll kubectl config rename-context"},
		{"vmodule", true, nil, "atoll has one verbosity for everything", "use v or debug"},
	}
	for _, name := range []string{"dir", "name", "reconcile-interval", "retention", "schedule-cron"} {
		list = append(list, foreign{"etcd-snapshot-" + name, true, nil, noEtcd, backup})
	}
	list = append(list, foreign{"etcd-snapshot-compress", false, off, noEtcd, backup})
	for _, name := range []string{"", "-insecure", "-skip-ssl-verify"} {
		list = append(list, foreign{"etcd-s3" + name, false, off, noS3, backup})
	}
	for _, name := range []string{
		"access-key", "bucket", "bucket-lookup-type", "config-secret", "endpoint", "endpoint-ca", "folder", "proxy", "region", "retention",
		"secret-key", "session-token", "timeout",
	} {
		list = append(list, foreign{"etcd-s3-" + name, true, nil, noS3, backup})
	}
	return list
}

// foreignSetting judges a name that is no setting of atoll: a K3s setting that asks for nothing special is a warning, anything
// else an error.
func foreignSetting(name string, occurrences []given, list []setting) (warning string, err error) {
	first := occurrences[0]
	all := foreigners()
	i := slices.IndexFunc(all, func(f foreign) bool { return f.name == name })
	if i < 0 {
		var words []string
		for _, s := range list {
			words = append(words, s.names()...)
		}
		return "", at(first.at, unknownName(name, name, words))
	}
	f := all[i]
	if !slices.ContainsFunc(occurrences, func(g given) bool { return !f.accepts(g.raw) }) {
		return fmt.Sprintf("%s: %s can be removed: %s", first.at, name, f.why), nil
	}
	return "", at(first.at, &problem{name, remedy.Wrap(fmt.Errorf("%s is not supported: %s", name, f.why), "%s: %s", name, f.instead)})
}

func (f foreign) accepts(raw string) bool {
	if b, ok := parseBool(raw); ok && !f.takesValue {
		raw = fmt.Sprint(b)
	}
	return slices.Contains(f.harmless, raw)
}
