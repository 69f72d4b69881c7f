// Command ociimage packs one static program as a container image archive with a single layer.
//
// The archive is an OCI layout that also has the manifest.json of `docker save`, so that containerd and docker both load it.
// The same input gives the same bytes, and so the same image digest, on every machine.
//
//	ociimage -arch amd64 -name registry.k8s.io/pause:3.10.2 -user 65535:65535 -out pause.tar path/of/program
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	arch := flag.String("arch", "", "architecture in Go's words")
	names := flag.String("name", "", "image references, separated by commas")
	user := flag.String("user", "", "user:group that the program runs as")
	out := flag.String("out", "", "archive to write")
	flag.Parse()
	if *arch == "" || *names == "" || *out == "" || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	text, err := archive(*arch, strings.Split(*names, ","), *user, flag.Arg(0))
	if err == nil {
		err = os.WriteFile(*out, text, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ociimage:", err)
		os.Exit(1)
	}
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

func archive(arch string, names []string, user, program string) ([]byte, error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	base := filepath.Base(program)
	layer, err := tarOf([]tarFile{{name: base, mode: 0o755, text: text}})
	if err != nil {
		return nil, err
	}
	config := mustJSON(map[string]any{
		"architecture": arch, "os": "linux",
		"config":  map[string]any{"Entrypoint": []string{"/" + base}, "User": user, "WorkingDir": "/"},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
		"history": []any{map[string]string{"created_by": "atoll build"}},
	})
	manifest := mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest,
		"config": descriptor{MediaType: typeConfig, Digest: digest(config), Size: len(config)},
		"layers": []descriptor{{MediaType: typeLayer, Digest: digest(layer), Size: len(layer)}},
	})
	var entries []descriptor
	for _, name := range names {
		entries = append(entries, descriptor{
			MediaType: typeManifest, Digest: digest(manifest), Size: len(manifest),
			Platform:    map[string]string{"architecture": arch, "os": "linux"},
			Annotations: map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:]},
		})
	}
	return tarOf([]tarFile{
		{name: "oci-layout", mode: 0o644, text: mustJSON(map[string]string{"imageLayoutVersion": "1.0.0"})},
		{name: "index.json", mode: 0o644, text: mustJSON(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": entries})},
		{name: "manifest.json", mode: 0o644, text: mustJSON([]any{map[string]any{
			"Config": blobPath(config), "RepoTags": names, "Layers": []string{blobPath(layer)},
		}})},
		{name: blobPath(config), mode: 0o644, text: config},
		{name: blobPath(manifest), mode: 0o644, text: manifest},
		{name: blobPath(layer), mode: 0o644, text: layer},
	})
}

type tarFile struct {
	name string
	mode int64
	text []byte
}

func tarOf(files []tarFile) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func blobPath(text []byte) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest(text), "sha256:")
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// mustJSON is for values made of strings, numbers, slices and maps, which cannot fail to encode.
func mustJSON(value any) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return text
}
