package repo_test

import (
	"fmt"
	"strings"
	"testing"
)

// Layers from the bottom up. A package imports lower layers only; leaves may import leaves.
const (
	leaf = iota
	feature
	node
	cli
	command
	outside // tests and scripts, which may use everything and are used by nothing
)

// leaves know nothing of Kubernetes sites; anything may use them.
var leaves = []string{"pkg/atomicfile", "pkg/config", "pkg/remedy", "pkg/retry", "pkg/run", "pkg/status", "pkg/version", "pkg/vfs", "manifests"}

// neighbours may import one another although both are features. The key is "importer -> imported".
var neighbours = exceptions{
	"pkg/formation -> pkg/pki":                 "joining a site is being given certificates by its authorities",
	"pkg/kube/apiserver -> pkg/kube/process":   "upstream's settings per process belong to all of pkg/kube",
	"pkg/kube/controllers -> pkg/kube/process": "as above",
	"pkg/kube/kubelet -> pkg/kube/process":     "as above",
	"pkg/kube/metrics -> pkg/kube/process":     "as above",
	"pkg/kube/proxy -> pkg/kube/process":       "as above",
}

// fleetMayUse is what of pkg the fleet service builds on, besides the leaves.
var fleetMayUse = []string{"pkg/datastore", "pkg/kube/controlplane", "pkg/pki"}

// brokenImports checks every import of a package of this repository, and of Kubernetes' internals.
func brokenImports(tr tree) []string {
	found := map[string]string{}
	for _, f := range tr.files {
		for _, path := range f.imports {
			if reason := importProblem(f.dir(), path, f.isTest()); reason != "" {
				key := f.dir() + " -> " + strings.TrimPrefix(path, module+"/")
				found[key] = fmt.Sprintf("%s: imports %s: %s", f.name, path, reason)
			}
		}
	}
	return neighbours.filter(found)
}

// importProblem says what is wrong with a file in folder dir (or its test) importing path, or nothing.
func importProblem(dir, path string, inTest bool) string {
	if upstream(path) && !within(dir, "pkg/kube") && layer(dir) != outside {
		return "only pkg/kube imports Kubernetes' internal packages"
	}
	to, ours := strings.CutPrefix(path, module+"/")
	if !ours || to == dir {
		return ""
	}
	switch {
	case within(dir, "fleet/api"):
		return "the types on the wire stand on the standard library alone"
	case layer(to) == outside && layer(dir) != outside:
		return "nothing depends on tests and scripts"
	case layer(dir) == outside:
		return ""
	case strings.HasSuffix(to, "test"):
		if inTest {
			return ""
		}
		return "a package that ends in test is for tests"
	case within(to, "fleet"):
		if within(dir, "fleet") || layer(dir) >= cli {
			return ""
		}
		return "pkg never imports fleet"
	case within(dir, "fleet"):
		if layer(to) == leaf || withinAny(to, fleetMayUse) {
			return ""
		}
		return "fleet uses the leaves of pkg and " + strings.Join(fleetMayUse, ", ")
	case layer(to) < layer(dir), layer(to) == leaf:
		return ""
	case layer(to) > layer(dir):
		return "arrows point down: cmd, pkg/cli, pkg/node, features, leaves"
	case within(to, dir) || within(dir, to):
		return "" // a feature and the folders in it are one
	}
	return "features do not import one another: pkg/node introduces them"
}

func layer(dir string) int {
	switch {
	case within(dir, "tests"), within(dir, "scripts"):
		return outside
	case within(dir, "cmd"):
		return command
	case within(dir, "pkg/cli"), within(dir, "fleet/cli"):
		return cli
	case within(dir, "pkg/node"):
		return node
	case withinAny(dir, leaves):
		return leaf
	}
	return feature
}

// upstream reports packages of Kubernetes that are no module of their own and promise nothing to importers.
func upstream(path string) bool { return within(path, "k8s.io/kubernetes") }

func within(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

func withinAny(dir string, parents []string) bool {
	for _, p := range parents {
		if within(dir, p) {
			return true
		}
	}
	return false
}

// The rule itself, in both directions: rows that are allowed, and the same arrow turned round.
func TestImportProblem(t *testing.T) {
	for _, row := range []struct {
		dir, path string
		inTest    bool
		ok        bool
	}{
		{dir: "cmd/atoll", path: "pkg/cli", ok: true},
		{dir: "pkg/cli", path: "pkg/node", ok: true},
		{dir: "pkg/node", path: "pkg/cli"},
		{dir: "pkg/node", path: "pkg/storage", ok: true},
		{dir: "pkg/storage", path: "pkg/node"},
		{dir: "pkg/storage", path: "pkg/remedy", ok: true},
		{dir: "pkg/remedy", path: "pkg/storage"},
		{dir: "pkg/config", path: "pkg/remedy", ok: true},
		{dir: "pkg/storage", path: "pkg/deploy"},
		{dir: "pkg/network/dns", path: "pkg/network/policy"},
		{dir: "pkg/network/policy", path: "pkg/network/policy/cniplugin", ok: true},
		{dir: "pkg/network/policy", path: "pkg/network/netnstest"},
		{dir: "pkg/network/policy", path: "pkg/network/netnstest", inTest: true, ok: true},
		{dir: "pkg/node", path: "fleet/agent"},
		{dir: "pkg/cli", path: "fleet/agent", ok: true},
		{dir: "fleet/hub", path: "fleet/rollout", ok: true},
		{dir: "fleet/hub", path: "pkg/pki", ok: true},
		{dir: "fleet/hub", path: "pkg/formation"},
		{dir: "fleet/api", path: "pkg/remedy"},
		{dir: "tests/e2e", path: "pkg/status", ok: true},
		{dir: "pkg/status", path: "tests/lab"},
		{dir: "pkg/node", path: "k8s.io/kubernetes/pkg/features"},
		{dir: "pkg/kube/proxy", path: "k8s.io/kubernetes/cmd/kube-proxy/app", ok: true},
		{dir: "pkg/node", path: "k8s.io/client-go/kubernetes", ok: true},
	} {
		path := row.path
		if !strings.Contains(path, ".") {
			path = module + "/" + path
		}
		if reason := importProblem(row.dir, path, row.inTest); (reason == "") != row.ok {
			t.Errorf("%s -> %s (in a test: %v): got %q, allowed should be %v", row.dir, row.path, row.inTest, reason, row.ok)
		}
	}
}
