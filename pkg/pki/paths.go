package pki

import "path/filepath"

// KeyPair is the two files of an authority.
type KeyPair struct{ Cert, Key string }

// Paths names every file of this package. A field whose file ends in .pem holds certificate and key: pass it for both.
type Paths struct {
	DataDir                                    string
	ServerTLS, ServerCred, AgentTLS, AgentCred string // folders, 0700

	// Authorities. Each vouches for one thing, so that what one has signed is worth nothing elsewhere:
	// a kubelet's certificate cannot pose as the API server.
	ServerCA        KeyPair // API server, and local serving; --root-ca-file
	KubeletCA       KeyPair // kubelet serving; --kubelet-certificate-authority
	ClientCA        KeyPair // clients of the API and of kubelets; --client-ca-file
	RequestHeaderCA KeyPair // the aggregator; --requestheader-client-ca-file

	// Leaves of a server.
	APIServer              string // serving, API server and supervisor; also valid for apiserver-loopback-client
	Local                  string // serving on loopback: controller-manager, scheduler, metrics API
	APIServerKubeletClient string // UserAPIServer in GroupKubeletAdmins
	FrontProxyClient       string // UserFrontProxy, of RequestHeaderCA
	ControllerManager      string // client, system:kube-controller-manager
	Scheduler              string // client, system:kube-scheduler
	Admin                  string // client, system:admin in system:masters
	Controller             string // client, UserController: the controllers that are ours
	CoreDNS                string // client, UserCoreDNS
	Metrics                string // client, UserMetrics

	// Leaves of every node; on an agent a server has signed them.
	KubeletClient  string // client, system:node:NAME in system:nodes
	KubeletServing string // serving, of KubeletCA
	KubeProxy      string // client, system:kube-proxy
	AgentClient    string // client, UserAgentPrefix+NAME in GroupAgents: network policy, pod network
	AgentServerCA  string // copy of ServerCA.Cert
	AgentClientCA  string // copy of ClientCA.Cert

	// Kubeconfigs that name the files above, so that clients pick up renewed certificates.
	AdminKubeconfig, ControllerManagerKubeconfig, SchedulerKubeconfig, ControllerKubeconfig, CoreDNSKubeconfig, MetricsKubeconfig string
	KubeletKubeconfig, KubeProxyKubeconfig, AgentKubeconfig                                                                       string

	ServiceAccountKey string // ECDSA P-256, signs ES256; pass it as signing key and as (public) key file
	EncryptionConfig  string // EncryptionConfiguration with its key
	NodePassword      string
	ServerToken       string // full form
	AgentToken        string // full form; a link to the same secret when no agent token was asked for
	LastKnownTime     string
	RotateMarker      string // wish for new keys, see Rotate
	lockFile          string
}

// Identities that role bindings refer to.
const (
	UserAPIServer      = "kube-apiserver-kubelet-client"
	GroupKubeletAdmins = "atoll:kubelet-api-admins" // bind to ClusterRole system:kubelet-api-admin
	UserFrontProxy     = "system:auth-proxy"        // --requestheader-allowed-names
	UserController     = "system:atoll-controller"
	UserCoreDNS        = "system:coredns"
	UserMetrics        = "system:metrics-server"
	UserAgentPrefix    = "system:atoll-agent:"
	GroupAgents        = "atoll:agents"
	UserNodePrefix     = "system:node:"
	GroupNodes         = "system:nodes"
)

const (
	serverCA        = "server-ca"
	kubeletCA       = "kubelet-ca"
	clientCA        = "client-ca"
	requestHeaderCA = "request-header-ca"
)

var authorityNames = []string{serverCA, kubeletCA, clientCA, requestHeaderCA}

