package formation_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/atollhq/atoll/pkg/formation"
	"github.com/atollhq/atoll/pkg/pki"
)

type member struct {
	*formation.Agent
	dir   string
	now   atomic.Pointer[time.Time]
	addr  atomic.Pointer[netip.Addr]
	log   *lockedBuffer
	heard atomic.Int32 // changes of the cluster
}

// newMember prepares the agent a1 of a site, with files in dir.
func newMember(t testing.TB, url string, tok pki.Token, dir string) *member {
	t.Helper()
	m := &member{dir: dir, log: &lockedBuffer{}}
	now, addr := time.Now(), netip.MustParseAddr("192.0.2.50")
	m.now.Store(&now)
	m.addr.Store(&addr)
	m.Agent = formation.NewAgent(formation.AgentConfig{
		DataDir: dir, Server: url, Token: tok, NodeName: "a1",
		Addresses: func() []netip.Addr { return []netip.Addr{*m.addr.Load()} },
		Clock:     &pki.Clock{Now: func() time.Time { return *m.now.Load() }},
		OnCluster: func(formation.Cluster) { m.heard.Add(1) },
	}, slog.New(slog.NewTextHandler(m.log, nil)))
	return m
}

func (m *member) serial(t testing.TB) string {
	t.Helper()
	cert, err := pki.ReadCertificate(pki.PathsIn(m.dir).KubeletClient)
	if err != nil {
		t.Fatal(err)
	}
	return cert.SerialNumber.String()
}

func (m *member) key(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(pki.PathsIn(m.dir).KubeletClient)
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := strings.Cut(string(data), "-----BEGIN EC")
	return key
}

func mustJoin(t testing.TB, m *member) formation.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := m.Join(ctx)
	if err != nil {
		t.Fatalf("%v\n%s", err, m.log)
	}
	return c
}

