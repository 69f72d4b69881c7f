package formation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

// Failures of a join that the joining side finds; use errors.Is. Those that the server finds are with problem.go.
var (
	ErrUnreachable = errors.New("the server cannot be reached")
	ErrOtherSite   = errors.New("the server belongs to another site")
	ErrClock       = errors.New("a clock is wrong")
	ErrNotAtoll    = errors.New("no atoll server answers at this address")
	ErrBadURL      = errors.New("the address of the server is not a URL")
)

// NodeRequest is a node that wants to join.
type NodeRequest struct {
	Name      string
	Password  string // of pki.EnsureNodePassword
	Addresses []netip.Addr
	Keys      pki.NodeKeys
	KnownCA   []byte // PEM of the authority that the node trusts from an earlier join; nil at the first
	Now       func() time.Time
}

// Bundle is what a node gets.
type Bundle struct {
	Certificates pki.NodeCertificates
	Keys         pki.NodeKeys
	Cluster      Cluster
	ServerTime   time.Time
}

// Join joins the site of the server at address (https://HOST:6443) with a token.
//
// The authority of the server is fetched first and compared with the hash in the token, or with KnownCA; only then is the secret shown. A
// token in the short form trusts whoever answers, as with K3s. The name in the server's certificate is "kubernetes" whatever
// the address is, so any address that leads to a server will do.
// Errors: ErrUnreachable, ErrOtherSite, ErrClock, ErrNotAtoll, ErrBadURL, and the refusals of the server. All carry a remedy.
func Join(ctx context.Context, address string, token pki.Token, node NodeRequest) (Bundle, error) {
	base, err := parseURL(address)
	if err != nil {
		return Bundle{}, err
	}
	requests, err := node.Keys.Requests()
	if err != nil {
		return Bundle{}, err
	}
	authority, serverDate, err := fetchAuthority(ctx, base, node.Now)
	if err != nil {
		return Bundle{}, err
	}
	if err := checkAuthority(base, authority, token, node.KnownCA); err != nil {
		return Bundle{}, err
	}
	c := newClient(base, authority, nil, node.Now)
	defer c.close()
	var answer nodeAnswer
	err = c.call(ctx, "POST", "/v1/nodes", token.Secret(), joinRequest{
		Name: node.Name, Password: node.Password, Addresses: node.Addresses, Requests: requests,
	}, &answer)
	if err != nil {
		return Bundle{}, explainClock(err, node.Now, serverDate)
	}
	answer.Certificates.ServerCA = string(certificatePEM(authority)) // the one that was checked
	return Bundle{Certificates: answer.Certificates, Keys: node.Keys, Cluster: answer.Cluster, ServerTime: answer.Time}, nil
}

// Renew gets new certificates for the node whose files are under dataDir. It needs no token.
func Renew(ctx context.Context, address, dataDir string, keys pki.NodeKeys, addrs []netip.Addr, now func() time.Time) (Bundle, error) {
	c, err := memberClient(address, dataDir, now)
	if err != nil {
		return Bundle{}, err
	}
	defer c.close()
	requests, err := keys.Requests()
	if err != nil {
		return Bundle{}, err
	}
	var answer nodeAnswer
	if err := c.call(ctx, "POST", "/v1/nodes/renew", "", renewRequest{Addresses: addrs, Requests: requests}, &answer); err != nil {
		return Bundle{}, err
	}
	return Bundle{Certificates: answer.Certificates, Keys: keys, Cluster: answer.Cluster, ServerTime: answer.Time}, nil
}

// FetchCluster asks for the facts of the cluster, as the node whose files are under dataDir.
func FetchCluster(ctx context.Context, address, dataDir string, now func() time.Time) (Cluster, time.Time, error) {
	c, err := memberClient(address, dataDir, now)
	if err != nil {
		return Cluster{}, time.Time{}, err
	}
	defer c.close()
	var answer clusterAnswer
	err = c.call(ctx, "GET", "/v1/cluster", "", nil, &answer)
	return answer.Cluster, answer.Time, err
}

func memberClient(address, dataDir string, now func() time.Time) (*client, error) {
	base, err := parseURL(address)
	if err != nil {
		return nil, err
	}
	p := pki.PathsIn(dataDir)
	authority, err := pki.ReadCertificate(p.AgentServerCA)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(p.KubeletClient, p.KubeletClient)
	if err != nil {
		return nil, fmt.Errorf("load the certificate of the node: %w", err)
	}
	return newClient(base, authority, &pair, now), nil
}

func parseURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
		return nil, remedy.Wrap(fmt.Errorf("%w: %q", ErrBadURL, printable(address)), "write it as https://ADDRESS:6443")
	}
	u.Path = ""
	return u, nil
}

// fetchAuthority asks for the authority of a server that is not trusted yet. It also returns the time that the server claims.
func fetchAuthority(ctx context.Context, base *url.URL, now func() time.Time) (*x509.Certificate, time.Time, error) {
	c := newClient(base, nil, nil, now)
	defer c.close()
	var answer caAnswer
	if err := c.call(ctx, "GET", "/v1/ca", "", nil, &answer); err != nil {
		return nil, time.Time{}, err
	}
	authority, err := parseAuthority([]byte(answer.ServerCA))
	if err != nil {
		return nil, time.Time{}, notAtoll(base, err)
	}
	return authority, c.date, nil
}

