package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	fakediscovery "k8s.io/client-go/discovery/fake"
	fakedynamic "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
	ktesting "k8s.io/client-go/testing"

	"github.com/atollhq/atoll/pkg/deploy"
	"github.com/atollhq/atoll/pkg/remedy"
)

var (
	cms   = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	nss   = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	tills = schema.GroupVersionResource{Group: "shop.example", Version: "v1", Resource: "tills"}
)

// api is wrangler's apply, for real, on the dynamic client of a test.
type api struct {
	t       *testing.T
	client  *fakedynamic.FakeDynamicClient
	kinds   *fakediscovery.FakeDiscovery
	cluster deploy.Cluster
}

func newAPI(t *testing.T, objects ...runtime.Object) *api {
	a := &api{t: t}
	a.client = fakedynamic.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		cms: "ConfigMapList", nss: "NamespaceList", tills: "TillList",
	}, objects...)
	// The tracker cannot do a strategic merge of objects without a type.
	a.client.PrependReactor("patch", "*", func(action ktesting.Action) (bool, runtime.Object, error) {
		p, ok := action.(ktesting.PatchAction)
		if !ok || p.GetPatchType() != types.StrategicMergePatchType {
			return false, nil, nil
		}
		old, err := a.client.Tracker().Get(p.GetResource(), p.GetNamespace(), p.GetName())
		if err != nil {
			return true, nil, err
		}
		typed, err := scheme.Scheme.New(old.GetObjectKind().GroupVersionKind())
		if err != nil {
			return true, nil, err
		}
		before, err := json.Marshal(old)
		if err != nil {
			return true, nil, err
		}
		merged, err := strategicpatch.StrategicMergePatch(before, p.GetPatch(), typed)
		if err != nil {
			return true, nil, err
		}
		out := &unstructured.Unstructured{}
		if err := out.UnmarshalJSON(merged); err != nil {
			return true, nil, err
		}
		return true, out, a.client.Tracker().Update(p.GetResource(), out, p.GetNamespace())
	})
	a.kinds = &fakediscovery.FakeDiscovery{Fake: &ktesting.Fake{}}
	a.kinds.Resources = []*metav1.APIResourceList{{GroupVersion: "v1", APIResources: []metav1.APIResource{
		{Name: "configmaps", Kind: "ConfigMap", Namespaced: true}, {Name: "namespaces", Kind: "Namespace"},
	}}}
	a.cluster = deploy.NewCluster(a.kinds, a.client)
	return a
}

func (a *api) defineTills() {
	a.kinds.Resources = append(a.kinds.Resources, &metav1.APIResourceList{GroupVersion: "shop.example/v1", APIResources: []metav1.APIResource{
		{Name: "tills", Kind: "Till", Namespaced: true}, {Name: "tills/status", Kind: "Till", Namespaced: true},
	}})
}

func (a *api) put(path, text string, prune ...schema.GroupVersionKind) deploy.Result {
	a.t.Helper()
	docs, errs := deploy.Parse("x.yaml", []byte(text))
	if len(errs) > 0 {
		a.t.Fatal(errs)
	}
	return a.cluster.Put(context.Background(), path, docs, prune)
}

func (a *api) ok(r deploy.Result) {
	a.t.Helper()
	if len(r.Errs) > 0 {
		a.t.Fatalf("%+v", r.Errs)
	}
}

