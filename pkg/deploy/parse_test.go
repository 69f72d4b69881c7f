package deploy_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/atollhq/atoll/manifests"
	"github.com/atollhq/atoll/pkg/deploy"
)

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\n"

func cm(name string) string { return fmt.Sprintf(configMap, name) }

func TestParse(t *testing.T) {
	for _, row := range []struct {
		name, file, text string
		want             string // "number:line Kind name" of each document, or the error with its line
	}{
		{"one", "a.yaml", cm("a"), "1:1 ConfigMap a"},
		{"two", "a.yaml", cm("a") + "---\n" + cm("b"), "1:1 ConfigMap a, 2:5 ConfigMap b"},
		{"begins and ends with markers", "a.yml", "---\n" + cm("a") + "---\n---\n", "1:1 ConfigMap a"},
		{"comments only", "a.yaml", "# nothing\n---\n  # here\n", ""},
		{"empty", "a.yaml", "", ""},
		{"comment before", "a.yaml", "# one\n\n---\n# two\n" + cm("a"), "1:3 ConfigMap a"},
		{"directive", "a.yaml", "%YAML 1.2\n---\n" + cm("a"), "1:2 ConfigMap a"},
		{"end marker", "a.yaml", cm("a") + "...\n---\n" + cm("b"), "1:1 ConfigMap a, 2:6 ConfigMap b"},
		{"content on the marker's line", "a.yaml", "--- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n--- # comment\n" + cm("b"), "1:1 ConfigMap a, 2:2 ConfigMap b"},
		{"Windows line ends", "a.yaml", strings.ReplaceAll(cm("a")+"---\n"+cm("b"), "\n", "\r\n"), "1:1 ConfigMap a, 2:5 ConfigMap b"},
		{"byte order mark", "a.yaml", "\ufeff" + cm("a"), "1:1 ConfigMap a"},
		{"dashes that are no marker", "a.yaml", cm("a") + "data:\n  x: |\n    ---\n    more\n  y: ----\n", "1:1 ConfigMap a"},
		{"list", "a.yaml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n- {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: shop}}\n", "1:1 ConfigMap a, 1:1 Secret shop/b"},
		{"typed list", "a.yaml", "apiVersion: v1\nkind: ConfigMapList\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n", "1:1 ConfigMap a"},
		{"JSON", "a.json", "{\"apiVersion\":\"v1\",\n\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"}}\n\n{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"metadata\":{\"name\":\"b\"}}", "1:1 ConfigMap a, 2:2 Secret b"},
		{"JSON in a YAML file", "a.yaml", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, "1:1 ConfigMap a"},

		{"half a file", "a.yaml", cm("a") + "---\napiVersion: v1\nkind: Conf", "error at 5: metadata.name is missing"},
		{"bad indentation", "a.yaml", cm("a") + "---\n" + cm("b") + "data:\n  x: 1\n y: 2\n", "error at 11: line 11: did not find expected"},
		{"key twice", "a.yaml", cm("a") + "kind: Secret\n", `error at 5: line 5: key "kind" already set`},
		{"not an object", "a.yaml", "- a\n- b\n", "error at 1: the document is not an object"},
		{"plain text", "a.yaml", "hello\n", "error at 1: the document is not an object"},
		{"no kind", "a.yaml", "apiVersion: v1\nmetadata: {name: a}\n", "error at 1: apiVersion or kind is missing"},
		{"no version", "a.yaml", "kind: ConfigMap\nmetadata: {name: a}\n", "error at 1: apiVersion or kind is missing"},
		{"no name", "a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n", "error at 1: metadata.name is missing"},
		{"name is a number", "a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: 1}\n", "error at 1: metadata.name is not text"},
		{"annotation is no text", "a.yaml", cm("a") + "  annotations: {enabled: true}\n", "error at 1: metadata.annotations: the value of enabled is not text"},
		{"labels are no map", "a.yaml", cm("a") + "  labels: [x]\n", "error at 1: metadata.labels is not a map"},
		{"too many slashes", "a.yaml", "apiVersion: a/b/c\nkind: X\nmetadata: {name: a}\n", "error at 1: unexpected GroupVersion string"},
		{"not text", "a.yaml", "\xff\xfe\x00", "error at 0: the file is not UTF-8"},
		{"half JSON", "a.json", "{\"apiVersion\":\"v1\",\n", "error at 1: unexpected EOF"},
		{"list of something else", "a.yaml", "apiVersion: v1\nkind: List\nitems: [1]\n", "error at 1:"},
	} {
		t.Run(row.name, func(t *testing.T) {
			docs, errs := deploy.Parse(row.file, []byte(row.text))
			var got []string
			for _, d := range docs {
				got = append(got, fmt.Sprintf("%d:%d %s", d.Number, d.Line, d.Name()))
			}
			if want, isError := strings.CutPrefix(row.want, "error at "); isError {
				if len(errs) == 0 || len(docs) != 0 {
					t.Fatalf("documents %q, errors %v", got, errs)
				}
				if text := fmt.Sprintf("%d: %s", errs[0].Line, errs[0].Cause); !strings.HasPrefix(text, want) {
					t.Errorf("%q, want %q", text, want)
				}
				if errs[0].Remedy == "" {
					t.Error("no remedy")
				}
				return
			}
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if text := strings.Join(got, ", "); text != row.want {
				t.Errorf("%q, want %q", text, row.want)
			}
		})
	}
}

