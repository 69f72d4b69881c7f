package deploy

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/pkg/remedy"
)

// pruned, failed and tell say what happened: in the status, the log, and as events.

func (w *worker) pruned(a Action) {
	w.m.drop(a.Path)
	w.m.log.Info("objects of a removed manifest deleted", "file", a.Path)
	w.event(corev1.EventTypeNormal, "ManifestRemoved", a.Path+" is gone, its objects were deleted")
}

func (w *worker) failed(a Action, r result, now time.Time) {
	s := FileStatus{Path: a.Path, State: Failed, Since: now, Errors: r.errs, Warnings: r.warnings}
	if f := w.file(a.Path); f != nil {
		s.Objects = f.count
	}
	if r.waits {
		s.State = Waiting
	}
	if !w.m.set(s) {
		return
	}
	for _, e := range r.errs {
		w.m.log.Warn("manifest not applied", "err", e.In(a.Path), "try", e.Remedy)
	}
	if !r.waits {
		w.event(corev1.EventTypeWarning, "ManifestFailed", r.errs[0].In(a.Path).Error()+"; try: "+r.errs[0].Remedy)
	}
}

// event is attached to the record, the only object that stands for all manifests.
func (w *worker) event(kind, reason, text string) {
	w.events.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: metav1.NamespaceSystem, Name: recordName}, kind, reason, text)
}

// report brings the status of files up to date that no action was about.
func (w *worker) report(look found, sources []Source, conflicts []Conflict, now time.Time) {
	present := map[string]bool{}
	for _, s := range sources {
		present[s.Path] = true
		f := w.file(s.Path)
		switch {
		case s.Skip:
			w.m.set(FileStatus{Path: s.Path, State: Skipped, Since: now})
		case look.bad[s.Path] != nil:
			w.tell(FileStatus{Path: s.Path, State: Failed, Since: now, Errors: []FileError{fileError(0, 0, "", look.bad[s.Path])}})
		case f == nil:
			w.m.set(FileStatus{Path: s.Path, State: Waiting, Since: now}) // about to be pruned
		case f.read && len(f.errs) > 0:
			w.tell(FileStatus{Path: s.Path, State: Failed, Since: now, Errors: f.errs})
		case !f.read:
			w.m.set(FileStatus{Path: s.Path, State: Waiting, Objects: f.count, Since: now})
		default:
			w.whole(s, f, conflicts, now)
		}
	}
	w.m.keep(present)
	w.settled = !slices.ContainsFunc(slices.Collect(maps.Keys(w.packaged)), func(path string) bool {
		s := w.m.state(path)
		return s != Applied && s != Skipped
	})
}

// whole reports a file that can be read: it is applied, unless it failed or waits for its turn. What it has in common with
// another file is an error even when all the rest is applied.
func (w *worker) whole(s Source, f *file, conflicts []Conflict, now time.Time) {
	if _, failing := w.attempts[s.Path]; failing {
		return
	}
	var errs []FileError
	for _, c := range conflicts {
		if c.Path == s.Path {
			errs = append(errs, fileError(0, 0, c.Key.String(), conflictError(c)))
		}
	}
	held := w.record[s.Path].Holders[w.identity].Hash != ""
	switch {
	case len(errs) > 0:
		w.tell(FileStatus{Path: s.Path, State: Failed, Objects: f.count, Since: now, Errors: errs})
	case held:
		w.m.set(FileStatus{Path: s.Path, State: Applied, Objects: f.count, Since: now, Warnings: f.warns, version: f.hash})
	default:
		w.m.set(FileStatus{Path: s.Path, State: Waiting, Objects: f.count, Since: now})
	}
}

func conflictError(c Conflict) error {
	if c.Winner == c.Path {
		return remedy.Wrap(errors.New("the file has it twice; the later one counts"), "remove one of them")
	}
	if part, ok := strings.CutPrefix(c.Winner, packagedPrefix); ok {
		return remedy.Wrap(errors.New("it is made by atoll itself"), "remove it from the file, or put a file %s.skip into the folder to bring your own", filepath.Base(part))
	}
	return remedy.Wrap(errors.New("it is in "+c.Winner), "remove it from one of the two files")
}

// tell sets a status that a person must act on, and says so when it is new.
func (w *worker) tell(s FileStatus) {
	if !w.m.set(s) {
		return
	}
	for _, e := range s.Errors {
		w.m.log.Warn("manifest not applied", "err", e.In(s.Path), "try", e.Remedy)
	}
	w.event(corev1.EventTypeWarning, "ManifestFailed", s.Errors[0].In(s.Path).Error()+"; try: "+s.Errors[0].Remedy)
}

// What follows guards the status, which others read while the worker works.

// set replaces the status of a file and tells whether it says something new. The time of an unchanged one stays.
func (m *Manifests) set(s FileStatus) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.files[s.Path]
	if known && old.State == s.State && old.version == s.version && slices.Equal(old.Errors, s.Errors) {
		s.Since = old.Since
		m.files[s.Path] = s
		return false
	}
	m.files[s.Path] = s
	return true
}

func (m *Manifests) state(path string) State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.files[path].State
}

func (m *Manifests) drop(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.files, path)
}

// keep drops the status of files that are not there any more, unless they could not be pruned.
func (m *Manifests) keep(present map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.files, func(path string, s FileStatus) bool { return !present[path] && s.State != Failed })
}

func (m *Manifests) setFolder(err error) {
	if err != nil {
		err = remedy.Wrap(err, "make %s readable; until then nothing is applied from it and nothing removed", m.cfg.Folder)
	}
	m.mu.Lock()
	was := m.folder
	m.folder = err
	m.mu.Unlock()
	if err != nil && was == nil {
		m.log.Warn("cannot look for manifests", "err", err)
	}
}

func (m *Manifests) setAPI(err error) {
	m.mu.Lock()
	was := m.api
	m.api = err
	m.mu.Unlock()
	if err != nil && was == nil {
		m.log.Info("manifests wait for the API server", "err", err)
	}
}
