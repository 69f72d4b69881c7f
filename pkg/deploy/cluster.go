package deploy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/rancher/wrangler/v3/pkg/apply"
	"github.com/rancher/wrangler/v3/pkg/merr"
	"github.com/rancher/wrangler/v3/pkg/objectset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/atollhq/atoll/pkg/remedy"
)

// setKind marks the objects of a file (labels and annotations of wrangler's apply). There is no such object.
var setKind = schema.GroupVersionKind{Group: "atoll.dev", Version: "v1", Kind: "Manifest"}

// cluster brings sets of objects into the cluster with wrangler's apply: a three-way merge against what was applied last, kept in
// an annotation, and a label that names the set. It holds no informers: each look is a list by label, answered from the API
// server's memory.
type cluster struct {
	discovery discovery.DiscoveryInterface
	factory   apply.ClientFactory

	mu       sync.Mutex
	warnings []string
	kinds    map[schema.GroupVersionKind]bool // that are known to exist
	apply    apply.Apply
}

func newCluster(cfg *rest.Config) (*cluster, error) {
	c := &cluster{}
	cfg = rest.CopyConfig(cfg)
	cfg.ContentConfig = rest.ContentConfig{} // objects of any kind: JSON
	cfg.QPS, cfg.Burst = 50, 100
	cfg.WarningHandler = c
	var err error
	if c.discovery, err = discovery.NewDiscoveryClientForConfig(cfg); err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	c.factory = func(gvr schema.GroupVersionResource) (dynamic.NamespaceableResourceInterface, error) {
		return client.Resource(gvr), nil
	}
	c.forget()
	return c, nil
}

// forget drops what is known about kinds: a definition may have been made again in another form.
func (c *cluster) forget() {
	c.apply = apply.New(c.discovery, c.factory)
	c.kinds = map[schema.GroupVersionKind]bool{}
}

// HandleWarningHeader implements rest.WarningHandler.
func (c *cluster) HandleWarningHeader(_ int, _ string, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.warnings) < 20 && !slices.Contains(c.warnings, text) {
		c.warnings = append(c.warnings, text)
	}
}

func (c *cluster) takeWarnings() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.warnings
	c.warnings = nil
	return out
}

// known tells whether the API has the kind.
func (c *cluster) known(gvk schema.GroupVersionKind) (bool, error) {
	if c.kinds[gvk] {
		return true, nil
	}
	list, err := c.discovery.ServerResourcesForGroupVersion(gvk.GroupVersion().String())
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, r := range list.APIResources {
		if r.Kind == gvk.Kind && !strings.Contains(r.Name, "/") {
			c.kinds[gvk] = true
			return true, nil
		}
	}
	return false, nil
}

// result is what became of a set.
type result struct {
	errs     []FileError
	warnings []string
	waits    bool // all of the errors pass by themselves
	soon     bool // all of them are about something that another object or file may be about to bring
}