func (a *api) get(gvr schema.GroupVersionResource, namespace, name string) *unstructured.Unstructured {
	a.t.Helper()
	o, err := a.client.Resource(gvr).Namespace(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return o
}

func (a *api) value(name string) string {
	a.t.Helper()
	o := a.get(cms, "default", name)
	if o == nil {
		return "<gone>"
	}
	data, _, _ := unstructured.NestedStringMap(o.Object, "data")
	var parts []string
	for _, k := range []string{"a", "b", "theirs"} {
		if v, ok := data[k]; ok {
			parts = append(parts, k+"="+v)
		}
	}
	return strings.Join(parts, " ")
}

func (a *api) edit(name, key, value string) {
	a.t.Helper()
	o := a.get(cms, "default", name)
	if err := unstructured.SetNestedField(o.Object, value, "data", key); err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.client.Resource(cms).Namespace("default").Update(context.Background(), o, metav1.UpdateOptions{}); err != nil {
		a.t.Fatal(err)
	}
}

func withData(name, data string) string { return cm(name) + "data: {" + data + "}\n" }

func TestMerge(t *testing.T) {
	a := newAPI(t)
	a.ok(a.put("f", withData("x", "a: '1', b: '1'")))
	a.edit("x", "theirs", "1")
	a.edit("x", "a", "changed by somebody")
	a.ok(a.put("f", withData("x", "a: '1', b: '1'"), cmKind))
	if got := a.value("x"); got != "a=1 b=1 theirs=1" {
		t.Errorf("put back: %q", got)
	}
	a.ok(a.put("f", withData("x", "a: '2'"), cmKind))
	if got := a.value("x"); got != "a=2 theirs=1" {
		t.Errorf("a field that the file no longer has: %q", got)
	}
	before := len(a.client.Actions())
	a.ok(a.put("f", withData("x", "a: '2'"), cmKind))
	for _, action := range a.client.Actions()[before:] {
		if v := action.GetVerb(); v != "list" && v != "get" {
			t.Errorf("wrote though nothing had changed: %s", v)
		}
	}
}

func TestPruning(t *testing.T) {
	a := newAPI(t)
	a.ok(a.put("f", withData("x", "")+"---\n"+withData("left", "")+"---\n"+withData("kept", "")+"---\n"+strings.Replace(cm("elsewhere"), "metadata:", "metadata:\n  namespace: shop", 1)))
	a.ok(a.put("g", withData("other", "")))
	o := a.get(cms, "default", "kept")
	o.SetLabels(map[string]string{"objectset.rio.cattle.io/hash": o.GetLabels()["objectset.rio.cattle.io/hash"], "objectset.rio.cattle.io/prune": "false"})
	if _, err := a.client.Resource(cms).Namespace("default").Update(context.Background(), o, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	a.ok(a.put("f", withData("x", ""), cmKind))
	if a.value("left") != "<gone>" || a.get(cms, "shop", "elsewhere") != nil {
		t.Error("objects that left the file are still there")
	}
	a.ok(a.put("f", "", cmKind))
	if a.value("x") != "<gone>" {
		t.Error("the object of a removed file is still there")
	}
	if a.value("kept") == "<gone>" || a.value("other") == "<gone>" {
		t.Error("too much was removed")
	}
	// A kind that is gone has no objects.
	a.ok(a.put("f", "", cmKind, schema.GroupVersionKind{Group: "gone.example", Version: "v1", Kind: "Gone"}))
}

func TestTakingOver(t *testing.T) {
	a := newAPI(t, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "x", "namespace": "default"}, "data": map[string]any{"theirs": "1", "a": "0"},
	}})
	a.ok(a.put("f", withData("x", "a: '1'")))
	if got := a.value("x"); got != "a=1 theirs=1" {
		t.Errorf("%q", got)
	}
	// To another file: taken over, then the first has nothing left to prune.
	a.ok(a.put("g", withData("x", "a: '2'")))
	a.ok(a.put("f", "", cmKind))
	if got := a.value("x"); got != "a=2 theirs=1" {
		t.Errorf("%q", got)
	}
}

func TestKindThatComesLater(t *testing.T) {
	a := newAPI(t)
	text := "apiVersion: shop.example/v1\nkind: Till\nmetadata: {name: t}\n---\n" + withData("x", "a: '1'")
	r := a.put("f", text)
	if len(r.Errs) != 1 || !strings.Contains(r.Errs[0].Cause, "does not know the kind Till of shop.example/v1") || r.Errs[0].Object != "Till t" || r.Errs[0].Remedy == "" || r.Waits || !r.Soon {
		t.Errorf("%+v", r)
	}
	if a.value("x") != "a=1" {
		t.Error("the rest of the file was not applied")
	}
	a.defineTills()
	a.ok(a.put("f", text, cmKind))
	if a.get(tills, "default", "t") == nil {
		t.Error("not made")
	}
}

