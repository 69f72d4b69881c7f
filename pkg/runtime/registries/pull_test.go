package registries_test

import (
	"encoding/base64"
	"io"
	"log"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
)

// The placeholders of a row's file are the parts of the registry that runs: HOST, DIR and the closed port GONE.
func fill(text string, r *registry) string {
	return strings.NewReplacer("HOST", r.host(), "DIR", r.dir, "GONE", "127.0.0.1:1").Replace(text)
}

// TestPull gives what Write and AuthTOML write to containerd's own client, which asks a real registry.
func TestPull(t *testing.T) {
	const mirror = "mirrors: {docker.io: {endpoint: ['https://HOST']}}\n"
	const ca = "configs: {'HOST': {tls: {ca_file: DIR/ca.pem}}}\n"
	password := func(r *registry) { r.basic = "u:p w\"\\ü" }
	for _, row := range []struct {
		name, file, image string
		options           []func(*registry)
		want              string // the name and query that the registry is asked for
		fails             string // part of the error instead
	}{
		{name: "mirror with a private authority", file: mirror + ca, want: "library/app?ns=docker.io"},
		{name: "unknown authority", file: mirror, fails: "unknown authority"},
		{name: "unverified", file: mirror + "configs: {'HOST': {tls: {insecure_skip_verify: true}}}", want: "library/app?ns=docker.io"},
		{name: "TLS for every host", file: mirror + "configs: {'*': {tls: {ca_file: DIR/ca.pem}}}", want: "library/app?ns=docker.io"},
		{name: "mirror for every registry", file: "mirrors: {'*': {endpoint: ['https://HOST']}}\n" + ca, image: "registry.invalid:5000/shop/app:1", want: "shop/app?ns=registry.invalid%3A5000"},
		{name: "mirror that is down comes first", file: "mirrors: {docker.io: {endpoint: ['https://GONE', 'https://HOST']}}\n" + ca, want: "library/app?ns=docker.io"},
		{
			name: "images below a path", file: "mirrors: {docker.io: {endpoint: ['https://HOST/v2/proxy']}}\n" + ca, want: "library/app?ns=docker.io",
			options: []func(*registry){func(r *registry) { r.prefix = "/proxy" }},
		},
		{
			name: "rewrite of every name", file: "mirrors: {docker.io: {endpoint: ['https://HOST'], rewrite: {'^(.*)$': 'site/proxy/$1'}}}\n" + ca, want: "library/app?ns=docker.io",
			options: []func(*registry){func(r *registry) { r.prefix = "/site/proxy" }},
		},
		{
			name: "client certificate", file: mirror + "configs: {'HOST': {tls: {ca_file: DIR/ca.pem, cert_file: DIR/client.pem, key_file: DIR/client.key}}}",
			want: "library/app?ns=docker.io", options: []func(*registry){func(r *registry) { r.clientCert = true }},
		},
		{name: "no client certificate", file: mirror + ca, options: []func(*registry){func(r *registry) { r.clientCert = true }}, fails: "certificate required"},
		{
			name: "registry without a mirror", file: "configs: {'HOST': {tls: {ca_file: DIR/ca.pem, cert_file: DIR/client.pem, key_file: DIR/client.key}}}",
			image: "HOST/shop/app:1", want: "shop/app?", options: []func(*registry){func(r *registry) { r.clientCert = true }},
		},
		{
			name: "password", file: mirror + `configs: {'HOST': {tls: {ca_file: DIR/ca.pem}, auth: {username: u, password: "p w\"\\ü"}}}`,
			want: "library/app?ns=docker.io", options: []func(*registry){password},
		},
		{name: "password missing", file: mirror + ca, options: []func(*registry){password}, fails: "no basic auth credentials"},
		{
			name: "password for a token", file: mirror + `configs: {'HOST': {tls: {ca_file: DIR/ca.pem}, auth: {auth: "dTpw"}}}`,
			want: "library/app?ns=docker.io", options: []func(*registry){func(r *registry) { r.basic, r.bearer = "u:p", "secret" }},
		},
		{
			name: "identity token", file: mirror + `configs: {'HOST': {tls: {ca_file: DIR/ca.pem}, auth: {identity_token: refresh}}}`,
			want: "library/app?ns=docker.io", options: []func(*registry){func(r *registry) { r.basic, r.bearer, r.identity = "u:p", "secret", "refresh" }},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := start(t, append(row.options, quiet)...)
			c, err := load(t, fill(row.file, r))
			must(t, err)
			dir := filepath.Join(t.TempDir(), "certs.d")
			must(t, c.Write(dir))
			image := "docker.io/library/app:1"
			if row.image != "" {
				image = fill(row.image, r)
			}
			auth := readAuth(t, c.AuthTOML())
			resolver := docker.NewResolver(docker.ResolverOptions{Hosts: dockerconfig.ConfigureHosts(t.Context(), dockerconfig.HostOptions{
				HostDir:     dockerconfig.HostDirFromRoot(dir),
				Credentials: func(host string) (string, string, error) { return asContainerd(auth[host]) },
			})})
			_, desc, err := resolver.Resolve(t.Context(), image)
			if row.fails != "" {
				if err == nil || !strings.Contains(err.Error(), row.fails) {
					t.Fatalf("Resolve = %v, want %q", err, row.fails)
				}
				return
			}
			must(t, err)
			if desc.Digest.String() != r.main {
				t.Errorf("digest %s, want %s", desc.Digest, r.main)
			}
			if !slices.Contains(r.requests, row.want) {
				t.Errorf("asked for %q, want %q", r.requests, row.want)
			}
		})
	}
}

// quiet keeps failed handshakes, which some rows are about, out of the output.
func quiet(r *registry) { r.errorLog = log.New(io.Discard, "", 0) }

// asContainerd is how containerd's image service reads an entry of the configuration: user name, then identity token, then both in one.
func asContainerd(a map[string]string) (user, secret string, err error) {
	switch {
	case a["username"] != "":
		return a["username"], a["password"], nil
	case a["identitytoken"] != "":
		return "", a["identitytoken"], nil
	}
	pair, err := base64.StdEncoding.DecodeString(a["auth"])
	user, secret, _ = strings.Cut(string(pair), ":")
	return user, secret, err
}
