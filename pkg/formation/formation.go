// Package formation makes nodes into a site: it lets agents join, gives them certificates, and keeps those valid.
//
// A server answers on one TCP port, 6443, for two services. Mux owns the listener and looks at the first bytes of each connection: a
// client that offers the application protocol "atoll/1" gets the supervisor, every other gets the API server, which sees an
// untouched connection. So a site needs one open port, and neither service is a proxy for the other.
//
// Supervisor is the HTTP API over that protocol:
//
//	GET  /v1/ca            the server authority; for everybody, because a client checks it against the hash in its token
//	POST /v1/nodes         join: a token, the name and password of the node, certificate requests -> certificates, facts of the cluster
//	POST /v1/nodes/renew   the same again for a node that shows its kubelet's certificate
//	GET  /v1/cluster       facts of the cluster, for a node that shows its kubelet's certificate
//
// Errors are application/problem+json with detail, remedy and a code that clients decide on. A token lets a node join and nothing
// else; a certificate of system:node:X lets X renew and nothing else. The password of a node, which it makes itself, is kept as a hash,
// so that no other machine can take its name. Tokens and passwords are compared in constant time, appear in no log and in no error,
// and failures are limited for each address.
//
// Agent is the other side: it joins, or goes on with what it has when the server cannot be reached, and renews for as long as it runs.
package formation

import (
	"net/netip"
	"time"

	"github.com/atollhq/atoll/pkg/pki"
)

// Protocol is the application protocol (ALPN) of the supervisor.
const Protocol = "atoll/1"

// Cluster is what an agent has to know of the cluster besides its certificates.
type Cluster struct {
	ClusterCIDRs   []netip.Prefix `json:"clusterCIDRs"`
	ServiceCIDRs   []netip.Prefix `json:"serviceCIDRs"`
	ClusterDNS     []netip.Addr   `json:"clusterDNS"`
	Domain         string         `json:"domain"`
	APIServers     []string       `json:"apiServers"` // URLs, the best first
	FlannelBackend string         `json:"flannelBackend"`
}

// Bodies of the supervisor's API. Unknown fields are ignored: versions N and N-1 talk to each other.
type (
	caAnswer struct {
		ServerCA string `json:"serverCA"` // PEM
	}
	joinRequest struct {
		Name      string           `json:"name"`
		Password  string           `json:"password"`
		Addresses []netip.Addr     `json:"addresses"`
		Requests  pki.NodeRequests `json:"requests"`
	}
	renewRequest struct {
		Addresses []netip.Addr     `json:"addresses"`
		Requests  pki.NodeRequests `json:"requests"`
	}
	nodeAnswer struct {
		Certificates pki.NodeCertificates `json:"certificates"`
		Cluster      Cluster              `json:"cluster"`
		Time         time.Time            `json:"time"` // of the server
	}
	clusterAnswer struct {
		Cluster Cluster   `json:"cluster"`
		Time    time.Time `json:"time"`
	}
)

// Bounds of what is read from the network.
const (
	maxRequestBytes  = 128 << 10
	maxAnswerBytes   = 1 << 20
	maxHeaderBytes   = 16 << 10
	maxNodeAddresses = 64
)
