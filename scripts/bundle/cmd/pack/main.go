// Command pack turns a folder into the carried bundle: a tar with fixed order, times and owners, and a manifest of every file.
//
//	pack -dir STAGE -tar bundle.tar -manifest MANIFEST
//
// The manifest has one line a file, in the order of the tar, fields separated by one space, the path last:
//
//	file MODE SIZE SHA256 PATH        link TARGET PATH
//
// pkg/runtime/bundle reads both; see its package comment for what they are used for.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	dir := flag.String("dir", "", "folder to pack")
	tarPath := flag.String("tar", "", "tar to write")
	manifestPath := flag.String("manifest", "", "manifest to write")
	flag.Parse()
	if *dir == "" || *tarPath == "" || *manifestPath == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := pack(*dir, *tarPath, *manifestPath); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(dir, tarPath, manifestPath string) error {
	out, err := os.Create(tarPath)
	if err != nil {
		return err
	}
	defer out.Close()
	var manifest bytes.Buffer
	w := tar.NewWriter(out)
	// WalkDir goes in name order, which makes the result the same on every machine.
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if strings.ContainsAny(rel, " \n") {
			return fmt.Errorf("%q: a path in the bundle has no spaces", rel)
		}
		switch entry.Type() {
		case fs.ModeSymlink:
			return addLink(w, &manifest, path, rel)
		case 0:
			return addFile(w, &manifest, path, rel)
		default:
			return fmt.Errorf("%s: only files and links can be packed", rel)
		}
	})
	if err := errors.Join(err, w.Close(), out.Close()); err != nil {
		return err
	}
	return os.WriteFile(manifestPath, manifest.Bytes(), 0o644)
}

func addLink(w *tar.Writer, manifest *bytes.Buffer, path, rel string) error {
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(manifest, "link %s %s\n", target, rel)
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: rel, Linkname: target, Mode: 0o777, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR})
}

func addFile(w *tar.Writer, manifest *bytes.Buffer, path, rel string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	mode := int64(0o644)
	if info.Mode()&0o111 != 0 {
		mode = 0o755
	}
	fmt.Fprintf(manifest, "file %o %d %x %s\n", mode, len(text), sha256.Sum256(text), rel)
	if err := w.WriteHeader(&tar.Header{Name: rel, Mode: mode, Size: int64(len(text)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
