package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"sigs.k8s.io/yaml"
)

// adminKubeconfig is where a server puts it.
const adminKubeconfig = "/etc/atoll/kubeconfig.yaml"

// API is a plain HTTPS client for one API server, with the administrator's credentials.
type API struct {
	base   string
	client *http.Client
}

// kubeconfig has the fields that a server's own file uses.
type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CA     []byte `json:"certificate-authority-data"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			Cert []byte `json:"client-certificate-data"`
			Key  []byte `json:"client-key-data"`
		} `json:"user"`
	} `json:"users"`
}

func newAPI(config []byte, n *Node) (*API, error) {
	var k kubeconfig
	if err := yaml.Unmarshal(config, &k); err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return nil, errors.New("read kubeconfig: want one cluster and one user")
	}
	cluster, user := k.Clusters[0].Cluster, k.Users[0].User
	cert, err := tls.X509KeyPair(user.Cert, user.Key)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cluster.CA) {
		return nil, errors.New("read kubeconfig: no authority in it")
	}
	if _, err := url.Parse(cluster.Server); err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return n.Dial(ctx, network, address)
		},
		IdleConnTimeout: 10 * time.Second,
	}
	return &API{base: cluster.Server, client: &http.Client{Transport: transport, Timeout: 10 * time.Second}}, nil
}

// Get fetches a path such as /api/v1/nodes and decodes the answer into v.
func (a *API) Get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", path, resp.Status)
	}
	return json.Unmarshal(body, v)
}

// Close drops idle connections.
func (a *API) Close() { a.client.CloseIdleConnections() }

// nodeReady returns nil when the node object called name says Ready, and otherwise why not.
func (a *API) nodeReady(ctx context.Context, name string) error {
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string } `json:"conditions"`
		} `json:"status"`
	}
	if err := a.Get(ctx, "/api/v1/nodes/"+name, &node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" {
			if c.Status == "True" {
				return nil
			}
			return fmt.Errorf("node is not Ready: %s", c.Message)
		}
	}
	return errors.New("node has no Ready condition yet")
}

// withServer returns the kubeconfig with another server address in it. The rest is kept as it is.
func withServer(config []byte, server string) ([]byte, error) {
	var k map[string]any
	if err := yaml.Unmarshal(config, &k); err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	clusters, _ := k["clusters"].([]any)
	for _, c := range clusters {
		entry, _ := c.(map[string]any)
		if cluster, ok := entry["cluster"].(map[string]any); ok {
			cluster["server"] = server
		}
	}
	if len(clusters) == 0 {
		return nil, errors.New("read kubeconfig: no cluster in it")
	}
	return yaml.Marshal(k)
}
