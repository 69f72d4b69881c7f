package formation_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/atollhq/atoll/pkg/formation"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

// site is a server with everything real but the API server behind it.
type site struct {
	dir           string
	url           string
	hash          string
	server, agent pki.Token
	kube          *kube
	secrets       *formation.Secrets
	clock         *pki.Clock
	ahead         atomic.Int64 // of the right time, in nanoseconds
	addr          net.Addr
	log           *lockedBuffer
	stop          func() error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var cluster = formation.Cluster{
	ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	ClusterDNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")}, Domain: "cluster.local", FlannelBackend: "vxlan",
}

func startSite(t testing.TB) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), log: &lockedBuffer{}}
	s.clock = &pki.Clock{Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }}
	set, err := pki.Ensure(s.dir, pki.Subject{NodeName: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, s.clock, quiet)
	if err != nil {
		t.Fatal(err)
	}
	s.hash = set.CAHash
	if s.server, s.agent, err = pki.EnsureTokens(s.dir, set.CAHash, "", "secret-of-agents"); err != nil {
		t.Fatal(err)
	}
	password, err := pki.EnsureNodePassword(s.dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	k, client := startKube(t)
	s.kube, s.secrets = k, formation.NewSecrets(client)
	l := loopback(t)
	s.addr, s.url = l.Addr(), "https://"+l.Addr().String()
	m, stopMux := startMux(t, l)
	serveAPI(t, m.API(), set.Paths)
	supervisor := formation.NewSupervisor(formation.SupervisorConfig{
		DataDir: s.dir, Listener: m.Supervisor(), NodeName: "n1", Password: password,
		Cluster: func() formation.Cluster {
			c := cluster
			c.APIServers = []string{s.url}
			return c
		},
		Tokens: s.secrets, Passwords: s.secrets, Clock: s.clock,
	}, slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- supervisor.Run(ctx, func() {}) }()
	var once sync.Once
	s.stop = func() (err error) {
		once.Do(func() {
			cancel()
			err = <-done
			_ = stopMux()
		})
		return err
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func node(t testing.TB, name, password string) formation.NodeRequest {
	t.Helper()
	keys, err := pki.NewNodeKeys()
	if err != nil {
		t.Fatal(err)
	}
	return formation.NodeRequest{Name: name, Password: password, Keys: keys, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.50")}}
}

func token(t testing.TB, text string) pki.Token {
	t.Helper()
	tok, err := pki.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func join(t testing.TB, s *site, text string, n formation.NodeRequest) (formation.Bundle, error) {
	t.Helper()
	return formation.Join(t.Context(), s.url, token(t, text), n)
}

func TestJoin(t *testing.T) {
	s := startSite(t)
	expiring, err := s.secrets.CreateToken(t.Context(), time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	full, err := pki.NewToken(s.hash, "", expiring.Text())
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{
		s.server.Full(), s.agent.Full(), s.agent.Secret(), expiring.Text(), full.Full(), s.agent.Full(), // the last one joins a second time
	} {
		name := []string{"a1", "a2", "a3", "a4", "a5", "a2"}[i]
		bundle, err := join(t, s, text, node(t, name, passwordA))
		if err != nil {
			t.Fatalf("token %d: %v", i, err)
		}
		dir := t.TempDir()
		if err := bundle.Certificates.Save(dir, bundle.Keys); err != nil {
			t.Fatal(err)
		}
		if why, err := pki.NodeValid(dir, name, []netip.Addr{netip.MustParseAddr("192.0.2.50")}, s.clock.Read()); err != nil || why != "" {
			t.Errorf("%s: %v, renew because %q", name, err, why)
		}
		if bundle.Cluster.Domain != "cluster.local" || bundle.Cluster.APIServers[0] != s.url || bundle.Cluster.ClusterCIDRs[0] != cluster.ClusterCIDRs[0] {
			t.Errorf("cluster %+v", bundle.Cluster)
		}
		if time.Since(bundle.ServerTime).Abs() > time.Minute {
			t.Errorf("time %v", bundle.ServerTime)
		}
	}
	for _, secret := range []string{s.agent.Secret(), s.server.Secret(), expiring.Secret, passwordA} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("a secret is in the log:\n%s", s.log)
		}
	}
}

func TestJoinRefused(t *testing.T) {
	s := startSite(t)
	ctx := t.Context()
	if _, err := join(t, s, s.agent.Full(), node(t, "taken", passwordA)); err != nil {
		t.Fatal(err)
	}
	expired, err := s.secrets.CreateToken(ctx, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	s.kube.change(t, "bootstrap-token-"+expired.ID, func(s *corev1.Secret) { s.Data["expiration"] = []byte(time.Now().Add(-time.Hour).Format(time.RFC3339)) })
	deleted, err := s.secrets.CreateToken(ctx, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.secrets.DeleteToken(ctx, deleted.ID); err != nil {
		t.Fatal(err)
	}
	otherHash := strings.Repeat("ab", 32)
	otherCA, err := os.ReadFile(pki.PathsIn(startOther(t)).ServerCA.Cert)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		token  string
		url    string
		node   formation.NodeRequest
		want   error
		remedy string
	}{
		{name: "wrong token", token: "not-the-secret", want: formation.ErrWrongToken, remedy: "agent-token"},
		{name: "wrong secret in a full token", token: "A10" + s.hash + "::agent:not-the-secret", want: formation.ErrWrongToken, remedy: "token create"},
		{name: "expired token", token: expired.Text(), want: formation.ErrTokenExpired, remedy: "token create"},
		{name: "expired id with a wrong secret", token: expired.ID + ".aaaaaaaaaaaaaaaa", want: formation.ErrWrongToken, remedy: "token create"},
		{name: "deleted token", token: deleted.Text(), want: formation.ErrWrongToken, remedy: "deleted or rotated"},
		{name: "token of another site", token: "A10" + otherHash + "::agent:" + s.agent.Secret(), want: formation.ErrOtherSite, remedy: "copy the token again"},
		{name: "member of another site", node: formation.NodeRequest{KnownCA: otherCA}, want: formation.ErrOtherSite, remedy: "agent/tls"},
		{name: "name of another machine", node: formation.NodeRequest{Name: "taken", Password: passwordB}, want: formation.ErrNameTaken, remedy: "--node-name"},
		{name: "name of a server", node: formation.NodeRequest{Name: "n1"}, want: formation.ErrNameTaken, remedy: "--node-name"},
		{name: "no name", node: formation.NodeRequest{Name: "Not A Name"}, want: formation.ErrBadRequest, remedy: "--node-name"},
		{name: "no password", node: formation.NodeRequest{Password: "x"}, want: formation.ErrBadRequest, remedy: "node-password"},
		{name: "too many addresses", node: formation.NodeRequest{Addresses: make([]netip.Addr, 65)}, want: formation.ErrBadRequest, remedy: "--node-ip"},
		{name: "huge", node: formation.NodeRequest{Name: strings.Repeat("n", 200<<10)}, want: formation.ErrBadRequest, remedy: "same version"},
		{name: "no URL", url: "192.0.2.1:6443", want: formation.ErrBadURL, remedy: "https://"},
		{name: "plain HTTP", url: "http://192.0.2.1:6443", want: formation.ErrBadURL, remedy: "https://"},
		{name: "URL with a path", url: "https://192.0.2.1:6443/cacerts", want: formation.ErrBadURL, remedy: "https://"},
		{name: "nobody listens", url: "https://" + closedPort(t), want: formation.ErrUnreachable, remedy: "atoll server"},
		{name: "no such name", url: "https://no-such-host.invalid:6443", want: formation.ErrUnreachable, remedy: "IP address"},
		{name: "plain HTTP server", url: "https" + strings.TrimPrefix(plainServer(t, false), "http"), want: formation.ErrNotAtoll, remedy: "6443"},
		{name: "another TLS server", url: plainServer(t, true), want: formation.ErrNotAtoll, remedy: "6443"},
		{name: "TLS server without protocols", url: noALPN(t), want: formation.ErrNotAtoll, remedy: "6443"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := node(t, "fresh", passwordA)
			if row.node.Name != "" {
				n.Name = row.node.Name
			}
			if row.node.Password != "" {
				n.Password = row.node.Password
			}
			if row.node.Addresses != nil {
				n.Addresses = row.node.Addresses
			}
			n.KnownCA = row.node.KnownCA
			text, url := s.agent.Full(), s.url
			if row.token != "" {
				text = row.token
			}
			if row.url != "" {
				url = row.url
			}
			_, err := formation.Join(ctx, url, token(t, text), n)
			if !errors.Is(err, row.want) || !strings.Contains(remedy.Of(err), row.remedy) {
				t.Errorf("error %v\nremedy %q\nwant %v, %q", err, remedy.Of(err), row.want, row.remedy)
			}
			if err != nil && strings.Contains(err.Error()+remedy.Of(err), s.agent.Secret()) {
				t.Errorf("the secret is in the error: %v", err)
			}
		})
	}
	if known, err := s.secrets.Known(ctx, "fresh"); err != nil || known {
		t.Errorf("a refused node has taken its name: %v, %v", known, err)
	}
	for _, secret := range []string{s.agent.Secret(), "not-the-secret", "aaaaaaaaaaaaaaaa", passwordB} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, s.log)
		}
	}
}

// serveAPI answers as an API server would: over HTTP/2, to clients with a certificate, with their name.
func serveAPI(t testing.TB, l net.Listener, p pki.Paths) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.APIServer, p.APIServer)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(read(t, p.ClientCA.Cert)))
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName+" "+r.Proto)
		}),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients},
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(quiet.Handler(), slog.LevelDebug),
	}
	go func() { _ = server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
}

