package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/kube/kubelet"
	"github.com/atollhq/atoll/pkg/kube/proxy"
	"github.com/atollhq/atoll/pkg/network/cni"
	"github.com/atollhq/atoll/pkg/network/dns"
	"github.com/atollhq/atoll/pkg/network/masquerade"
	"github.com/atollhq/atoll/pkg/network/overlay"
	"github.com/atollhq/atoll/pkg/network/policy"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
	"github.com/atollhq/atoll/pkg/runtime/containerd"
	"github.com/atollhq/atoll/pkg/runtime/images"
	"github.com/atollhq/atoll/pkg/runtime/registries"
	"github.com/atollhq/atoll/pkg/storage"
)

// addRuntime adds what holds containers. It comes before the API, so that it stops after it: until then the kubelet looks at
// containers and tells the API what it sees.
func (n *Node) addRuntime(g *run.Group) (unpacked, loader *run.Handle) {
	unpacked = g.Add(n.programs())
	daemon := g.Add(n.containerd(), run.Needs(unpacked), run.Restartable())
	images := n.imageLoader()
	n.troubles = append(n.troubles, images.Problems)
	return unpacked, g.Add(images, run.Needs(daemon), run.Restartable())
}

// addWorkload adds what every node needs to run pods. api is ready when the API answers, site when it also knows the rights of our parts.
func (n *Node) addWorkload(g *run.Group, unpacked, loader, api, site *run.Handle) {
	n.addNetwork(g, api, site, unpacked)
	if !n.cfg.Disabled(config.LocalStorage) {
		volumes := storage.New(storage.Config{Client: n.asAgent, NodeName: n.cfg.NodeName, Folder: n.cfg.StoragePath()}, n.log)
		n.troubles = append(n.troubles, volumes.Problems)
		g.Add(volumes, run.Needs(site), run.Restartable())
	}
	g.Add(n.kubelet(), run.Needs(api, loader), run.Lingers())
	g.Add(proxy.New(proxy.Config{
		Args: proxyArgs(n.cfg, n.paths, n.cfg.ClusterCIDR), UserArgs: n.cfg.KubeProxyArgs, Healthz: proxyHealthz,
	}, n.log), run.Needs(api, unpacked), run.Lingers())
}

// programs unpacks what is carried inside.
func (n *Node) programs() run.Component {
	return run.Func("programs", func(ctx context.Context, ready func()) error {
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
	})
}

// addNetwork adds what connects pods: addresses, the way to other nodes and to the outside, policies, names.
func (n *Node) addNetwork(g *run.Group, api, site, unpacked *run.Handle) {
	policySocket := PolicySocket
	if n.cfg.Disabled(config.NetworkPolicy) {
		policySocket = ""
	}
	network := cni.New(cni.Config{
		Client: n.asKubelet, NodeName: n.cfg.NodeName, ConfFile: n.paths.cniConf, AddressDir: n.paths.cniAddrs,
		MTU: mtuFor(n.addr, overlay.Header), Policy: policySocket,
	}, n.log)
	addressed := g.Add(network, run.Needs(api), run.Restartable())
	g.Add(overlay.New(overlay.Config{
		Kubeconfig: n.paths.AgentKubeconfig, NodeName: n.cfg.NodeName, NodeIP: n.addr, Interface: n.cfg.FlannelIface,
		ClusterCIDR: n.cfg.ClusterCIDR, Backend: n.cfg.FlannelBackend, ConfFile: n.paths.flannelConf,
	}, n.log), run.Needs(site, addressed), run.Restartable())
	g.Add(masquerade.New(masquerade.Config{
		PodCIDRs: []netip.Prefix{n.cfg.ClusterCIDR}, ServiceCIDRs: []netip.Prefix{n.cfg.ServiceCIDR}, Log: n.log,
	}), run.Needs(unpacked), run.Restartable())
	if policySocket != "" {
		g.Add(policy.New(policy.Config{
			NodeName: n.cfg.NodeName, Factory: n.informers, Builtins: []policy.Builtin{policy.DNS(n.cfg.DNSAddress())}, Socket: policySocket, Log: n.log,
		}), run.Needs(site, unpacked), run.Restartable())
	} else {
		g.Add(noPolicy(), run.Needs(unpacked), run.Restartable())
	}
	if !n.cfg.Disabled(config.CoreDNS) {
		g.Add(n.dns(network), run.Needs(site), run.Restartable())
	}
}

