// Package deploy brings manifests into the cluster and keeps them there: those that the program carries and those that people put
// into a folder of the server (`<data-dir>/server/manifests`, with subfolders; .yaml, .yml, .json).
//
// # What people see
//
// A file that was added or changed is applied within about a second: as soon as it has not changed for 0.4 s. Objects that a new
// version of the file no longer has, and all objects of a file that was removed, are deleted from the cluster after three
// seconds; so an editor that writes a file anew, or a copy that stalls, deletes nothing. A file with a mistake changes nothing: what
// its last good version made stays. A file NAME.skip beside NAME (also of a carried one) makes that file be left alone. A carried
// part that is turned off (--disable) is removed.
//
// Objects without a namespace go to "default". Namespaces and kinds are made before what needs them, within a file; a kind that is not known yet is waited for.
// Everything that failed is tried again, first soon, later every five minutes.
//
// # Who owns an object
//
// Applying is a three-way merge by wrangler's apply, as in K3s: fields that the file has are set, fields that it had and no
// longer has are removed, others are left to whoever set them. An object that exists already is taken over, and is removed with
// the file. The label objectset.rio.cattle.io/prune=false on an object keeps it from being removed. Every ten minutes all files
// are compared with the cluster again, so that what somebody deleted or changed comes back. An object in two files belongs to the
// first by name, to the program's own before all; the other file reports it.
//
// # What is kept where
//
// The ConfigMap kube-system/atoll-manifests records for each file what was applied and by which servers the file is held. A file is only
// pruned when the last holder no longer has it. A holder is a disk, not a name (identity file): an empty disk that took the name
// of an old one has removed nothing. A folder that cannot be read in full prunes nothing.
package deploy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// Config is what New needs.
type Config struct {
	Client       *rest.Config // may do everything, because manifests may contain anything
	Node         string
	Folder       string // of people's manifests; made if missing
	IdentityFile string // tells this disk from others; made if missing; must not lie in Folder
	Packaged     fs.FS  // the program's own manifests
	// Values replace %{NAME}% in the program's own manifests.
	Values map[string]string
	// Disabled tells which of them, by name without ending, the owner does not want. Nil is none.
	Disabled func(name string) bool
}

// Manifests is the component. It may be started again.
type Manifests struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	files  map[string]FileStatus
	folder error // why the folder could not be looked through
	api    error // why the API server could not be asked
}

// New returns the component. It touches no disk.
func New(cfg Config, log *slog.Logger) *Manifests {
	if cfg.Disabled == nil {
		cfg.Disabled = func(string) bool { return false }
	}
	return &Manifests{cfg: cfg, log: log.With("component", "manifests"), files: map[string]FileStatus{}}
}

// Name implements run.Component.
func (*Manifests) Name() string { return "manifests" }

// Status returns how every file is doing, by path.
func (m *Manifests) Status() []FileStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]FileStatus, 0, len(m.files))
	for _, path := range slices.Sorted(maps.Keys(m.files)) {
		out = append(out, m.files[path])
	}
	return out
}

// Problems returns what a person should correct.
func (m *Manifests) Problems() []error {
	var out []error
	for _, f := range m.Status() {
		if f.State == Failed {
			for _, e := range f.Errors {
				out = append(out, e.In(f.Path))
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.folder != nil {
		out = append(out, m.folder)
	}
	return out
}

// Run implements run.Component. It is ready when the program's own manifests are in the cluster.
func (m *Manifests) Run(ctx context.Context, ready func()) error {
	identity, err := ensureIdentity(m.cfg.IdentityFile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.cfg.Folder, 0o700); err != nil {
		return remedy.Wrap(fmt.Errorf("make the folder of manifests: %w", err), "make the data folder writable")
	}
	packaged, err := m.packaged()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(m.cfg.Client)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	cluster, err := newCluster(m.cfg.Client)
	if err != nil {
		return err
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "atoll-manifests", Host: m.cfg.Node})

	changes := newWatch(m.log)
	defer changes.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { changes.run(ctx) })
	w := newWorker(m, identity, packaged, store{client}, cluster, recorder)
	w.watch = changes.folders
	for {
		again := w.pass(ctx, time.Now())
		if w.settled {
			ready()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		case <-changes.changed:
			// Changes come in bursts; the look after the burst counts.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// ensureIdentity returns what is in the file, and makes it if needed.
func ensureIdentity(file string) (string, error) {
	data, err := os.ReadFile(file)
	if text := strings.TrimSpace(string(data)); err == nil && text != "" {
		return text, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the identity of this disk: %w", err)
	}
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	text := hex.EncodeToString(id)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("write the identity of this disk: %w", err)
	}
	if err := atomicfile.Write(file, []byte(text+"\n"), 0o600); err != nil {
		return "", remedy.Wrap(fmt.Errorf("write the identity of this disk: %w", err), "make the data folder writable")
	}
	return text, nil
}

var valueRef = regexp.MustCompile(`%\{([A-Z0-9_]+)\}%`)

// packaged returns the content of the program's own manifests by path, with the site's values, without those that are turned off.
func (m *Manifests) packaged() (map[string][]byte, error) {
	out := map[string][]byte{}
	if m.cfg.Packaged == nil {
		return out, nil
	}
	entries, err := fs.ReadDir(m.cfg.Packaged, ".")
	if err != nil {
		return nil, fmt.Errorf("read the carried manifests: %w", err)
	}
	for _, e := range entries {
		if !isManifest(e.Name()) || m.cfg.Disabled(partOf(e.Name())) {
			continue
		}
		data, err := fs.ReadFile(m.cfg.Packaged, e.Name())
		if err != nil {
			return nil, fmt.Errorf("read the carried manifests: %w", err)
		}
		var missing error
		text := valueRef.ReplaceAllStringFunc(string(data), func(ref string) string {
			value, ok := m.cfg.Values[valueRef.FindStringSubmatch(ref)[1]]
			if !ok {
				missing = fmt.Errorf("carried manifest %s: no value for %s", e.Name(), ref)
			}
			return value
		})
		if missing != nil {
			return nil, missing
		}
		out[packagedPrefix+e.Name()] = []byte(text)
	}
	return out, nil
}

// partOf is the name that --disable knows a carried manifest by.
func partOf(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) }
