package registries_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/runtime/registries"
)

// load parses and checks a file as Load does, without a disk.
func load(t *testing.T, text string) (registries.Config, error) {
	t.Helper()
	c, err := registries.Parse("r.yaml", []byte(text))
	if err != nil {
		return c, err
	}
	return c, c.Validate()
}

func TestHostsFiles(t *testing.T) {
	const tls = "configs: {'m.example.com': {tls: {ca_file: /etc/ca.pem}}}\n"
	for _, row := range []struct {
		name, file string
		want       map[string]string // folder to file, without the first line
	}{
		{name: "empty", file: "# nothing yet\n"},
		{name: "keys without values", file: "mirrors:\nconfigs:\n"},
		{
			name: "mirror", file: "mirrors:\n  docker.io:\n    endpoint:\n      - https://m.example.com:5000\n",
			want: map[string]string{"docker.io": "\n[host.\"https://m.example.com:5000/v2\"]\ncapabilities = [\"pull\", \"resolve\"]\n"},
		},
		{
			name: "order is kept and copies are dropped",
			file: "mirrors: {a.b: {endpoint: [z.example.com, 'https://y.example.com/v2', 'https://z.example.com/v2/', y.example.com]}}",
			want: map[string]string{"a.b": "\n[host.\"https://z.example.com/v2\"]\ncapabilities = [\"pull\", \"resolve\"]\n\n[host.\"https://y.example.com/v2\"]\ncapabilities = [\"pull\", \"resolve\"]\n"},
		},
		{
			name: "path of an endpoint is taken as it is", file: "mirrors: {docker.io: {endpoint: ['https://m.example.com/v2/proxy/']}}",
			want: map[string]string{"docker.io": "\n[host.\"https://m.example.com/v2/proxy\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"},
		},
		{
			name: "rewrite of every name is a path", file: "mirrors: {docker.io: {endpoint: ['m.example.com'], rewrite: {'^(.*)$': 'site/proxy/$1'}}}",
			want: map[string]string{"docker.io": "\n[host.\"https://m.example.com/v2/site/proxy\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"},
		},
		{
			name: "rewrite by the start of every name", file: "mirrors: {docker.io: {endpoint: ['m.example.com/api'], rewrite: {'^': 'proxy/'}}}",
			want: map[string]string{"docker.io": "\n[host.\"https://m.example.com/api/proxy\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"},
		},
		{
			name: "rewrite of a name to itself", file: "mirrors: {docker.io: {endpoint: ['m.example.com'], rewrite: {'(.*)': '${1}'}}}",
			want: map[string]string{"docker.io": "\n[host.\"https://m.example.com/v2\"]\ncapabilities = [\"pull\", \"resolve\"]\n"},
		},
		{
			name: "registry on the node is plain", file: "mirrors: {docker.io: {endpoint: ['localhost:5000', '127.0.0.1:443', 'https://[::1]:5000', '[::1]:5001']}}",
			want: map[string]string{"docker.io": hosts("http://localhost:5000/v2", "https://127.0.0.1:443/v2", "https://[::1]:5000/v2", "http://[::1]:5001/v2")},
		},
		{
			name: "registry itself at the end is left to containerd", file: "mirrors: {docker.io: {endpoint: [m.example.com, docker.io]}}",
			want: map[string]string{"docker.io": hosts("https://m.example.com/v2")},
		},
		{
			name: "registry itself before a mirror is kept", file: "mirrors: {docker.io: {endpoint: [index.docker.io, m.example.com]}}",
			want: map[string]string{"docker.io": hosts("https://registry-1.docker.io/v2", "https://m.example.com/v2")},
		},
		{
			name: "other name of docker.io", file: "mirrors: {index.docker.io: {endpoint: [m.example.com]}}",
			want: map[string]string{"docker.io": hosts("https://m.example.com/v2")},
		},
		{
			name: "mirror for every registry", file: "mirrors: {'*': {endpoint: [m.example.com]}}",
			want: map[string]string{"_default": hosts("https://m.example.com/v2")},
		},
		{
			name: "TLS of a mirror", file: tls + "mirrors: {docker.io: {endpoint: [m.example.com]}}",
			want: map[string]string{
				"docker.io":     hosts("https://m.example.com/v2") + "ca = [\"/etc/ca.pem\"]\n",
				"m.example.com": "ca = [\"/etc/ca.pem\"]\n",
			},
		},
		{
			name: "TLS settings are not for a plain endpoint", file: tls + "mirrors: {docker.io: {endpoint: ['http://m.example.com']}}",
			want: map[string]string{"docker.io": hosts("http://m.example.com/v2"), "m.example.com": "ca = [\"/etc/ca.pem\"]\n"},
		},
		{
			name: "TLS is found with the port that https has anyway", file: tls + "mirrors: {docker.io: {endpoint: ['m.example.com:443']}}",
			want: map[string]string{
				"docker.io": hosts("https://m.example.com:443/v2") + "ca = [\"/etc/ca.pem\"]\n", "m.example.com": "ca = [\"/etc/ca.pem\"]\n",
			},
		},
		{
			name: "all of TLS", file: "configs: {'m.example.com:5000': {tls: {cert_file: /c.pem, key_file: '/k \"1\".pem', insecure_skip_verify: true}}}",
			want: map[string]string{"m.example.com:5000": "client = [[\"/c.pem\", \"/k \\\"1\\\".pem\"]]\nskip_verify = true\n"},
		},
		{
			name: "TLS for every registry, and one that is not meant",
			file: "configs: {'*': {tls: {insecure_skip_verify: true}}, docker.io: }\nmirrors: {'*': {endpoint: [m.example.com]}}",
			want: map[string]string{
				"_default":  "skip_verify = true\n" + hosts("https://m.example.com/v2") + "skip_verify = true\n",
				"docker.io": hosts("https://m.example.com/v2") + "skip_verify = true\n",
			},
		},
		{
			name: "registry with an empty entry has no mirror", file: "mirrors: {'*': {endpoint: [m.example.com]}, a.b: }",
			want: map[string]string{"_default": hosts("https://m.example.com/v2"), "a.b": ""},
		},
		{
			name: "registry with credentials is asked itself", file: "mirrors: {'*': {endpoint: [m.example.com]}}\nconfigs: {a.b: {auth: {username: u, password: p}}}",
			want: map[string]string{"_default": hosts("https://m.example.com/v2"), "a.b": ""},
		},
		{name: "credentials alone need no folder", file: "configs: {a.b: {auth: {username: u, password: p}}}"},
		{
			name: "anchors", file: "mirrors:\n  a.b: &m\n    endpoint: [m.example.com]\n  c.d: *m\n",
			want: map[string]string{"a.b": hosts("https://m.example.com/v2"), "c.d": hosts("https://m.example.com/v2")},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, err := load(t, row.file)
			if err != nil {
				t.Fatal(err)
			}
			files, err := c.Files()
			if err != nil {
				t.Fatal(err)
			}
			for folder, data := range files {
				_, text, _ := strings.Cut(string(data), "\n")
				if text != row.want[folder] {
					t.Errorf("%s:\n%s\nwant:\n%s", folder, text, row.want[folder])
				}
			}
			for folder := range row.want {
				if files[folder] == nil {
					t.Errorf("no folder %s", folder)
				}
			}
		})
	}
}