func TestParseReportsAllMistakes(t *testing.T) {
	_, errs := deploy.Parse("a.yaml", []byte("x: [\n---\n"+cm("a")+"---\nkind: A\n"))
	if len(errs) != 2 || errs[0].Document != 1 || errs[1].Document != 3 {
		t.Errorf("%+v", errs)
	}
}

func TestTooManyObjects(t *testing.T) {
	_, errs := deploy.Parse("a.yaml", []byte(strings.Repeat("---\n"+cm("a"), 5001)))
	if len(errs) != 1 || !strings.Contains(errs[0].Cause, "5001 objects") {
		t.Errorf("%+v", errs)
	}
}

// The program's own manifests must be whole, in every build.
func TestCarriedManifestsParse(t *testing.T) {
	entries, err := manifests.Files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, e := range entries {
		data, err := manifests.Files.ReadFile(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		docs, errs := deploy.Parse(e.Name(), data)
		if len(errs) > 0 || len(docs) == 0 {
			t.Errorf("%s: %d documents, %v", e.Name(), len(docs), errs)
		}
		for _, d := range docs {
			key := d.Object.GroupVersionKind().GroupKind().String() + d.Name()
			if other, twice := seen[key]; twice {
				t.Errorf("%s is in %s and %s", d.Name(), other, e.Name())
			}
			seen[key] = e.Name()
		}
	}
	if len(seen) == 0 {
		t.Error("no manifests")
	}
}

// Whatever the text: no panic, no half results, and places that exist.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{cm("a"), cm("a") + "---\n" + cm("b"), "--- {}\n...\n", "%YAML 1.2\n---\n", "a: |\n  ---\n---\r\nb: 1", "&a [*a, *a]", "- \xff", "---", "----\n--- \n", "{\"a\":1}{"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		for _, name := range []string{"a.yaml", "a.json"} {
			docs, errs := deploy.Parse(name, data)
			if len(docs) > 0 && len(errs) > 0 {
				t.Errorf("documents and errors: %v", errs)
			}
			lines := bytes.Count(data, []byte("\n")) + 1
			for _, d := range docs {
				if d.Line < 1 || d.Line > lines || d.Object.GetName() == "" || d.Object.GetKind() == "" {
					t.Errorf("document %+v", d)
				}
			}
			for _, e := range errs {
				if e.Line > lines+1 || e.Cause == "" {
					t.Errorf("error %+v in %d lines", e, lines)
				}
			}
		}
	})
}

// Joining documents and cutting them apart gives them back.
func FuzzSplit(f *testing.F) {
	f.Add("a", "b: c")
	f.Add("x|", "---- y")
	f.Fuzz(func(t *testing.T, one, two string) {
		for _, name := range []string{one, two} {
			if name == "" || strings.ContainsAny(name, "\r\n\t") || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0xfffd || r > 0xd7ff || r >= 0x7f && r < 0xa0 }) {
				return
			}
		}
		quote := func(s string) string { return strings.ReplaceAll(s, "'", "''") }
		text := "---\n" + cm("'"+quote(one)+"'") + "--- # second\n" + cm("'"+quote(two)+"'") + "...\n"
		docs, errs := deploy.Parse("a.yaml", []byte(text))
		if len(errs) > 0 || len(docs) != 2 || docs[0].Object.GetName() != one || docs[1].Object.GetName() != two {
			t.Errorf("%q: %+v, %v", text, docs, errs)
		}
	})
}
