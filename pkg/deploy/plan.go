package deploy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Source is a file as far as deciding needs to know it.
type Source struct {
	Path   string
	Hash   string // of its content
	Keys   []Key  // of its objects
	Kinds  []schema.GroupVersionKind
	Broken bool // it has mistakes: what was applied of it stays
	Skip   bool // its owner wants it left alone
}

// Key names an object whatever its version.
type Key struct {
	Group, Kind, Namespace, Name string
}

func (k Key) String() string {
	name := k.Name
	if k.Namespace != "" && k.Namespace != "default" {
		name = k.Namespace + "/" + k.Name
	}
	return k.Kind + " " + name
}

func keyOf(d Document) Key {
	gvk := d.Object.GroupVersionKind()
	return Key{Group: gvk.Group, Kind: gvk.Kind, Namespace: cmp.Or(d.Object.GetNamespace(), "default"), Name: d.Object.GetName()}
}

// Record is what was applied, by path. It is kept in the cluster, so that it is true after a snapshot was restored as well.
type Record map[string]Entry

// Entry is what is known about one file.
type Entry struct {
	Path    string                    `json:"path"`
	Hash    string                    `json:"hash,omitempty"`  // of what was last applied; "" when that did not succeed
	By      string                    `json:"by,omitempty"`    // the server that applied it last
	Kinds   []schema.GroupVersionKind `json:"kinds,omitempty"` // which its objects have, or had when they were last pruned
	Holders map[string]Holder         `json:"holders"`         // the servers that have the file, by the identity of their disk
}

// Holder is one server's relation to a file.
type Holder struct {
	Node string `json:"node"`
	Hash string `json:"hash,omitempty"` // of what it applied successfully
}

// Verb is what to do with a file.
type Verb string

// Verbs.
const (
	Apply  Verb = "apply"  // bring the objects of the file into the cluster, remove those that it no longer has
	Prune  Verb = "prune"  // remove all its objects: nobody has the file any more
	Forget Verb = "forget" // note that this server does not have it any more; others do
)

// Action is one thing to do.
type Action struct {
	Verb  Verb
	Path  string
	Hash  string                    // Apply: to be recorded
	Leave []Key                     // Apply: objects of the file that belong to another one
	Prune []schema.GroupVersionKind // kinds in which objects of an earlier version may exist
}

// Conflict is an object that two files want to make.
type Conflict struct {
	Key    Key
	Path   string // loses
	Winner string // the program's own, else the first by name
}

// Plan decides what the server with identity me does, given the files that it has and what is on record. again tells for
// which files it applies what it applied last even if nothing changed, to put back what somebody changed in the cluster.
//
// Applying comes before pruning: an object that moves from one file to another is taken over, not deleted and made again.
func Plan(sources []Source, record Record, me string, again func(path string) bool) ([]Action, []Conflict) {
	sources = slices.SortedFunc(slices.Values(sources), func(a, b Source) int {
		return cmp.Or(cmp.Compare(rank(a.Path), rank(b.Path)), cmp.Compare(a.Path, b.Path))
	})
	leave, conflicts := conflictsOf(sources)
	var actions []Action
	present := map[string]bool{}
	for _, s := range sources {
		present[s.Path] = true
		if s.Broken || s.Skip {
			continue
		}
		entry := record[s.Path]
		hash := effectiveHash(s.Hash, leave[s.Path])
		changed := entry.Holders[me].Hash != hash
		if changed || entry.By == me && again(s.Path) {
			actions = append(actions, Action{Verb: Apply, Path: s.Path, Hash: hash, Leave: leave[s.Path], Prune: entry.Kinds})
		}
	}
	for _, path := range slices.Sorted(maps.Keys(record)) {
		entry := record[path]
		if _, mine := entry.Holders[me]; present[path] || !mine && len(entry.Holders) > 0 {
			continue // a file that all servers gave up at the same moment has no holders left
		}
		if len(entry.Holders) > 1 {
			actions = append(actions, Action{Verb: Forget, Path: path})
			continue
		}
		actions = append(actions, Action{Verb: Prune, Path: path, Prune: entry.Kinds})
	}
	return actions, conflicts
}

const packagedPrefix = "packaged/"

// rank puts what the program brings before what people add.
func rank(path string) int {
	if strings.HasPrefix(path, packagedPrefix) {
		return 0
	}
	return 1
}

// conflictsOf finds objects that are in more than one place. The first file keeps them. Of a broken or skipped file no objects are known here.
func conflictsOf(sources []Source) (leave map[string][]Key, conflicts []Conflict) {
	leave = map[string][]Key{}
	owner := map[Key]string{}
	for _, s := range sources {
		for _, k := range s.Keys {
			first, taken := owner[k]
			if !taken {
				owner[k] = s.Path
				continue
			}
			if slices.Contains(leave[s.Path], k) {
				continue
			}
			if first != s.Path { // else it is in the file twice, and the later one counts
				leave[s.Path] = append(leave[s.Path], k)
			}
			conflicts = append(conflicts, Conflict{Key: k, Path: s.Path, Winner: first})
		}
	}
	return leave, conflicts
}

// effectiveHash changes with the content of the file and with what of it is left to others.
func effectiveHash(content string, leave []Key) string {
	if len(leave) == 0 {
		return content
	}
	h := sha256.New()
	fmt.Fprintln(h, content, leave)
	return hex.EncodeToString(h.Sum(nil))
}

// order sorts objects so that what others need comes first: namespaces, kinds, rights, then the rest as written.
func order(docs []Document) {
	slices.SortStableFunc(docs, func(a, b Document) int { return cmp.Compare(weight(a), weight(b)) })
}

var weights = []string{"Namespace", "CustomResourceDefinition", "ResourceQuota", "LimitRange", "PriorityClass", "StorageClass", "ServiceAccount", "Secret", "ConfigMap",
	"ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding", "PersistentVolume", "PersistentVolumeClaim", "Service"}

func weight(d Document) int {
	if i := slices.Index(weights, d.Object.GetKind()); i >= 0 {
		return i
	}
	if strings.HasSuffix(d.Object.GetKind(), "WebhookConfiguration") {
		return len(weights) + 1 // once it exists, it is asked about everything else
	}
	return len(weights)
}
