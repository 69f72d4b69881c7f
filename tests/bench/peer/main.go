// Command peer starts what atoll is measured against: upstream's components as separate processes, on etcd, on the same kind of node
// and with the same arguments and certificates. It stands in for `atoll server` in the lab.
//
// The programs are in /var/lib/peer: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, containerd, ctr,
// beside what atoll carries (runc, shim, CNI plugins, nft, pause). A program that ends takes all others with it.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/kube/kubelet"
	"github.com/atollhq/atoll/pkg/network/cni"
	"github.com/atollhq/atoll/pkg/node"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/runtime/bundle"
	"github.com/atollhq/atoll/pkg/runtime/containerd"
)

const programs = "/var/lib/peer"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// peer is one set of processes.
type peer struct {
	cfg   config.Config
	addr  netip.Addr
	path  string // PATH
	ended chan error
	all   []*exec.Cmd
}

func run(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	cfg := config.Default()
	cfg.NodeName = hostname
	addr, err := ownAddress()
	if err != nil {
		return err
	}
	p := peer{cfg: cfg, addr: addr, ended: make(chan error, 16)}
	carried, err := bundle.Open(cfg.DataDir, log)
	if err != nil {
		return err
	}
	b, err := carried.Unpack()
	if err != nil {
		return err
	}
	p.path = b.Path(programs)
	set, err := pki.Ensure(cfg.DataDir, pki.Subject{NodeName: hostname, Addresses: []netip.Addr{addr}, ServiceIPs: []netip.Addr{cfg.APIServiceIP()}}, pki.NewClock(cfg.DataDir, time.Time{}), log)
	if err != nil {
		return err
	}
	if err := p.writeFiles(set, b); err != nil {
		return err
	}
	defer p.stop()
	return p.start(ctx, b)
}

// start brings the processes up in the usual order and waits for the first to end.
func (p *peer) start(ctx context.Context, b bundle.Paths) error {
	p.spawn("etcd", "--data-dir=/var/lib/atoll/server/etcd", "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=default=http://127.0.0.1:2380", "--log-level=warn")
	p.spawn("containerd", "--config", "/var/lib/atoll/agent/etc/containerd/config.toml")
	args := node.Arguments(p.cfg, p.addr, "http://127.0.0.1:2379")
	args["kube-apiserver"]["secure-port"] = "6443"
	args["kubelet"]["config"] = "/var/lib/atoll/agent/etc/kubelet.yaml"
	p.spawn("kube-apiserver", args["kube-apiserver"].List()...)
	if err := until(ctx, "ctr", func() bool {
		return p.command("ctr", "-a", node.ContainerdSocket, "-n", "k8s.io", "images", "import", filepath.Join(b.Images, "pause.tar")).Run() == nil
	}); err != nil {
		return err
	}
	kubectl := []string{"--kubeconfig", "/etc/atoll/kubeconfig.yaml"}
	if err := until(ctx, "readyz", func() bool {
		return p.command("kubectl", append(kubectl, "get", "--raw", "/readyz")...).Run() == nil
	}); err != nil {
		return err
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"} {
		p.spawn(name, args[name].List()...)
	}
	if err := until(ctx, "pod addresses", func() bool {
		out, err := p.command("kubectl", append(kubectl, "get", "node", p.cfg.NodeName, "-o", "jsonpath={.spec.podCIDR}")...).Output()
		if err != nil || len(out) == 0 {
			return false
		}
		cidr, err := netip.ParsePrefix(string(out))
		if err != nil {
			return false
		}
		conf, err := cni.Conf(cidr, 0, "/run/atoll/cni", "")
		return err == nil && os.WriteFile("/var/lib/atoll/agent/etc/cni/net.d/10-peer.conflist", conf, 0o600) == nil
	}); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-p.ended:
		return err
	}
}

func (p *peer) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programs, name), args...)
	cmd.Env = append(os.Environ(), "PATH="+p.path)
	return cmd
}

func (p *peer) spawn(name string, args ...string) {
	cmd := p.command(name, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.ended <- fmt.Errorf("%s: %w", name, err)
		return
	}
	p.all = append(p.all, cmd)
	go func() { p.ended <- fmt.Errorf("%s ended: %w", name, cmd.Wait()) }()
}

func (p *peer) stop() {
	for i := len(p.all) - 1; i >= 0; i-- {
		_ = p.all[i].Process.Signal(syscall.SIGTERM)
	}
	time.Sleep(3 * time.Second)
	for _, cmd := range p.all {
		_ = cmd.Process.Kill()
	}
}

// writeFiles writes what a node of atoll would: kubeconfig, the configuration of kubelet and containerd, audit policy and admission.
func (p *peer) writeFiles(set pki.Set, b bundle.Paths) error {
	etc := "/var/lib/atoll/agent/etc"
	for _, dir := range []string{"/etc/atoll", etc + "/containerd/config.d", etc + "/containerd/certs.d", etc + "/cni/net.d", "/run/atoll/containerd", "/var/lib/atoll/agent/pod-manifests", "/var/lib/atoll/agent/containerd/opt"} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := node.WriteServerFiles(p.cfg); err != nil {
		return err
	}
	creds, err := pki.EmbedFiles(set.ServerCA.Cert, set.Admin)
	if err != nil {
		return err
	}
	kubeletFile, err := kubelet.Settings{
		ContainerdSocket: node.ContainerdSocket, ClusterDNS: p.cfg.DNSAddress().String(), ClusterDomain: p.cfg.ClusterDomain, ResolvConf: "/etc/resolv.conf",
		ClientCA: set.AgentClientCA, CertFile: set.KubeletServing, KeyFile: set.KubeletServing, StaticPodDir: "/var/lib/atoll/agent/pod-manifests",
	}.File()
	if err != nil {
		return err
	}
	toml, err := containerd.Settings{
		Root: "/var/lib/atoll/agent/containerd", State: "/run/atoll/containerd", Socket: node.ContainerdSocket,
		Shim: filepath.Join(b.Bin, "containerd-shim-runc-v2"), Runc: filepath.Join(b.Bin, "runc"), CNIBin: b.CNI, CNIConf: etc + "/cni/net.d",
		RegistryConfig: etc + "/containerd/certs.d", OptDir: "/var/lib/atoll/agent/containerd/opt", PauseImage: node.PauseImage, Snapshotter: "overlayfs",
		RestrictOOM: !containerd.MayLowerOOMScore(), LogLevel: "warn", ImportGlob: etc + "/containerd/config.d/*.toml",
	}.TOML()
	if err != nil {
		return err
	}
	for path, data := range map[string][]byte{
		"/etc/atoll/kubeconfig.yaml": pki.Kubeconfig(p.cfg.LocalURL(), "admin", creds), etc + "/kubelet.yaml": kubeletFile, etc + "/containerd/config.toml": toml,
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func until(ctx context.Context, what string, done func() bool) error {
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("stopped while waiting for %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

func ownAddress() (netip.Addr, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, i := range ifaces {
		addrs, err := i.Addrs()
		if err != nil || strings.HasPrefix(i.Name, "lo") {
			continue
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() && !prefix.Addr().IsLoopback() {
				return prefix.Addr(), nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("no address on any interface")
}
