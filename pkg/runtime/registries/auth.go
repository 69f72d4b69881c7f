package registries

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// AuthTOML returns a file for the imports of containerd's configuration with the credentials, or nil when there are none.
// containerd reads it when it starts. It compares hosts letter by letter with those in its requests, so every spelling is there.
func (c Config) AuthTOML() []byte {
	found := map[string]*Auth{}
	for _, host := range sorted(c.Configs) {
		if a := c.Configs[host].Auth; a != nil && host != Any {
			found[host] = a
		}
	}
	hosts := map[string]bool{}
	for host := range found {
		for _, name := range aliases(host) {
			hosts[name] = true
		}
	}
	var b bytes.Buffer
	b.WriteString(marker + "\nversion = 3\n")
	for _, host := range sorted(hosts) {
		a := c.configOf(host).Auth
		if a == nil {
			continue
		}
		fmt.Fprintf(&b, "\n[plugins.\"io.containerd.cri.v1.images\".registry.configs.%s.auth]\n", quote(host))
		for _, line := range []struct{ key, value string }{
			{"username", a.Username}, {"password", a.Password.Reveal()}, {"auth", a.Auth.Reveal()}, {"identitytoken", a.IdentityToken.Reveal()},
		} {
			if line.value != "" {
				fmt.Fprintf(&b, "%s = %s\n", line.key, quote(line.value))
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	return b.Bytes()
}

// WriteAuth makes the file hold AuthTOML, readable for root alone, or removes it when there are no credentials. It reports whether
// anything changed, which a running containerd would have to be started again for.
func (c Config) WriteAuth(path string) (changed bool, err error) {
	data := c.AuthTOML()
	if data == nil {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("remove the credentials of registries: %w", err)
		}
		return true, atomicfile.SyncDir(filepath.Dir(path))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return false, fmt.Errorf("write the credentials of registries: %w", err)
	}
	return atomicfile.WriteIfChanged(path, data, 0o600)
}
