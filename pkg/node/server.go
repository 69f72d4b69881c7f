// Package node puts the parts of a node together: which there are, what each needs, and in which order they start.
//
// It decides nothing else. Settings come from package config; each part is a package of its own; the arguments of upstream's
// components are pure functions in arguments.go.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/datastore"
	"github.com/atollhq/atoll/pkg/kube/apiserver"
	"github.com/atollhq/atoll/pkg/kube/controllers"
	"github.com/atollhq/atoll/pkg/kube/election"
	"github.com/atollhq/atoll/pkg/kube/kubelet"
	"github.com/atollhq/atoll/pkg/kube/metrics"
	"github.com/atollhq/atoll/pkg/kube/process"
	"github.com/atollhq/atoll/pkg/kube/proxy"
	"github.com/atollhq/atoll/pkg/network/cni"
	"github.com/atollhq/atoll/pkg/network/dns"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
	"github.com/atollhq/atoll/pkg/runtime/bundle"
	"github.com/atollhq/atoll/pkg/runtime/containerd"
	"github.com/atollhq/atoll/pkg/runtime/images"
)

// PauseImage is the sandbox image that is carried inside.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// Node is one node before and while it runs.
type Node struct {
	cfg   config.Config
	log   *slog.Logger
	paths paths
	addr  netip.Addr
	group run.Group
	clock *pki.Clock

	bundle *bundle.Bundle
	api    clients
	// troubles are asked for what works only in part, for the status page.
	troubles []func() []error

	mu     sync.Mutex
	pkiNow []pki.Problem
}

// New prepares a node; it starts nothing and touches no disk.
func New(cfg config.Config, built time.Time, log *slog.Logger) *Node {
	return &Node{cfg: cfg, log: log, paths: newPaths(cfg.DataDir), clock: pki.NewClock(cfg.DataDir, built)}
}

// prepare does what every role does before its components are made.
func (n *Node) prepare(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return remedy.Wrap(errors.New("a node needs the rights of root"), "start it with sudo, or as the service that the installer makes")
	}
	debug.SetGCPercent(50) // 38 MB less for 1 % of a core: memory is what a shop's box lacks
	if err := os.MkdirAll(n.cfg.DataDir, 0o755); err != nil {
		return remedy.Wrap(fmt.Errorf("make the data folder: %w", err), "make it writable, or choose another with --data-dir")
	}
	for _, dir := range []string{RunDir, n.paths.staticPods, filepath.Dir(n.paths.kubeletConfig)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return remedy.Wrap(fmt.Errorf("make folder: %w", err), "check that the file system is writable and not full")
		}
	}
	err := process.Init(process.Config{Verbosity: n.cfg.Verbosity, OnExit: func(code int, stack []byte) {
		n.log.Error("a Kubernetes component ended the process", "code", code, "stack", string(stack))
	}}, n.log)
	if err != nil {
		return err
	}
	if n.bundle, err = bundle.Open(n.cfg.DataDir, n.log); err != nil {
		return err
	}
	// kube-proxy, policies and mounts look for nft and mount here.
	if err := os.Setenv("PATH", n.bundle.Paths().Path(os.Getenv("PATH"))); err != nil {
		return err
	}
	n.addr, err = awaitAddress(ctx, n.cfg, n.log)
	return err
}

// RunServer runs a server until ctx ends or a part fails that cannot be started again.
func (n *Node) RunServer(ctx context.Context) error {
	began := time.Now()
	if err := n.prepare(ctx); err != nil {
		return err
	}
	set, err := pki.Ensure(n.cfg.DataDir, n.subject(), n.clock, n.log)
	if err != nil {
		return err
	}
	n.notePKI(set)
	if err := n.ensureTokens(set.CAHash); err != nil {
		return err
	}
	if err := writeServerFiles(n.cfg, n.paths); err != nil {
		return err
	}
	if err := writeAdminKubeconfig(n.cfg, n.paths); err != nil {
		return err
	}
	listener, err := n.listen(ctx)
	if err != nil {
		return err
	}
	if n.api, err = n.clients(n.paths.AdminKubeconfig); err != nil {
		return err
	}
	clients := n.api

	n.group.Log = n.log
	n.group.Add(n.statusPage(began))
	n.group.Add(n.renewer(), run.Restartable())
	store := n.group.Add(n.datastore())
	api := n.group.Add(apiserver.New(apiserver.Config{
		Args: apiServerArgs(n.cfg, n.paths, n.addr, "unix://"+n.paths.datastoreSocket), UserArgs: n.cfg.APIServerArgs, Listener: listener,
	}, n.log), run.Needs(store), run.StopWithin(8*time.Second))
	n.addControllers(clients, api)
	n.addWorkload(clients, api)
	n.addServices(clients, api)
	n.group.Add(n.readiness(clients, began), run.Needs(api))
	return n.group.Run(ctx)
}

