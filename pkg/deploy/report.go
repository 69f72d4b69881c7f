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

// pruned and tell say what happened: in the status, the log, and as events.

func (w *worker) pruned(a Action) {
	w.m.drop(a.Path)
	w.m.log.Info("objects of a removed manifest deleted", "file", a.Path)
	w.event(corev1.EventTypeNormal, "ManifestRemoved", a.Path+" is gone, its objects were deleted")
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
	for path, t := range w.attempts {
		if _, onRecord := w.record[path]; onRecord && !present[path] { // could not be pruned
			present[path] = true
			w.tell(failure(FileStatus{Path: path, Since: now}, t))
		} else if !present[path] {
			delete(w.attempts, path)
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
	status := FileStatus{Path: s.Path, State: Waiting, Objects: f.count, Since: now, Warnings: f.warns, version: f.hash}
	if w.record[s.Path].Holders[w.identity].Hash != "" {
		status.State = Applied
	}
	if t, failing := w.attempts[s.Path]; failing {
		status = failure(status, t)
	}
	for _, c := range conflicts {
		if c.Path == s.Path {
			status.State = Failed
			status.Errors = append(status.Errors, fileError(0, 0, c.Key.String(), conflictError(c)))
		}
	}
	w.tell(status)
}

// failure is the status of a file after a failed attempt. At first it only waits: what it needs may be about to come.
func failure(s FileStatus, t attempt) FileStatus {
	s.State = Failed
	if t.result.waits || t.result.soon && t.n <= quickTries {
		s.State = Waiting
	}
	s.Errors, s.Warnings = slices.Clone(t.result.errs), t.result.warnings
	return s
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

// tell sets the status and, when it is new, says what a person must do.
func (w *worker) tell(s FileStatus) {
	if !w.m.set(s) || len(s.Errors) == 0 {
		return
	}
	if s.State == Waiting {
		w.m.log.Info("manifest waits", "err", s.Errors[0].In(s.Path))
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

// keep drops the status of files that are not there any more.
func (m *Manifests) keep(present map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.files, func(path string, _ FileStatus) bool { return !present[path] })
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
