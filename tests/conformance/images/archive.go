package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// blob is a part of an archive: a file on disk or a text.
type blob struct {
	digest string // sha256, in hex
	size   int64
	path   string // when set, the content
	text   []byte
}

// epoch is the date of everything, so that archives of equal files are equal.
var epoch = time.Unix(0, 0).UTC()

// packLayer writes the tree below dir to the file out, uncompressed: the images never leave this machine.
func packLayer(dir, out string) (blob, error) {
	f, err := os.Create(out)
	if err != nil {
		return blob{}, err
	}
	defer f.Close()
	hash := sha256.New()
	count := &counter{}
	t := tar.NewWriter(io.MultiWriter(f, hash, count))
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		return addFile(t, dir, path)
	})
	err = errors.Join(err, t.Close(), f.Close())
	return blob{digest: hex.EncodeToString(hash.Sum(nil)), size: count.n, path: out}, err
}

func addFile(t *tar.Writer, dir, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	if h.Name, err = filepath.Rel(dir, path); err != nil {
		return err
	}
	if info.IsDir() {
		h.Name += "/"
	}
	h.ModTime, h.AccessTime, h.ChangeTime, h.Format = epoch, time.Time{}, time.Time{}, tar.FormatPAX
	h.Uname, h.Gname = "", ""
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		h.Uid, h.Gid = int(stat.Uid), int(stat.Gid)
	} else {
		h.Uid, h.Gid = 0, 0
	}
	if err := t.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t, f)
	return err
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// Types of the OCI image format, as far as they are used here.
type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Platform    *platform         `json:"platform,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	index struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	imageConfig struct {
		platform
		Created string  `json:"created"`
		Config  process `json:"config"`
		RootFS  rootFS  `json:"rootfs"`
	}
	process struct {
		User       string
		Env        []string
		Entrypoint []string
		Cmd        []string
		WorkingDir string
		Labels     map[string]string `json:",omitempty"`
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
)

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// archive gathers images that share layers.
type archive struct {
	blobs     map[string]blob // by digest
	manifests []descriptor
}

func (a *archive) add(mediaType string, b blob) descriptor {
	if a.blobs == nil {
		a.blobs = map[string]blob{}
	}
	a.blobs[b.digest] = b
	return descriptor{MediaType: mediaType, Digest: "sha256:" + b.digest, Size: b.size}
}

func (a *archive) addJSON(mediaType string, v any) (descriptor, error) {
	content, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(content)
	return a.add(mediaType, blob{digest: hex.EncodeToString(sum[:]), size: int64(len(content)), text: content}), nil
}

// addImage adds an image. The name is also a label, so that two names of equal content are two images, as a test that updates from one
// to the other expects.
func (a *archive) addImage(name string, r recipe, layers []blob) error {
	config := imageConfig{platform: platform{Architecture: runtime.GOARCH, OS: "linux"}, Created: epoch.Format(time.RFC3339)}
	config.Config = process{
		User: r.user, Entrypoint: r.entrypoint, Cmd: r.command, WorkingDir: "/",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Labels: map[string]string{"test.atoll.name": name},
	}
	config.RootFS.Type = "layers"
	m := manifest{SchemaVersion: 2, MediaType: typeManifest}
	for _, l := range layers {
		m.Layers = append(m.Layers, a.add(typeLayer, l))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, "sha256:"+l.digest)
	}
	var err error
	if m.Config, err = a.addJSON(typeConfig, config); err != nil {
		return err
	}
	top, err := a.addJSON(typeManifest, m)
	if err != nil {
		return err
	}
	top.Platform = &config.platform
	// The first is containerd's, with the full name; the second is the specification's.
	top.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	a.manifests = append(a.manifests, top)
	return nil
}

// write writes the archive as an OCI layout.
func (a *archive) write(path string, order []string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t := tar.NewWriter(f)
	put := func(name string, size int64, content io.Reader) error {
		h := &tar.Header{Name: name, Size: size, Mode: 0o644, ModTime: epoch, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(t, content)
		return err
	}
	text, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: a.manifests})
	if err != nil {
		return err
	}
	const layout = `{"imageLayoutVersion":"1.0.0"}`
	if err := put("oci-layout", int64(len(layout)), bytes.NewReader([]byte(layout))); err != nil {
		return err
	}
	if err := put("index.json", int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	for _, digest := range order {
		if err := a.putBlob(put, a.blobs[digest]); err != nil {
			return err
		}
	}
	return t.Close()
}

func (a *archive) putBlob(put func(string, int64, io.Reader) error, b blob) error {
	if b.path == "" {
		return put("blobs/sha256/"+b.digest, b.size, bytes.NewReader(b.text))
	}
	f, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer f.Close()
	return put("blobs/sha256/"+b.digest, b.size, f)
}
