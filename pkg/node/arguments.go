package node

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/kube/process"
	"github.com/atollhq/atoll/pkg/pki"
)

// Arguments of the upstream components: pure functions of the configuration. Loopback addresses for everything that only this node
// asks; certificates are files that their readers watch.

func apiServerArgs(cfg config.Config, p paths, addr netip.Addr, etcd string) process.Args {
	a := process.Args{
		"advertise-address":                  cfg.AdvertisedAddress(addr).String(),
		"allow-privileged":                   "true", // Pod Security decides about pods, not this switch
		"anonymous-auth":                     "true", // health checks; RBAC gives nothing else to anonymous
		"api-audiences":                      "https://kubernetes.default.svc." + cfg.ClusterDomain + ",atoll",
		"authorization-mode":                 "Node,RBAC",
		"enable-admission-plugins":           "NodeRestriction",
		"admission-control-config-file":      p.admission,
		"enable-bootstrap-token-auth":        "false", // join tokens are the supervisor's business
		"etcd-servers":                       etcd,
		"service-cluster-ip-range":           cfg.ServiceCIDR.String(),
		"service-node-port-range":            cfg.NodePortRange.String(),
		"tls-cert-file":                      p.APIServer,
		"tls-private-key-file":               p.APIServer,
		"tls-min-version":                    "VersionTLS12",
		"client-ca-file":                     p.ClientCA.Cert,
		"kubelet-certificate-authority":      p.KubeletCA.Cert,
		"kubelet-client-certificate":         p.APIServerKubeletClient,
		"kubelet-client-key":                 p.APIServerKubeletClient,
		"kubelet-preferred-address-types":    "InternalIP,Hostname",
		"proxy-client-cert-file":             p.FrontProxyClient,
		"proxy-client-key-file":              p.FrontProxyClient,
		"requestheader-client-ca-file":       p.RequestHeaderCA.Cert,
		"requestheader-allowed-names":        pki.UserFrontProxy,
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-username-headers":     "X-Remote-User",
		"service-account-issuer":             "https://kubernetes.default.svc." + cfg.ClusterDomain,
		"service-account-key-file":           p.ServiceAccountKey,
		"service-account-signing-key-file":   p.ServiceAccountKey,
		"profiling":                          strconv.FormatBool(cfg.EnablePprof),
		// Watches of the components in this process end with it; there is nobody to wait for.
		"shutdown-watch-termination-grace-period": "1s",
	}
	if cfg.SecretsEncryption {
		a["encryption-provider-config"] = p.EncryptionConfig
	}
	if cfg.Audit {
		a["audit-policy-file"] = p.auditPolicy
		if cfg.AuditPolicyFile != "" {
			a["audit-policy-file"] = cfg.AuditPolicyFile
		}
		a["audit-log-path"] = p.auditLog
		a["audit-log-maxsize"], a["audit-log-maxbackup"], a["audit-log-maxage"] = "16", "2", "30" // MB, files, days
		a["audit-log-mode"] = "batch"                                                             // one write for many events: flash wears
	}
	return a
}

func controllerManagerArgs(cfg config.Config, p paths) process.Args {
	return process.Args{
		"kubeconfig":                       p.ControllerManagerKubeconfig,
		"authentication-kubeconfig":        p.ControllerManagerKubeconfig,
		"authorization-kubeconfig":         p.ControllerManagerKubeconfig,
		"bind-address":                     "127.0.0.1",
		"tls-cert-file":                    p.Local,
		"tls-private-key-file":             p.Local,
		"client-ca-file":                   p.ClientCA.Cert,
		"requestheader-client-ca-file":     p.RequestHeaderCA.Cert,
		"leader-elect":                     "false", // ours is around it: package election
		"allocate-node-cidrs":              "true",
		"cluster-cidr":                     cfg.ClusterCIDR.String(),
		"service-cluster-ip-range":         cfg.ServiceCIDR.String(),
		"configure-cloud-routes":           "false",
		"root-ca-file":                     p.ServerCA.Cert,
		"service-account-private-key-file": p.ServiceAccountKey,
		"cluster-signing-cert-file":        p.ClientCA.Cert,
		"cluster-signing-key-file":         p.ClientCA.Key,
		"use-service-account-credentials":  "true",
		"flex-volume-plugin-dir":           p.volumePlugins,
		"profiling":                        strconv.FormatBool(cfg.EnablePprof),
		// Each controller makes a service account and a token before it works: at upstream's 20 requests a second, the first pod of
		// a new site would wait six seconds for that.
		"kube-api-qps":   "200",
		"kube-api-burst": "400",
	}
}