// put makes the objects of the set path those in docs: creates and changes them, takes over those that exist already, and removes
// what the set had in the kinds of prune. An object of a kind that is not known (yet) is left out and reported.
func (c *cluster) put(ctx context.Context, path string, docs []Document, prune []schema.GroupVersionKind) result {
	c.takeWarnings()
	r := result{waits: true, soon: true}
	order(docs)
	set := objectset.NewObjectSet()
	var present []Document
	for _, d := range docs {
		ok, err := c.known(d.Object.GroupVersionKind())
		if err == nil && !ok {
			gvk := d.Object.GroupVersionKind()
			err = remedy.Wrap(fmt.Errorf("%w %s of %s", errNoKind, gvk.Kind, gvk.GroupVersion()), "check apiVersion and kind, or install what defines it; this is tried again by itself")
		}
		if err != nil {
			r.add(d, err)
			continue
		}
		if d.Object.GetKind() == "Namespace" && slices.Contains(immortal, d.Object.GetName()) {
			d.Object = d.Object.DeepCopy()
			labels := d.Object.GetLabels()
			if labels == nil {
				labels = map[string]string{}
			}
			labels[apply.LabelPrune] = "false"
			d.Object.SetLabels(labels)
		}
		present = append(present, d)
		set.Add(d.Object)
	}
	var old []schema.GroupVersionKind
	for _, gvk := range prune {
		switch ok, err := c.known(gvk); {
		case err != nil:
			r.add(Document{}, fmt.Errorf("look for objects of kind %s to remove: %w", gvk.Kind, err))
		case ok: // objects of a kind that is gone are gone, too
			old = append(old, gvk)
		}
	}
	err := c.apply.WithContext(ctx).WithDynamicLookup().WithRateLimiting(10).WithSetID("manifest").
		WithOwnerKey(metav1.NamespaceSystem+"/"+path, setKind).WithGVK(old...).Apply(set)
	for _, err := range each(err) {
		if apierrors.IsNotFound(err) && strings.HasPrefix(err.Error(), "failed to delete ") {
			continue // somebody was faster
		}
		r.add(blame(err, present), err)
	}
	if len(r.errs) > 0 {
		c.forget()
	}
	r.warnings = c.takeWarnings()
	return r
}

// immortal namespaces cannot be deleted; a file that names one must still be removable.
var immortal = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, "kube-node-lease"}

func (r *result) add(d Document, err error) {
	cause, waits := explain(err)
	r.waits = r.waits && waits
	r.soon = r.soon && (errors.Is(err, errNoKind) || apierrors.IsNotFound(err))
	if len(r.errs) >= 20 {
		return
	}
	name := ""
	if d.Object != nil {
		name = d.Name()
	}
	r.errs = append(r.errs, fileError(d.Number, d.Line, name, cause))
}

func each(err error) []error {
	if err == nil {
		return nil
	}
	var many merr.Errors
	if errors.As(err, &many) {
		return many
	}
	return []error{err}
}

// blame finds the document that an error of wrangler's apply is about; it has key and kind in its text.
func blame(err error, docs []Document) Document {
	text := err.Error()
	for _, d := range docs {
		gvk := d.Object.GroupVersionKind().String()
		for _, namespace := range []string{d.Object.GetNamespace(), "", "default"} {
			key := objectset.ObjectKey{Namespace: namespace, Name: d.Object.GetName()}.String()
			if strings.Contains(text, " "+key+" "+gvk+" for ") || strings.Contains(text, " "+gvk+" "+key+" for ") {
				return d
			}
		}
	}
	return Document{}
}

var errNoKind = errors.New("the cluster does not know the kind")

// explain turns an error into a cause with a remedy, and tells whether it passes by itself.
func explain(err error) (cause error, waits bool) {
	if remedy.Of(err) != "" {
		return err, false
	}
	if strings.Contains(err.Error(), "Replace Wait") {
		return remedy.Wrap(errors.New("the object cannot be changed in place: it was deleted and is made again"), "wait a moment"), true
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return remedy.Wrap(err, "this is tried again by itself"), errors.As(err, new(net.Error))
	}
	cause = errors.New(status.Status().Message)
	details := status.Status().Details
	switch {
	case apierrors.IsNotFound(err) && details != nil && details.Kind == "namespaces":
		return remedy.Wrap(cause, "add the namespace to the file; this is tried again by itself"), false
	case apierrors.IsInvalid(err) && (strings.Contains(cause.Error(), "immutable") || strings.Contains(cause.Error(), "Forbidden: ")):
		return remedy.Wrap(cause, "undo the change, or delete the object with kubectl: it is made again from the file"), false
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsMethodNotSupported(err), apierrors.IsRequestEntityTooLargeError(err):
		return remedy.Wrap(cause, "correct the file"), false
	case apierrors.IsForbidden(err):
		return remedy.Wrap(cause, "change the object, or the quota or policy that refuses it"), false
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return remedy.Wrap(cause, "wait: somebody else changed the object at the same time"), true
	}
	return remedy.Wrap(cause, "this is tried again by itself; if it goes on, see `atoll status`"), apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}
