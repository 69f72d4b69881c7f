// Package config is every setting of a node: one struct, built once, checked once, read-only afterwards.
//
// Each setting is one line of Config. Flags, environment variables, keys of the configuration file, the help text, shell
// completion and docs/reference/config.md all come from that line. Highest wins: flag, configuration file with its drop-ins,
// environment, default; this is the order that K3s users have today. Load remembers where each value came from.
//
// Files: /etc/atoll/config.yaml, then /etc/atoll/config.yaml.d/*.yaml in name order. A later file replaces a key; `key+` appends
// to a list. Both may be missing, unless the file was named by --config or ATOLL_CONFIG_FILE.
//
// Nothing that a person wrote is dropped without a word. An unknown name is an error that gives the nearest one. A K3s setting that
// atoll does not have is an error with the reason and a way out, unless it asks for what atoll does anyway (`disable: traefik`,
// `docker: false`): that is accepted with a warning, so that files of K3s users keep working. All problems are reported at once.
package config

import (
	"net/netip"
)

// Role is what a node is started as.
type Role string

// The roles of a node. They are also the names of the commands that take the settings.
const (
	Server Role = "server" // control plane, datastore and workloads
	Agent  Role = "agent"  // workloads only
)

// Places where a node looks for settings, unless told otherwise.
const (
	DefaultFile       = "/etc/atoll/config.yaml"
	DefaultKubeconfig = "/etc/atoll/kubeconfig.yaml"
	DefaultRegistries = "/etc/atoll/registries.yaml"
	DefaultDataDir    = "/var/lib/atoll"
)

