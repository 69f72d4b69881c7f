package images

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// Registry serves the images of an archive as a registry does, read only: one test wants to see an image pulled.
type Registry struct {
	file      *os.File
	blobs     map[string]place      // by digest
	manifests map[string]descriptor // by full image name
}

// place is where a blob is in the archive.
type place struct{ offset, size int64 }

// OpenRegistry opens the archive that Build made. Close it after use.
func OpenRegistry(path string) (*Registry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r := &Registry{file: f, blobs: map[string]place{}, manifests: map[string]descriptor{}}
	if err := r.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), f.Close())
	}
	return r, nil
}

// Close closes the archive.
func (r *Registry) Close() error { return r.file.Close() }

func (r *Registry) scan() error {
	t := tar.NewReader(r.file)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// The reader takes whole headers from the file and nothing ahead of need.
		offset, err := r.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if digest, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			r.blobs["sha256:"+digest] = place{offset, h.Size}
		}
		if h.Name != "index.json" {
			continue
		}
		var list index
		if err := json.NewDecoder(t).Decode(&list); err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		for _, m := range list.Manifests {
			r.manifests[m.Annotations["io.containerd.image.name"]] = m
		}
	}
}

// ServeHTTP answers as a registry or as a mirror, which is told the registry's name in the query.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.NotFound(w, req)
		return
	}
	if path == "" {
		return
	}
	if name, digest, ok := cutLast(path, "/blobs/"); ok && name != "" {
		r.send(w, req, digest, "application/octet-stream")
		return
	}
	name, ref, ok := cutLast(path, "/manifests/")
	if !ok {
		http.NotFound(w, req)
		return
	}
	digest := ref
	if !strings.HasPrefix(ref, "sha256:") {
		digest = r.manifests[req.URL.Query().Get("ns")+"/"+name+":"+ref].Digest
	}
	r.send(w, req, digest, typeManifest)
}

func (r *Registry) send(w http.ResponseWriter, req *http.Request, digest, mediaType string) {
	p, ok := r.blobs[digest]
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	http.ServeContent(w, req, "", time.Time{}, io.NewSectionReader(r.file, p.offset, p.size))
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