func startOther(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := pki.Ensure(dir, pki.Subject{NodeName: "x1"}, &pki.Clock{}, quiet); err != nil {
		t.Fatal(err)
	}
	return dir
}

func closedPort(t testing.TB) string {
	t.Helper()
	l := loopback(t)
	defer l.Close()
	return l.Addr().String()
}

func plainServer(t testing.TB, tls bool) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelDebug)
	if tls {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server.URL
}

func noALPN(t testing.TB) string {
	t.Helper()
	l := tls.NewListener(loopback(t), &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return "https://" + l.Addr().String()
}

// TestSecretIsNotShownToAnotherSite: a server that is not the one that the token vouches for must not even see the secret.
func TestSecretIsNotShownToAnotherSite(t *testing.T) {
	other := startSite(t)
	own := startSite(t)
	_, err := formation.Join(t.Context(), other.url, own.agent, node(t, "a1", passwordA))
	if !errors.Is(err, formation.ErrOtherSite) {
		t.Errorf("error %v", err)
	}
	if strings.Contains(other.log.String(), "/v1/nodes") {
		t.Errorf("the other server was asked to let the node in:\n%s", other.log)
	}
}

func TestGuessingIsLimited(t *testing.T) {
	s := startSite(t)
	var err error
	for i := range 2 * formation.FailuresAtOnce {
		_, err = join(t, s, "wrong-token", node(t, "a1", passwordA))
		if want := formation.ErrWrongToken; i < formation.FailuresAtOnce && !errors.Is(err, want) {
			t.Fatalf("attempt %d: %v, want %v", i, err, want)
		}
	}
	if !errors.Is(err, formation.ErrTooMany) || remedy.Of(err) == "" {
		t.Errorf("after many: %v, remedy %q", err, remedy.Of(err))
	}
	if _, err := join(t, s, s.agent.Full(), node(t, "a1", passwordA)); !errors.Is(err, formation.ErrTooMany) {
		t.Errorf("the right token after many wrong ones: %v", err)
	}
	if n := strings.Count(s.log.String(), "level=INFO"); n > formation.FailuresAtOnce+1 {
		t.Errorf("%d lines in the log", n)
	}
}

func TestAPIServerDown(t *testing.T) {
	s := startSite(t)
	s.kube.down.Store(true)
	for _, text := range []string{s.agent.Full(), "abcdef.0123456789abcdef"} {
		_, err := join(t, s, text, node(t, "a1", passwordA))
		if !errors.Is(err, formation.ErrNotReady) || !strings.Contains(remedy.Of(err), "wait") {
			t.Errorf("error %v, remedy %q", err, remedy.Of(err))
		}
	}
	s.kube.down.Store(false)
	if _, err := join(t, s, s.agent.Full(), node(t, "a1", passwordA)); err != nil {
		t.Error(err)
	}
}

func TestRotatedTokenCountsAtOnce(t *testing.T) {
	s := startSite(t)
	next, err := pki.RotateToken(s.dir, pki.UserAgent, s.agent.Full(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := join(t, s, s.agent.Full(), node(t, "a1", passwordA)); !errors.Is(err, formation.ErrWrongToken) {
		t.Errorf("the old token: %v", err)
	}
	if _, err := join(t, s, next.Full(), node(t, "a1", passwordA)); err != nil {
		t.Errorf("the new token: %v", err)
	}
}

func TestClaimedAddresses(t *testing.T) {
	s := startSite(t)
	n := node(t, "a1", passwordA)
	n.Addresses = nil
	for _, a := range []string{"192.0.2.50", "2001:db8::50", "::ffff:192.0.2.51", // its own
		"127.0.0.1", "0.0.0.0", "224.0.0.1", "fe80::1", "10.42.0.5", "10.43.0.1"} { // nobody's
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	bundle, err := join(t, s, s.agent.Full(), n)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := bundle.Certificates.Save(dir, bundle.Keys); err != nil {
		t.Fatal(err)
	}
	cert, err := pki.ReadCertificate(pki.PathsIn(dir).KubeletServing)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ip := range cert.IPAddresses {
		got = append(got, ip.String())
	}
	if strings.Join(got, " ") != "192.0.2.50 192.0.2.51 2001:db8::50" {
		t.Errorf("addresses %v", got)
	}
}

func TestClockOfTheNode(t *testing.T) {
	s := startSite(t)
	for _, row := range []struct {
		name string
		now  time.Time
		want string // "" when it joins all the same
	}{
		{"1970", time.Unix(60, 0), ""},
		{"a year behind", time.Now().AddDate(-1, 0, 0), ""},
		{"2099", time.Date(2099, 3, 4, 0, 0, 0, 0, time.UTC), "by the clock of this machine it is 2099-03-04; by that of the server it is " + time.Now().UTC().Format(time.DateOnly)},
	} {
		n := node(t, "a1", passwordA)
		n.Now = func() time.Time { return row.now }
		_, err := formation.Join(t.Context(), s.url, s.agent, n)
		if row.want == "" {
			if err != nil {
				t.Errorf("%s: %v", row.name, err)
			}
			continue
		}
		if !errors.Is(err, formation.ErrClock) || !strings.Contains(err.Error(), row.want) || !strings.Contains(remedy.Of(err), "clock") {
			t.Errorf("%s: %v, remedy %q", row.name, err, remedy.Of(err))
		}
	}
}

// TestRawRequests speaks to the supervisor as a stranger would.
func TestRawRequests(t *testing.T) {
	s := startSite(t)
	addr := strings.TrimPrefix(s.url, "https://")
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{formation.Protocol}}}}
	defer c.CloseIdleConnections()
	for _, row := range []struct {
		name, method, path, bearer, body string
		status                           int
	}{
		{"authority", "GET", "/v1/ca", "", "", 200},
		{"no token", "POST", "/v1/nodes", "", "{}", 401},
		{"empty token", "POST", "/v1/nodes", "Bearer ", "{}", 401},
		{"full token as bearer", "POST", "/v1/nodes", "Bearer " + s.agent.Full(), "{}", 401},
		{"no JSON", "POST", "/v1/nodes", "Bearer " + s.agent.Secret(), "hello", 400},
		{"nothing", "POST", "/v1/nodes", "Bearer " + s.agent.Secret(), "", 400},
		{"wrong types", "POST", "/v1/nodes", "Bearer " + s.agent.Secret(), `{"name": 1}`, 400},
		{"unknown fields are for newer versions", "POST", "/v1/nodes", "Bearer " + s.agent.Secret(), `{"name": "a1", "new": 1}`, 400},
		{"renew without a certificate", "POST", "/v1/nodes/renew", "Bearer " + s.agent.Secret(), "{}", 401},
		{"cluster without a certificate", "GET", "/v1/cluster", "", "", 401},
		{"elsewhere", "GET", "/v1/secrets", "", "", 400},
		{"wrong method", "DELETE", "/v1/ca", "", "", 400},
	} {
		request, _ := http.NewRequest(row.method, s.url+row.path, strings.NewReader(row.body))
		request.Header.Set("Authorization", row.bearer)
		response, err := c.Do(request)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != row.status {
			t.Errorf("%s: %s %s, want %d", row.name, response.Status, body, row.status)
		}
		if row.status == 200 {
			continue
		}
		var p struct {
			Detail, Remedy, Code string
			Status               int
		}
		if err := json.Unmarshal(body, &p); err != nil || p.Detail == "" || p.Remedy == "" || p.Code == "" || p.Status != row.status ||
			response.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: not a problem: %s", row.name, body)
		}
	}

	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{formation.Protocol}})
	_, _ = io.WriteString(raw, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n")
	answer, _ := io.ReadAll(raw)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 431")) {
		t.Errorf("64 KiB of headers: %.100q", answer)
	}
	old := tls.Client(mustDial(t, addr), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{formation.Protocol}, MaxVersion: tls.VersionTLS12})
	if err := old.Handshake(); err == nil {
		t.Error("TLS 1.2 is let in")
	}
}

func mustDial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestServerStopsWithOpenConnections(t *testing.T) {
	s := startSite(t)
	idle := tls.Client(mustDial(t, strings.TrimPrefix(s.url, "https://")), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{formation.Protocol}})
	if err := idle.Handshake(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

func TestServerTakesItsOwnName(t *testing.T) {
	s := startSite(t)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if known, err := s.secrets.Known(t.Context(), "n1"); err == nil && known {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the server has not claimed its name")
		}
	}
}

func TestAuthorityOfTheAnswerIsTheOneThatWasChecked(t *testing.T) {
	s := startSite(t)
	bundle, err := join(t, s, s.agent.Full(), node(t, "a1", passwordA))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(bundle.Certificates.ServerCA)) {
		t.Fatal("no authority")
	}
	cert, err := pki.ReadCertificate(pki.PathsIn(s.dir).APIServer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: "kubernetes"}); err != nil {
		t.Error(err)
	}
}