// Config holds every setting of a node. Tags:
//
//	name     flag and file key; further names after a comma
//	env      environment variable; settings without one are not read from the environment
//	group    heading in the help text
//	help     one phrase; "server" or "agent" in it are the words of DESIGN.md
//	value    what to show for the value in the help text
//	default  the default in words, where Default cannot know it
//	for      the one command that has it; both when missing
//	split    the separator at which one given value becomes several
//	oneof    the words that it may be
type Config struct {
	Role Role // set by Load; not a setting

	Debug           bool   `name:"debug" env:"ATOLL_DEBUG" group:"logging" help:"log what the node decides, not only what changes"`
	Verbosity       int    `name:"v" group:"logging" value:"LEVEL" help:"verbosity of the Kubernetes components, from 0 to 10"`
	LogFile         string `name:"log,l" group:"logging" value:"FILE" help:"write the log to this file instead of standard error"`
	AlsoLogToStderr bool   `name:"alsologtostderr" group:"logging" help:"with --log, write to standard error too"`

	DataDir          string `name:"data-dir,d" env:"ATOLL_DATA_DIR" group:"data" value:"FOLDER" help:"folder that holds all state"`
	PreferBundledBin bool   `name:"prefer-bundled-bin" group:"data" help:"use the carried mount and nft even where the host has its own"`

	Token          Secret `name:"token,t" env:"ATOLL_TOKEN" group:"cluster" value:"TOKEN" help:"shared secret used to join the cluster; a first server makes one if it has none"`
	TokenFile      string `name:"token-file" env:"ATOLL_TOKEN_FILE" group:"cluster" value:"FILE" help:"file that holds the token"`
	AgentToken     Secret `name:"agent-token" env:"ATOLL_AGENT_TOKEN" group:"cluster" value:"TOKEN" for:"server" help:"shared secret that lets agents join, but not servers"`
	AgentTokenFile string `name:"agent-token-file" env:"ATOLL_AGENT_TOKEN_FILE" group:"cluster" value:"FILE" for:"server" help:"file that holds the agent token"`
	Server         string `name:"server,s" env:"ATOLL_URL" group:"cluster" value:"URL" help:"server to join, as https://ADDRESS:6443"`

	NodeName              string            `name:"node-name" env:"ATOLL_NODE_NAME" group:"node" value:"NAME" default:"the host name" help:"name of this node in the cluster"`
	WithNodeID            bool              `name:"with-node-id" group:"node" help:"append an id that is kept on disk to the node name"`
	NodeLabels            map[string]string `name:"node-label" group:"node" value:"KEY=VALUE" split:"," help:"label to register the node with"`
	NodeTaints            []Taint           `name:"node-taint" group:"node" value:"KEY=VALUE:EFFECT" split:"," help:"taint to register the node with"`
	ProtectKernelDefaults bool              `name:"protect-kernel-defaults" group:"node" help:"refuse to start when kernel settings differ from what the kubelet wants, instead of changing them"`
	ResolvConf            string            `name:"resolv-conf" env:"ATOLL_RESOLV_CONF" group:"node" value:"FILE" default:"the host's, if it names a server that pods can reach" help:"resolv.conf that pods inherit"`
	KubeletArgs           []string          `name:"kubelet-arg" group:"arguments" value:"NAME=VALUE" help:"further flag for the kubelet"`
	KubeProxyArgs         []string          `name:"kube-proxy-arg" group:"arguments" value:"NAME=VALUE" help:"further flag for kube-proxy"`

	NodeIP         []netip.Addr `name:"node-ip,i" group:"network" value:"ADDRESS" split:"," default:"that of the default route" help:"address of this node"`
	NodeExternalIP []netip.Addr `name:"node-external-ip" group:"network" value:"ADDRESS" split:"," help:"address under which others outside the site reach this node"`
	FlannelIface   string       `name:"flannel-iface" group:"network" value:"NAME" default:"that of the node address" help:"network interface for traffic between nodes"`

	PrivateRegistry string `name:"private-registry" group:"runtime" value:"FILE" help:"mirrors and credentials of image registries"`
	PauseImage      string `name:"pause-image" group:"runtime" value:"IMAGE" default:"the one carried inside" help:"image of the sandbox"`
	Snapshotter     string `name:"snapshotter" group:"runtime" value:"NAME" oneof:"overlayfs,native" help:"how containerd stacks image layers: overlayfs or native"`

	BindAddress      netip.Addr `name:"bind-address" group:"listener" value:"ADDRESS" for:"server" help:"address on which the API listens"`
	HTTPSPort        int        `name:"https-listen-port" group:"listener" value:"PORT" for:"server" help:"port on which the API listens"`
	AdvertiseAddress netip.Addr `name:"advertise-address" group:"listener" value:"ADDRESS" for:"server" default:"the node address" help:"address of the API that other nodes and pods use"`
	AdvertisePort    int        `name:"advertise-port" group:"listener" value:"PORT" for:"server" default:"that of https-listen-port" help:"port of the API that other nodes and pods use"`
	TLSSAN           []string   `name:"tls-san" group:"listener" value:"NAME" split:"," for:"server" help:"further name or address in the server certificate"`

	ClusterCIDR    netip.Prefix `name:"cluster-cidr" group:"network" value:"CIDR" for:"server" help:"addresses of pods"`
	ServiceCIDR    netip.Prefix `name:"service-cidr" group:"network" value:"CIDR" for:"server" help:"addresses of services"`
	NodePortRange  PortRange    `name:"service-node-port-range" group:"network" value:"FIRST-LAST" for:"server" help:"ports for services of type NodePort"`
	ClusterDNS     netip.Addr   `name:"cluster-dns" group:"network" value:"ADDRESS" for:"server" default:"the tenth address of service-cidr" help:"service address of the cluster's DNS"`
	ClusterDomain  string       `name:"cluster-domain" group:"network" value:"DOMAIN" for:"server" help:"DNS domain of the cluster"`
	FlannelBackend string       `name:"flannel-backend" group:"network" value:"NAME" for:"server" oneof:"vxlan,host-gw" help:"how pod traffic crosses between nodes: vxlan or host-gw"`

	Kubeconfig      string   `name:"write-kubeconfig,o" env:"ATOLL_KUBECONFIG_OUTPUT" group:"client" value:"FILE" for:"server" help:"where to write the administrator's kubeconfig"`
	KubeconfigMode  FileMode `name:"write-kubeconfig-mode" env:"ATOLL_KUBECONFIG_MODE" group:"client" value:"MODE" for:"server" help:"permissions of that file, octal"`
	KubeconfigGroup string   `name:"write-kubeconfig-group" env:"ATOLL_KUBECONFIG_GROUP" group:"client" value:"GROUP" for:"server" help:"group that owns that file, name or number"`

	Disable               []string `name:"disable" group:"components" value:"NAME" split:"," for:"server" help:"part to leave out: coredns, servicelb, local-storage, metrics-server or network-policy"`
	DisableNetworkPolicy  bool     `name:"disable-network-policy" group:"components" for:"server" help:"do not enforce NetworkPolicy objects; same as --disable network-policy"`
	LocalStoragePath      string   `name:"default-local-storage-path" group:"storage" value:"FOLDER" for:"server" default:"storage in the data folder" help:"where local volumes are made"`
	APIServerArgs         []string `name:"kube-apiserver-arg" group:"arguments" value:"NAME=VALUE" for:"server" help:"further flag for kube-apiserver"`
	ControllerManagerArgs []string `name:"kube-controller-manager-arg" group:"arguments" value:"NAME=VALUE" for:"server" help:"further flag for kube-controller-manager"`
	SchedulerArgs         []string `name:"kube-scheduler-arg" group:"arguments" value:"NAME=VALUE" for:"server" help:"further flag for kube-scheduler"`

	DatastoreEndpoint Secret `name:"datastore-endpoint" env:"ATOLL_DATASTORE_ENDPOINT" group:"datastore" value:"URL" for:"server" default:"SQLite in the data folder" help:"external database: postgres://, mysql://, nats:// or etcd's http(s)://"`
	DatastoreCAFile   string `name:"datastore-cafile" env:"ATOLL_DATASTORE_CAFILE" group:"datastore" value:"FILE" for:"server" help:"certificate authority of the external database"`
	DatastoreCertFile string `name:"datastore-certfile" env:"ATOLL_DATASTORE_CERTFILE" group:"datastore" value:"FILE" for:"server" help:"client certificate for the external database"`
	DatastoreKeyFile  string `name:"datastore-keyfile" env:"ATOLL_DATASTORE_KEYFILE" group:"datastore" value:"FILE" for:"server" help:"key of that client certificate"`

	SecretsEncryption bool   `name:"secrets-encryption" group:"security" for:"server" help:"encrypt Secret objects in the datastore"`
	PodSecurity       string `name:"pod-security" group:"security" value:"LEVEL" for:"server" oneof:"privileged,baseline,restricted" help:"Pod Security level of namespaces that set none: privileged, baseline or restricted"`
	Audit             bool   `name:"audit" group:"security" for:"server" help:"keep an audit log of changes to the API"`
	AuditPolicyFile   string `name:"audit-policy-file" group:"security" value:"FILE" for:"server" default:"the one carried inside" help:"audit policy"`
	EnablePprof       bool   `name:"enable-pprof" group:"debugging" for:"server" help:"serve profiles to administrators at /debug/pprof"`
}

// Default returns the settings of a node whose owner chose nothing. What depends on other settings or on the machine is empty here
// and filled in by Load (NodeName) or by the methods of Config (DNSAddress, AdvertisedPort and others).
func Default() Config {
	return Config{
		Role:              Server,
		DataDir:           DefaultDataDir,
		PrivateRegistry:   DefaultRegistries,
		Snapshotter:       "overlayfs",
		BindAddress:       netip.IPv4Unspecified(),
		HTTPSPort:         6443,
		ClusterCIDR:       netip.MustParsePrefix("10.42.0.0/16"),
		ServiceCIDR:       netip.MustParsePrefix("10.43.0.0/16"),
		NodePortRange:     PortRange{First: 30000, Last: 32767},
		ClusterDomain:     "cluster.local",
		FlannelBackend:    "vxlan",
		Kubeconfig:        DefaultKubeconfig,
		KubeconfigMode:    0o600,
		SecretsEncryption: true,
		PodSecurity:       "baseline",
		Audit:             true,
	}
}
