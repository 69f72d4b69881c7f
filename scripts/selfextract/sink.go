package main

import (
	"crypto/sha256"
	"hash"
	"io"
)

// sink writes and hashes beside the decoder: on two cores unpacking takes as long as the slower of the two.
type sink struct {
	w       io.Writer
	blocks  chan []byte
	free    chan []byte
	done    chan struct{}
	hash    hash.Hash
	written int64 // of the caller's side until finish, then final
	err     error // of the writing side; read after done
}

func newSink(w io.Writer) *sink {
	s := &sink{w: w, blocks: make(chan []byte, 4), free: make(chan []byte, 8), done: make(chan struct{}), hash: sha256.New()}
	for range cap(s.free) {
		s.free <- nil
	}
	go s.work()
	return s
}

func (s *sink) work() {
	defer close(s.done)
	for block := range s.blocks {
		if s.err == nil {
			_, s.err = s.w.Write(block)
			s.hash.Write(block)
		}
		s.free <- block
	}
}

// Write never fails: an error of the disk is returned by finish.
func (s *sink) Write(p []byte) (int, error) {
	block := append((<-s.free)[:0], p...)
	s.written += int64(len(p))
	s.blocks <- block
	return len(p), nil
}

// finish waits for the writing side and returns the checksum of everything written.
func (s *sink) finish() (sum [sha256.Size]byte, err error) {
	close(s.blocks)
	<-s.done
	return [sha256.Size]byte(s.hash.Sum(nil)), s.err
}