func (n *Node) ensureTokens(caHash string) error {
	server, err := n.cfg.JoinToken()
	if err != nil {
		return err
	}
	agent, err := n.cfg.JoinAgentToken()
	if err != nil {
		return err
	}
	_, _, err = pki.EnsureTokens(n.cfg.DataDir, caHash, server.Reveal(), agent.Reveal())
	return err
}

// notePKI keeps what certificates and clock need of a person for the status page.
func (n *Node) notePKI(set pki.Set) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range set.Problems {
		n.log.Warn(p.Text, "try", p.Remedy)
	}
	n.pkiNow = set.Problems
}

// renewer keeps the certificates valid while the process runs. Their readers watch the files; only the kubeconfig that people
// use holds copies.
func (n *Node) renewer() run.Component {
	return pki.NewRenewer(n.cfg.DataDir, n.subject, func(set pki.Set) {
		n.notePKI(set)
		if err := writeAdminKubeconfig(n.cfg, n.paths); err != nil {
			n.log.Warn("the administrator's kubeconfig keeps its old certificate", "err", err)
		}
	}, n.clock, n.log)
}

func (n *Node) datastore() run.Component {
	return datastore.New(datastore.Config{
		Dir: n.paths.datastore, Socket: n.paths.datastoreSocket, Endpoint: n.cfg.DatastoreEndpoint.Reveal(),
		CAFile: n.cfg.DatastoreCAFile, CertFile: n.cfg.DatastoreCertFile, KeyFile: n.cfg.DatastoreKeyFile,
	}, n.log)
}

// listen takes the port before anything else starts: a port that is held is the commonest mistake and should cost no wait.
func (n *Node) listen(ctx context.Context) (net.Listener, error) {
	addr := net.JoinHostPort(n.cfg.BindAddress.String(), strconv.Itoa(n.cfg.HTTPSPort))
	l, err := (&net.ListenConfig{KeepAlive: 30 * time.Second}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, remedy.Wrap(fmt.Errorf("listen on %s: %w", addr, err), "stop the program that holds port %d (`ss -ltnp` names it), or set --https-listen-port", n.cfg.HTTPSPort)
	}
	return l, nil
}

// subject is what the certificates of this server say about it.
func (n *Node) subject() pki.Subject {
	addrs := append([]netip.Addr{n.addr}, n.cfg.NodeIP...)
	addrs = append(addrs, n.cfg.NodeExternalIP...)
	if n.cfg.AdvertiseAddress.IsValid() {
		addrs = append(addrs, n.cfg.AdvertiseAddress)
	}
	return pki.Subject{
		NodeName: n.cfg.NodeName, Addresses: addrs, ServiceIPs: []netip.Addr{n.cfg.APIServiceIP()},
		Domain: n.cfg.ClusterDomain, ExtraNames: n.cfg.TLSSAN, APIServer: n.cfg.LocalURL(),
	}
}

// clients are what our own components talk to the API server with.
type clients struct {
	config *rest.Config
	kube   kubernetes.Interface
}

func (n *Node) clients(kubeconfig string) (clients, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return clients{}, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	cfg.QPS, cfg.Burst = 50, 100
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return clients{}, err
	}
	return clients{config: cfg, kube: client}, nil
}

// addControllers adds what runs on one server of the site at a time.
func (n *Node) addControllers(c clients, api *run.Handle) {
	for _, part := range []struct {
		name string
		work election.Work
	}{
		{"kube-controller-manager", controllers.Manager(controllerManagerArgs(n.cfg, n.paths), n.cfg.ControllerManagerArgs)},
		{"kube-scheduler", controllers.Scheduler(schedulerArgs(n.cfg, n.paths), n.cfg.SchedulerArgs)},
	} {
		n.group.Add(election.New(election.Config{Name: part.name, Identity: n.cfg.NodeName, Client: c.kube}, part.work, n.log), run.Needs(api))
	}
}

