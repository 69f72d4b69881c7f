// Command join makes the form of atoll that is downloaded out of its parts.
//
//	join -stub STUB -compressed ATOLL.zst -full ATOLL -out FILE
package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/atollhq/atoll/scripts/selfextract/frame"
)

func main() {
	stub := flag.String("stub", "", "the program that unpacks")
	compressed := flag.String("compressed", "", "atoll, compressed by zstd")
	full := flag.String("full", "", "atoll, as it must be after unpacking")
	out := flag.String("out", "", "file to write")
	flag.Parse()
	if *stub == "" || *compressed == "" || *full == "" || *out == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := join(*stub, *compressed, *full, *out); err != nil {
		fmt.Fprintln(os.Stderr, "join:", err)
		os.Exit(1)
	}
}

func join(stubPath, compressedPath, fullPath, outPath string) error {
	stub, err := os.Open(stubPath)
	if err != nil {
		return err
	}
	defer stub.Close()
	compressed, err := os.Open(compressedPath)
	if err != nil {
		return err
	}
	defer compressed.Close()
	full, err := os.Open(fullPath)
	if err != nil {
		return err
	}
	defer full.Close()
	h := sha256.New()
	size, err := io.Copy(h, full)
	if err != nil {
		return err
	}
	// A half-written file must not look finished to a later build.
	tmp := outPath + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	err = frame.Write(out, stub, compressed, size, [sha256.Size]byte(h.Sum(nil)))
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, outPath)
}
