package deploy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/atollhq/atoll/pkg/deploy"
)

var cmKind = schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}

func source(path, hash string, names ...string) deploy.Source {
	s := deploy.Source{Path: path, Hash: hash}
	for _, n := range names {
		s.Keys = append(s.Keys, deploy.Key{Kind: "ConfigMap", Namespace: "default", Name: n})
	}
	return s
}

func entry(hash, by string, holders ...string) deploy.Entry {
	e := deploy.Entry{Hash: hash, By: by, Kinds: []schema.GroupVersionKind{cmKind}, Holders: map[string]deploy.Holder{}}
	for _, h := range holders {
		id, hash, _ := strings.Cut(h, "=")
		e.Holders[id] = deploy.Holder{Node: "node-" + id, Hash: hash}
	}
	return e
}

func never(string) bool { return false }

func TestPlan(t *testing.T) {
	type row struct {
		name      string
		sources   []deploy.Source
		record    deploy.Record
		again     bool
		want      string // "verb path" of each action; "-n" when n objects are left to another file
		conflicts string // "path<winner: object"
	}
	for _, r := range []row{
		{name: "nothing"},
		{name: "new", sources: []deploy.Source{source("a", "1")}, want: "apply a"},
		{name: "unchanged", sources: []deploy.Source{source("a", "1")}, record: deploy.Record{"a": entry("1", "me", "me=1")}},
		{name: "changed", sources: []deploy.Source{source("a", "2")}, record: deploy.Record{"a": entry("1", "me", "me=1")}, want: "apply a"},
		{name: "did not succeed before", sources: []deploy.Source{source("a", "1")}, record: deploy.Record{"a": entry("", "", "me=")}, want: "apply a"},
		{name: "removed", record: deploy.Record{"a": entry("1", "me", "me=1")}, want: "prune a"},
		{name: "removed before it ever succeeded", record: deploy.Record{"a": entry("", "", "me=")}, want: "prune a"},
		{name: "broken keeps its objects", sources: []deploy.Source{{Path: "a", Broken: true}}, record: deploy.Record{"a": entry("1", "me", "me=1")}, again: true},
		{name: "skipped is left alone", sources: []deploy.Source{{Path: "a", Skip: true}}, record: deploy.Record{"a": entry("1", "me", "me=1")}, again: true},
		{name: "skipped from the start", sources: []deploy.Source{{Path: "a", Skip: true}}},

		{name: "compare with the cluster", sources: []deploy.Source{source("a", "1")}, record: deploy.Record{"a": entry("1", "me", "me=1")}, again: true, want: "apply a"},
		{name: "another server applied it last and compares itself", sources: []deploy.Source{source("a", "1")}, record: deploy.Record{"a": entry("1", "you", "me=1", "you=1")}, again: true},
		{name: "another server has it as well", record: deploy.Record{"a": entry("1", "you", "me=1", "you=1")}, want: "forget a"},
		{name: "only another server has it", record: deploy.Record{"a": entry("1", "you", "you=1")}},
		{name: "new here, known there", sources: []deploy.Source{source("a", "1")}, record: deploy.Record{"a": entry("1", "you", "you=1")}, want: "apply a"},
		{name: "other content there", sources: []deploy.Source{source("a", "1")}, record: deploy.Record{"a": entry("2", "you", "me=1", "you=2")}},
		{name: "nobody has it", record: deploy.Record{"a": entry("1", "you")}, want: "prune a"},
		{name: "an empty disk has removed nothing", record: deploy.Record{"a": entry("1", "my-old-disk", "my-old-disk=1")}},

		{name: "moved to another file: taken over first", sources: []deploy.Source{source("z", "1", "x")}, record: deploy.Record{"a": entry("1", "me", "me=1")}, want: "apply z, prune a"},
		{name: "the program's own come first", sources: []deploy.Source{source("a", "1"), source("packaged/z", "1")}, want: "apply packaged/z, apply a"},
		{name: "in two files", sources: []deploy.Source{source("b", "1", "x", "y"), source("a", "1", "x")}, want: "apply a, apply b -1", conflicts: "b<a: ConfigMap x"},
		{name: "also in the program's own", sources: []deploy.Source{source("a", "1", "x"), source("packaged/z", "1", "x")}, want: "apply packaged/z, apply a -1", conflicts: "a<packaged/z: ConfigMap x"},
		{name: "in three files", sources: []deploy.Source{source("a", "1", "x"), source("b", "1", "x"), source("c", "1", "x")}, want: "apply a, apply b -1, apply c -1", conflicts: "b<a: ConfigMap x, c<a: ConfigMap x"},
		{name: "twice in one file", sources: []deploy.Source{source("a", "1", "x", "x")}, want: "apply a", conflicts: "a<a: ConfigMap x"},
		{name: "twice in a file that loses it", sources: []deploy.Source{source("a", "1", "x"), source("b", "1", "x", "x")}, want: "apply a, apply b -1", conflicts: "b<a: ConfigMap x"},
	} {
		t.Run(r.name, func(t *testing.T) {
			actions, conflicts := deploy.Plan(r.sources, r.record, "me", func(string) bool { return r.again })
			var got, lost []string
			for _, a := range actions {
				text := fmt.Sprintf("%s %s", a.Verb, a.Path)
				if len(a.Leave) > 0 {
					text += fmt.Sprintf(" -%d", len(a.Leave))
				}
				got = append(got, text)
				if _, known := r.record[a.Path]; known && a.Verb != deploy.Forget && !slices.Equal(a.Prune, []schema.GroupVersionKind{cmKind}) {
					t.Errorf("%s does not look for old objects", text)
				}
			}
			for _, c := range conflicts {
				lost = append(lost, c.Path+"<"+c.Winner+": "+c.Key.String())
			}
			if text := strings.Join(got, ", "); text != r.want {
				t.Errorf("actions %q, want %q", text, r.want)
			}
			if text := strings.Join(lost, ", "); text != r.conflicts {
				t.Errorf("conflicts %q, want %q", text, r.conflicts)
			}
		})
	}
}

