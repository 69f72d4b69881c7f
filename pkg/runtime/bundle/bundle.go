// Package bundle carries the programs that cannot be linked into atoll (runc, the containerd shim, CNI plugins, nft, mount) and
// the pause image, and unpacks them to disk.
//
// The build leaves two files in payload/<arch>: bundle.tar.zst and MANIFEST, which lists every file with its size and SHA-256.
// Both are embedded. The folder on disk is named after the SHA-256 of the manifest, which therefore pins every byte in it:
//
//	<data-dir>/data/<sha256>/bin/      containerd-shim-runc-v2, runc, nft: put it in PATH before the host's folders
//	<data-dir>/data/<sha256>/bin/aux/  mount, umount, modprobe: put it in PATH after them, for hosts that have none
//	<data-dir>/data/<sha256>/cni/      CNI plugins        images/  pause.tar        lib/nft/  what nft loads
//	<data-dir>/data/<sha256>/.verified what the files looked like when their content was last known to be good and on the disk
//
// Unpack is on the way to a running node, so it does the least that is safe: it writes beside the folder, renames, and does not
// wait for the disk. Settle does the rest in the background: it flushes, hashes every file, writes .verified and removes folders
// of old versions. A power cut at any point leaves no folder, or one without .verified, and the next Unpack then hashes it in full
// before it trusts it. Wherever content differs from the manifest the folder is unpacked again.
package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// ErrMissing means that atoll was built without the payload for this architecture.
var ErrMissing = errors.New("this atoll was built without the programs that it should carry")

// ErrDamaged means that the payload inside the running binary is not what was built.
var ErrDamaged = errors.New("the programs carried inside atoll are damaged")

// Paths are the absolute folders of one unpacked bundle.
type Paths struct {
	Root   string
	Bin    string // before the host's folders in PATH
	Aux    string // after the host's folders in PATH
	CNI    string
	Images string // archives to import into containerd
}

// Path returns a value for PATH that finds the carried programs, and the host's where those are better.
func (p Paths) Path(host string) string {
	parts := []string{p.Bin}
	if host != "" {
		parts = append(parts, host)
	}
	return strings.Join(append(parts, p.Aux), string(os.PathListSeparator))
}

// Bundle is a payload together with the data folder that it is unpacked to.
type Bundle struct {
	payload  fs.FS
	manifest manifest
	id       string
	data     string // <data-dir>/data
	log      *slog.Logger
}

// Open reads the manifest of the carried payload. It does not touch the disk.
func Open(dataDir string, log *slog.Logger) (*Bundle, error) {
	payload, err := fs.Sub(carried, "payload/"+runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	return OpenFrom(payload, dataDir, log)
}

// OpenFrom is Open for a payload from elsewhere: a file system with bundle.tar.zst and MANIFEST at its root.
func OpenFrom(payload fs.FS, dataDir string, log *slog.Logger) (*Bundle, error) {
	text, err := fs.ReadFile(payload, "MANIFEST")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, remedy.Wrap(ErrMissing, "build it with `make build`, which also makes them")
	}
	if err != nil {
		return nil, fmt.Errorf("read the carried manifest: %w", err)
	}
	m, err := parseManifest(text)
	if err != nil {
		return nil, damaged(err)
	}
	dataDir, err = filepath.Abs(dataDir)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return &Bundle{payload: payload, manifest: m, id: hex.EncodeToString(sum[:]), data: filepath.Join(dataDir, "data"), log: log}, nil
}

// Unpack makes the carried programs available below dataDir and returns where. Call Settle on the bundle afterwards, in the
// background: see Open for having both.
func Unpack(dataDir string, log *slog.Logger) (Paths, error) {
	b, err := Open(dataDir, log)
	if err != nil {
		return Paths{}, err
	}
	return b.Unpack()
}

// Paths returns where the bundle is or will be.
func (b *Bundle) Paths() Paths {
	root := filepath.Join(b.data, b.id)
	return Paths{
		Root: root, Bin: filepath.Join(root, "bin"), Aux: filepath.Join(root, "bin", "aux"),
		CNI: filepath.Join(root, "cni"), Images: filepath.Join(root, "images"),
	}
}

// Unpack makes sure that the folder is there and whole. It is safe to call from several processes at once.
// Errors carry a remedy: ErrDamaged for the payload itself, otherwise what is wrong with the data folder.
func (b *Bundle) Unpack() (Paths, error) {
	began := time.Now()
	unlock, err := b.lock()
	if err != nil {
		return Paths{}, err
	}
	defer unlock()
	b.removeLeftovers()
	p := b.Paths()
	switch err := b.check(); {
	case err == nil:
		return p, b.executable()
	case !errors.Is(err, fs.ErrNotExist) || exists(p.Root):
		b.log.Warn("carried programs on disk are damaged, unpacking them again", "folder", p.Root, "err", err)
	}
	if err := b.replace(); err != nil {
		return Paths{}, err
	}
	b.log.Debug("carried programs unpacked", "folder", p.Root, "took", time.Since(began))
	return p, b.executable()
}

