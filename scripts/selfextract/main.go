// Command selfextract is the small program at the front of a downloaded atoll: it unpacks the atoll behind it.
//
//	./atoll-linux-amd64 --unpack-to PATH    writes the full atoll to PATH
//	./atoll-linux-amd64 ANYTHING            replaces itself by the full atoll and runs that with the same arguments
//
// What it writes is complete and verified before it gets its name, so a power cut or a full disk leaves the download as it was.
// Where the folder of the download cannot be written, atoll is unpacked to a cache folder and run from there.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/scripts/selfextract/frame"
)

// maxWindowBytes is what `zstd --long=27` needs.
const maxWindowBytes = 128 << 20

const again = "download atoll again and compare its checksum"

func main() {
	if err := run(os.Args); err != nil {
		remedy.Fprint(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the file of this program: %w", err)
	}
	d, err := openDownload(self)
	if err != nil {
		return fmt.Errorf("unpack atoll from %s: %w", self, err)
	}
	defer d.file.Close()
	if len(args) > 1 && args[1] == "--unpack-to" {
		if len(args) != 3 {
			return remedy.Wrap(errors.New("--unpack-to takes one path"), "%s --unpack-to /usr/local/bin/atoll", self)
		}
		return d.unpackTo(args[2])
	}
	program := self
	if err := d.unpackTo(self); err != nil {
		if !cannotWrite(err) {
			return err
		}
		if program, err = d.unpackToCache(); err != nil {
			return err
		}
	}
	err = syscall.Exec(program, args, os.Environ())
	return remedy.Wrap(fmt.Errorf("start the unpacked atoll %s: %w", program, err), "put it on a disk that is not mounted noexec")
}

// cannotWrite tells whether the folder is at fault, for which there is a way around, rather than the download.
func cannotWrite(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// download is an opened file of the form of package frame.
type download struct {
	file  *os.File
	frame frame.Frame
}

func openDownload(path string) (*download, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil {
		var f frame.Frame
		if f, err = frame.Read(file, info.Size()); err == nil {
			return &download{file: file, frame: f}, nil
		}
	}
	_ = file.Close()
	return nil, remedy.Wrap(err, again)
}

// copyTo writes the full atoll to w and checks its length and checksum.
func (d *download) copyTo(w io.Writer) error {
	decoder, err := zstd.NewReader(d.frame.CompressedPart(d.file), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindowBytes))
	if err != nil {
		return err
	}
	defer decoder.Close()
	sink := newSink(w)
	_, err = io.CopyBuffer(sink, struct{ io.Reader }{decoder}, make([]byte, 1<<20))
	sum, writeErr := sink.finish()
	switch {
	case writeErr != nil:
		return writeErr
	case err != nil:
		return remedy.Wrap(fmt.Errorf("the download is damaged: %w", err), again)
	case sink.written != d.frame.Full || sum != d.frame.Sum:
		return remedy.Wrap(errors.New("the download is damaged: its content does not match its checksum"), again)
	}
	return nil
}

// tell says on stderr what takes so long, but only when it does.
func tell(what string) (stop func()) {
	timer := time.AfterFunc(2*time.Second, func() { fmt.Fprintln(os.Stderr, what) })
	return func() { timer.Stop() }
}

// unpackTo writes the full atoll to path, which may be the file that is running.
func (d *download) unpackTo(path string) (err error) {
	defer tell("atoll: unpacking to " + path + ", which happens once and is safe to interrupt")()
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	removeLeftovers(dir, base)
	tmp, err := os.CreateTemp(dir, tmpName(base)+"*")
	if err != nil {
		return fmt.Errorf("unpack atoll to %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
			err = explain(fmt.Errorf("unpack atoll to %s: %w", path, err), dir, d.frame.Full)
		}
	}()
	if err := d.copyTo(tmp); err != nil {
		return err
	}
	if err := tmp.Chmod(0o755); err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && os.Geteuid() == 0 {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			_ = tmp.Chown(int(st.Uid), int(st.Gid)) // keep a file that root runs for somebody theirs
		}
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func explain(err error, dir string, need int64) error {
	if remedy.Of(err) == "" && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return remedy.Wrap(err, "free %d MiB in %s", need>>20+1, dir)
	}
	return err
}

func tmpName(base string) string { return "." + base + ".unpacking-" }

// removeLeftovers deletes what earlier runs were killed over. A run takes seconds: what is an hour old belongs to nobody.
func removeLeftovers(dir, base string) {
	paths, err := filepath.Glob(filepath.Join(dir, tmpName(base)+"*"))
	if err != nil {
		return
	}
	for _, path := range paths {
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > time.Hour {
			_ = os.Remove(path)
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
