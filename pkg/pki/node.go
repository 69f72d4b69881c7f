package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// NodeRequests is what a node sends to have its certificates signed: one certificate request in PEM for each leaf of a node.
// Keys are made on the node and never leave it.
type NodeRequests struct {
	KubeletClient  string `json:"kubeletClient"`
	KubeletServing string `json:"kubeletServing"`
	KubeProxy      string `json:"kubeProxy"`
	AgentClient    string `json:"agentClient"`
}

// NodeCertificates is the answer, in PEM.
type NodeCertificates struct {
	KubeletClient  string `json:"kubeletClient"`
	KubeletServing string `json:"kubeletServing"`
	KubeProxy      string `json:"kubeProxy"`
	AgentClient    string `json:"agentClient"`
	ServerCA       string `json:"serverCA"`
	ClientCA       string `json:"clientCA"`
}

// NodeKeys holds the private keys of a node's leaves.
type NodeKeys struct {
	kubeletClient, kubeletServing, kubeProxy, agentClient *ecdsa.PrivateKey
}

// NewNodeKeys makes new keys.
func NewNodeKeys() (NodeKeys, error) {
	var k NodeKeys
	for _, place := range k.places() {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return NodeKeys{}, fmt.Errorf("make the keys of the node: %w", err)
		}
		*place = key
	}
	return k, nil
}

// LoadNodeKeys reads the keys that this node has; an error means that new ones are needed.
func LoadNodeKeys(dataDir string) (NodeKeys, error) {
	p := PathsIn(dataDir)
	var k NodeKeys
	for i, place := range k.places() {
		_, key, err := readLeaf(p.nodeFiles()[i])
		if err != nil {
			return NodeKeys{}, err
		}
		*place = key
	}
	return k, nil
}

// places and nodeFiles give keys and files in the same order.
func (k *NodeKeys) places() []**ecdsa.PrivateKey {
	return []**ecdsa.PrivateKey{&k.kubeletClient, &k.kubeletServing, &k.kubeProxy, &k.agentClient}
}

func (p Paths) nodeFiles() []string {
	return []string{p.KubeletClient, p.KubeletServing, p.KubeProxy, p.AgentClient}
}

func (c *NodeCertificates) leaves() []*string {
	return []*string{&c.KubeletClient, &c.KubeletServing, &c.KubeProxy, &c.AgentClient}
}

func (r *NodeRequests) all() []*string {
	return []*string{&r.KubeletClient, &r.KubeletServing, &r.KubeProxy, &r.AgentClient}
}

// Requests makes the certificate requests for these keys. They say nothing about names: the server knows them.
func (k NodeKeys) Requests() (NodeRequests, error) {
	var r NodeRequests
	for i, place := range r.all() {
		key := *k.places()[i]
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "atoll-node"}}, key)
		if err != nil {
			return NodeRequests{}, fmt.Errorf("make a certificate request: %w", err)
		}
		*place = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	return r, nil
}

// Save checks that the answer fits the keys and that the authorities have signed it, and writes the files of the node under dataDir.
// The kubelet's client certificate comes last: NodeValid tells by it that all the others are there.
func (c NodeCertificates) Save(dataDir string, k NodeKeys) error {
	p := PathsIn(dataDir)
	files := p.nodeFiles()
	contents := make([][]byte, len(files))
	for i, text := range c.leaves() {
		cert, _, err := parsePEM([]byte(*text))
		if err == nil && cert == nil {
			err = errors.New("no certificate")
		}
		if err != nil {
			return fmt.Errorf("the certificate %s that the server sent: %w", filepath.Base(files[i]), err)
		}
		key := *k.places()[i]
		if !key.PublicKey.Equal(cert.PublicKey) {
			return fmt.Errorf("the certificate %s that the server sent is for another key", filepath.Base(files[i]))
		}
		private, err := keyPEM(key)
		if err != nil {
			return err
		}
		contents[i] = append(certificatePEM(cert.Raw), private...)
	}
	for _, dir := range []string{p.AgentTLS, p.AgentCred} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	for file, text := range map[string]string{p.AgentServerCA: c.ServerCA, p.AgentClientCA: c.ClientCA} {
		cert, _, err := parsePEM([]byte(text))
		if err != nil || cert == nil || !cert.IsCA {
			return fmt.Errorf("the server sent no authority for %s", filepath.Base(file))
		}
		if err := writeFile(file, certificatePEM(cert.Raw), 0o644); err != nil {
			return err
		}
	}
	for i := len(files) - 1; i >= 0; i-- {
		if err := atomicfile.Write(files[i], contents[i], 0o600); err != nil {
			return err
		}
	}
	return nil
}

