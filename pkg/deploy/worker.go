package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"

	"github.com/atollhq/atoll/pkg/remedy"
)

// The pace of things.
const (
	settleTime  = 400 * time.Millisecond // without a change before a file is read
	removeTime  = 3 * time.Second        // before anything is deleted from the cluster
	lookEvery   = 30 * time.Second       // in case the kernel said nothing
	resyncEvery = 10 * time.Minute       // compare everything with the cluster
	firstRetry  = 500 * time.Millisecond
	lastRetry   = 5 * time.Minute
	lastWait    = 15 * time.Second // for what passes by itself
	quickTries  = 6
	applyWithin = 2 * time.Minute
)

// putter is what the worker needs of the cluster.
type putter interface {
	put(ctx context.Context, path string, docs []Document, prune []schema.GroupVersionKind) result
}

// recorder is what the worker needs to remember.
type recorder interface {
	load(ctx context.Context) (Record, error)
	update(ctx context.Context, paths []string, change func(*Entry) (keep bool)) (Record, error)
}

// file is what the worker knows about one file.
type file struct {
	stamp   stamp
	since   time.Time // when this version was first seen; zero when it is old for sure
	content []byte    // of a carried one; others are read again when needed
	hash    string
	keys    []Key
	kinds   []schema.GroupVersionKind
	count   int
	errs    []FileError
	read    bool
	applied []Key // of the version that was applied last by this process
	warns   []string
}

// attempt remembers the failures of an action.
type attempt struct {
	verb   Verb
	hash   string
	n      int
	at     time.Time // not before
	result result
}

// retry is the pause after failure n: short while something else may be about to come (a kind that has just been defined takes
// a second or two to be known), then longer and longer.
func (t attempt) retry() time.Duration {
	limit := lastRetry
	if t.result.waits {
		limit = lastWait
	}
	return min(firstRetry<<min(max(t.n-quickTries, 0), 12), limit)
}

// worker does the work of Manifests in one goroutine.
type worker struct {
	m        *Manifests
	identity string
	store    recorder
	cluster  putter
	events   record.EventRecorder
	watch    func(folders []string)

	packaged map[string]*file
	files    map[string]*file
	gone     map[string]time.Time // since when files on record are missing
	attempts map[string]attempt
	record   Record // nil until loaded
	resync   time.Time
	apiFails int
	settled  bool // the carried manifests are in the cluster

	next time.Time // the earliest moment at which there is something to do
}

func newWorker(m *Manifests, identity string, packaged map[string][]byte, s recorder, c putter, events record.EventRecorder) *worker {
	w := &worker{
		m: m, identity: identity, store: s, cluster: c, events: events, watch: func([]string) {},
		packaged: map[string]*file{}, files: map[string]*file{}, gone: map[string]time.Time{}, attempts: map[string]attempt{},
	}
	for path, content := range packaged {
		f := &file{content: content}
		f.parse(path, content)
		w.packaged[path] = f
	}
	return w
}

// parse reads content and returns its documents.
func (f *file) parse(path string, content []byte) []Document {
	docs, errs := Parse(path, content)
	sum := sha256.Sum256(content)
	f.hash, f.errs, f.read, f.count = hex.EncodeToString(sum[:16]), errs, true, len(docs)
	f.keys, f.kinds = nil, nil
	for _, d := range docs {
		f.keys = append(f.keys, keyOf(d))
		if gvk := d.Object.GroupVersionKind(); !slices.Contains(f.kinds, gvk) {
			f.kinds = append(f.kinds, gvk)
		}
	}
	return docs
}

func (w *worker) wake(at time.Time) {
	if at.Before(w.next) {
		w.next = at
	}
}

// pass looks at everything once, does what is due, and returns the time until the next look.
func (w *worker) pass(ctx context.Context, now time.Time) time.Duration {
	w.next = now.Add(lookEvery)
	look, err := look(w.m.cfg.Folder)
	w.m.setFolder(err)
	if err == nil {
		w.watch(look.folders)
		w.see(look, now)
	}
	if w.record == nil {
		if w.record, err = w.store.load(ctx); err != nil {
			w.record = nil
			return w.apiFailed(err)
		}
		if w.resync.IsZero() {
			w.resync = now.Add(time.Minute) // not while the node starts
		}
	}
	w.m.setAPI(nil)
	sources := w.sources(look, err == nil, now)
	resync := !now.Before(w.resync)
	if resync {
		w.resync = now.Add(resyncEvery)
	}
	w.wake(w.resync)
	again := func(path string) bool {
		_, failed := w.attempts[path]
		return resync || failed
	}
	actions, conflicts := Plan(sources, w.record, w.identity, again)
	if slices.ContainsFunc(actions, func(a Action) bool { return a.Verb != Apply }) {
		// Another server may hold the file since we last looked.
		if w.record, err = w.store.load(ctx); err != nil {
			w.record = nil
			return w.apiFailed(err)
		}
		actions, conflicts = Plan(sources, w.record, w.identity, again)
	}
	if err := w.do(ctx, actions, now); err != nil && ctx.Err() == nil {
		w.record = nil
		return w.apiFailed(err)
	}
	w.apiFails = 0
	w.report(look, sources, conflicts, now)
	return max(w.next.Sub(now), 50*time.Millisecond)
}

