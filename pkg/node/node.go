// Package node puts the parts of a node together: which there are, what each needs, and in which order they start.
//
// It decides nothing else. Settings come from package config; each part is a package of its own; the arguments of upstream's
// components are pure functions in arguments.go.
package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/kube/process"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
	"github.com/atollhq/atoll/pkg/runtime/bundle"
	"github.com/atollhq/atoll/pkg/runtime/cgroup"
	"github.com/atollhq/atoll/pkg/status"
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
	// Our own parts reach the API with the identity that their work needs, and no more.
	asKubelet, asAgent, asController kubernetes.Interface
	informers                        informers.SharedInformerFactory // as agent; started by the component of that name

	kubeLog process.Logging
	// troubles are asked for what works only in part, for the status page.
	troubles []func() []error

	machine chan error       // what prepareMachine returned
	host    []status.Problem // what the check of the machine at the start found

	mu     sync.Mutex
	pkiNow []pki.Problem
	member *run.Group // the parts of an agent that has joined
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
	var err error
	n.kubeLog, err = process.Init(process.Config{Verbosity: n.cfg.Verbosity, OnExit: func(code int, stack []byte) {
		n.log.Error("a Kubernetes component ended the process", "code", code, "stack", string(stack))
	}}, n.log)
	if err != nil {
		return err
	}
	if n.bundle, err = bundle.Open(n.cfg.DataDir, n.log); err != nil {
		return err
	}
	// kube-proxy, policies and mounts look for nft and mount here.
	if err := os.Setenv("PATH", searchPath(n.bundle.Paths(), os.Getenv("PATH"), n.cfg.PreferBundledBin)); err != nil {
		return err
	}
	if n.cfg.WithNodeID {
		id, err := ensureNodeID(n.paths.nodeID)
		if err != nil {
			return err
		}
		n.cfg.NodeName += "-" + id
	}
	n.machine = make(chan error, 1)
	go func() { n.machine <- n.prepareMachine(ctx) }()
	n.addr, err = awaitAddress(ctx, n.cfg, n.log)
	return err
}

// prepareMachine makes the machine fit and checks it. It takes half a second, in which certificates are made.
func (n *Node) prepareMachine(ctx context.Context) error {
	if err := cgroup.Prepare(cgroup.Config{}, n.log); err != nil {
		return err
	}
	if _, err := n.bundle.Unpack(); err != nil { // the checks try the carried nft
		return err
	}
	n.loadModules(ctx)
	return n.checkHost(ctx)
}

// loadModules loads what a stock kernel has as modules and loads by itself too late: kube-proxy gives up without nf_conntrack's
// settings. A kernel that has them built in, or a container that may not load any, is none the worse.
func (n *Node) loadModules(ctx context.Context) {
	for _, module := range []string{"overlay", "nf_conntrack", "nf_tables"} {
		if out, err := exec.CommandContext(ctx, "modprobe", module).CombinedOutput(); err != nil {
			n.log.Debug("kernel module not loaded", "module", module, "err", err, "output", strings.TrimSpace(string(out)))
		}
	}
}

// searchPath is PATH for this process and its children.
func searchPath(b bundle.Paths, host string, preferBundled bool) string {
	if preferBundled {
		return strings.Join([]string{b.Bin, b.Aux, host}, string(os.PathListSeparator))
	}
	return b.Path(host)
}

// ensureNodeID returns the eight characters that tell this machine from others of the same name, and makes them at the first start.
func ensureNodeID(file string) (string, error) {
	data, err := os.ReadFile(file)
	if id := strings.TrimSpace(string(data)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the node's id: %w", err)
	}
	raw := make([]byte, 4)
	_, _ = rand.Read(raw) // never fails
	id := hex.EncodeToString(raw)
	return id, atomicfile.Write(file, []byte(id+"\n"), 0o600)
}

// connect makes a client with the identity of a kubeconfig.
func connect(kubeconfig string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	cfg.QPS, cfg.Burst = 50, 100
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return kubernetes.NewForConfig(cfg)
}

// connectNode makes the clients that every node has.
func (n *Node) connectNode() error {
	kubelet, err := connect(n.paths.KubeletKubeconfig)
	if err != nil {
		return err
	}
	agent, err := connect(n.paths.AgentKubeconfig)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asKubelet, n.asAgent = kubelet, agent
	n.informers = informers.NewSharedInformerFactoryWithOptions(agent, 0, informers.WithTransform(slim))
	return nil
}

// slim takes from an object what none of our parts reads, before it goes into the shared cache.
func slim(object any) (any, error) {
	if o, err := meta.Accessor(object); err == nil {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// sharedInformers runs the informers that the node's parts have asked for when they were made. It comes last among those who ask.
func (n *Node) sharedInformers() run.Component {
	return run.Func("informers", func(ctx context.Context, ready func()) error {
		n.informers.StartWithContext(ctx)
		ready()
		<-ctx.Done()
		n.informers.Shutdown()
		return nil
	})
}