func schedulerArgs(cfg config.Config, p paths) process.Args {
	return process.Args{
		"kubeconfig":                   p.SchedulerKubeconfig,
		"authentication-kubeconfig":    p.SchedulerKubeconfig,
		"authorization-kubeconfig":     p.SchedulerKubeconfig,
		"bind-address":                 "127.0.0.1",
		"tls-cert-file":                p.Local,
		"tls-private-key-file":         p.Local,
		"client-ca-file":               p.ClientCA.Cert,
		"requestheader-client-ca-file": p.RequestHeaderCA.Cert,
		"leader-elect":                 "false",
		"profiling":                    strconv.FormatBool(cfg.EnablePprof),
	}
}

func kubeletArgs(cfg config.Config, p paths, addr netip.Addr) process.Args {
	a := process.Args{
		"kubeconfig":        p.KubeletKubeconfig,
		"hostname-override": cfg.NodeName,
		"node-ip":           addr.String(),
		"root-dir":          KubeletDir,
		"cert-dir":          p.AgentTLS,
	}
	if labels := nodeLabels(cfg); labels != "" {
		a["node-labels"] = labels
	}
	if len(cfg.NodeTaints) > 0 {
		taints := make([]string, len(cfg.NodeTaints))
		for i, t := range cfg.NodeTaints {
			taints[i] = t.String()
		}
		a["register-with-taints"] = strings.Join(taints, ",")
	}
	return a
}

func nodeLabels(cfg config.Config) string {
	var labels []string
	for k, v := range cfg.NodeLabels {
		labels = append(labels, k+"="+v)
	}
	return strings.Join(labels, ",")
}

const proxyHealthz = "127.0.0.1:10256"

func proxyArgs(cfg config.Config, p paths, clusterCIDR netip.Prefix) process.Args {
	return process.Args{
		"kubeconfig":           p.KubeProxyKubeconfig,
		"hostname-override":    cfg.NodeName,
		"proxy-mode":           "nftables",
		"cluster-cidr":         clusterCIDR.String(), // not NodeCIDR: with that, kube-proxy ends the process when the range changes
		"healthz-bind-address": proxyHealthz,
		"metrics-bind-address": "127.0.0.1:10249",
		"oom-score-adj":        "0",
		// The kernel sizes its table by memory. In a network namespace other than the first the setting cannot be written, and
		// kube-proxy would give up.
		"conntrack-max-per-core": "0",
		"conntrack-min":          "0",
	}
}

// Arguments returns the arguments of upstream's components on a server with these settings, by component. The benchmark runs the
// same components with the same arguments as separate processes.
func Arguments(cfg config.Config, addr netip.Addr, etcd string) map[string]process.Args {
	p := newPaths(cfg.DataDir)
	return map[string]process.Args{
		"kube-apiserver":          apiServerArgs(cfg, p, addr, etcd),
		"kube-controller-manager": controllerManagerArgs(cfg, p),
		"kube-scheduler":          schedulerArgs(cfg, p),
		"kubelet":                 kubeletArgs(cfg, p, addr),
		"kube-proxy":              proxyArgs(cfg, p, cfg.ClusterCIDR),
	}
}
