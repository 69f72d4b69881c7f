package policy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/knftables"

	"github.com/atollhq/atoll/pkg/remedy"
)

const (
	settle     = 100 * time.Millisecond // waits for more events to come before it computes
	checkEvery = 30 * time.Second
	nftTimeout = 30 * time.Second
	retryFirst = time.Second
	retryMost  = 30 * time.Second
)

// Config is what a Controller needs.
type Config struct {
	NodeName string
	// Factory gives the informers, which are shared with the rest of the process. New asks it for pods, namespaces, nodes
	// and NetworkPolicies; the caller starts it. A transform must leave of a pod: metadata, spec.nodeName, spec.hostNetwork,
	// the ports of containers, status.phase and status.podIPs.
	Factory  informers.SharedInformerFactory
	Builtins []Builtin
	// Socket is where the CNI plugin atoll-policy tells the addresses of starting pods. Empty: nobody does.
	Socket string
	Log    *slog.Logger
	// NFT opens the table; nil opens the real one with the nft program in PATH.
	NFT func() (knftables.Interface, error)
}

// Controller keeps the node's rules equal to what the cluster says. It is a run.Component that may run again after a failure.
type Controller struct {
	cfg        Config
	log        *slog.Logger
	pods       cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	nodes      cache.SharedIndexInformer
	policies   cache.SharedIndexInformer

	podLister       corelisters.PodLister
	namespaceLister corelisters.NamespaceLister
	nodeLister      corelisters.NodeLister
	policyLister    networkinglisters.NetworkPolicyLister

	wake   chan struct{} // something may have changed
	urgent chan struct{} // and somebody waits for it

	mu       sync.Mutex
	attached map[PodKey]attachment
	asked    uint64        // rounds asked for
	done     uint64        // the last round asked for that is in force
	round    chan struct{} // closed after each round
	inForce  bool          // a first round is in force
}

// New makes a Controller. It starts nothing.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.NFT == nil {
		cfg.NFT = openTable
	}
	core, networking := cfg.Factory.Core().V1(), cfg.Factory.Networking().V1()
	return &Controller{
		cfg: cfg, log: cfg.Log.With("component", "network-policy"),
		pods: core.Pods().Informer(), namespaces: core.Namespaces().Informer(),
		nodes: core.Nodes().Informer(), policies: networking.NetworkPolicies().Informer(),
		podLister: core.Pods().Lister(), namespaceLister: core.Namespaces().Lister(),
		nodeLister: core.Nodes().Lister(), policyLister: networking.NetworkPolicies().Lister(),
		wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
		attached: map[PodKey]attachment{}, round: make(chan struct{}),
	}
}

func openTable() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, TableName)
	if err != nil {
		return nil, remedy.Wrap(fmt.Errorf("open nftables: %w", err),
			"use a kernel with nf_tables (CONFIG_NF_TABLES_INET) and run as root, or start with --disable-network-policy")
	}
	return nft, nil
}

// Remove takes away the rules that an earlier process left. It is for a node that starts with network policy switched off:
// nobody would keep them up to date. nft may be nil, as in Config.
func Remove(ctx context.Context, nft func() (knftables.Interface, error)) error {
	if nft == nil {
		nft = openTable
	}
	opened, err := nft()
	if err != nil {
		return err
	}
	_, err = NewTable(opened, time.Now).Sync(ctx, nil)
	return err
}

// Name is the component's name.
func (c *Controller) Name() string { return "network-policy" }

// Run enforces policies until ctx ends. It is ready once the policies of the cluster are in force for the first time; until
// then the rules that an earlier process left are. They are left in place at the end, too.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	nft, err := c.cfg.NFT()
	if err != nil {
		return err
	}
	synced, unwatch, err := c.watch()
	if err != nil {
		return err
	}
	defer unwatch()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	table := NewTable(nft, time.Now)
	if err := c.sync(ctx, table); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	if c.cfg.Socket != "" {
		stop, err := c.serve(ctx, &serving)
		if err != nil {
			return err
		}
		defer stop()
	}
	ready()
	c.loop(ctx, table)
	return nil
}

// loop works off what the watches and timers say, in one goroutine that owns the table.
func (c *Controller) loop(ctx context.Context, table *Table) {
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	tidy, retry := time.NewTimer(2*linger), time.NewTimer(0)
	defer tidy.Stop()
	defer retry.Stop()
	<-retry.C
	pause := retryFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-tidy.C:
			later, err := table.Tidy(ctx)
			if err != nil && ctx.Err() == nil {
				c.log.Debug("unused rules stay for now", "err", err)
			}
			if later {
				tidy.Reset(2 * linger)
			}
			continue
		case <-check.C:
			if c.intact(ctx, table) {
				continue
			}
		case <-retry.C:
		case <-c.urgent:
		case <-c.wake:
			if !c.gather(ctx) {
				return
			}
		}
		if err := c.sync(ctx, table); err != nil {
			if ctx.Err() != nil {
				return
			}
			c.log.Warn("network policies could not be written, the former ones stay in force", "err", err, "pause", pause)
			retry.Reset(pause)
			pause = min(2*pause, retryMost)
			continue
		}
		pause = retryFirst
		tidy.Reset(2 * linger)
	}
}