// noPolicy takes away the rules of an earlier run, which would stay in force.
func noPolicy() run.Component {
	return run.Func("no-network-policy", func(ctx context.Context, ready func()) error {
		if err := policy.Remove(ctx, nil); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	})
}

func (n *Node) dns(network *cni.Network) run.Component {
	return dns.New(dns.Config{
		Listen: func(ctx context.Context) (netip.Addr, error) {
			cidr, err := network.PodCIDR(ctx)
			if err != nil {
				return netip.Addr{}, err
			}
			return cni.Gateway(cidr), nil
		},
		Domain: n.cfg.ClusterDomain, Kubeconfig: n.dnsKubeconfig(), ResolvConf: n.hostResolvConf(), Custom: "/etc/atoll/dns",
		Started: n.kubeLog.Reclaim,
		Publish: func(ctx context.Context, addr netip.Addr) error {
			return publishDNS(ctx, n.asAgent, n.cfg.NodeName, addr)
		},
	}, n.log)
}

func (n *Node) containerd() run.Component {
	exe, err := os.Executable()
	if err != nil {
		exe = "/proc/self/exe"
	}
	b := n.bundle.Paths()
	daemon := containerd.New(containerd.Config{
		Settings: containerd.Settings{
			Root: n.paths.containerd, State: RunDir + "/containerd", Socket: ContainerdSocket,
			Shim: filepath.Join(b.Bin, "containerd-shim-runc-v2"), Runc: filepath.Join(b.Bin, "runc"),
			CNIBin: b.CNI, CNIConf: n.paths.cniConfDir, RegistryConfig: n.paths.registries, OptDir: n.paths.opt,
			PauseImage: n.pauseImage(), Snapshotter: n.cfg.Snapshotter, SystemdCgroup: systemdCgroups(),
			RestrictOOM: !containerd.MayLowerOOMScore(), LogLevel: n.containerdLogLevel(), ImportGlob: n.paths.containerdImports,
		},
		Executable: exe, ConfigFile: n.paths.containerdConfig, LogFile: n.paths.containerdLog, Path: os.Getenv("PATH"),
	}, n.log)
	return run.Func(daemon.Name(), func(ctx context.Context, ready func()) error {
		if err := n.writeRegistries(); err != nil {
			return err
		}
		return daemon.Run(ctx, ready)
	})
}

// writeRegistries brings the owner's registries.yaml into the form that containerd reads.
func (n *Node) writeRegistries() error {
	r, err := registries.Load(n.cfg.PrivateRegistry)
	if err != nil {
		return err
	}
	if err := r.CheckFiles(); err != nil {
		n.log.Warn("pulls from a registry will fail", "err", err, "try", remedy.Of(err))
	}
	if err := r.Write(n.paths.registries); err != nil {
		return err
	}
	imports := filepath.Dir(n.paths.containerdImports)
	if err := os.MkdirAll(imports, 0o700); err != nil {
		return fmt.Errorf("make containerd's folder: %w", err)
	}
	_, err = r.WriteAuth(filepath.Join(imports, "registries.toml"))
	return err
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
			StaticPodDir: n.paths.staticPods, VolumePluginDir: n.paths.volumePlugins, SystemdCgroup: systemdCgroups(), GracefulShutdown: systemdRuns(), ProtectKernelDefaults: n.cfg.ProtectKernelDefaults,
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

// dnsKubeconfig is the identity of the DNS server: one of its own on servers; agents have one identity for all that is not upstream's.
func (n *Node) dnsKubeconfig() string {
	if n.cfg.Role == config.Server {
		return n.paths.CoreDNSKubeconfig
	}
	return n.paths.AgentKubeconfig
}
