package registries_test

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// registry is a small image registry over TLS, with one image under any name.
type registry struct {
	*httptest.Server
	t     *testing.T
	dir   string // ca.pem, client.pem, client.key
	blobs map[string][]byte
	main  string // digest of the manifest

	basic      string // "user:password" that every request must carry, or ""
	bearer     string // token that every request must carry, or ""
	identity   string // refresh token for which /token gives the bearer token
	clientCert bool   // clients must show a certificate
	prefix     string // path under which images are, after /v2
	errorLog   *log.Logger

	mu       sync.Mutex
	requests []string // of manifests, path and query
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// start serves a registry on loopback; set its fields with options before it starts.
func start(t *testing.T, options ...func(*registry)) *registry {
	t.Helper()
	r := &registry{t: t, dir: t.TempDir(), blobs: map[string][]byte{}}
	for _, o := range options {
		o(r)
	}
	r.addImage()
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.Config.ErrorLog = r.errorLog
	r.makeCertificates()
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

func (r *registry) host() string { return r.Listener.Addr().String() }

func (r *registry) addImage() {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	must(r.t, w.WriteHeader(&tar.Header{Name: "hello", Mode: 0o644, Size: 2}))
	_, err := w.Write([]byte("hi"))
	must(r.t, err)
	must(r.t, w.Close())
	add := func(mediaType string, data []byte) map[string]any {
		r.blobs[digest(data)] = data
		return map[string]any{"mediaType": mediaType, "digest": digest(data), "size": len(data)}
	}
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": map[string]any{}, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}},
	})
	must(r.t, err)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": add("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{add("application/vnd.oci.image.layer.v1.tar", layer.Bytes())},
	})
	must(r.t, err)
	r.main = digest(manifest)
	r.blobs[r.main] = manifest
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.giveToken(w, req)
		return
	}
	if !r.allowed(req) {
		challenge := `Basic realm="test"`
		if r.bearer != "" {
			challenge = fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:x:pull"`, r.URL)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2"+r.prefix+"/")
	if !ok {
		http.NotFound(w, req)
		return
	}
	name, ref, isManifest := strings.Cut(rest, "/manifests/")
	if !isManifest {
		_, ref, _ = strings.Cut(rest, "/blobs/")
	} else {
		r.mu.Lock()
		r.requests = append(r.requests, name+"?"+req.URL.RawQuery)
		r.mu.Unlock()
		if !strings.HasPrefix(ref, "sha256:") {
			ref = r.main
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	}
	data, ok := r.blobs[ref]
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Docker-Content-Digest", ref)
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
}

func (r *registry) allowed(req *http.Request) bool {
	if r.bearer != "" {
		return req.Header.Get("Authorization") == "Bearer "+r.bearer
	}
	user, password, _ := req.BasicAuth()
	return r.basic == "" || user+":"+password == r.basic
}

// giveToken is the issuer of tokens: by POST for an identity token, by GET or POST for a password.
func (r *registry) giveToken(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	given := user + ":" + password
	if req.Method == http.MethodPost {
		must(r.t, req.ParseForm())
		given = req.PostForm.Get("username") + ":" + req.PostForm.Get("password")
	}
	byIdentity := r.identity != "" && req.PostForm.Get("refresh_token") == r.identity
	if given != r.basic && !byIdentity {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"token": r.bearer, "access_token": r.bearer})
}

// makeCertificates makes an authority and with it the server's and a client's certificate.
func (r *registry) makeCertificates() {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(r.t, err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(r.t, err)
	writePEM(r.t, filepath.Join(r.dir, "ca.pem"), "CERTIFICATE", caDER)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(r.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(r.t, err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(r.t, err)
	writePEM(r.t, filepath.Join(r.dir, "client.pem"), "CERTIFICATE", leafDER)
	writePEM(r.t, filepath.Join(r.dir, "client.key"), "PRIVATE KEY", keyDER)

	r.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}}
	if r.clientCert {
		parsed, err := x509.ParseCertificate(caDER)
		must(r.t, err)
		r.TLS.ClientCAs, r.TLS.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		r.TLS.ClientCAs.AddCert(parsed)
	}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