// When the file that had an object goes, the file that lost it must be applied anew.
func TestLoserTakesOver(t *testing.T) {
	a, b := source("a", "1", "x"), source("b", "1", "x", "y")
	actions, _ := deploy.Plan([]deploy.Source{a, b}, nil, "me", never)
	record := deploy.Record{}
	for _, act := range actions {
		record[act.Path] = entry(act.Hash, "me", "me="+act.Hash)
	}
	if again, _ := deploy.Plan([]deploy.Source{a, b}, record, "me", never); len(again) != 0 {
		t.Errorf("nothing changed, yet: %+v", again)
	}
	actions, conflicts := deploy.Plan([]deploy.Source{b}, record, "me", never)
	if len(conflicts) != 0 || len(actions) != 2 || actions[0].Verb != deploy.Apply || actions[0].Path != "b" || len(actions[0].Leave) != 0 || actions[1].Verb != deploy.Prune {
		t.Errorf("%+v, %+v", actions, conflicts)
	}
}

func TestOrder(t *testing.T) {
	var text string
	for _, kind := range []string{"ValidatingWebhookConfiguration", "Till", "Deployment", "RoleBinding", "Service", "Role", "ConfigMap", "Namespace", "CustomResourceDefinition"} {
		text += fmt.Sprintf("---\napiVersion: v1\nkind: %s\nmetadata: {name: a}\n", kind)
	}
	docs, errs := deploy.Parse("a.yaml", []byte(text))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	deploy.Order(docs)
	var got []string
	for _, d := range docs {
		got = append(got, d.Object.GetKind())
	}
	if want := "Namespace CustomResourceDefinition ConfigMap Role RoleBinding Service Till Deployment ValidatingWebhookConfiguration"; strings.Join(got, " ") != want {
		t.Errorf("%s", strings.Join(got, " "))
	}
}

func TestRecordKey(t *testing.T) {
	seen := map[string]string{}
	for _, path := range []string{"a.yaml", "a/b.yaml", "a-b.yaml", "a b.yaml", "ä.yaml", strings.Repeat("x", 300), strings.Repeat("x", 301), "..", "."} {
		key := deploy.RecordKey(path)
		if other, taken := seen[key]; taken {
			t.Errorf("%q and %q have the key %q", path, other, key)
		}
		seen[key] = path
		if len(key) > 253 || strings.ContainsFunc(key, func(r rune) bool {
			return !strings.ContainsRune("-._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", r)
		}) {
			t.Errorf("%q is no key of a ConfigMap", key)
		}
	}
}
