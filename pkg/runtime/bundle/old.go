package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

var bundleName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// fileID tells files apart whatever path or mount namespace they are seen through.
type fileID struct{ device, inode uint64 }

// removeOld deletes the folders of other versions, except the one used last (an upgrade may be taken back) and those in use.
// The modification time of a folder says when it was last in use; it is set here.
func (b *Bundle) removeOld() error {
	now := time.Now()
	if err := os.Chtimes(b.Paths().Root, now, now); err != nil {
		return fmt.Errorf("mark the carried programs as in use: %w", err)
	}
	others, err := b.otherVersions()
	if err != nil || len(others) < 2 {
		return err
	}
	running, err := runningPrograms()
	if err != nil {
		return fmt.Errorf("find out which carried programs run: %w", err)
	}
	for _, dir := range others[1:] {
		used, err := holdsAny(dir, running)
		if err != nil {
			return err
		}
		if used {
			continue
		}
		// Renamed first: a half deleted folder must never look like a version.
		gone := filepath.Join(b.data, tmpPrefix+"old-"+filepath.Base(dir))
		if err := os.Rename(dir, gone); err != nil {
			return fmt.Errorf("remove carried programs of an older version: %w", err)
		}
		if err := os.RemoveAll(gone); err != nil {
			return fmt.Errorf("remove carried programs of an older version: %w", err)
		}
		b.log.Info("carried programs of an older version removed", "folder", dir)
	}
	return nil
}

// otherVersions lists the folders of versions that are not this one, the one used last first.
func (b *Bundle) otherVersions() ([]string, error) {
	entries, err := os.ReadDir(b.data)
	if err != nil {
		return nil, err
	}
	used := map[string]time.Time{}
	var dirs []string
	for _, entry := range entries {
		if !entry.IsDir() || !bundleName.MatchString(entry.Name()) || entry.Name() == b.id {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(b.data, entry.Name())
		used[dir] = info.ModTime()
		dirs = append(dirs, dir)
	}
	slices.SortFunc(dirs, func(x, y string) int { return used[y].Compare(used[x]) })
	return dirs, nil
}

// runningPrograms returns the files that processes of this machine were started from. It fails rather than miss one.
func runningPrograms() (map[fileID]bool, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil || len(links) == 0 {
		return nil, errors.Join(err, errors.New("/proc shows no processes"))
	}
	running := map[fileID]bool{}
	for _, link := range links {
		var st syscall.Stat_t
		switch err := syscall.Stat(link, &st); {
		case err == nil:
			running[fileID{st.Dev, st.Ino}] = true
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH):
			// A thread of the kernel, or a process that has just ended.
		case errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0:
			// A process with more capabilities than ours. Shims are started by atoll and so never have more.
		default:
			return nil, fmt.Errorf("%s: %w", link, err)
		}
	}
	return running, nil
}

func holdsAny(dir string, files map[fileID]bool) (bool, error) {
	held := false
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		held = held || files[fileID{st.Dev, st.Ino}]
		return nil
	})
	return held, err
}