// NodeValid tells until when the certificates of the node called name are good, and whether they should be renewed.
// An error means that they cannot be used at all, and the node has to join (again).
func NodeValid(dataDir, name string, addrs []netip.Addr, at Reading) (renew string, err error) {
	p := PathsIn(dataDir)
	for _, file := range []string{p.AgentServerCA, p.AgentClientCA} {
		if _, err := ReadCertificate(file); err != nil {
			return "", err
		}
	}
	if exists(p.RotateMarker) {
		renew = "new keys were asked for"
	}
	for _, spec := range nodeLeaves(p, name, addrs) {
		cert, _, err := readLeaf(spec.path)
		if err != nil {
			return "", err
		}
		if cert.Subject.CommonName != spec.cn {
			return "", fmt.Errorf("%s is for %s, not for %s", spec.path, cert.Subject.CommonName, spec.cn)
		}
		if spec.ca == clientCA && at.Effective.After(cert.NotAfter) {
			return "", fmt.Errorf("%s expired on %s", spec.path, day(cert.NotAfter))
		}
		left := cert.NotAfter.Sub(at.Effective)
		if renew == "" && (left < RenewBefore || left > longestSane) {
			renew = fmt.Sprintf("%s is valid until %s", spec.name, day(cert.NotAfter))
		}
		if renew == "" && spec.path == p.KubeletServing && !covers(cert, addrs) {
			renew = "the addresses of the node have changed"
		}
	}
	return renew, nil
}

func covers(cert *x509.Certificate, addrs []netip.Addr) bool {
	for _, a := range addrs {
		if cert.VerifyHostname(a.Unmap().WithZone("").String()) != nil {
			return false
		}
	}
	return true
}

// RotationDone removes the wish for new keys, once they are there.
func RotationDone(dataDir string) error {
	if err := os.Remove(PathsIn(dataDir).RotateMarker); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the mark for new keys: %w", err)
	}
	return nil
}

// RotationAsked tells whether Rotate was called and new keys are not there yet.
func RotationAsked(dataDir string) bool { return exists(PathsIn(dataDir).RotateMarker) }

var nodeNamePattern = regexp.MustCompile(`\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\z`)

// ValidNodeName tells whether Kubernetes takes s as the name of a node, and a certificate as the name of a machine.
func ValidNodeName(s string) bool { return len(s) <= 253 && nodeNamePattern.MatchString(s) }

// SignNode signs the requests of a node. Names come from the caller, who has checked them; of a request only the key counts.
// The authorities are read from dataDir each time: joins are rare, and keys need not stay in memory.
func SignNode(dataDir, node string, addrs []netip.Addr, requests NodeRequests, now time.Time) (NodeCertificates, error) {
	if !ValidNodeName(node) {
		return NodeCertificates{}, fmt.Errorf("sign the certificates of a node: %q is not the name of a node", node)
	}
	p := PathsIn(dataDir)
	authorities := map[string]*authority{}
	for _, name := range []string{clientCA, kubeletCA} {
		a, err := loadAuthority(p.authority(name))
		if err != nil {
			return NodeCertificates{}, fmt.Errorf("load the authority %s: %w", name, err)
		}
		authorities[name] = a
	}
	server, err := ReadCertificate(p.ServerCA.Cert)
	if err != nil {
		return NodeCertificates{}, fmt.Errorf("load the authority %s: %w", serverCA, err)
	}
	answer := NodeCertificates{ServerCA: string(certificatePEM(server.Raw)), ClientCA: string(authorities[clientCA].certPEM)}
	for i, spec := range nodeLeaves(p, node, addrs) {
		pub, err := requestedKey(*requests.all()[i])
		if err != nil {
			return NodeCertificates{}, &RequestError{fmt.Errorf("the certificate request for %s: %w", spec.name, err)}
		}
		cert, err := authorities[spec.ca].issue(spec, pub, now)
		if err != nil {
			return NodeCertificates{}, fmt.Errorf("issue the certificate %s: %w", spec.name, err)
		}
		*answer.leaves()[i] = string(cert)
	}
	return answer, nil
}

// RequestError tells that a certificate request cannot be signed because of what is in it.
type RequestError struct{ err error }

func (e *RequestError) Error() string { return e.err.Error() }
func (e *RequestError) Unwrap() error { return e.err }

// requestedKey returns the key of a certificate request, whose holder has proven to have the private half.
func requestedKey(text string) (*ecdsa.PublicKey, error) {
	const maxRequestBytes = 16 << 10
	if len(text) > maxRequestBytes {
		return nil, fmt.Errorf("longer than %d bytes", maxRequestBytes)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no certificate request in PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	pub, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("the key is not an ECDSA key on the curve P-256")
	}
	return pub, request.CheckSignature()
}