func TestAgentJoinsAndStartsAgainWithoutAServer(t *testing.T) {
	s := startSite(t)
	dir := t.TempDir()
	first := newMember(t, s.url, s.agent, dir)
	c := mustJoin(t, first)
	if c.Domain != "cluster.local" {
		t.Errorf("%+v", c)
	}
	serial := first.serial(t)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	second := newMember(t, s.url, pki.Token{}, dir) // a token is not needed any more
	if again := mustJoin(t, second); again.APIServers[0] != c.APIServers[0] {
		t.Errorf("%+v", again)
	}
	if second.serial(t) != serial {
		t.Error("joined again")
	}
	if _, bad := second.Problem(); bad {
		t.Error("a problem without a cause")
	}
	for _, secret := range []string{s.agent.Secret(), read(t, pki.PathsIn(dir).NodePassword)} {
		if strings.Contains(first.log.String()+second.log.String(), strings.TrimSpace(secret)) {
			t.Error("a secret is in the log")
		}
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAgentWaitsForItsServer(t *testing.T) {
	s := startSite(t)
	s.kube.down.Store(true)
	m := newMember(t, s.url, s.agent, t.TempDir())
	joined := make(chan error, 1)
	go func() { _, err := m.Join(t.Context()); joined <- err }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if p, bad := m.Problem(); bad {
			if !strings.Contains(p.Text, "not ready") || p.Remedy == "" {
				t.Errorf("problem %+v", p)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no problem is shown")
		}
	}
	s.kube.down.Store(false)
	select {
	case err := <-joined:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("does not join")
	}
	if p, bad := m.Problem(); bad {
		t.Errorf("the problem stays: %+v", p)
	}
}

func TestAgentThatIsRefusedSaysSoAndStops(t *testing.T) {
	s := startSite(t)
	m := newMember(t, s.url, token(t, "wrong-token"), t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := m.Join(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Join returned %v", err)
	}
	if p, bad := m.Problem(); !bad || !strings.Contains(p.Text, "not one of this site") || p.Remedy == "" {
		t.Errorf("problem %+v", p)
	}
	if n := strings.Count(m.log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings about one failure:\n%s", n, m.log)
	}
}

func TestAgentWithNothing(t *testing.T) {
	m := newMember(t, "https://127.0.0.1:1", pki.Token{}, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, _ = m.Join(ctx)
	if p, bad := m.Problem(); !bad || !strings.Contains(p.Remedy, "--token") {
		t.Errorf("problem %+v", p)
	}
}

func TestAgentKeepsItsCertificates(t *testing.T) {
	day := 24 * time.Hour
	for _, row := range []struct {
		name   string
		do     func(t *testing.T, s *site, m *member)
		renew  bool // a new certificate
		rekey  bool // a new key
		fails  string
		member bool // still one afterwards
	}{
		{name: "nothing to do", do: func(*testing.T, *site, *member) {}, member: true},
		{name: "nothing to do, server gone", do: func(t *testing.T, s *site, _ *member) { _ = s.stop() }, member: true},
		{name: "244 days later", do: func(_ *testing.T, s *site, m *member) { later(s, m, 244*day) }, member: true},
		{name: "250 days later", do: func(_ *testing.T, s *site, m *member) { later(s, m, 250*day) }, renew: true, member: true},
		{name: "250 days later, server gone", do: func(_ *testing.T, s *site, m *member) { later(s, m, 250*day); _ = s.stop() }, fails: "cannot be reached", member: true},
		{name: "off for two years", do: func(t *testing.T, s *site, m *member) {
			later(s, m, 730*day)
			if _, err := pki.Ensure(s.dir, pki.Subject{NodeName: "n1"}, s.clock, quiet); err != nil { // as the server's own Keeper did
				t.Fatal(err)
			}
		}, renew: true, rekey: true, member: true},
		{name: "new address", do: func(_ *testing.T, _ *site, m *member) { a := netip.MustParseAddr("192.0.2.51"); m.addr.Store(&a) }, renew: true, member: true},
		{name: "rotation", do: func(t *testing.T, _ *site, m *member) {
			if err := pki.Rotate(m.dir); err != nil {
				t.Fatal(err)
			}
		}, renew: true, rekey: true, member: true},
		{name: "half a file", do: func(t *testing.T, _ *site, m *member) {
			f := pki.PathsIn(m.dir).KubeProxy
			if err := os.WriteFile(f, []byte(read(t, f)[:100]), 0o600); err != nil {
				t.Fatal(err)
			}
		}, renew: true, rekey: true, member: true},
		{name: "put out of the site", do: func(t *testing.T, s *site, _ *member) { s.kube.change(t, formation.PasswordSecret("a1"), nil) },
			renew: true, rekey: true, member: true}, // it has a valid token, so it comes back
		{name: "put out and renewing", do: func(t *testing.T, s *site, m *member) {
			later(s, m, 250*day)
			s.kube.change(t, formation.PasswordSecret("a1"), nil)
		}, renew: true, rekey: true, member: true},
		{name: "put out and replaced", do: func(t *testing.T, s *site, m *member) {
			s.kube.change(t, formation.PasswordSecret("a1"), nil)
			if err := s.secrets.Claim(t.Context(), "a1", passwordB); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(pki.PathsIn(m.dir).KubeProxy); err != nil { // makes it join
				t.Fatal(err)
			}
		}, fails: "taken by another machine"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := startSite(t)
			m := newMember(t, s.url, s.agent, t.TempDir())
			mustJoin(t, m)
			serial, key := m.serial(t), m.key(t)
			row.do(t, s, m)
			err := m.Keeper().Ensure(t.Context())
			if (err != nil) != (row.fails != "") || (err != nil && !strings.Contains(err.Error(), row.fails)) {
				t.Fatalf("error %v, want %q\n%s", err, row.fails, m.log)
			}
			if p, bad := m.Problem(); bad != (row.fails != "") || !strings.Contains(p.Text, row.fails) {
				t.Errorf("problem %+v", p)
			}
			if (m.serial(t) != serial) != row.renew || (m.key(t) != key) != row.rekey {
				t.Errorf("new certificate %v, want %v; new key %v, want %v\n%s", m.serial(t) != serial, row.renew, m.key(t) != key, row.rekey, m.log)
			}
			if pki.RotationAsked(m.dir) {
				t.Error("the wish for new keys is still there")
			}
			if why, err := pki.NodeValid(m.dir, "a1", []netip.Addr{*m.addr.Load()}, pki.Reading{Now: *m.now.Load(), Effective: *m.now.Load()}); row.member &&
				(err != nil || (why != "" && row.fails == "")) {
				t.Errorf("afterwards: %v, renew because %q", err, why)
			}
		})
	}
}

// later moves the clocks of both sides.
func later(s *site, m *member, by time.Duration) {
	now := time.Now().Add(by)
	m.now.Store(&now)
	s.ahead.Store(int64(by))
}

func TestRenewalOfSomebodyElse(t *testing.T) {
	s, other := startSite(t), startSite(t)
	m := newMember(t, s.url, s.agent, t.TempDir())
	mustJoin(t, m)
	keys, err := pki.NewNodeKeys()
	if err != nil {
		t.Fatal(err)
	}
	// The certificate says who asks; the same request with that of kube-proxy, of a server, or at another site is refused.
	bundle, err := formation.Renew(t.Context(), s.url, m.dir, keys, nil, nil)
	if err != nil || !strings.Contains(subjectOf(t, bundle.Certificates.KubeletClient), "system:node:a1") {
		t.Errorf("%v", err)
	}
	p := pki.PathsIn(m.dir)
	own := read(t, p.KubeletClient)
	for name, leaf := range map[string]string{"kube-proxy": p.KubeProxy, "kubelet serving": p.KubeletServing, "admin": pki.PathsIn(s.dir).Admin} {
		if err := os.WriteFile(p.KubeletClient, []byte(read(t, leaf)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := formation.Renew(t.Context(), s.url, m.dir, keys, nil, nil); !errors.Is(err, formation.ErrCertificate) {
			t.Errorf("with the certificate of %s: %v", name, err)
		}
	}
	if err := os.WriteFile(p.KubeletClient, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := formation.Renew(t.Context(), other.url, m.dir, keys, nil, nil); !errors.Is(err, formation.ErrOtherSite) {
		t.Errorf("at another site: %v", err)
	}
	if _, _, err := formation.FetchCluster(t.Context(), s.url, m.dir, nil); err != nil {
		t.Errorf("with its own again: %v", err)
	}
}

func subjectOf(t testing.TB, pem string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(file, []byte(pem), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, err := pki.ReadCertificate(file)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Subject.String()
}

func TestAgentFindsAnotherServer(t *testing.T) {
	s := startSite(t)
	dir := t.TempDir()
	mustJoin(t, newMember(t, s.url, s.agent, dir))
	m := newMember(t, "https://"+closedPort(t), s.agent, dir) // the server that it was given is gone; the site has told of others
	mustJoin(t, m)
	if err := pki.Rotate(dir); err != nil {
		t.Fatal(err)
	}
	serial := m.serial(t)
	if err := m.Keeper().Ensure(t.Context()); err != nil || m.serial(t) == serial {
		t.Errorf("not renewed: %v", err)
	}
}

func TestAgentHearsOfChanges(t *testing.T) {
	s := startSite(t)
	m := newMember(t, s.url, s.agent, t.TempDir())
	mustJoin(t, m)
	if n := m.heard.Load(); n != 1 {
		t.Errorf("told %d times after joining", n)
	}
	for range 2 {
		if err := m.Keeper().Ensure(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := m.heard.Load(); n != 1 {
		t.Errorf("told %d times although nothing changed", n)
	}
}

// TestAPIServerBehindTheMux joins through one port, then talks to the API server on the same port with what it got.
func TestAPIServerBehindTheMux(t *testing.T) {
	s := startSite(t)
	m := newMember(t, s.url, s.agent, t.TempDir())
	mustJoin(t, m)
	if err := pki.WriteNodeKubeconfigs(m.dir, s.url); err != nil {
		t.Fatal(err)
	}
	p := pki.PathsIn(m.dir)
	for file, want := range map[string]string{
		p.KubeletKubeconfig: "system:node:a1 HTTP/2.0", p.KubeProxyKubeconfig: "system:kube-proxy HTTP/2.0", p.AgentKubeconfig: "system:atoll-agent:a1 HTTP/2.0",
	} {
		config, err := clientcmd.BuildConfigFromFlags("", file)
		if err != nil {
			t.Fatal(err)
		}
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		if got := fetch(t, client, s.addr, strings.NewReader("x")); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}