// addWorkload adds what every node needs to run pods.
func (n *Node) addWorkload(c clients, api *run.Handle) {
	unpacked := n.group.Add(run.Func("programs", func(ctx context.Context, ready func()) error {
		if _, err := n.bundle.Unpack(); err != nil {
			return err
		}
		ready()
		select { // the disk has better things to do while the node starts
		case <-ctx.Done():
		case <-time.After(20 * time.Second):
			if err := n.bundle.Settle(); err != nil {
				n.log.Warn("carried programs not verified", "err", err)
			}
		}
		<-ctx.Done()
		return nil
	}))
	daemon := n.group.Add(n.containerd(), run.Needs(unpacked), run.Restartable())
	images := n.imageLoader()
	n.troubles = append(n.troubles, images.Problems)
	loader := n.group.Add(images, run.Needs(daemon), run.Restartable())
	network := cni.New(cni.Config{
		Client: c.kube, NodeName: n.cfg.NodeName, ConfFile: n.paths.cniConf, AddressDir: n.paths.cniAddrs, MTU: mtuFor(n.addr, vxlanOverhead),
	}, n.log)
	n.group.Add(network, run.Needs(api), run.Restartable())
	n.group.Add(n.kubelet(), run.Needs(api, loader), run.Lingers())
	n.group.Add(proxy.New(proxy.Config{
		Args: proxyArgs(n.cfg, n.paths, n.cfg.ClusterCIDR), UserArgs: n.cfg.KubeProxyArgs, Healthz: proxyHealthz,
	}, n.log), run.Needs(api, unpacked), run.Lingers())
	if !n.cfg.Disabled(config.CoreDNS) {
		n.group.Add(dns.New(dns.Config{
			Listen: func(ctx context.Context) (netip.Addr, error) {
				cidr, err := network.PodCIDR(ctx)
				if err != nil {
					return netip.Addr{}, err
				}
				return cni.Gateway(cidr), nil
			},
			Domain: n.cfg.ClusterDomain, Kubeconfig: n.paths.CoreDNSKubeconfig, ResolvConf: n.hostResolvConf(), Custom: "/etc/atoll/dns",
			Publish: func(ctx context.Context, addr netip.Addr) error { return publishDNS(ctx, c.kube, n.cfg.NodeName, addr) },
		}, n.log), run.Needs(api), run.Restartable())
	}
}

const vxlanOverhead = 50

func (n *Node) containerd() run.Component {
	exe, err := os.Executable()
	if err != nil {
		exe = "/proc/self/exe"
	}
	b := n.bundle.Paths()
	return containerd.New(containerd.Config{
		Settings: containerd.Settings{
			Root: n.paths.containerd, State: RunDir + "/containerd", Socket: ContainerdSocket,
			Shim: filepath.Join(b.Bin, "containerd-shim-runc-v2"), Runc: filepath.Join(b.Bin, "runc"),
			CNIBin: b.CNI, CNIConf: n.paths.cniConfDir, RegistryConfig: n.paths.registries, OptDir: n.paths.opt,
			PauseImage: n.pauseImage(), Snapshotter: n.cfg.Snapshotter, SystemdCgroup: systemdCgroups(),
			RestrictOOM: !containerd.MayLowerOOMScore(), LogLevel: n.containerdLogLevel(), ImportGlob: n.paths.containerdImports,
		},
		Executable: exe, ConfigFile: n.paths.containerdConfig, LogFile: n.paths.containerdLog, Path: os.Getenv("PATH"),
	}, n.log)
}

func (n *Node) containerdLogLevel() string {
	if n.cfg.Verbosity > 0 || n.cfg.Debug {
		return "info"
	}
	return "warn"
}

func (n *Node) pauseImage() string {
	if n.cfg.PauseImage != "" {
		return n.cfg.PauseImage
	}
	return PauseImage
}

func (n *Node) imageLoader() *images.Loader {
	cfg := images.Config{Socket: ContainerdSocket, Snapshotter: n.cfg.Snapshotter, Folder: n.paths.images, RecordFile: n.paths.imageRecord}
	if n.cfg.PauseImage == "" {
		cfg.Always = []string{filepath.Join(n.bundle.Paths().Images, "pause.tar")}
	}
	return images.New(cfg, n.log)
}

func (n *Node) kubelet() run.Component {
	return run.Func("kubelet", func(ctx context.Context, ready func()) error {
		file, err := kubelet.Settings{
			ContainerdSocket: ContainerdSocket, ClusterDNS: n.cfg.DNSAddress().String(), ClusterDomain: n.cfg.ClusterDomain,
			ResolvConf: n.podResolvConf(), ClientCA: n.paths.AgentClientCA, CertFile: n.paths.KubeletServing, KeyFile: n.paths.KubeletServing,
			StaticPodDir: n.paths.staticPods, SystemdCgroup: systemdCgroups(), GracefulShutdown: systemdRuns(), ProtectKernelDefaults: n.cfg.ProtectKernelDefaults,
		}.File()
		if err != nil {
			return err
		}
		if _, err := atomicfile.WriteIfChanged(n.paths.kubeletConfig, file, 0o600); err != nil {
			return err
		}
		return kubelet.New(kubelet.Config{
			ConfigFile: n.paths.kubeletConfig, Args: kubeletArgs(n.cfg, n.paths, n.addr), UserArgs: n.cfg.KubeletArgs,
		}, n.log).Run(ctx, ready)
	})
}

// addServices adds what a server offers beyond upstream's components.
func (n *Node) addServices(c clients, api *run.Handle) {
	if !n.cfg.Disabled(config.MetricsServer) {
		n.group.Add(metrics.New(metrics.Config{
			Kubeconfig: n.paths.MetricsKubeconfig, CertFile: n.paths.Local, KeyFile: n.paths.Local, KubeletCA: n.paths.KubeletCA.Cert,
		}, n.log), run.Needs(api), run.Restartable())
	}
}