func hosts(urls ...string) string {
	var b strings.Builder
	for _, u := range urls {
		b.WriteString("\n[host.\"" + u + "\"]\ncapabilities = [\"pull\", \"resolve\"]\n")
	}
	return b.String()
}

// credentials is how containerd sees AuthTOML.
type credentials struct {
	Version int
	Plugins struct {
		Images struct {
			Registry struct {
				Configs map[string]struct{ Auth map[string]string }
			}
		} `toml:"io.containerd.cri.v1.images"`
	}
}

func readAuth(t *testing.T, data []byte) map[string]map[string]string {
	t.Helper()
	var got credentials
	if err := toml.Unmarshal(data, &got); err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	out := map[string]map[string]string{}
	for host, c := range got.Plugins.Images.Registry.Configs {
		out[host] = c.Auth
	}
	return out
}

func TestAuth(t *testing.T) {
	both := map[string]string{"username": "u", "password": "p"}
	for _, row := range []struct {
		name, file string
		want       map[string]map[string]string
	}{
		{name: "none", file: "mirrors: {docker.io: {endpoint: [m.example.com]}}"},
		{name: "template with nothing filled in", file: "configs:\n  a.b:\n    auth:\n      username: # user\n      password:\n    tls:\n      ca_file: # file\n"},
		{name: "password", file: "configs: {'a.b:5000': {auth: {username: u, password: p}}}", want: map[string]map[string]string{"a.b:5000": both}},
		{name: "both spellings of port 443", file: "configs: {a.b: {auth: {username: u, password: p}}}", want: map[string]map[string]string{"a.b": both, "a.b:443": both}},
		{name: "names of docker.io", file: "configs: {docker.io: {auth: {username: u, password: p}}}",
			want: map[string]map[string]string{"docker.io": both, "index.docker.io": both, "registry-1.docker.io": both}},
		{name: "password stays as written", file: "configs: {'a.b:1': {auth: {username: 1e3, password: 0123}}}",
			want: map[string]map[string]string{"a.b:1": {"username": "1e3", "password": "0123"}}},
		{name: "password of many lines", file: `configs: {'a.b:1': {auth: {username: _json_key, password: "{\"k\": \"-----BEGIN\\nx\"}\n\x7f\t\u2028"}}}`,
			want: map[string]map[string]string{"a.b:1": {"username": "_json_key", "password": "{\"k\": \"-----BEGIN\\nx\"}\n\x7f\t\u2028"}}},
		{name: "base64", file: "configs: {'a.b:1': {auth: {auth: ' dTpw '}}}", want: map[string]map[string]string{"a.b:1": {"auth": "dTpw"}}},
		{name: "identity token", file: "configs: {'a.b:1': {auth: {identity_token: t}}}", want: map[string]map[string]string{"a.b:1": {"identitytoken": "t"}}},
		{name: "identity token by its other name", file: "configs: {'a.b:1': {auth: {token: t}}}", want: map[string]map[string]string{"a.b:1": {"identitytoken": "t"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, err := load(t, row.file)
			if err != nil {
				t.Fatal(err)
			}
			data := c.AuthTOML()
			if (data == nil) != (row.want == nil) {
				t.Fatalf("AuthTOML = %q", data)
			}
			got := readAuth(t, data)
			if len(got) != len(row.want) {
				t.Errorf("hosts %v, want %v", got, row.want)
			}
			for host, want := range row.want {
				for key, value := range want {
					if got[host][key] != value {
						t.Errorf("%s %s = %q, want %q", host, key, got[host][key], value)
					}
				}
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	for _, row := range []struct {
		name, file, want, try string // parts of the error and of its remedy
	}{
		{"unknown section", "mirors: {}", "r.yaml:1: unknown key mirors in the file", "did you mean mirrors?"},
		{"unknown key of a mirror", "mirrors:\n  docker.io:\n    endpoints: []\n", "r.yaml:3: unknown key endpoints in mirror docker.io", "did you mean endpoint?"},
		{"unknown key of TLS", "configs:\n  a.b:\n    tls:\n      insecure_skip_verfy: true\n", "r.yaml:4: unknown key insecure_skip_verfy in tls of a.b", "did you mean insecure_skip_verify?"},
		{"unknown key far from all", "configs:\n  a.b:\n    auth:\n      certificate: x\n", "r.yaml:4: unknown key certificate", "use one of username, password"},
		{"asterisk without quotes", "mirrors:\n  *:\n    endpoint: []\n", "r.yaml:2: ", `quotes around "*"`},
		{"same host twice", "mirrors:\n  a.b: {}\n  a.b: {}\n", "r.yaml:3: mirrors has a.b twice, first in line 2", "one entry"},
		{"two documents", "mirrors: {}\n---\nconfigs: {}\n", "more than one YAML document", "---"},
		{"list instead of mapping", "- mirrors\n", "r.yaml:1: the file is not a mapping", "key: value"},
		{"endpoint is not a list", "mirrors: {a.b: {endpoint: m.example.com}}", "r.yaml:1: endpoint of a.b is not a list", "dash"},
		{"endpoint is a mapping", "mirrors: {a.b: {endpoint: [{x: y}]}}", "is not a text", "one value"},
		{"merge key", "mirrors:\n  a.b: &a {}\n  c.d:\n    <<: *a\n", "r.yaml:4: mirror c.d uses <<", "*name"},
		{"skip is a word", "configs: {a.b: {tls: {insecure_skip_verify: perhaps}}}", "neither true nor false", "without quotes"},
		{"URL as the name of a registry", "configs: {'https://a.b/': {}}", `r.yaml:1: configs: "https://a.b/" is an address`, "write a.b"},
		{"path as the name of a registry", "mirrors: {'../../etc': {}}", `"../../etc" is not a registry`, "registry.example.com:5000"},
		{"name of the fallback folder", "mirrors: {_default: {}}", "is not a registry", ""},
		{"port out of range", "mirrors: {'a.b:70000': {}}", "is not a registry", ""},
		{"address that is none", "mirrors: {'[::x]': {}}", "is not a registry", ""},
		{"both names of docker.io", "mirrors: {docker.io: , index.docker.io: }", "one registry", "keep docker.io"},
		{"endpoint without a host", "mirrors: {a.b: {endpoint: ['https://']}}", "has no host", "https://mirror"},
		{"endpoint that is no URL", "mirrors: {a.b: {endpoint: ['https://m:x']}}", "is not a URL", "https://mirror"},
		{"endpoint of another kind", "mirrors: {a.b: {endpoint: ['ftp://m.example.com']}}", "neither http nor https", "https://"},
		{"endpoint with a query", "mirrors: {a.b: {endpoint: ['https://m.example.com?ns=a']}}", "more than a host and a path", "remove"},
		{"password in an endpoint", "mirrors: {a.b: {endpoint: ['https://u:geheim@m.example.com']}}", `"...@m.example.com" of a.b holds credentials`, "auth of m.example.com"},
		{"rewrite of a part", "mirrors: {a.b: {endpoint: [m.example.com], rewrite: {'^rancher/(.*)': 'x/$1'}}}", "r.yaml:1: rewrite of a.b cannot be done", "https://mirror.example.com/v2/proxy"},
		{"two rewrites", "mirrors: {a.b: {endpoint: [m.example.com], rewrite: {'(.*)': 'x/$1', '^(.*)$': 'y/$1'}}}", "cannot be done", ""},
		{"rewrite that joins without a slash", "mirrors: {a.b: {rewrite: {'(.*)': 'x$1'}}}", "cannot be done", ""},
		{"rewrite that climbs", "mirrors: {a.b: {rewrite: {'(.*)': '../$1'}}}", "cannot be done", ""},
		{"credentials for all", "configs: {'*': {auth: {username: u, password: p}}}", "credentials cannot be for every registry", "name the registry"},
		{"user without password", "configs: {a.b: {auth: {username: u}}}", "but not both", "both"},
		{"two kinds of credentials", "configs: {a.b: {auth: {username: u, password: p, auth: dTpw}}}", "more than one kind", "keep one"},
		{"two names of the token", "configs: {a.b: {auth: {token: t, identity_token: t}}}", "the same", "identity_token"},
		{"auth is not base64", "configs: {a.b: {auth: {auth: 'u:p'}}}", "not base64", "base64 -w0"},
		{"auth without a colon", "configs: {a.b: {auth: {auth: dXA=}}}", "not base64 of USER:PASSWORD", ""},
		{"relative path", "configs: {a.b: {tls: {ca_file: ca.pem}}}", `ca_file of a.b is not an absolute path: "ca.pem"`, "/etc/atoll/ca.pem"},
		{"key without certificate", "configs: {a.b: {tls: {key_file: /k.pem}}}", "key_file without its cert_file", "cert_file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := load(t, row.file)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("error %v, want %q in it", err, row.want)
			}
			if !errors.Is(err, config.ErrInvalid) {
				t.Error("is not config.ErrInvalid")
			}
			if try := strings.Join(remedy.All(err), "\n"); try == "" || !strings.Contains(try, row.try) {
				t.Errorf("remedy %q, want %q in it", try, row.try)
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Error("shows a password")
			}
		})
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	_, err := load(t, "mirrors:\n  a.b:\n    endpoint: ['ftp://x']\n    rewrite: {a: b}\n  /: {}\nconfigs:\n  c.d:\n    auth: {username: u}\n    tls: {ca_file: x}\n")
	for _, part := range []string{"r.yaml:2: endpoint", "r.yaml:2: rewrite", "r.yaml:5: mirrors", "r.yaml:7: c.d has a user", "r.yaml:7: ca_file"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	c, err := registries.Load(filepath.Join(dir, "none.yaml"))
	if err != nil || c.AuthTOML() != nil {
		t.Errorf("a file that is missing: %v", err)
	}
	if _, err := registries.Load(dir); err == nil || remedy.Of(err) == "" {
		t.Errorf("a folder: %v", err)
	}
	file := filepath.Join(dir, "r.yaml")
	write(t, file, strings.Repeat("#", 2<<20))
	if _, err := registries.Load(file); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("a file that is too large: %v", err)
	}
	write(t, file, "configs: {a.b: {auth: {username: u}}}")
	if _, err := registries.Load(file); err == nil || !strings.Contains(err.Error(), file+":1: ") {
		t.Errorf("a mistake in a file: %v", err)
	}
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	good, empty := filepath.Join(dir, "good.pem"), filepath.Join(dir, "empty.pem")
	write(t, good, "-----BEGIN CERTIFICATE-----\n")
	write(t, empty, "")
	c, err := load(t, "configs: {a.b: {tls: {ca_file: "+good+", cert_file: "+empty+", key_file: "+dir+"/none.pem}}}")
	if err != nil {
		t.Fatal(err)
	}
	err = c.CheckFiles()
	if err == nil || strings.Contains(err.Error(), "good.pem") || !strings.Contains(err.Error(), "r.yaml:1: cert_file of a.b") || !strings.Contains(err.Error(), "key_file of a.b") {
		t.Errorf("CheckFiles = %v", err)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	c, err := load(t, "configs: {a.b: {auth: {username: u, password: geheim}}}")
	if err != nil {
		t.Fatal(err)
	}
	if text := sprintAll(c); strings.Contains(text, "geheim") {
		t.Errorf("printed: %s", text)
	}
}
