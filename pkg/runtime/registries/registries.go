// Package registries turns registries.yaml, in the form that K3s users know, into what containerd reads.
//
// The file names mirrors (where else to look for a registry's images) and configs (credentials and TLS of one registry or mirror).
// Mirrors and TLS become one folder per registry with a hosts.toml, `_default` for "*", which containerd reads at every pull.
// Credentials become a TOML file that containerd's configuration imports: hosts.toml has no field for them. It could send them as a
// header, but identity tokens cannot be exchanged that way, and a header goes to whatever server the registry names as its issuer
// of tokens. The price is a warning of containerd that the section is deprecated; 2.3 still reads it.
//
// What K3s' own build of containerd adds is not there: `rewrite` is accepted where a path in front of every image name says the
// same, and refused with a remedy otherwise.
package registries

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/remedy"
)

// Any is the name of the entry for registries that have none of their own.
const Any = "*"

// Config is the content of registries.yaml. The zero value means that every registry is asked directly and without credentials.
type Config struct {
	Mirrors map[string]Mirror   // by the registry in an image's name: "docker.io", "registry.example.com:5000" or Any
	Configs map[string]Registry // by the host that is contacted, with its port, or Any
}

// Mirror says where images of one registry are looked for before the registry itself.
type Mirror struct {
	Endpoints []string          // URLs, tried in order
	Rewrites  map[string]string // regular expressions on image names, as in K3s

	at place
}

// Registry is how to talk to one host.
type Registry struct {
	Auth *Auth
	TLS  *TLS

	at place
}

// Auth is one of: user name and password, both in one (base64 of "user:password"), or an identity token.
type Auth struct {
	Username      string
	Password      config.Secret
	Auth          config.Secret
	IdentityToken config.Secret
}

// TLS names PEM files by absolute path. CertFile may hold the key too.
type TLS struct {
	CAFile, CertFile, KeyFile string
	InsecureSkipVerify        bool
}

// place is where something stands in the file; the zero value is nowhere.
type place struct {
	file string
	line int
}

func (p place) String() string {
	if p.file == "" {
		return "registries"
	}
	return fmt.Sprintf("%s:%d", p.file, p.line)
}

// problem is one mistake in the file. It is config.ErrInvalid: somebody asked wrongly.
type problem struct{ err error }

func (p *problem) Error() string        { return p.err.Error() }
func (p *problem) Unwrap() error        { return p.err }
func (p *problem) Is(target error) bool { return target == config.ErrInvalid }

// wrong makes a problem; try is its remedy.
func (p place) wrong(try, format string, args ...any) error {
	return &problem{remedy.Wrap(fmt.Errorf("%s: %s", p, fmt.Sprintf(format, args...)), "%s", try)}
}

// maxFileBytes bounds the file. One with a thousand registries has about 100 KB.
const maxFileBytes = 1 << 20

// Load reads and checks the file. A file that does not exist is an empty one. All mistakes are reported at once.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, remedy.Wrap(fmt.Errorf("read registries: %w", err), "make %s a file that root can read", path)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return Config{}, remedy.Wrap(fmt.Errorf("read registries: %w", err), "make %s a file that can be read", path)
	}
	if len(data) > maxFileBytes {
		return Config{}, place{path, 1}.wrong("check that it is the right file", "the file is larger than 1 MiB")
	}
	c, err := parse(path, data)
	if err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// Validate reports everything that containerd could not use. It looks at no file; CheckFiles does.
func (c Config) Validate() error {
	var errs []error
	for _, host := range sorted(c.Mirrors) {
		m := c.Mirrors[host]
		errs = append(errs, checkHost(m.at, "mirrors", host))
		_, err := m.endpoints(host)
		errs = append(errs, err)
	}
	for _, host := range sorted(c.Configs) {
		r := c.Configs[host]
		errs = append(errs, checkHost(r.at, "configs", host))
		if r.Auth != nil {
			errs = append(errs, r.Auth.validate(r.at, host))
		}
		if r.TLS != nil {
			errs = append(errs, r.TLS.validate(r.at, host))
		}
	}
	for section, names := range map[string][]string{"mirrors": sorted(c.Mirrors), "configs": sorted(c.Configs)} {
		if slices.Contains(names, "docker.io") && slices.Contains(names, "index.docker.io") {
			errs = append(errs, place{}.wrong("keep docker.io", "%s names docker.io and index.docker.io, which are one registry", section))
		}
	}
	return errors.Join(errs...)
}

func (a Auth) validate(at place, host string) error {
	given := 0
	for _, s := range []string{a.Username + a.Password.Reveal(), a.Auth.Reveal(), a.IdentityToken.Reveal()} {
		if s != "" {
			given++
		}
	}
	switch {
	case given == 0:
		return nil
	case host == Any:
		// containerd looks credentials up by the exact host, and one password for every registry of the world is a leak.
		return at.wrong("name the registry instead of *", "credentials cannot be for every registry")
	case given > 1:
		return at.wrong("keep one of username with password, auth and identity_token", "%s has more than one kind of credentials", host)
	case a.Auth.Reveal() != "":
		pair, err := base64.StdEncoding.DecodeString(a.Auth.Reveal())
		if err != nil || !strings.Contains(string(pair), ":") {
			return at.wrong("write the output of `printf '%s' USER:PASSWORD | base64 -w0`, or use username and password", "auth of %s is not base64 of USER:PASSWORD", host)
		}
	case a.IdentityToken.Reveal() == "" && (a.Username == "" || a.Password.Reveal() == ""):
		return at.wrong("give both username and password", "%s has a user name or a password, but not both", host)
	}
	return nil
}

func (t TLS) validate(at place, host string) error {
	var errs []error
	for _, f := range t.files() {
		if f.path != "" && !filepath.IsAbs(f.path) {
			errs = append(errs, at.wrong("write the whole path of the file, such as /etc/atoll/"+filepath.Base(f.path), "%s of %s is not an absolute path: %q", f.key, host, f.path))
		}
	}
	if t.KeyFile != "" && t.CertFile == "" {
		errs = append(errs, at.wrong("add cert_file, or remove key_file", "%s has a key_file without its cert_file", host))
	}
	return errors.Join(errs...)
}

type namedFile struct{ key, path string }

func (t TLS) files() []namedFile {
	return []namedFile{{"ca_file", t.CAFile}, {"cert_file", t.CertFile}, {"key_file", t.KeyFile}}
}

// CheckFiles reports certificates and keys that are named but cannot be read. It is apart from Validate because a file that is
// missing breaks the pulls through one registry, which is no reason to stop a node.
func (c Config) CheckFiles() error {
	var errs []error
	for _, host := range sorted(c.Configs) {
		r := c.Configs[host]
		if r.TLS == nil {
			continue
		}
		for _, f := range r.TLS.files() {
			if f.path == "" {
				continue
			}
			data, err := os.ReadFile(f.path)
			if err == nil && !strings.Contains(string(data), "-----BEGIN ") {
				err = fmt.Errorf("%s has no PEM block", f.path)
			}
			if err != nil {
				errs = append(errs, remedy.Wrap(fmt.Errorf("%s: %s of %s: %w", r.at, f.key, host, err), "put the PEM file there, or correct %s; pulls from %s fail until then", f.key, host))
			}
		}
	}
	return errors.Join(errs...)
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
