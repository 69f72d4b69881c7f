package node

import (
	"path/filepath"

	"github.com/atollhq/atoll/pkg/pki"
)

// RunDir holds sockets and what must be lost at a reboot.
const RunDir = "/run/atoll"

// KubeletDir is fixed: CSI drivers and monitoring look for it there.
const KubeletDir = "/var/lib/kubelet"

// StatusSocket is where the running node answers `atoll status`.
const StatusSocket = RunDir + "/status.sock"

// ContainerdSocket is the container runtime's.
const ContainerdSocket = RunDir + "/containerd/containerd.sock"

// PolicySocket is where the CNI plugin atoll-policy asks for the rules of a new pod.
const PolicySocket = RunDir + "/policy.sock"

// paths are the places on a node's disk. They are computed once from the data folder and touch no disk.
type paths struct {
	pki.Paths
	data string

	datastore, datastoreSocket       string
	manifests, auditLog, auditPolicy string
	admission                        string
	containerd, containerdConfig     string
	containerdLog, containerdImports string
	registries, opt                  string
	images, imageRecord              string
	cniConf, cniConfDir, cniAddrs    string
	flannelConf                      string
	kubeletConfig, staticPods        string
	volumePlugins, nodeID            string
	resolvConf                       string
}

func newPaths(data string) paths {
	server := func(parts ...string) string { return filepath.Join(append([]string{data, "server"}, parts...)...) }
	agent := func(parts ...string) string { return filepath.Join(append([]string{data, "agent"}, parts...)...) }
	return paths{
		Paths: pki.PathsIn(data),
		data:  data,

		datastore:       server("db"),
		datastoreSocket: filepath.Join(RunDir, "kine.sock"),
		manifests:       server("manifests"),
		auditLog:        server("logs", "audit.log"),
		auditPolicy:     server("etc", "audit-policy.yaml"),
		admission:       server("etc", "admission.yaml"),

		containerd:        agent("containerd"),
		containerdConfig:  agent("etc", "containerd", "config.toml"),
		containerdLog:     agent("containerd", "containerd.log"),
		containerdImports: agent("etc", "containerd", "config.d", "*.toml"),
		registries:        agent("etc", "containerd", "certs.d"),
		opt:               agent("containerd", "opt"),
		images:            agent("images"),
		imageRecord:       agent("containerd", "loaded-images.json"),
		cniConf:           agent("etc", "cni", "net.d", "10-atoll.conflist"),
		cniConfDir:        agent("etc", "cni", "net.d"),
		cniAddrs:          filepath.Join(RunDir, "cni"),
		flannelConf:       agent("etc", "flannel", "net-conf.json"),
		kubeletConfig:     agent("etc", "kubelet.yaml"),
		staticPods:        agent("pod-manifests"),
		volumePlugins:     agent("volume-plugins"),
		nodeID:            agent("etc", "node-id"),
		resolvConf:        agent("etc", "resolv.conf"),
	}
}
