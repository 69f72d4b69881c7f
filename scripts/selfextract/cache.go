package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/atollhq/atoll/pkg/remedy"
)

// unpackToCache unpacks to a folder that only this user can write, and returns the program there. A good one from an earlier run is
// used again; it is hashed each time, because it is about to be run with this user's rights.
func (d *download) unpackToCache() (string, error) {
	var first error
	for _, dir := range cacheDirs() {
		dir = filepath.Join(dir, fmt.Sprintf("%x", d.frame.Sum))
		program := filepath.Join(dir, "atoll")
		err := privateDir(dir)
		if err == nil && d.isWhole(program) {
			return program, nil
		}
		if err == nil {
			err = d.unpackTo(program)
		}
		if err == nil {
			return program, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", remedy.Wrap(first, "run %s --unpack-to PATH with a path that you can write", filepath.Base(os.Args[0]))
}

// cacheDirs lists where to try, the best first.
func cacheDirs() []string {
	var dirs []string
	if os.Geteuid() == 0 {
		dirs = append(dirs, "/var/cache/atoll")
	} else if dir, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(dir, "atoll"))
	}
	return append(dirs, filepath.Join(os.TempDir(), "atoll-"+strconv.Itoa(os.Geteuid())))
}

// privateDir makes dir, and refuses one that belongs to or can be written by somebody else: its program would run with our rights.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, part := range []string{filepath.Dir(dir), dir} {
		info, err := os.Lstat(part)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s could be written by other users", part)
		}
	}
	return nil
}

func (d *download) isWhole(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return err == nil && n == d.frame.Full && [sha256.Size]byte(h.Sum(nil)) == d.frame.Sum
}
