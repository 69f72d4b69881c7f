package pki_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"
	"sigs.k8s.io/yaml"

	"github.com/atollhq/atoll/pkg/pki"
)

// api answers with the name that the client's certificate gives it, on the address that certificates are made for.
func api(t *testing.T, p pki.Paths) *httptest.Server { return apiOn(t, p, "127.0.0.1:0") }

func apiOn(t *testing.T, p pki.Paths, addr string) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName+" "+r.TLS.PeerCertificates[0].SerialNumber.String())
	}))
	pair, err := tls.LoadX509KeyPair(p.APIServer, p.APIServer)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = server.Listener.Close()
	server.Listener = listener
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool(t, p.ClientCA.Cert),
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func get(t *testing.T, config *rest.Config) string {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Get(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return string(body)
}

func TestKubeconfigsConnect(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, time.Now()).Paths
	server := api(t, p)
	s := subject()
	s.APIServer = server.URL
	if _, err := pki.Ensure(dir, s, fixed(time.Now()), quiet); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		p.AdminKubeconfig:             "system:admin",
		p.ControllerManagerKubeconfig: "system:kube-controller-manager",
		p.SchedulerKubeconfig:         "system:kube-scheduler",
		p.ControllerKubeconfig:        pki.UserController,
		p.CoreDNSKubeconfig:           pki.UserCoreDNS,
		p.MetricsKubeconfig:           pki.UserMetrics,
		p.KubeletKubeconfig:           "system:node:n1",
		p.KubeProxyKubeconfig:         "system:kube-proxy",
		p.AgentKubeconfig:             "system:atoll-agent:n1",
	} {
		config, err := clientcmd.BuildConfigFromFlags("", file)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := strings.Cut(get(t, config), " "); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

func TestEmbeddedKubeconfig(t *testing.T) {
	p := ensure(t, t.TempDir(), time.Now()).Paths
	server := api(t, p)
	credentials, err := pki.EmbedFiles(p.ServerCA.Cert, p.Admin)
	if err != nil {
		t.Fatal(err)
	}
	text := pki.Kubeconfig(server.URL, "", credentials)
	if strings.Contains(string(text), p.DataDir) {
		t.Errorf("names files:\n%s", text)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, config); !strings.HasPrefix(got, "system:admin ") {
		t.Errorf("is %q", got)
	}
}

// TestAgentKubeconfigs: an agent may reach an API server by an address that its certificate does not have.
func TestAgentKubeconfigs(t *testing.T) {
	serverDir, agentDir := t.TempDir(), t.TempDir()
	p := ensure(t, serverDir, time.Now()).Paths
	join(t, serverDir, agentDir, time.Now())
	if err := pki.WriteNodeKubeconfigs(agentDir, apiOn(t, p, "127.0.0.9:0").URL); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		pki.PathsIn(agentDir).KubeletKubeconfig:   "system:node:n2",
		pki.PathsIn(agentDir).KubeProxyKubeconfig: "system:kube-proxy",
		pki.PathsIn(agentDir).AgentKubeconfig:     "system:atoll-agent:n2",
	} {
		config, err := clientcmd.BuildConfigFromFlags("", file)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := strings.Cut(get(t, config), " "); got != want || config.ServerName != "kubernetes" {
			t.Errorf("%s is %q to %q, want %q", file, got, config.ServerName, want)
		}
	}
}

func TestKubeconfigQuotes(t *testing.T) {
	nasty := "/data \"dir\": #\\\n{}'"
	text := pki.Kubeconfig("https://[::1]:6443", "yes", pki.FilesOf(nasty+"ca", nasty))
	config, err := clientcmd.Load(text)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if got := config.AuthInfos["yes"]; got == nil || got.ClientKey != nasty || config.Clusters["default"].Server != "https://[::1]:6443" ||
		config.Clusters["default"].CertificateAuthority != nasty+"ca" {
		t.Errorf("%+v in:\n%s", config, text)
	}
}

// TestClientGoPicksUpRenewedCertificates proves what the package comment says of clients of Kubernetes.
func TestClientGoPicksUpRenewedCertificates(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, time.Now()).Paths
	server := api(t, p)
	config := &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{
		CAFile: p.ServerCA.Cert, CertFile: p.Admin, KeyFile: p.Admin,
	}}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		response, err := client.Get(server.URL)
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return string(body)
	}
	first := ask()
	if !strings.HasPrefix(first, "system:admin ") {
		t.Fatal(first)
	}
	if err := pki.Rotate(dir); err != nil {
		t.Fatal(err)
	}
	ensure(t, dir, time.Now())
	for deadline := time.Now().Add(20 * time.Second); ; {
		server.CloseClientConnections() // upstream does this itself within 5 minutes
		second := ask()
		if second != first && strings.HasPrefix(second, "system:admin ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the same client showed %q, and still shows %q", first, second)
		}
		time.Sleep(50 * time.Millisecond) // client-go keeps what it read for a second
	}
}

// TestServiceAccountKeyIsTaken loads the file as --service-account-signing-key-file and as --service-account-key-file.
func TestServiceAccountKeyIsTaken(t *testing.T) {
	p := ensure(t, t.TempDir(), time.Now()).Paths
	private, err := keyutil.PrivateKeyFromFile(p.ServiceAccountKey)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := private.(*ecdsa.PrivateKey)
	if !ok || key.Curve.Params().BitSize != 256 {
		t.Errorf("%T is not for ES256", private)
	}
	publics, err := keyutil.PublicKeysFromFile(p.ServiceAccountKey)
	if err != nil || len(publics) != 1 || !key.PublicKey.Equal(publics[0]) {
		t.Errorf("public keys %v, %v", publics, err)
	}
}

func TestEncryptionConfigIsTaken(t *testing.T) {
	p := ensure(t, t.TempDir(), time.Now()).Paths
	data, err := os.ReadFile(p.EncryptionConfig)
	if err != nil {
		t.Fatal(err)
	}
	var config apiserverv1.EncryptionConfiguration
	if err := yaml.UnmarshalStrict(data, &config); err != nil {
		t.Fatal(err)
	}
	if config.APIVersion != apiserverv1.SchemeGroupVersion.String() || config.Kind != "EncryptionConfiguration" || len(config.Resources) != 1 {
		t.Fatalf("%+v", config)
	}
	r := config.Resources[0]
	if len(r.Providers) != 2 || r.Providers[0].Secretbox == nil || r.Providers[1].Identity == nil || r.Resources[0] != "secrets" {
		t.Fatalf("%+v", r)
	}
	key, err := base64.StdEncoding.DecodeString(r.Providers[0].Secretbox.Keys[0].Secret)
	if err != nil || len(key) != 32 {
		t.Errorf("key of %d bytes, %v", len(key), err)
	}
}
