package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// manifest maps paths relative to the bundle's folder to what must be there. scripts/bundle/cmd/pack writes it.
type manifest map[string]entry

// entry is one file, or a link when target is set.
type entry struct {
	perm      fs.FileMode
	sizeBytes int64
	sum       [sha256.Size]byte
	target    string
}

// parseManifest reads lines `file MODE SIZE SHA256 PATH` and `link TARGET PATH`. It accepts no path that leads out of the folder.
func parseManifest(text []byte) (manifest, error) {
	m := manifest{}
	for line := range strings.Lines(string(text)) {
		e, path, err := parseEntry(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("manifest line %q: %w", strings.TrimSpace(line), err)
		}
		m[path] = e
	}
	if len(m) == 0 {
		return nil, errors.New("the manifest is empty")
	}
	return m, nil
}

func parseEntry(fields []string) (e entry, path string, err error) {
	switch {
	case len(fields) == 5 && fields[0] == "file":
		perm, err1 := strconv.ParseUint(fields[1], 8, 9)
		size, err2 := strconv.ParseInt(fields[2], 10, 64)
		sum, err3 := hex.DecodeString(fields[3])
		if err := errors.Join(err1, err2, err3); err != nil {
			return entry{}, "", err
		}
		if len(sum) != sha256.Size || size < 0 {
			return entry{}, "", errors.New("malformed size or checksum")
		}
		e, path = entry{perm: fs.FileMode(perm), sizeBytes: size, sum: [sha256.Size]byte(sum)}, fields[4]
	case len(fields) == 3 && fields[0] == "link":
		e, path = entry{target: fields[1]}, fields[2]
		if !filepath.IsLocal(filepath.Join(filepath.Dir(path), e.target)) {
			return entry{}, "", errors.New("link leads out of the folder")
		}
	default:
		return entry{}, "", errors.New("unknown form")
	}
	if !filepath.IsLocal(path) {
		return entry{}, "", errors.New("path leads out of the folder")
	}
	return e, path, nil
}

func (m manifest) bytes() (sum int64) {
	for _, e := range m {
		sum += e.sizeBytes
	}
	return sum
}

// state describes every file as the file system shows it: equal states mean that nobody has touched a file in between.
// It fails when a file is missing or differs from the manifest in kind, size, permissions or link target.
func (m manifest) state(root string) ([]byte, error) {
	var b bytes.Buffer
	for _, path := range m.sorted() {
		e := m[path]
		full := filepath.Join(root, path)
		info, err := os.Lstat(full)
		if err != nil {
			return nil, err
		}
		if e.target != "" {
			if target, err := os.Readlink(full); err != nil || target != e.target {
				return nil, fmt.Errorf("%s is not a link to %s", path, e.target)
			}
			continue
		}
		if !info.Mode().IsRegular() || info.Size() != e.sizeBytes || info.Mode().Perm() != e.perm {
			return nil, fmt.Errorf("%s has %d bytes and mode %v, not %d and %v", path, info.Size(), info.Mode(), e.sizeBytes, e.perm)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil, errors.New("this file system shows no inode numbers")
		}
		// The change time cannot be set back by a program, unlike the modification time.
		fmt.Fprintf(&b, "%d %d %d.%09d %s\n", st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec, path)
	}
	return b.Bytes(), nil
}

// verify hashes every file, several at a time, and names the first that differs.
func (m manifest) verify(root string) error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for path, e := range m {
		if e.target != "" {
			continue
		}
		g.Go(func() error {
			f, err := os.Open(filepath.Join(root, path))
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.CopyBuffer(h, onlyReader{f}, make([]byte, 256<<10)); err != nil {
				return fmt.Errorf("read %s: %w", path, err)
			}
			if [sha256.Size]byte(h.Sum(nil)) != e.sum {
				return fmt.Errorf("%s has another content than it should", path)
			}
			return nil
		})
	}
	_, err := m.state(root)
	return errors.Join(g.Wait(), err)
}

// flush makes every file and folder durable.
func (m manifest) flush(root string) error {
	folders := map[string]bool{root: true}
	for path, e := range m {
		for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
			folders[filepath.Join(root, dir)] = true
		}
		if e.target != "" {
			continue
		}
		f, err := os.Open(filepath.Join(root, path))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	for dir := range folders {
		if err := atomicfile.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}