// check tells whether the folder holds what the manifest says. Unchanged since .verified was written is enough; otherwise it hashes.
func (b *Bundle) check() error {
	root := b.Paths().Root
	state, err := b.manifest.state(root)
	if err != nil {
		return err
	}
	if record, err := os.ReadFile(filepath.Join(root, recordName)); err == nil && bytes.Equal(record, state) {
		return nil
	}
	return b.manifest.verify(root)
}

// replace unpacks beside the folder and puts the result in its place.
func (b *Bundle) replace() (err error) {
	tmp, err := os.MkdirTemp(b.data, tmpPrefix)
	if err != nil {
		return b.explain(fmt.Errorf("unpack the carried programs: %w", err))
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(tmp)
		}
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := b.extract(tmp); err != nil {
		return b.explain(fmt.Errorf("unpack the carried programs to %s: %w", tmp, err))
	}
	root := b.Paths().Root
	if exists(root) {
		// Programs that run from the old folder keep their files until they end; only the names go.
		aside := tmp + "-replaced"
		if err := os.Rename(root, aside); err != nil {
			return fmt.Errorf("move damaged %s away: %w", root, err)
		}
		defer func() { _ = os.RemoveAll(aside) }()
	}
	if err := os.Rename(tmp, root); err != nil {
		return fmt.Errorf("put the carried programs in place: %w", err)
	}
	return nil
}

// executable fails early and clearly when programs in the data folder cannot be started.
func (b *Bundle) executable() error {
	var st unix.Statfs_t
	if err := unix.Statfs(b.data, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", b.data, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return remedy.Wrap(fmt.Errorf("%s is on a file system mounted noexec, so no program in it can be started", b.data),
			"mount it without noexec, or choose another folder with --data-dir")
	}
	return nil
}

// lock keeps other processes out of the data folder until the returned function is called. The lock is on the folder itself, so it
// works on a read-only file system and leaves nothing behind.
func (b *Bundle) lock() (unlock func(), err error) {
	if err := os.MkdirAll(b.data, 0o755); err != nil {
		return nil, b.explain(fmt.Errorf("make the folder for the carried programs: %w", err))
	}
	dir, err := os.Open(b.data)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", b.data, err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		b.log.Info("another process unpacks the carried programs, waiting for it", "folder", b.data)
	}
	for errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock %s: %w", b.data, err)
	}
	return func() { _ = dir.Close() }, nil
}

const (
	tmpPrefix  = ".unpacking-"
	recordName = ".verified"
)

// removeLeftovers deletes what a power cut or a kill left half done. Only under the lock.
func (b *Bundle) removeLeftovers() {
	entries, err := os.ReadDir(b.data)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), tmpPrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(b.data, entry.Name())); err != nil {
			b.log.Warn("cannot remove half unpacked programs", "folder", filepath.Join(b.data, entry.Name()), "err", err)
		}
	}
}

// explain adds the remedy that fits an error from the data folder's disk.
func (b *Bundle) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return remedy.Wrap(err, "free %d MiB on the disk of %s", b.manifest.bytes()>>20+1, b.data)
	case errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission):
		return remedy.Wrap(err, "make %s writable for root, or choose another folder with --data-dir", b.data)
	default:
		return err
	}
}

func damaged(err error) error {
	return remedy.Wrap(fmt.Errorf("%w: %w", ErrDamaged, err), "download atoll again and compare its checksum")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Settle brings an unpacked bundle to rest; it belongs in the background once the node is up. It flushes the files to the disk,
// hashes all of them (repairing the folder when one is bad), remembers the result for the next start and removes the folders of
// older versions, except for the newest of those and any from which a process still runs: shims outlive an upgrade.
func (b *Bundle) Settle() error {
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	root := b.Paths().Root
	if err := b.manifest.verify(root); err != nil {
		b.log.Warn("carried programs on disk are damaged, unpacking them again", "folder", root, "err", err)
		if err := b.replace(); err != nil {
			return err
		}
	}
	if err := b.manifest.flush(root); err != nil {
		return fmt.Errorf("flush the carried programs: %w", err)
	}
	if err := atomicfile.SyncDir(b.data); err != nil {
		return fmt.Errorf("flush the carried programs: %w", err)
	}
	state, err := b.manifest.state(root)
	if err != nil {
		return err
	}
	if _, err := atomicfile.WriteIfChanged(filepath.Join(root, recordName), state, 0o644); err != nil {
		return err
	}
	return b.removeOld()
}
