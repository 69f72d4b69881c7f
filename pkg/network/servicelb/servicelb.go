// Package servicelb gives Services of type LoadBalancer the addresses of nodes, without a pod or a proxy of its own.
//
// It only writes status.loadBalancer.ingress. kube-proxy, which treats such addresses like any others of a Service, then sends
// packets that reach a node on the Service's port to a pod. What is decided, and why, also stands in a status condition,
// atoll.dev/NodeAddresses, that marks a Service as ours.
//
// There is no finalizer: outside the Service there is nothing to clean up. When the object goes, the status goes with it; when
// the type changes, the API server empties the list.
//
// Run it where an election chooses one server. Two at once do no harm: a write that is based on an old version is refused.
package servicelb

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

const (
	settle       = 100 * time.Millisecond
	writeTimeout = 10 * time.Second
	retryFirst   = 500 * time.Millisecond
	retryMost    = 30 * time.Second
)

// Config is what a Controller needs.
type Config struct {
	Client kubernetes.Interface
	// Factory gives the informers, which are shared with the rest of the process. New asks it for Services, nodes and
	// EndpointSlices; the caller starts it.
	Factory informers.SharedInformerFactory
	// Reserved are the ports that no Service may have; nil means DefaultReserved.
	Reserved []Port
	Log      *slog.Logger
}

// Controller keeps the status of Services right. It is a run.Component that may run again after a failure.
type Controller struct {
	cfg       Config
	log       *slog.Logger
	informers []cache.SharedIndexInformer
	services  corelisters.ServiceLister
	nodes     corelisters.NodeLister
	endpoints discoverylisters.EndpointSliceLister
	wake      chan struct{}
	// wrote holds the cached objects whose status was written. While the cache still has one of them, it is behind, and what
	// it says has been dealt with. Belongs to Run.
	wrote map[*corev1.Service]bool
}

// New makes a Controller. It starts nothing.
func New(cfg Config) *Controller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Reserved == nil {
		cfg.Reserved = DefaultReserved()
	}
	core, discovery := cfg.Factory.Core().V1(), cfg.Factory.Discovery().V1()
	return &Controller{
		cfg: cfg, log: cfg.Log.With("component", "service-lb"),
		informers: []cache.SharedIndexInformer{core.Services().Informer(), core.Nodes().Informer(), discovery.EndpointSlices().Informer()},
		services:  core.Services().Lister(), nodes: core.Nodes().Lister(), endpoints: discovery.EndpointSlices().Lister(),
		wake: make(chan struct{}, 1),
	}
}

// Name is the component's name.
func (c *Controller) Name() string { return "service-lb" }

// Run works until ctx ends. It is ready when it knows the cluster.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	c.wrote = nil
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.cfg.Client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "atoll-service-lb"})

	synced, unwatch, err := c.watch()
	if err != nil {
		return err
	}
	defer unwatch()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	ready()
	c.poke()
	pause := retryFirst
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		case <-c.wake:
			if !rest(ctx, settle) { // a burst of events costs one round
				return nil
			}
		}
		if err := c.round(ctx, recorder); err != nil && ctx.Err() == nil {
			c.log.Log(ctx, levelOf(err), "status of a service could not be written", "err", err, "pause", pause)
			retry.Reset(pause)
			pause = min(2*pause, retryMost)
			continue
		}
		pause = retryFirst
	}
}

// levelOf: somebody else was faster, which is how it should be now and then.
func levelOf(err error) slog.Level {
	if apierrors.IsConflict(err) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// round decides for all Services and writes what differs. It goes on after an error, and returns the first.
func (c *Controller) round(ctx context.Context, recorder record.EventRecorder) error {
	services, err := c.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	endpoints, err := c.endpoints.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list endpoint slices: %w", err)
	}
	decisions := Assign(services, nodes, endpoints, c.cfg.Reserved)
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var first error
	wrote := map[*corev1.Service]bool{}
	for _, svc := range services {
		if c.wrote[svc] {
			wrote[svc] = true
			continue
		}
		decision, decided := decisions[Key{svc.Namespace, svc.Name}]
		status, changed := Status(svc, decision, decided, metav1.Now())
		if !changed {
			continue
		}
		written, err := c.write(ctx, svc, status)
		if written {
			wrote[svc] = true
			c.tell(recorder, svc, decision)
		}
		if first == nil {
			first = err
		}
	}
	c.wrote = wrote
	return first
}

// write patches the status of one Service, and nothing else of it. The version of svc goes along, so that nothing newer is
// overwritten.
func (c *Controller) write(ctx context.Context, svc *corev1.Service, status corev1.ServiceStatus) (written bool, err error) {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": svc.ResourceVersion},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": status.LoadBalancer.Ingress}, "conditions": status.Conditions},
	})
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err = c.cfg.Client.CoreV1().Services(svc.Namespace).Patch(ctx, svc.Name, types.MergePatchType, patch,
		metav1.PatchOptions{FieldManager: "atoll-service-lb"}, "status")
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write status of service %s/%s: %w", svc.Namespace, svc.Name, err)
	}
	return true, nil
}

// tell records an event when a Service begins to wait for its ports or for nodes, or gets addresses after that.
func (c *Controller) tell(recorder record.EventRecorder, svc *corev1.Service, d Decision) {
	before := ""
	if cond := meta.FindStatusCondition(svc.Status.Conditions, Condition); cond != nil {
		before = cond.Reason + cond.Message
	}
	if before == d.Reason+d.Message {
		return
	}
	c.log.Info("service decided", "service", svc.Namespace+"/"+svc.Name, "reason", d.Reason, "addresses", d.Addresses)
	switch d.Reason {
	case PortTaken, PortReserved, NoNodes:
		recorder.Event(svc, corev1.EventTypeWarning, d.Reason, d.Message)
	case Assigned:
		recorder.Eventf(svc, corev1.EventTypeNormal, d.Reason, "addresses of nodes: %v", d.Addresses)
	}
}

// watch subscribes to the informers. The returned function ends that.
func (c *Controller) watch() (synced []cache.InformerSynced, stop func(), err error) {
	var undo []func()
	stop = func() {
		for _, f := range undo {
			f()
		}
	}
	for _, informer := range c.informers {
		reg, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { c.poke() },
			UpdateFunc: func(before, after any) {
				if changed(before, after) {
					c.poke()
				}
			},
			DeleteFunc: func(any) { c.poke() },
		})
		if err != nil {
			stop()
			return nil, nil, fmt.Errorf("watch the cluster: %w", err)
		}
		undo = append(undo, func() { _ = informer.RemoveEventHandler(reg) })
		synced = append(synced, reg.HasSynced)
	}
	return synced, stop, nil
}

// changed leaves out what nodes write all the time: heartbeats and images.
func changed(before, after any) bool {
	switch a := before.(type) {
	case *corev1.Node:
		b, ok := after.(*corev1.Node)
		return !ok || mayServe(a) != mayServe(b) || isReady(a) != isReady(b) || !slices.Equal(a.Status.Addresses, b.Status.Addresses)
	case *discoveryv1.EndpointSlice:
		b, ok := after.(*discoveryv1.EndpointSlice)
		return !ok || !apiequality.Semantic.DeepEqual(a.Endpoints, b.Endpoints)
	}
	return true
}

func (c *Controller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
