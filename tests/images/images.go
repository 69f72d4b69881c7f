// Package images builds the container images that tests run, from source: static Go programs packed as OCI archives by this package.
// No container tool is needed and nothing is pulled.
//
// hello is a web server to look at, tool is a client. See their own comments for what they can do. Both are built for the machine
// that runs the build. An archive is the same, byte for byte, when the program is.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// Names of the images. The host does not exist; nothing must ever try to pull them.
const (
	Hello = "registry.atoll.test/hello:1"
	Tool  = "registry.atoll.test/tool:1"
)

// Image describes one image with one program in it.
type Image struct {
	Ref     string            // full name with tag
	Package string            // Go package of the program, relative to the repository
	User    string            // empty: root
	Labels  map[string]string // optional
}

// All are the images of this repository, by the name of their archive.
func All() map[string]Image {
	return map[string]Image{
		"hello.tar": {Ref: Hello, Package: "./tests/images/hello"},
		"tool.tar":  {Ref: Tool, Package: "./tests/images/tool"},
	}
}

// Build builds all images into the folder out and returns the archives' paths. root is the repository.
// Archives that would not change are not written again.
func Build(ctx context.Context, root, out string) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(out, "programs"), 0o755); err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	// Several test packages may build at once; two go commands must not write one program.
	lock, err := os.OpenFile(filepath.Join(out, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	var archives []string
	for name, image := range All() {
		program := filepath.Join(out, "programs", filepath.Base(image.Package))
		if err := compile(ctx, root, image.Package, program); err != nil {
			return nil, fmt.Errorf("build image %s: %w", image.Ref, err)
		}
		var archive bytes.Buffer
		if err := Pack(&archive, image, program); err != nil {
			return nil, fmt.Errorf("pack image %s: %w", image.Ref, err)
		}
		path := filepath.Join(out, name)
		if _, err := atomicfile.WriteIfChanged(path, archive.Bytes(), 0o644); err != nil {
			return nil, fmt.Errorf("build image %s: %w", image.Ref, err)
		}
		archives = append(archives, path)
	}
	return archives, nil
}

func compile(ctx context.Context, root, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "providerless,osusergo,netgo", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// Types of the OCI image format, as far as they are used here.
type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
		Platform    *platform         `json:"platform,omitempty"`
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
		Created string `json:"created"`
		Config  struct {
			User       string            `json:"User,omitempty"`
			Env        []string          `json:"Env"`
			Entrypoint []string          `json:"Entrypoint"`
			WorkingDir string            `json:"WorkingDir"`
			Labels     map[string]string `json:"Labels,omitempty"`
		} `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
)

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Pack writes an OCI archive of an image with one layer, which holds the program, an empty /tmp and the user database.
func Pack(w io.Writer, image Image, program string) error {
	layer, err := packLayer(program)
	if err != nil {
		return err
	}
	var blobs [][]byte
	add := func(mediaType string, blob []byte) descriptor {
		blobs = append(blobs, blob)
		return descriptor{MediaType: mediaType, Digest: digest(blob), Size: int64(len(blob))}
	}
	layerDesc := add(typeLayer, layer)

	config := imageConfig{platform: platform{Architecture: runtime.GOARCH, OS: "linux"}, Created: epoch.Format(time.RFC3339)}
	config.Config.User, config.Config.Labels = image.User, image.Labels
	config.Config.Env = []string{"PATH=/bin"}
	config.Config.Entrypoint = []string{"/bin/" + filepath.Base(program)}
	config.Config.WorkingDir = "/"
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", []string{layerDesc.Digest}
	configBlob, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifestBlob, err := json.Marshal(manifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: add(typeConfig, configBlob), Layers: []descriptor{layerDesc},
	})
	if err != nil {
		return err
	}
	top := add(typeManifest, manifestBlob)
	top.Platform = &config.platform
	// The first is containerd's, with the full name; the second is the specification's.
	top.Annotations = map[string]string{"io.containerd.image.name": image.Ref, "org.opencontainers.image.ref.name": image.Ref}
	indexBlob, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{top}})
	if err != nil {
		return err
	}

	files := []file{{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {name: "index.json", data: indexBlob}}
	files = append(files, file{name: "blobs/", mode: 0o755}, file{name: "blobs/sha256/", mode: 0o755})
	for _, blob := range blobs {
		files = append(files, file{name: "blobs/sha256/" + digest(blob)[len("sha256:"):], data: blob})
	}
	return writeTar(w, files)
}

func packLayer(program string) ([]byte, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	err = writeTar(&layer, []file{
		{name: "bin/", mode: 0o755},
		{name: "bin/" + filepath.Base(program), mode: 0o755, data: data},
		{name: "etc/", mode: 0o755},
		{name: "etc/passwd", data: []byte("root:x:0:0:root:/:/\nuser:x:1000:1000:user:/:/\n")},
		{name: "etc/group", data: []byte("root:x:0:\nuser:x:1000:\n")},
		{name: "tmp/", mode: 0o1777},
	})
	return layer.Bytes(), err
}

// file is an entry of an archive; a name with a slash at its end is a folder. Mode 0 means 0644.
type file struct {
	name string
	mode int64
	data []byte
}

// epoch is everything's date, so that archives of equal programs are equal.
var epoch = time.Unix(0, 0).UTC()

func writeTar(w io.Writer, files []file) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: epoch, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if f.mode == 0 {
			h.Mode = 0o644
		}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	return t.Close()
}

func digest(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}