// PathsIn returns the places of all files under dataDir. It touches no disk.
func PathsIn(dataDir string) Paths {
	server := func(parts ...string) string { return filepath.Join(append([]string{dataDir, "server"}, parts...)...) }
	agent := func(parts ...string) string { return filepath.Join(append([]string{dataDir, "agent"}, parts...)...) }
	pair := func(name string) KeyPair { return KeyPair{server("tls", name+".crt"), server("tls", name+".key")} }
	return Paths{
		DataDir:   dataDir,
		ServerTLS: server("tls"), ServerCred: server("cred"), AgentTLS: agent("tls"), AgentCred: agent("cred"),

		ServerCA: pair(serverCA), KubeletCA: pair(kubeletCA), ClientCA: pair(clientCA), RequestHeaderCA: pair(requestHeaderCA),

		APIServer:              server("tls", "apiserver.pem"),
		Local:                  server("tls", "local.pem"),
		APIServerKubeletClient: server("tls", "apiserver-kubelet-client.pem"),
		FrontProxyClient:       server("tls", "front-proxy-client.pem"),
		ControllerManager:      server("tls", "controller-manager.pem"),
		Scheduler:              server("tls", "scheduler.pem"),
		Admin:                  server("tls", "admin.pem"),
		Controller:             server("tls", "atoll-controller.pem"),
		CoreDNS:                server("tls", "coredns.pem"),
		Metrics:                server("tls", "metrics.pem"),

		KubeletClient:  agent("tls", "kubelet-client.pem"),
		KubeletServing: agent("tls", "kubelet-serving.pem"),
		KubeProxy:      agent("tls", "kube-proxy.pem"),
		AgentClient:    agent("tls", "atoll-agent.pem"),
		AgentServerCA:  agent("tls", "server-ca.crt"),
		AgentClientCA:  agent("tls", "client-ca.crt"),

		AdminKubeconfig:             server("cred", "admin.kubeconfig"),
		ControllerManagerKubeconfig: server("cred", "controller-manager.kubeconfig"),
		SchedulerKubeconfig:         server("cred", "scheduler.kubeconfig"),
		ControllerKubeconfig:        server("cred", "atoll-controller.kubeconfig"),
		CoreDNSKubeconfig:           server("cred", "coredns.kubeconfig"),
		MetricsKubeconfig:           server("cred", "metrics.kubeconfig"),
		KubeletKubeconfig:           agent("cred", "kubelet.kubeconfig"),
		KubeProxyKubeconfig:         agent("cred", "kube-proxy.kubeconfig"),
		AgentKubeconfig:             agent("cred", "atoll-agent.kubeconfig"),

		ServiceAccountKey: server("tls", "service-account.key"),
		EncryptionConfig:  server("cred", "encryption-config.json"),
		NodePassword:      agent("cred", "node-password"),
		ServerToken:       server("token"),
		AgentToken:        server("agent-token"),
		LastKnownTime:     agent("cred", "last-known-time"),
		RotateMarker:      agent("tls", "rotate"),
		lockFile:          agent("tls", ".lock"),
	}
}

func (p Paths) authority(name string) KeyPair {
	return map[string]KeyPair{
		serverCA: p.ServerCA, kubeletCA: p.KubeletCA, clientCA: p.ClientCA, requestHeaderCA: p.RequestHeaderCA,
	}[name]
}

// KubeconfigFile is one kubeconfig that refers to files.
type KubeconfigFile struct{ File, User, CA, Leaf string }

// NodeKubeconfigs lists the kubeconfigs that every node has.
func (p Paths) NodeKubeconfigs() []KubeconfigFile {
	return []KubeconfigFile{
		{p.KubeletKubeconfig, "kubelet", p.AgentServerCA, p.KubeletClient},
		{p.KubeProxyKubeconfig, "kube-proxy", p.AgentServerCA, p.KubeProxy},
		{p.AgentKubeconfig, "atoll-agent", p.AgentServerCA, p.AgentClient},
	}
}

func (p Paths) serverKubeconfigs() []KubeconfigFile {
	ca := p.ServerCA.Cert
	return append(p.NodeKubeconfigs(),
		KubeconfigFile{p.AdminKubeconfig, "admin", ca, p.Admin},
		KubeconfigFile{p.ControllerManagerKubeconfig, "controller-manager", ca, p.ControllerManager},
		KubeconfigFile{p.SchedulerKubeconfig, "scheduler", ca, p.Scheduler},
		KubeconfigFile{p.ControllerKubeconfig, "atoll-controller", ca, p.Controller},
		KubeconfigFile{p.CoreDNSKubeconfig, "coredns", ca, p.CoreDNS},
		KubeconfigFile{p.MetricsKubeconfig, "metrics", ca, p.Metrics},
	)
}