func parseAuthority(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate of an authority")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err == nil && !cert.IsCA {
		err = errors.New("the certificate is not that of an authority")
	}
	return cert, err
}

func certificatePEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func checkAuthority(base *url.URL, authority *x509.Certificate, token pki.Token, known []byte) error {
	if hash := token.CAHash(); hash != "" && hash != pki.Hash(authority) {
		return remedy.Wrap(fmt.Errorf("%w: the authority of %s has a hash that starts with %.12s, the token says %.12s", ErrOtherSite, base.Host, pki.Hash(authority), hash),
			"copy the token again from a server of the site, and check that %s is one of them; if both are right, something between them answers in its place", base.Host)
	}
	if known == nil {
		return nil
	}
	if before, err := parseAuthority(known); err == nil && pki.Hash(before) != pki.Hash(authority) {
		return remedy.Wrap(fmt.Errorf("%w: the authority of %s is not the one that this node has joined", ErrOtherSite, base.Host),
			"if the node is to leave its site for this one, remove <data-dir>/agent/tls on it and start it again")
	}
	return nil
}

// client talks to one supervisor.
type client struct {
	base *url.URL
	http *http.Client
	now  func() time.Time
	date time.Time // that the last answer claimed
}

// newClient makes a client that trusts servers of an authority, or any server when it is nil.
func newClient(base *url.URL, authority *x509.Certificate, identity *tls.Certificate, now func() time.Time) *client {
	if now == nil {
		now = time.Now
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{Protocol}, Time: now,
		ServerName:         "kubernetes",
		InsecureSkipVerify: authority == nil, //nolint:gosec // only to fetch the authority, which is checked by its hash
	}
	if authority != nil {
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AddCert(authority)
	}
	if identity != nil {
		config.Certificates = []tls.Certificate{*identity}
	}
	return &client{base: base, now: now, http: &http.Client{
		Timeout: 60 * time.Second,
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSClientConfig:       config,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 45 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the server sends elsewhere") },
	}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// call sends one request and decodes the answer.
func (c *client) call(ctx context.Context, method, path, bearer string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if bearer != "" {
		request.Header.Set("Authorization", "Bearer "+bearer)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.explain(err)
	}
	defer response.Body.Close()
	if response.TLS == nil || response.TLS.NegotiatedProtocol != Protocol {
		return notAtoll(c.base, errors.New("it does not speak the protocol of a supervisor"))
	}
	c.date, _ = http.ParseTime(response.Header.Get("Date"))
	if response.StatusCode != http.StatusOK {
		return readProblem(response)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswerBytes)).Decode(answer); err != nil {
		return remedy.Wrap(fmt.Errorf("read the answer of %s: %w", c.base.Host, err), "use the same version of atoll on all nodes")
	}
	return nil
}

// explain says what a failure of the network or of TLS means.
func (c *client) explain(err error) error {
	var uerr *url.Error
	if errors.As(err, &uerr) {
		err = uerr.Err // without method and URL, which are said below
	}
	var op *net.OpError
	var noTLS tls.RecordHeaderError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var dns *net.DNSError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return remedy.Wrap(fmt.Errorf("%w: the certificate of %s is good until %s, and by the clock of this machine it is %s", ErrClock, c.base.Host,
			invalid.Cert.NotAfter.UTC().Format(time.DateOnly), c.now().UTC().Format(time.DateOnly)), "check `date` on this machine and on the server")
	case errors.As(err, &unknown), errors.As(err, &name):
		return remedy.Wrap(fmt.Errorf("%w: the certificate of %s is not signed by the authority of this site", ErrOtherSite, c.base.Host),
			"check that %s is a server of this site", c.base.Host)
	case errors.As(err, &noTLS), errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, io.EOF),
		errors.As(err, &op) && op.Op == "remote error": // a TLS alert: it does not know the protocol
		return notAtoll(c.base, err)
	case errors.As(err, &dns):
		return remedy.Wrap(fmt.Errorf("%w: %w", ErrUnreachable, err), "check the name, or use the IP address of the server")
	case errors.Is(err, syscall.ECONNREFUSED):
		return remedy.Wrap(fmt.Errorf("%w: %w", ErrUnreachable, err), "start `atoll server` on %s, and check the port", c.base.Hostname())
	}
	return remedy.Wrap(fmt.Errorf("%w: %s: %w", ErrUnreachable, c.base.Host, err),
		"check that the machine %s is on, and that the network and its firewall let TCP through to it", c.base.Host)
}

func notAtoll(base *url.URL, err error) error {
	return remedy.Wrap(fmt.Errorf("%w: %s: %w", ErrNotAtoll, base.Host, err), "check address and port; a server of a site listens on 6443 unless --https-listen-port says otherwise")
}

// explainClock tells whose clock is wrong when the server has told its time.
func explainClock(err error, now func() time.Time, server time.Time) error {
	if now == nil {
		now = time.Now
	}
	apart := now().Sub(server).Abs()
	if !errors.Is(err, ErrClock) || server.IsZero() || apart < 24*time.Hour {
		return err
	}
	return remedy.Wrap(fmt.Errorf("%w; by that of the server it is %s", err, server.UTC().Format(time.DateOnly)),
		"set the clock of the machine that is wrong with `date -s`, or let an NTP service do it")
}
