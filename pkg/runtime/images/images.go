// Package images loads container images from files into the node's containerd and pins them, so that a node works without a registry.
//
// Files are archives as `docker save`, `ctr image export` or OCI layouts make them, plain or compressed with gzip or zstd, in one
// folder. New and changed files are loaded while the node runs. A file that cannot be read whole is reported and left alone; what
// was loaded before from a file of that name stays. Files that go away unload nothing: pods may use the images.
package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/fsnotify/fsnotify"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// Labels that CRI's image service understands: managed images are visible to the kubelet, pinned ones survive its garbage collection.
const (
	labelManaged = "io.cri-containerd.image"
	labelPinned  = "io.cri-containerd.pinned"
)

// Config is what the loader needs from the node.
type Config struct {
	Socket      string // containerd's
	Snapshotter string
	Folder      string   // watched for archives; made when missing
	Always      []string // archives that must be loaded before the loader is ready, such as the pause image
	RecordFile  string   // remembers what was loaded, so that a restart reads no archive twice
}

// New returns the component. It is ready when the archives of Config.Always are loaded; the folder follows in the background.
func New(cfg Config, log *slog.Logger) *Loader {
	return &Loader{cfg: cfg, log: log, problems: map[string]error{}}
}

// Loader loads images.
type Loader struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex
	problems map[string]error // by file
}

// record says which images came from a file as it was then.
type record struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
	Images  []string  `json:"images"`
}

// Name implements run.Component.
func (*Loader) Name() string { return "images" }

// Problems returns the archives that could not be loaded, each with cause and remedy, in name order.
func (l *Loader) Problems() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]error, 0, len(l.problems))
	for _, file := range slices.Sorted(maps.Keys(l.problems)) {
		out = append(out, l.problems[file])
	}
	return out
}

// Run implements run.Component.
func (l *Loader) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(l.cfg.Folder, 0o755); err != nil {
		return remedy.Wrap(fmt.Errorf("make image folder: %w", err), "make the data folder writable")
	}
	client, err := containerd.New(l.cfg.Socket, containerd.WithDefaultNamespace("k8s.io"), containerd.WithTimeout(20*time.Second))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	known := l.readRecords()
	for _, file := range l.cfg.Always {
		if err := l.load(ctx, client, file, known); err != nil {
			return fmt.Errorf("load image archive %s: %w", file, err)
		}
	}
	ready()

	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch image folder: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(l.cfg.Folder); err != nil {
		return fmt.Errorf("watch image folder %s: %w", l.cfg.Folder, err)
	}
	for {
		l.scan(ctx, client, known)
		// A copy in progress makes many events; load when the folder has been quiet for a second.
		if !waitForChange(ctx, watcher) {
			return nil
		}
		for quiet := false; !quiet; {
			select {
			case <-ctx.Done():
				return nil
			case <-watcher.Events:
			case <-time.After(time.Second):
				quiet = true
			}
		}
	}
}

func waitForChange(ctx context.Context, w *fsnotify.Watcher) bool {
	select {
	case <-ctx.Done():
		return false
	case <-w.Events:
	case <-w.Errors: // an overflow: look at everything again
	}
	return true
}

// scan loads every archive of the folder that is new or has changed.
func (l *Loader) scan(ctx context.Context, client *containerd.Client, known map[string]record) {
	entries, err := os.ReadDir(l.cfg.Folder)
	if err != nil {
		l.log.Warn("cannot read the image folder", "err", err)
		return
	}
	seen := map[string]bool{}
	for _, e := range entries {
		if e.IsDir() || !isArchive(e.Name()) || ctx.Err() != nil {
			continue
		}
		file := filepath.Join(l.cfg.Folder, e.Name())
		seen[file] = true
		err := l.load(ctx, client, file, known)
		if err != nil && ctx.Err() == nil {
			err = remedy.Wrap(fmt.Errorf("image archive %s: %w", file, err), "copy %s to this node again; it is loaded as soon as it is whole", e.Name())
			l.log.Warn("image archive not loaded", "file", file, "err", err)
		}
		l.note(file, err)
	}
	l.mu.Lock()
	maps.DeleteFunc(l.problems, func(file string, _ error) bool { return !seen[file] })
	l.mu.Unlock()
}

func (l *Loader) note(file string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		delete(l.problems, file)
	} else {
		l.problems[file] = err
	}
}

func isArchive(name string) bool {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"} {
		if strings.HasSuffix(name, suffix) {
			return !strings.HasPrefix(name, ".")
		}
	}
	return false
}

// load brings the images of one file into containerd unless the same file was loaded before and its images are still there.
func (l *Loader) load(ctx context.Context, client *containerd.Client, file string, known map[string]record) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if r, ok := known[file]; ok && r.Size == info.Size() && r.ModTime.Equal(info.ModTime()) && present(ctx, client, r.Images) {
		return nil
	}
	began := time.Now()
	names, err := l.importFile(ctx, client, file)
	if err != nil {
		return err
	}
	known[file] = record{Size: info.Size(), ModTime: info.ModTime(), Images: names}
	l.log.Info("images loaded", "file", file, "images", names, "took", time.Since(began).Round(time.Millisecond))
	return l.writeRecords(known)
}

func (l *Loader) importFile(ctx context.Context, client *containerd.Client, file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stream, err := compression.DecompressStream(f)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	defer stream.Close()
	ctx, done, err := client.WithLease(ctx) // keeps the garbage collector away until the images are named
	if err != nil {
		return nil, err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	imported, err := client.Import(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("import archive: %w", err)
	}
	if len(imported) == 0 {
		return nil, errors.New("the archive names no image")
	}
	var names []string
	for _, img := range imported {
		if err := containerd.NewImage(client, img).Unpack(ctx, l.cfg.Snapshotter); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", img.Name, err)
		}
		if img.Labels == nil {
			img.Labels = map[string]string{}
		}
		img.Labels[labelManaged], img.Labels[labelPinned] = "managed", "pinned"
		if _, err := client.ImageService().Update(ctx, img, "labels"); err != nil {
			return nil, fmt.Errorf("pin %s: %w", img.Name, err)
		}
		names = append(names, img.Name)
	}
	return names, nil
}

func present(ctx context.Context, client *containerd.Client, names []string) bool {
	for _, name := range names {
		if _, err := client.ImageService().Get(ctx, name); err != nil {
			return false
		}
	}
	return len(names) > 0
}

func (l *Loader) readRecords() map[string]record {
	known := map[string]record{}
	data, err := os.ReadFile(l.cfg.RecordFile)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.log.Warn("cannot read the record of loaded images, loading all again", "err", err)
		}
		return known
	}
	if err := json.Unmarshal(data, &known); err != nil {
		l.log.Warn("the record of loaded images is damaged, loading all again", "err", err)
		return map[string]record{}
	}
	return known
}

func (l *Loader) writeRecords(known map[string]record) error {
	data, err := json.MarshalIndent(known, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(l.cfg.RecordFile, data, 0o600)
}