// apiFailed is how long to leave the API server alone.
func (w *worker) apiFailed(err error) time.Duration {
	w.m.setAPI(err)
	pause := min(firstRetry<<min(w.apiFails, 5), lastWait)
	w.apiFails++
	return pause
}

// see updates what is known about the files of the folder.
func (w *worker) see(look found, now time.Time) {
	for path, s := range look.files {
		f := w.files[path]
		if f == nil {
			f = &file{}
			w.files[path] = f
		}
		if f.stamp != s || (f.read && f.hash == "") {
			fresh := f.stamp == (stamp{})
			f.stamp, f.read, f.since = s, false, now
			if fresh && now.Sub(s.mod) > removeTime {
				f.since = time.Time{} // nobody is writing it
			}
		}
		if f.read {
			continue
		}
		if wait := f.since.Add(settleTime); now.Before(wait) {
			w.wake(wait)
			continue
		}
		content, err := read(w.m.cfg.Folder, path, s)
		switch {
		case errors.Is(err, errChanging):
			w.wake(now.Add(settleTime))
		case err != nil:
			f.read, f.hash = true, ""
			f.errs = []FileError{fileError(0, 0, "", remedy.Wrap(err, "make the file readable"))}
		default:
			f.parse(path, content)
		}
	}
	maps.DeleteFunc(w.files, func(path string, _ *file) bool { _, there := look.files[path]; return !there })
}

// sources lists for Plan what there is. What may only seem to be missing is listed as broken, which keeps its objects.
func (w *worker) sources(look found, complete bool, now time.Time) []Source {
	var out []Source
	keep := func(path string) { out = append(out, Source{Path: path, Broken: true}) }
	for path, f := range w.packaged {
		s := Source{Path: path, Hash: f.hash, Keys: f.keys, Kinds: f.kinds, Broken: len(f.errs) > 0}
		if look.skip[strings.TrimPrefix(path, packagedPrefix)] {
			s = Source{Path: path, Skip: true}
		}
		out = append(out, s)
	}
	for path, f := range w.files {
		switch {
		case look.skip[path]:
			out = append(out, Source{Path: path, Skip: true})
		case !f.read || len(f.errs) > 0:
			keep(path)
		default:
			out = append(out, Source{Path: path, Hash: f.hash, Keys: f.keys, Kinds: f.kinds})
		}
	}
	for path := range look.bad {
		keep(path)
	}
	for path := range w.record {
		if strings.HasPrefix(path, packagedPrefix) {
			continue // what the program no longer carries, or was told to leave out, goes at once
		}
		if _, there := w.files[path]; there || look.bad[path] != nil {
			delete(w.gone, path)
			continue
		}
		since, known := w.gone[path]
		if !known {
			since = now
			w.gone[path] = now
		}
		switch {
		case look.skip[path]:
			out = append(out, Source{Path: path, Skip: true})
		case !complete:
			keep(path)
			w.gone[path] = now
		case now.Before(since.Add(removeTime)):
			keep(path)
			w.wake(since.Add(removeTime))
		}
	}
	return out
}

// do carries out the actions. It fails only when the record cannot be written.
func (w *worker) do(ctx context.Context, actions []Action, now time.Time) error {
	// A file that is still being written may take over what is about to be removed.
	patience := slices.ContainsFunc(slices.Collect(maps.Values(w.files)), func(f *file) bool { return !f.read })
	actions = slices.DeleteFunc(actions, func(a Action) bool {
		if a.Verb == Apply && w.incomplete(a, now) {
			patience = true
			return true
		}
		return !w.due(a, now) || patience && a.Verb == Prune
	})
	if len(actions) == 0 {
		return nil
	}
	if err := w.announce(ctx, actions); err != nil {
		return err
	}
	done := map[string]Action{}
	for _, a := range actions {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.perform(ctx, a, now) {
			done[a.Path] = a
		}
	}
	if len(done) == 0 {
		return nil
	}
	updated, err := w.store.update(ctx, slices.Sorted(maps.Keys(done)), func(e *Entry) bool {
		switch a := done[e.Path]; a.Verb {
		case Apply:
			e.Hash, e.By, e.Kinds = a.Hash, w.identity, w.file(e.Path).kinds
			e.Holders[w.identity] = Holder{Node: w.m.cfg.Node, Hash: a.Hash}
			return true
		case Forget:
			delete(e.Holders, w.identity)
			return true
		default:
			return false
		}
	})
	if err != nil {
		return err
	}
	w.record = updated
	// Something that others waited for may be there now.
	for path, t := range w.attempts {
		t.at = now.Add(firstRetry)
		w.attempts[path] = t
		w.wake(t.at)
	}
	return nil
}

