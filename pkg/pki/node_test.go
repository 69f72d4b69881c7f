package pki_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/pkg/pki"
)

var agentAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.50")}

// join signs certificates for the node n2 by the server in serverDir and saves them in agentDir.
func join(t testing.TB, serverDir, agentDir string, now time.Time) {
	t.Helper()
	keys, err := pki.NewNodeKeys()
	if err != nil {
		t.Fatal(err)
	}
	requests, err := keys.Requests()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := pki.SignNode(serverDir, "n2", agentAddrs, requests, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := answer.Save(agentDir, keys); err != nil {
		t.Fatal(err)
	}
}

func reading(now time.Time) pki.Reading { return fixed(now).Read() }

func TestNodeCertificates(t *testing.T) {
	serverDir, agentDir := t.TempDir(), t.TempDir()
	server := ensure(t, serverDir, today).Paths
	join(t, serverDir, agentDir, today)
	p := pki.PathsIn(agentDir)
	for file, want := range map[string]use{
		p.KubeletClient:  {"system:node:n2", server.ClientCA.Cert, x509.ExtKeyUsageClientAuth},
		p.KubeletServing: {"system:node:n2", server.KubeletCA.Cert, x509.ExtKeyUsageServerAuth},
		p.KubeProxy:      {"system:kube-proxy", server.ClientCA.Cert, x509.ExtKeyUsageClientAuth},
		p.AgentClient:    {"system:atoll-agent:n2", server.ClientCA.Cert, x509.ExtKeyUsageClientAuth},
	} {
		cert := leaf(t, file)
		_, err := cert.Verify(x509.VerifyOptions{Roots: pool(t, want.ca), KeyUsages: []x509.ExtKeyUsage{want.usage}, CurrentTime: today})
		if err != nil || cert.Subject.CommonName != want.file {
			t.Errorf("%s is %s, %v", file, cert.Subject, err)
		}
	}
	for _, host := range []string{"n2", "192.0.2.50"} {
		if err := leaf(t, p.KubeletServing).VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if read(t, p.AgentServerCA) != read(t, server.ServerCA.Cert) || read(t, p.AgentClientCA) != read(t, server.ClientCA.Cert) {
		t.Error("the authorities of the agent are not those of the server")
	}
	if _, err := os.Stat(p.ServerTLS); !os.IsNotExist(err) {
		t.Error("an agent has a server's folder")
	}
	keys, err := pki.LoadNodeKeys(agentDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Requests(); err != nil {
		t.Error(err)
	}
}

func TestNodeValid(t *testing.T) {
	for _, row := range []struct {
		name  string
		hurt  func(t *testing.T, p pki.Paths)
		node  string
		addrs []netip.Addr
		days  int
		renew string
		err   string
	}{
		{name: "new", days: 1},
		{name: "245 days", days: 245},
		{name: "246 days", days: 246, renew: "is valid until"},
		{name: "366 days", days: 366, err: "expired"},
		{name: "another name", node: "n3", err: "not for system:node:n3"},
		{name: "another address", addrs: []netip.Addr{netip.MustParseAddr("192.0.2.51")}, renew: "addresses"},
		{name: "rotation", hurt: func(t *testing.T, p pki.Paths) {
			if err := pki.Rotate(p.DataDir); err != nil {
				t.Fatal(err)
			}
		}, renew: "new keys"},
		{name: "half a file", hurt: func(t *testing.T, p pki.Paths) { halve(t, p.KubeProxy) }, err: "damaged"},
		{name: "authority lost", hurt: func(t *testing.T, p pki.Paths) { remove(t, p.AgentServerCA) }, err: "no such file"},
		{name: "never joined", hurt: func(t *testing.T, p pki.Paths) { _ = os.RemoveAll(p.AgentTLS) }, err: "no such file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			serverDir, agentDir := t.TempDir(), t.TempDir()
			ensure(t, serverDir, today)
			join(t, serverDir, agentDir, today)
			if row.hurt != nil {
				row.hurt(t, pki.PathsIn(agentDir))
			}
			node, addrs := "n2", agentAddrs
			if row.node != "" {
				node = row.node
			}
			if row.addrs != nil {
				addrs = row.addrs
			}
			renew, err := pki.NodeValid(agentDir, node, addrs, reading(today.AddDate(0, 0, row.days)))
			if (err != nil) != (row.err != "") || (err != nil && !strings.Contains(err.Error(), row.err)) {
				t.Errorf("error %v, want %q", err, row.err)
			}
			if (renew != "") != (row.renew != "") || !strings.Contains(renew, row.renew) {
				t.Errorf("renew %q, want %q", renew, row.renew)
			}
		})
	}
}

func TestSaveRefusesWhatIsNotForItsKeys(t *testing.T) {
	serverDir := t.TempDir()
	ensure(t, serverDir, today)
	keys, _ := pki.NewNodeKeys()
	others, _ := pki.NewNodeKeys()
	requests, _ := keys.Requests()
	for _, row := range []struct {
		name   string
		change func(c *pki.NodeCertificates)
		keys   pki.NodeKeys
		want   string
	}{
		{"keys of somebody else", func(*pki.NodeCertificates) {}, others, "for another key"},
		{"empty", func(c *pki.NodeCertificates) { c.KubeProxy = "" }, keys, "kube-proxy.pem"},
		{"garbage", func(c *pki.NodeCertificates) {
			c.KubeProxy = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
		}, keys, "kube-proxy.pem"},
		{"leaf as authority", func(c *pki.NodeCertificates) { c.ServerCA = c.KubeProxy }, keys, "no authority"},
	} {
		answer, err := pki.SignNode(serverDir, "n2", agentAddrs, requests, today)
		if err != nil {
			t.Fatal(err)
		}
		row.change(&answer)
		dir := t.TempDir()
		if err := answer.Save(dir, row.keys); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error %v, want %q", row.name, err, row.want)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "agent", "tls", "*.pem")); len(left) > 0 {
			t.Errorf("%s: wrote %v", row.name, left)
		}
	}
}

// request makes a certificate request with a key of any kind.
func request(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestSignNodeRefuses(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, today)
	keys, _ := pki.NewNodeKeys()
	good, _ := keys.Requests()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // a key that must be refused
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	block, _ := pem.Decode([]byte(good.KubeProxy))
	block.Bytes[len(block.Bytes)-1] ^= 1 // in the signature
	forged := string(pem.EncodeToMemory(block))
	for _, row := range []struct{ name, node, csr string }{
		{"empty", "n2", ""},
		{"not PEM", "n2", "hello"},
		{"a certificate", "n2", read(t, pki.PathsIn(dir).ServerCA.Cert)},
		{"garbage in PEM", "n2", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"},
		{"RSA", "n2", request(t, rsaKey)},
		{"Ed25519", "n2", request(t, edKey)},
		{"key of somebody else", "n2", forged},
		{"endless", "n2", strings.Repeat(good.KubeProxy, 100)},
		{"no name", "", good.KubeProxy},
		{"bad name", "n2/../n1", good.KubeProxy},
		{"name in upper case", "N2", good.KubeProxy},
		{"group in the name", "n2,O=system:masters", good.KubeProxy},
	} {
		requests := good
		requests.KubeProxy = row.csr
		_, err := pki.SignNode(dir, row.node, agentAddrs, requests, today)
		var refused *pki.RequestError
		if err == nil || (row.node == "n2" && !errors.As(err, &refused)) {
			t.Errorf("%s: error %v", row.name, err)
		}
	}
}

func TestNodePassword(t *testing.T) {
	dir := t.TempDir()
	first, err := pki.EnsureNodePassword(dir, quiet)
	if err != nil || !pki.ValidNodePassword(first) {
		t.Fatalf("%q, %v", first, err)
	}
	if second, err := pki.EnsureNodePassword(dir, quiet); err != nil || second != first {
		t.Errorf("%q then %q, %v", first, second, err)
	}
	file := pki.PathsIn(dir).NodePassword
	for _, damage := range []string{"", first[:10], strings.Repeat("\x00", 33), strings.ToUpper(strings.Repeat("ab", 16))} {
		write(t, file, damage)
		again, err := pki.EnsureNodePassword(dir, quiet)
		if err != nil || !pki.ValidNodePassword(again) || again == first {
			t.Errorf("after %q: %q, %v", damage, again, err)
		}
	}
}

func FuzzSignNode(f *testing.F) {
	dir := f.TempDir()
	ensure(f, dir, today)
	keys, _ := pki.NewNodeKeys()
	good, _ := keys.Requests()
	f.Add("n2", good.KubeProxy)
	f.Add("", "")
	f.Add("n2", "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n")
	f.Add("a.b-c", strings.Replace(good.KubeProxy, "A", "B", 1))
	f.Fuzz(func(t *testing.T, node, csr string) {
		requests := good
		requests.KubeletClient = csr
		answer, err := pki.SignNode(dir, node, agentAddrs, requests, today)
		if err != nil {
			return
		}
		block, _ := pem.Decode([]byte(answer.KubeletClient))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || cert.Subject.CommonName != "system:node:"+node || cert.IsCA || len(cert.DNSNames) > 0 {
			t.Errorf("signed %v, %v", cert, err)
		}
	})
}
