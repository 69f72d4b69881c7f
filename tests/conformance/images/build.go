package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	suite "k8s.io/kubernetes/test/utils/image"
)

// Build makes the archive of all images in the folder out and returns its path. root is the repository. Nothing is done when no input
// has changed since the last time. log gets a line per step.
func Build(ctx context.Context, root, out string, log func(format string, args ...any)) (string, error) {
	s := sources{root: root, module: filepath.Join(root, "tests/conformance"), work: filepath.Join(out, "work")}
	path := filepath.Join(out, "images.tar")
	hash, err := inputs(s.module)
	if err != nil {
		return "", fmt.Errorf("build images: %w", err)
	}
	if done, err := os.ReadFile(filepath.Join(out, "inputs")); err == nil && string(done) == hash {
		if _, err := os.Stat(path); err == nil {
			log("images: nothing changed (%s)", path)
			return path, nil
		}
	}
	if s.suite, err = moduleFolder(ctx, s.module, "k8s.io/kubernetes"); err != nil {
		return "", err
	}
	if err := os.MkdirAll(s.work, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(s.work)
	a, err := gather(ctx, s, log)
	if err != nil {
		return "", fmt.Errorf("build images: %w", err)
	}
	if err := a.write(path+".new", slices.Sorted(maps.Keys(a.blobs))); err != nil {
		return "", fmt.Errorf("write images: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", err
	}
	log("images: %s", path)
	return path, os.WriteFile(filepath.Join(out, "inputs"), []byte(hash), 0o644)
}

// gather builds all layers and puts the images together.
func gather(ctx context.Context, s sources, log func(string, ...any)) (*archive, error) {
	made := map[string]blob{}
	a := &archive{}
	for _, r := range recipes() {
		var stack []blob
		for _, name := range r.layers {
			if _, ok := made[name]; !ok {
				log("image layer %s", name)
				var err error
				if made[name], err = makeLayer(ctx, s, name); err != nil {
					return nil, fmt.Errorf("layer %s: %w", name, err)
				}
			}
			stack = append(stack, made[name])
		}
		if err := a.addImage(suite.GetE2EImage(r.image), r, stack); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func makeLayer(ctx context.Context, s sources, name string) (blob, error) {
	dir := filepath.Join(s.work, name)
	if err := os.RemoveAll(dir); err != nil {
		return blob{}, err
	}
	// Not the caller's umask: this is / of a container.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return blob{}, err
	}
	if err := layers()[name](ctx, s, dir); err != nil {
		return blob{}, err
	}
	return packLayer(dir, dir+".tar")
}

func moduleFolder(ctx context.Context, dir, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// inputs is a hash of everything that images are made from: module versions, this package and the Go release. Debian packages are taken as
// they are on the day.
func inputs(module string) (string, error) {
	files, err := filepath.Glob(filepath.Join(module, "images/*.go"))
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, file := range append(files, filepath.Join(module, "images/sh/main.go"), filepath.Join(module, "go.mod"), filepath.Join(module, "go.sum")) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", filepath.Base(file), len(content))
		h.Write(content)
	}
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	return hex.EncodeToString(h.Sum(nil)), nil
}
