package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/atollhq/atoll/pkg/remedy"
)

// stamp tells one version of a file from another without reading it.
type stamp struct {
	size  int64
	mod   time.Time
	inode uint64
}

// found is what a look through the folder found.
type found struct {
	files   map[string]stamp
	skip    map[string]bool  // files that have a NAME.skip beside them
	bad     map[string]error // what looks like a manifest and cannot be one
	folders []string
}

// look lists the manifests in folder and its subfolders. It fails rather than return a part: what is not in the list counts as removed.
func look(folder string) (found, error) {
	out := found{files: map[string]stamp{}, skip: map[string]bool{}, bad: map[string]error{}}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return out, fmt.Errorf("open the folder of manifests: %w", err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && p != "." {
				return nil // went while we looked
			}
			return err
		}
		if d.IsDir() {
			if p != "." && (strings.HasPrefix(d.Name(), ".") || strings.Count(p, "/") >= maxDepth) {
				return fs.SkipDir
			}
			out.folders = append(out.folders, path.Join(folder, p))
			return nil
		}
		return out.add(root, p, d.Name())
	})
	if err != nil {
		return out, fmt.Errorf("look through the folder of manifests: %w", err)
	}
	return out, nil
}

func (f found) add(root *os.Root, p, name string) error {
	if file, ok := strings.CutSuffix(p, ".skip"); ok {
		f.skip[file] = true
		return nil
	}
	if !isManifest(name) {
		return nil
	}
	if len(f.files) >= maxFiles {
		return remedy.Wrap(fmt.Errorf("there are more than %d manifests", maxFiles), "put several objects into one file")
	}
	info, err := root.Stat(p) // follows links, but not out of the folder
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		f.bad[p] = remedy.Wrap(plainPath(err), "copy the file into the folder; links may not lead out of it")
	case info.IsDir():
		f.bad[p] = remedy.Wrap(errors.New("it is a link to a folder"), "make it a folder and copy the files into it")
	case !info.Mode().IsRegular():
		f.bad[p] = remedy.Wrap(errors.New("it is not a regular file"), "remove it")
	case info.Size() > maxFileBytes:
		f.bad[p] = remedy.Wrap(fmt.Errorf("it has %d bytes", info.Size()), "split it into files of at most %d MiB", maxFileBytes>>20)
	default:
		f.files[p] = stampOf(info)
	}
	return nil
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), mod: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}

// isManifest tells manifests from what editors and people leave beside them.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return false
	}
	switch path.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// read returns the content of a manifest if it is still what the look saw.
func read(folder, p string, want stamp) ([]byte, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(p)
	if err != nil {
		return nil, plainPath(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, plainPath(err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, plainPath(err)
	}
	if stampOf(info) != want || int64(len(data)) != want.size {
		return nil, errChanging
	}
	return data, nil
}

// errChanging means that somebody is writing the file.
var errChanging = errors.New("the file is being written")

// plainPath takes the operation and the path, which the reader knows, from an error.
func plainPath(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// watch tells, by a value in the channel, that something in the folder may have changed. Where the kernel cannot watch, which it
// says once, it tells every two seconds.
type watch struct {
	log     *slog.Logger
	changed chan struct{}
	watcher *fsnotify.Watcher   // nil when the kernel cannot watch; used by the worker's goroutine alone
	events  chan fsnotify.Event // closed, or nil from the start, when the kernel cannot watch
	errs    chan error
}

func newWatch(log *slog.Logger) *watch {
	w := &watch{log: log, changed: make(chan struct{}, 1)}
	var err error
	if w.watcher, err = fsnotify.NewWatcher(); err != nil {
		w.giveUp(err)
		return w
	}
	w.events, w.errs = w.watcher.Events, w.watcher.Errors
	return w
}

func (w *watch) giveUp(err error) {
	w.log.Warn("cannot watch the folder of manifests, looking every two seconds instead", "err", err)
	if w.watcher != nil {
		_ = w.watcher.Close()
		w.watcher = nil
	}
}

// folders says what to watch. Folders that are watched already cost nothing.
func (w *watch) folders(paths []string) {
	for _, p := range paths {
		if w.watcher == nil {
			return
		}
		if err := w.watcher.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.giveUp(err)
		}
	}
}

// run passes changes on until ctx ends.
func (w *watch) run(ctx context.Context) {
	if w.events == nil {
		w.poll(ctx)
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-w.events:
			if !ok {
				w.poll(ctx)
				return
			}
		case <-w.errs: // too many changes at once: look at all of it
		}
		w.tell()
	}
}

func (w *watch) poll(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.tell()
		}
	}
}

func (w *watch) tell() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *watch) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
}
