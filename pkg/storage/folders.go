package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// trashName is the subfolder for removed volumes. No namespace and no volume can have this name.
const trashName = ".deleting"

// maxName is what a file system takes as a name, less what trash adds to it.
const maxName = 255 - 21

// folders is the folder that holds the volumes. Everything in it is reached through an os.Root, which never leaves it.
type folders struct {
	base string // absolute
	root *os.Root
	disk Disk
}

// openFolders makes the folder if needed. Its volumes are open to everybody who gets there, so the folder itself is closed:
// pods see only what is mounted into them.
func openFolders(base string, disk Disk) (*folders, error) {
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, fmt.Errorf("open volume folder: %w", err)
	}
	if _, err := os.Stat(base); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(base, 0o700); err != nil {
			return nil, fmt.Errorf("make volume folder: %w", err)
		}
		if err := atomicfile.SyncDir(filepath.Dir(base)); err != nil {
			return nil, fmt.Errorf("make volume folder: %w", err)
		}
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, fmt.Errorf("open volume folder: %w", err)
	}
	return &folders{base: base, root: root, disk: disk}, nil
}

// Close lets go of the folder.
func (f *folders) Close() error { return f.root.Close() }

// folderName is the name of a volume's folder. It begins with the volume's name, which is unique, so the rest may be shortened.
func folderName(pv, namespace, claim string) string {
	name := pv + "_" + namespace + "_" + claim
	if len(name) > maxName {
		name = name[:maxName]
	}
	return name
}

// volumeOf returns the volume whose folder has this name. A volume's name has no underscore.
func volumeOf(folder string) (pv string, ok bool) {
	pv, rest, found := strings.Cut(folder, "_")
	return pv, found && pv != "" && rest != ""
}

// roomFor returns an error with a remedy when the disk has less free space than bytes.
func (f *folders) roomFor(bytes int64) error {
	free, err := f.disk.Free(f.base)
	if err != nil {
		return fmt.Errorf("ask for the free space of %s: %w", f.base, err)
	}
	if bytes <= free {
		return nil
	}
	return remedy.Wrap(fmt.Errorf("the volume wants %s, but %s has %s free", sizeText(bytes), f.base, sizeText(free)),
		"ask for less, free some space on the node, or put default-local-storage-path on a larger disk")
}

func sizeText(bytes int64) string {
	return strconv.FormatFloat(float64(bytes)/(1<<30), 'f', 1, 64) + " GiB"
}

// create makes the folder name (with its parent), for everybody to write, and returns its path. It is on disk when create returns.
// A folder that an earlier try made is taken as it is.
func (f *folders) create(name string) (string, error) {
	if err := f.root.MkdirAll(name, 0o755); err != nil {
		return "", err
	}
	// The permissions of Mkdir are subject to the process's mask.
	if err := f.root.Chmod(name, 0o777); err != nil {
		return "", err
	}
	path := filepath.Join(f.base, name)
	for dir := path; ; dir = filepath.Dir(dir) {
		if err := atomicfile.SyncDir(dir); err != nil {
			return "", fmt.Errorf("sync %s: %w", dir, err)
		}
		if dir == f.base {
			return path, nil
		}
	}
}

// remove takes the folder of volume pv, which is at path, out of the way for good and reports whether it was there. Its content is deleted by emptyTrash.
func (f *folders) remove(pv, path string) (found bool, err error) {
	name, err := f.locate(pv, path)
	if err != nil {
		return false, err
	}
	if _, err := f.root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	mounts, err := f.disk.Mounts()
	if err != nil {
		return false, fmt.Errorf("list mounts: %w", err)
	}
	if err := inUse(mounts, path); err != nil {
		return false, err
	}
	if err := f.root.Mkdir(trashName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	aside := filepath.Join(trashName, filepath.Base(name)+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := f.root.Rename(name, aside); err != nil {
		return false, err
	}
	parent := filepath.Dir(path)
	if err := errors.Join(atomicfile.SyncDir(filepath.Join(f.base, trashName)), atomicfile.SyncDir(parent)); err != nil {
		return false, err
	}
	if parent != f.base {
		_ = f.root.Remove(filepath.Base(parent)) // of a namespace that has no other volume; else it is not empty
	}
	return true, nil
}

// locate returns the place of a volume's folder below base. It refuses what create would not have made: objects can be edited,
// and base may have been another one.
func (f *folders) locate(pv, path string) (string, error) {
	name, err := filepath.Rel(f.base, path)
	parts := strings.Split(name, string(filepath.Separator))
	if err != nil || !filepath.IsLocal(name) || filepath.Clean(path) != path || len(parts) > 2 || strings.HasPrefix(parts[0], ".") {
		return "", remedy.Wrap(fmt.Errorf("its folder %s is not in %s", path, f.base), "delete the folder by hand, then the volume with kubectl delete pv %s", pv)
	}
	if got, ok := volumeOf(parts[len(parts)-1]); !ok || got != pv {
		return "", remedy.Wrap(fmt.Errorf("the folder %s is that of another volume", path), "correct the volume, or delete it with kubectl delete pv %s", pv)
	}
	return name, nil
}

// inUse returns an error when a mount still shows the folder at path, as the kubelet's do for a running pod, or lies in it.
func inUse(mounts []Mount, path string) error {
	var home *Mount // the mount that path is on
	for i, m := range mounts {
		if within(path, m.Point) && (home == nil || len(m.Point) >= len(home.Point)) {
			home = &mounts[i]
		}
		if within(m.Point, path) {
			return remedy.Wrap(fmt.Errorf("something is mounted at %s", m.Point), "unmount %s", m.Point)
		}
	}
	if home == nil {
		return nil
	}
	inside := filepath.Join(home.Root, strings.TrimPrefix(path, home.Point))
	for _, m := range mounts {
		if m.Device == home.Device && within(m.Root, inside) {
			return remedy.Wrap(fmt.Errorf("it is still in use: mounted at %s", m.Point), "wait until its pod has ended on this node; this is tried again by itself")
		}
	}
	return nil
}

// within tells whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// emptyTrash deletes the content of removed volumes, as far as it can.
func (f *folders) emptyTrash(ctx context.Context) error {
	entries, err := fs.ReadDir(f.root.FS(), trashName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := f.root.RemoveAll(filepath.Join(trashName, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("delete removed volume: %w", err))
		}
	}
	return errors.Join(errs...)
}

// orphans lists folders that look like volumes but whose volume is not known, and that nobody touched for a while: one that was
// just made has no volume yet.
func (f *folders) orphans(known map[string]bool, untouched time.Duration) ([]string, error) {
	var out []string
	var look func(dir string) error
	look = func(dir string) error {
		entries, err := fs.ReadDir(f.root.FS(), dir)
		if err != nil {
			return fmt.Errorf("look through the volume folder: %w", err)
		}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			pv, isVolume := volumeOf(e.Name())
			switch {
			case !e.IsDir() || strings.HasPrefix(e.Name(), "."):
			case isVolume:
				if info, err := e.Info(); err == nil && !known[pv] && strings.HasPrefix(pv, "pvc-") && time.Since(info.ModTime()) > untouched {
					out = append(out, filepath.Join(f.base, name))
				}
			case dir == ".":
				if err := look(name); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return out, look(".")
}