// due tells whether it is time for the action. One that failed has to wait, unless the file has changed.
func (w *worker) due(a Action, now time.Time) bool {
	t, failed := w.attempts[a.Path]
	if failed && t.hash == a.Hash && t.verb == a.Verb && now.Before(t.at) {
		w.wake(t.at)
		return false
	}
	return true
}

// incomplete tells whether objects are missing that the file had before, and it changed just now. If it is being copied slowly
// they are yet to come.
func (w *worker) incomplete(a Action, now time.Time) bool {
	f := w.file(a.Path)
	if f.content != nil || w.record[a.Path].Holders[w.identity].Hash == "" || containsAll(f.keys, f.applied) {
		return false
	}
	wait := f.since.Add(removeTime)
	if !now.Before(wait) {
		return false
	}
	w.wake(wait)
	return true
}

func containsAll(all, some []Key) bool {
	set := make(map[Key]bool, len(all))
	for _, k := range all {
		set[k] = true
	}
	return some != nil && !slices.ContainsFunc(some, func(k Key) bool { return !set[k] })
}

// announce records, before anything is done, in which kinds objects may come to exist: should the power go in between, the
// next process knows where to look for them.
func (w *worker) announce(ctx context.Context, actions []Action) error {
	var news []string
	for _, a := range actions {
		if a.Verb != Apply {
			continue
		}
		entry := w.record[a.Path]
		_, held := entry.Holders[w.identity]
		if !held || slices.ContainsFunc(w.file(a.Path).kinds, func(k schema.GroupVersionKind) bool { return !slices.Contains(entry.Kinds, k) }) {
			news = append(news, a.Path)
		}
	}
	if len(news) == 0 {
		return nil
	}
	updated, err := w.store.update(ctx, news, func(e *Entry) bool {
		for _, k := range w.file(e.Path).kinds {
			if !slices.Contains(e.Kinds, k) {
				e.Kinds = append(slices.Clone(e.Kinds), k)
			}
		}
		if _, held := e.Holders[w.identity]; !held {
			// A disk of this node that is gone holds nothing any more.
			maps.DeleteFunc(e.Holders, func(_ string, h Holder) bool { return h.Node == w.m.cfg.Node })
			e.Holders[w.identity] = Holder{Node: w.m.cfg.Node}
		}
		return true
	})
	if err == nil {
		w.record = updated
	}
	return err
}

func (w *worker) file(path string) *file {
	if f := w.packaged[path]; f != nil {
		return f
	}
	return w.files[path]
}

// perform does one action and tells whether it succeeded.
func (w *worker) perform(ctx context.Context, a Action, now time.Time) bool {
	if a.Verb == Forget {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, applyWithin)
	defer cancel()
	var docs []Document
	f := w.file(a.Path)
	if a.Verb == Apply {
		content := f.content
		if content == nil {
			var err error
			if content, err = read(w.m.cfg.Folder, a.Path, f.stamp); err != nil {
				w.wake(now.Add(settleTime)) // it changed just now
				return false
			}
		}
		docs, _ = Parse(a.Path, content)
		docs = slices.DeleteFunc(docs, func(d Document) bool { return slices.Contains(a.Leave, keyOf(d)) })
	}
	r := w.cluster.put(ctx, a.Path, docs, w.record[a.Path].Kinds)
	if len(r.errs) > 0 {
		t := w.attempts[a.Path]
		if t.hash != a.Hash || t.verb != a.Verb {
			t = attempt{verb: a.Verb, hash: a.Hash}
		}
		t.result = r
		t.n++
		t.at = now.Add(t.retry())
		w.attempts[a.Path] = t
		w.wake(t.at)
		return false
	}
	delete(w.attempts, a.Path)
	if a.Verb == Prune {
		delete(w.gone, a.Path)
		w.pruned(a)
		return true
	}
	f.applied, f.warns = f.keys, r.warnings
	if w.record[a.Path].Hash != a.Hash { // else it was only compared
		w.m.log.Info("manifest applied", "file", a.Path, "objects", len(docs))
		w.event(corev1.EventTypeNormal, "ManifestApplied", a.Path+" was applied")
	}
	return true
}