func TestNamespacesThatCannotBeDeleted(t *testing.T) {
	a := newAPI(t)
	a.client.PrependReactor("delete", "namespaces", func(action ktesting.Action) (bool, runtime.Object, error) {
		if d, ok := action.(ktesting.DeleteAction); ok && d.GetName() == "kube-system" {
			return true, nil, apierrors.NewForbidden(corev1.Resource("namespaces"), "kube-system", errors.New("this namespace may not be deleted"))
		}
		return false, nil, nil
	})
	ns := schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}
	a.ok(a.put("f", "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"))
	a.ok(a.put("f", "", ns))
	if a.get(nss, "", "shop") != nil || a.get(nss, "", "kube-system") == nil {
		t.Error("wrong namespaces left")
	}
}

func TestErrorsNameTheirObject(t *testing.T) {
	a := newAPI(t)
	a.client.PrependReactor("create", "configmaps", func(action ktesting.Action) (bool, runtime.Object, error) {
		c, _ := action.(ktesting.CreateAction)
		o, _ := c.GetObject().(*unstructured.Unstructured)
		if o.GetName() == "bad" {
			return true, nil, apierrors.NewInvalid(cmKind.GroupKind(), "bad", field.ErrorList{field.Invalid(field.NewPath("data"), "x", "no good")})
		}
		return false, nil, nil
	})
	r := a.put("f", withData("good", "a: '1'")+"---\n"+withData("bad", ""))
	if len(r.Errs) != 1 || r.Errs[0].Document != 2 || r.Errs[0].Line != 6 || r.Errs[0].Object != "ConfigMap bad" || !strings.Contains(r.Errs[0].Cause, "no good") || r.Errs[0].Remedy != "correct the file" || r.Soon {
		t.Errorf("%+v", r)
	}
	if a.value("good") != "a=1" {
		t.Error("one bad object stopped the others")
	}
}

func TestEveryErrorHasARemedy(t *testing.T) {
	resource := corev1.Resource("services")
	for _, row := range []struct {
		err   error
		try   string
		waits bool
	}{
		{apierrors.NewInvalid(cmKind.GroupKind(), "x", field.ErrorList{field.Invalid(field.NewPath("spec"), 1, "field is immutable")}), "delete the object", false},
		{apierrors.NewInvalid(cmKind.GroupKind(), "x", field.ErrorList{field.Forbidden(field.NewPath("spec"), "updates to statefulset spec are forbidden")}), "delete the object", false},
		{apierrors.NewBadRequest("what"), "correct the file", false},
		{apierrors.NewForbidden(resource, "x", errors.New("exceeded quota")), "quota", false},
		{apierrors.NewNotFound(corev1.Resource("namespaces"), "x"), "add the namespace", false},
		{apierrors.NewConflict(resource, "x", errors.New("modified")), "wait", true},
		{apierrors.NewServiceUnavailable("not now"), "by itself", true},
		{apierrors.NewTooManyRequests("slow", 1), "by itself", true},
		{apierrors.NewInternalError(errors.New("failed calling webhook")), "by itself", false},
		{errors.New("anything"), "by itself", false},
		{errors.New("DesiredSet - Replace Wait /v1, Kind=Service"), "wait", true},
	} {
		cause, waits := deploy.Explain(fmt.Errorf("failed to create x: %w", row.err))
		if !strings.Contains(remedy.Of(cause), row.try) || waits != row.waits {
			t.Errorf("%v: %q, waits %v", row.err, remedy.Of(cause), waits)
		}
	}
}