// gather waits a moment so that a burst of events costs one round. It returns false when ctx ended.
func (c *Controller) gather(ctx context.Context) bool {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.urgent:
	case <-ctx.Done():
		return false
	}
	select { // what came meanwhile is part of this round
	case <-c.wake:
	default:
	}
	return true
}

func (c *Controller) intact(ctx context.Context, table *Table) bool {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	ok, err := table.Intact(ctx)
	if err != nil {
		c.log.Debug("rules could not be checked", "err", err)
		return true
	}
	if !ok {
		c.log.Warn("somebody removed network policy rules, they are written again")
	}
	return ok
}

// sync computes and writes one round.
func (c *Controller) sync(ctx context.Context, table *Table) error {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	began := time.Now()
	c.mu.Lock()
	asked := c.asked
	c.mu.Unlock()
	rules, err := c.compute()
	if err != nil {
		return err
	}
	operations, err := table.Sync(ctx, Render(rules))
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.done, c.inForce = asked, true
	close(c.round)
	c.round = make(chan struct{})
	c.mu.Unlock()
	for _, p := range rules.Problems {
		c.log.Debug("part of a policy cannot be read and allows nothing", "problem", p)
	}
	if operations > 0 {
		c.log.Debug("network policies written", "operations", operations, "isolatedIn", len(rules.Ingress),
			"isolatedOut", len(rules.Egress), "took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// compute reads the caches. Without policies it does not even list the pods.
func (c *Controller) compute() (Rules, error) {
	policies, err := c.policyLister.List(labels.Everything())
	if err != nil || len(policies) == 0 {
		return Rules{}, err
	}
	pods, err := c.podLister.List(labels.Everything())
	if err != nil {
		return Rules{}, err
	}
	namespaces, err := c.namespaceLister.List(labels.Everything())
	if err != nil {
		return Rules{}, err
	}
	node := Node{Name: c.cfg.NodeName, Builtins: c.cfg.Builtins, Attached: c.attachedAddresses()}
	self, err := c.nodeLister.Get(c.cfg.NodeName)
	if err == nil {
		node.PodCIDRs = podCIDRs(self)
	} else if !apierrors.IsNotFound(err) {
		return Rules{}, err
	}
	return Compute(pods, namespaces, policies, node), nil
}

func podCIDRs(node *corev1.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range node.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// watch subscribes to the informers. The returned function ends that.
func (c *Controller) watch() (synced []cache.InformerSynced, stop func(), err error) {
	var undo []func()
	stop = func() {
		for _, f := range undo {
			f()
		}
	}
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		changed  func(before, after any) bool
		gone     func(any)
	}{
		{c.pods, podChanged, c.podGone},
		{c.namespaces, namespaceChanged, nil},
		{c.nodes, c.nodeChanged, nil},
		{c.policies, policyChanged, nil},
	} {
		reg, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { c.poke() },
			UpdateFunc: func(before, after any) {
				if w.changed(before, after) {
					c.poke()
				}
			},
			DeleteFunc: func(obj any) {
				if w.gone != nil {
					w.gone(obj)
				}
				c.poke()
			},
		})
		if err != nil {
			stop()
			return nil, nil, fmt.Errorf("watch the cluster: %w", err)
		}
		undo = append(undo, func() { _ = w.informer.RemoveEventHandler(reg) })
		synced = append(synced, reg.HasSynced)
	}
	return synced, stop, nil
}

func (c *Controller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// podChanged tells whether a change of a pod can change a rule. Most changes of status cannot.
func podChanged(before, after any) bool {
	a, aok := before.(*corev1.Pod)
	b, bok := after.(*corev1.Pod)
	return !aok || !bok || a.UID != b.UID || a.Status.Phase != b.Status.Phase || a.Spec.NodeName != b.Spec.NodeName ||
		a.Status.PodIP != b.Status.PodIP || !slices.Equal(a.Status.PodIPs, b.Status.PodIPs) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) || !labels.Equals(a.Labels, b.Labels)
}

func namespaceChanged(before, after any) bool {
	a, aok := before.(*corev1.Namespace)
	b, bok := after.(*corev1.Namespace)
	return !aok || !bok || !labels.Equals(a.Labels, b.Labels)
}

func (c *Controller) nodeChanged(before, after any) bool {
	a, aok := before.(*corev1.Node)
	b, bok := after.(*corev1.Node)
	return !aok || !bok || b.Name == c.cfg.NodeName && !slices.Equal(a.Spec.PodCIDRs, b.Spec.PodCIDRs)
}

func policyChanged(before, after any) bool {
	a, aok := before.(*networkingv1.NetworkPolicy)
	b, bok := after.(*networkingv1.NetworkPolicy)
	return !aok || !bok || a.UID != b.UID || a.Generation != b.Generation || a.Generation == 0
}
