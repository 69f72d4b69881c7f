package pki

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
)

// Credentials is what a kubeconfig says besides server and user: contents or files.
type Credentials struct {
	caPEM, certPEM, keyPEM    []byte
	caFile, certFile, keyFile string
	serverName                string
}

// ServerName returns c with a name that the server's certificate must have, whatever the address in the URL is. Every API server of a
// site has the name "kubernetes"; with it a node may use any address that leads to one.
func (c Credentials) ServerName(name string) Credentials {
	c.serverName = name
	return c
}

// FilesOf makes credentials that refer to files, which clients of Kubernetes read again when they change.
// leaf holds certificate and key.
func FilesOf(ca, leaf string) Credentials {
	return Credentials{caFile: ca, certFile: leaf, keyFile: leaf}
}

// Embed makes credentials that carry their contents, for a kubeconfig that travels. They end when the certificate does.
func Embed(caPEM, certPEM, keyPEM []byte) Credentials {
	return Credentials{caPEM: caPEM, certPEM: certPEM, keyPEM: keyPEM}
}

// EmbedFiles reads an authority and a leaf into credentials that carry their contents.
func EmbedFiles(ca, leaf string) (Credentials, error) {
	caPEM, err := os.ReadFile(ca)
	if err != nil {
		return Credentials{}, fmt.Errorf("make a kubeconfig: %w", err)
	}
	cert, key, err := readLeaf(leaf)
	if err != nil {
		return Credentials{}, fmt.Errorf("make a kubeconfig: %w", err)
	}
	private, err := keyPEM(key)
	return Embed(caPEM, certificatePEM(cert.Raw), private), err
}

// WriteNodeKubeconfigs writes the kubeconfigs that every node has, for an agent that reaches the API at server (a URL).
func WriteNodeKubeconfigs(dataDir, server string) error {
	for _, k := range PathsIn(dataDir).NodeKubeconfigs() {
		text := Kubeconfig(server, k.User, FilesOf(k.CA, k.Leaf).ServerName("kubernetes"))
		if err := writeFile(k.File, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Kubeconfig returns a kubeconfig for the API at server (a URL).
// Cluster and context are called "default", as K3s users expect; so is the user when user is empty.
func Kubeconfig(server, user string, c Credentials) []byte {
	if user == "" {
		user = "default"
	}
	var b bytes.Buffer
	entry := func(key, file string, data []byte) {
		if file != "" {
			fmt.Fprintf(&b, "    %s: %s\n", key, quote(file))
		} else {
			fmt.Fprintf(&b, "    %s-data: %s\n", key, base64.StdEncoding.EncodeToString(data))
		}
	}
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Config\n")
	fmt.Fprintf(&b, "clusters:\n- name: default\n  cluster:\n    server: %s\n", quote(server))
	if c.serverName != "" {
		fmt.Fprintf(&b, "    tls-server-name: %s\n", quote(c.serverName))
	}
	entry("certificate-authority", c.caFile, c.caPEM)
	fmt.Fprintf(&b, "users:\n- name: %s\n  user:\n", quote(user))
	entry("client-certificate", c.certFile, c.certPEM)
	entry("client-key", c.keyFile, c.keyPEM)
	fmt.Fprintf(&b, "contexts:\n- name: default\n  context:\n    cluster: default\n    user: %s\n", quote(user))
	fmt.Fprintf(&b, "current-context: default\n")
	return b.Bytes()
}

// quote writes s as a YAML string that has no meaning but itself (JSON strings are a part of YAML). Paths and URLs stay plain, so that a
// person can edit them.
func quote(s string) string {
	if plain.MatchString(s) {
		return s
	}
	data, _ := json.Marshal(s) // cannot fail for a string
	return string(data)
}

var plain = regexp.MustCompile(`\A(/[a-zA-Z0-9/._-]*|https://[a-zA-Z0-9.-]+(:[0-9]+)?)\z`)
