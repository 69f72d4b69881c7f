// Package frame is the form in which atoll is downloaded: a small program, the compressed atoll, and a trailer that describes it.
//
// The trailer comes last, so a download that was cut short has none, and it has a fixed size, so it is found from the end:
//
//	magic      16 bytes  "ATOLL-DOWNLOAD-1"
//	stub        8 bytes  length of the small program, which is also where the compressed part starts
//	compressed  8 bytes  its length
//	full        8 bytes  length of the unpacked atoll
//	sum        32 bytes  SHA-256 of the unpacked atoll
//
// Numbers are little endian.
package frame

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const magic = "ATOLL-DOWNLOAD-1"

// TrailerBytes is the size of the trailer at the end of a download.
const TrailerBytes = len(magic) + 3*8 + sha256.Size

// ErrIncomplete means that the file does not end as a download must: it was cut short, or it is something else.
var ErrIncomplete = errors.New("the file is not complete")

// Frame says where the parts are and what the result must be. Lengths are in bytes.
type Frame struct {
	Stub, Compressed, Full int64
	Sum                    [sha256.Size]byte
}

// Write appends the parts and their trailer to w.
func Write(w io.Writer, stub, compressed io.Reader, fullBytes int64, sum [sha256.Size]byte) error {
	f := Frame{Full: fullBytes, Sum: sum}
	var err error
	if f.Stub, err = io.Copy(w, stub); err != nil {
		return err
	}
	if f.Compressed, err = io.Copy(w, compressed); err != nil {
		return err
	}
	var trailer bytes.Buffer
	trailer.WriteString(magic)
	if err := binary.Write(&trailer, binary.LittleEndian, f); err != nil {
		return err
	}
	_, err = w.Write(trailer.Bytes())
	return err
}

// Read finds and checks the trailer of a file of sizeBytes.
func Read(r io.ReaderAt, sizeBytes int64) (Frame, error) {
	var f Frame
	if sizeBytes < int64(TrailerBytes) {
		return f, ErrIncomplete
	}
	trailer := make([]byte, TrailerBytes)
	if _, err := r.ReadAt(trailer, sizeBytes-int64(TrailerBytes)); err != nil {
		return f, err
	}
	text, ours := bytes.CutPrefix(trailer, []byte(magic))
	if !ours {
		return f, ErrIncomplete
	}
	if err := binary.Read(bytes.NewReader(text), binary.LittleEndian, &f); err != nil {
		return f, err
	}
	// Each on its own first, so that the sum cannot overflow.
	if f.Stub < 0 || f.Compressed < 0 || f.Full < 0 || f.Stub > sizeBytes || f.Compressed > sizeBytes ||
		f.Stub+f.Compressed+int64(TrailerBytes) != sizeBytes {
		return f, fmt.Errorf("%w: %d bytes where %d are announced", ErrIncomplete, sizeBytes, f.Stub+f.Compressed+int64(TrailerBytes))
	}
	return f, nil
}

// CompressedPart returns the compressed bytes of the file that f was read from.
func (f Frame) CompressedPart(r io.ReaderAt) io.Reader {
	return io.NewSectionReader(r, f.Stub, f.Compressed)
}
