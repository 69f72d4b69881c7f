package registries

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

const (
	// marker is the first line of the files that Write may remove again.
	marker    = "# Written by atoll from registries.yaml at each start: changes to this file are lost."
	hostsFile = "hosts.toml"
	// defaultFolder is where containerd looks for registries that have no folder.
	defaultFolder = "_default"
)

// Write makes dir, containerd's config_path, say what c says: one folder per registry. It removes the folders that it wrote before
// and that are no longer wanted, and touches no others. c must be valid. containerd reads the files at every pull, so a running
// one need not be told.
func (c Config) Write(dir string) error {
	files, err := c.files()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return remedy.Wrap(fmt.Errorf("make the folder of registries: %w", err), "check that the file system is writable and not full")
	}
	for _, host := range sorted(files) {
		folder := filepath.Join(dir, host)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return remedy.Wrap(fmt.Errorf("make the folder of registry %s: %w", host, err), "check that the file system is writable and not full")
		}
		file := filepath.Join(folder, hostsFile)
		if foreign, err := isForeign(file); err != nil {
			return err
		} else if foreign {
			return remedy.Wrap(fmt.Errorf("registry %s is in registries.yaml and has a file that somebody else wrote, %s", host, file), "remove that file, or take %s out of registries.yaml", host)
		}
		if _, err := atomicfile.WriteIfChanged(file, files[host], 0o600); err != nil {
			return err
		}
	}
	return clean(dir, files)
}

// clean removes the folders of dir that an earlier Write made, or left half made, and that are not in keep.
func clean(dir string, keep map[string][]byte) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for registries that are gone: %w", err)
	}
	removed := false
	for _, e := range entries {
		if _, ok := keep[e.Name()]; ok || !e.IsDir() {
			continue
		}
		folder := filepath.Join(dir, e.Name())
		ours, err := isOurs(folder)
		if err != nil {
			return err
		}
		if !ours {
			continue
		}
		if err := os.RemoveAll(folder); err != nil {
			return fmt.Errorf("remove registry %s, which is gone from registries.yaml: %w", e.Name(), err)
		}
		removed = true
	}
	if removed {
		return atomicfile.SyncDir(dir)
	}
	return nil
}

// isOurs tells whether a folder has nothing but what Write puts there. An empty one says nothing to containerd but would hide
// _default from it, and is what a power cut leaves of one that was being made or removed.
func isOurs(folder string) (bool, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return false, fmt.Errorf("look for registries that are gone: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+hostsFile+".tmp-") {
			continue
		}
		if e.Name() != hostsFile {
			return false, nil
		}
		if foreign, err := isForeign(filepath.Join(folder, hostsFile)); err != nil || foreign {
			return false, err
		}
	}
	return true, nil
}

// isForeign tells whether there is a file that Write did not write.
func isForeign(file string) (bool, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the settings of a registry: %w", err)
	}
	return !bytes.HasPrefix(data, []byte(marker+"\n")), nil
}

// files returns the hosts.toml of every folder.
func (c Config) files() (map[string][]byte, error) {
	out := map[string][]byte{}
	fallback := c.Mirrors[Any]
	var errs []error
	add := func(host string, m Mirror, folder string) {
		ends, err := m.endpoints(host)
		errs = append(errs, err)
		out[folder] = c.render(c.tlsFor(host), ends)
	}
	if len(fallback.Endpoints) > 0 || c.Configs[Any].TLS != nil {
		add(Any, fallback, defaultFolder)
	}
	for _, host := range c.names() {
		m, named := c.mirrorOf(host)
		own := c.configOf(host)
		// "*" is for registries without an entry. Credentials or certificates say that the registry itself is meant, as in K3s.
		if !named && own.Auth == nil && own.TLS == nil {
			m = fallback
		}
		// A folder that says nothing is still wanted where it hides _default.
		if _, hides := out[defaultFolder]; hides || len(m.Endpoints) > 0 || own.TLS != nil {
			add(host, m, host)
		}
	}
	return out, errors.Join(errs...)
}

// names returns every registry that has an entry, as it is called in images.
func (c Config) names() []string {
	names := map[string]bool{}
	for host := range c.Mirrors {
		names[nameOf(host)] = true
	}
	for host := range c.Configs {
		names[nameOf(host)] = true
	}
	delete(names, Any)
	return sorted(names)
}

func (c Config) mirrorOf(host string) (Mirror, bool) {
	for _, name := range aliases(host) {
		if m, ok := c.Mirrors[name]; ok {
			return m, true
		}
	}
	return Mirror{}, false
}

// configOf returns the entry of a host, or nothing; "*" is not looked at.
func (c Config) configOf(host string) Registry {
	for _, name := range aliases(host) {
		if r, ok := c.Configs[name]; ok {
			return r
		}
	}
	return Registry{}
}

// tlsFor returns the TLS settings of a host: its own, or else those for every host.
func (c Config) tlsFor(host string) *TLS {
	for _, name := range aliases(host) {
		if r, ok := c.Configs[name]; ok {
			return r.TLS
		}
	}
	return c.Configs[Any].TLS
}

// aliases returns the names under which the file may speak of a host, the exact one first.
func aliases(host string) []string {
	if serverOf(host) == hub {
		return []string{host, hub, "docker.io", "index.docker.io"}
	}
	names := []string{host}
	if bare, ok := strings.CutSuffix(host, ":443"); ok {
		names = append(names, bare)
	} else if !hasPort(host) {
		names = append(names, host+":443")
	}
	return names
}

func hasPort(host string) bool {
	return strings.LastIndex(host, ":") > strings.LastIndex(host, "]")
}

// render writes one hosts.toml. The registry itself is not named: containerd adds it after the mirrors, with the settings that
// stand before them.
func (c Config) render(self *TLS, mirrors []endpoint) []byte {
	var b bytes.Buffer
	b.WriteString(marker + "\n")
	renderTLS(&b, self)
	for _, e := range mirrors {
		fmt.Fprintf(&b, "\n[host.%s]\ncapabilities = [\"pull\", \"resolve\"]\n", quote(e.url()))
		if e.override {
			b.WriteString("override_path = true\n")
		}
		// With TLS settings containerd would try TLS on a plain endpoint first.
		if e.scheme == "https" {
			renderTLS(&b, c.tlsFor(e.host))
		}
	}
	return b.Bytes()
}

func renderTLS(b *bytes.Buffer, t *TLS) {
	if t == nil {
		return
	}
	if t.CAFile != "" {
		fmt.Fprintf(b, "ca = [%s]\n", quote(t.CAFile))
	}
	if t.CertFile != "" {
		fmt.Fprintf(b, "client = [[%s, %s]]\n", quote(t.CertFile), quote(t.KeyFile))
	}
	if t.InsecureSkipVerify {
		b.WriteString("skip_verify = true\n")
	}
}

// quote writes a TOML string, which has fewer escapes than one of Go.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
