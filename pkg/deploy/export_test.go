package deploy

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
)

// Inner parts for the tests.
var (
	Order     = order
	RecordKey = recordKey
	Look      = look
	Explain   = explain
)

// Skipped is what look found to be left alone, bad what it cannot read.
func (f found) Skipped() map[string]bool { return f.skip }
func (f found) Bad() map[string]error    { return f.bad }
func (f found) Files() (names []string) {
	for name := range f.files {
		names = append(names, name)
	}
	return names
}

// Result is what became of a set.
type Result struct {
	Errs     []FileError
	Warnings []string
	Waits    bool
	Soon     bool
}

// Cluster is a cluster on clients of a test.
type Cluster struct{ c *cluster }

func NewCluster(d discovery.DiscoveryInterface, client dynamic.Interface) Cluster {
	c := &cluster{discovery: d, factory: func(gvr schema.GroupVersionResource) (dynamic.NamespaceableResourceInterface, error) {
		return client.Resource(gvr), nil
	}}
	c.forget()
	return Cluster{c}
}

func (c Cluster) Put(ctx context.Context, path string, docs []Document, prune []schema.GroupVersionKind) Result {
	r := c.c.put(ctx, path, docs, prune)
	return Result{r.errs, r.warnings, r.waits, r.soon}
}

// Store keeps the record.
type Store struct{ store }

func NewStore(client kubernetes.Interface) Store { return Store{store{client}} }

func (s Store) Load(ctx context.Context) (Record, error) { return s.load(ctx) }
func (s Store) Update(ctx context.Context, paths []string, change func(*Entry) bool) (Record, error) {
	return s.update(ctx, paths, change)
}

// PutFunc plays the cluster.
type PutFunc func(path string, docs []Document, prune []schema.GroupVersionKind) Result

func (f PutFunc) put(_ context.Context, path string, docs []Document, prune []schema.GroupVersionKind) result {
	r := f(path, docs, prune)
	return result{r.Errs, r.Warnings, r.Waits, r.Soon}
}

// Worker is the loop's body, driven by a test's clock.
type Worker struct {
	*worker
	M *Manifests
}

func NewWorker(cfg Config, identity string, client kubernetes.Interface, put PutFunc, events record.EventRecorder, log *slog.Logger) (Worker, error) {
	m := New(cfg, log)
	packaged, err := m.packaged()
	if err != nil {
		return Worker{}, err
	}
	return Worker{newWorker(m, identity, packaged, store{client}, put, events), m}, nil
}

func (w Worker) Pass(now time.Time) time.Duration { return w.pass(context.Background(), now) }
func (w Worker) Settled() bool                    { return w.settled }
func (w Worker) Record() Record                   { return w.record }

// Watch tells about changes of folders.
type Watch struct{ *watch }

func NewWatch(log *slog.Logger) Watch    { return Watch{newWatch(log)} }
func (w Watch) Run(ctx context.Context)  { w.run(ctx) }
func (w Watch) Close()                   { w.close() }
func (w Watch) Folders(paths []string)   { w.folders(paths) }
func (w Watch) Changed() <-chan struct{} { return w.changed }
