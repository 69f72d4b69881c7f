package bundle

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// maxWindowBytes bounds the memory that a payload can make the decoder take. The window is the size of the unpacked bundle.
const maxWindowBytes = 64 << 20

// onlyReader hides ReadFrom and WriteTo, which would go around the buffer that the caller chose.
type onlyReader struct{ io.Reader }

func (m manifest) sorted() []string { return slices.Sorted(maps.Keys(m)) }

// extract writes the payload to dir and checks it against the manifest on the way. It does not flush: see Settle.
// What is wrong with the payload is ErrDamaged; other errors are the disk's.
func (b *Bundle) extract(dir string) error {
	file, err := b.payload.Open("bundle.tar.zst")
	if err != nil {
		return damaged(err)
	}
	defer file.Close()
	decoder, err := zstd.NewReader(bufio.NewReaderSize(file, 256<<10), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindowBytes))
	if err != nil {
		return err
	}
	defer decoder.Close()
	seen := map[string]bool{}
	archive := tar.NewReader(decoder)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		e, known := b.manifest[header.Name]
		if !known || seen[header.Name] {
			return damaged(fmt.Errorf("%s is not expected in it", header.Name))
		}
		seen[header.Name] = true
		if err := writeEntry(archive, filepath.Join(dir, header.Name), e); err != nil {
			return err
		}
	}
	if len(seen) != len(b.manifest) {
		return damaged(fmt.Errorf("%d of %d files are missing", len(b.manifest)-len(seen), len(b.manifest)))
	}
	// The tar ends before the frame does; reading on checks the frame's own checksum.
	if _, err := io.Copy(io.Discard, decoder); err != nil {
		return damaged(err)
	}
	return nil
}

func writeEntry(content io.Reader, path string, e entry) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if e.target != "" {
		return os.Symlink(e.target, path)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, e.perm)
	if err != nil {
		return err
	}
	defer f.Close()
	source := &sourceReader{r: content}
	h := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(f, h), source, make([]byte, 256<<10))
	if source.err != nil {
		return damaged(source.err)
	}
	if err != nil {
		return err
	}
	if n != e.sizeBytes || [sha256.Size]byte(h.Sum(nil)) != e.sum {
		return damaged(fmt.Errorf("%s has another content than the manifest says", filepath.Base(path)))
	}
	// The process may have a umask.
	return errors.Join(f.Chmod(e.perm), f.Close())
}

// sourceReader remembers an error of the payload, to tell it from one of the disk.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
