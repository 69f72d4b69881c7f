package formation_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"

	"github.com/atollhq/atoll/pkg/formation"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

// memory is the smallest store: no tokens, every name free.
type memory struct{ claimed map[string]string }

func (m memory) Token(context.Context, string) (formation.JoinToken, error) {
	return formation.JoinToken{}, formation.ErrNoToken
}

func (m memory) Claim(_ context.Context, node, password string) error {
	m.claimed[node] = password
	return nil
}

func (m memory) Known(_ context.Context, node string) (bool, error) {
	return m.claimed[node] != "", nil
}

func FuzzSupervisor(f *testing.F) {
	dir := f.TempDir()
	set, err := pki.Ensure(dir, pki.Subject{NodeName: "n1"}, &pki.Clock{}, quiet)
	if err != nil {
		f.Fatal(err)
	}
	if _, _, err := pki.EnsureTokens(dir, set.CAHash, "the-token-of-the-site", ""); err != nil {
		f.Fatal(err)
	}
	keys, err := pki.NewNodeKeys()
	if err != nil {
		f.Fatal(err)
	}
	requests, err := keys.Requests()
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(map[string]any{"name": "a1", "password": passwordA, "addresses": []string{"192.0.2.50"}, "requests": requests})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("POST", "/v1/nodes", "Bearer the-token-of-the-site", good)
	f.Add("POST", "/v1/nodes", "Bearer the-token-of-the-site", []byte(`{"name":"n1","addresses":["x"]}`))
	f.Add("POST", "/v1/nodes", "Bearer abcdef.0123456789abcdef", []byte(nil))
	f.Add("POST", "/v1/nodes", "the-token-of-the-site", []byte("{"))
	f.Add("POST", "/v1/nodes/renew", "", []byte("{}"))
	f.Add("GET", "/v1/ca", "", []byte(nil))
	f.Fuzz(func(t *testing.T, method, path, authorization string, body []byte) {
		store := memory{map[string]string{}}
		s := formation.NewSupervisor(formation.SupervisorConfig{
			DataDir: dir, NodeName: "n1", Cluster: func() formation.Cluster { return cluster }, Tokens: store, Passwords: store, Clock: &pki.Clock{},
		}, quiet)
		request, err := http.NewRequest(method, "https://x"+path, bytes.NewReader(body))
		if err != nil {
			return
		}
		request.RemoteAddr = "192.0.2.9:1234"
		request.Header.Set("Authorization", authorization)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, request)
		switch {
		case w.Code == http.StatusInternalServerError:
			t.Errorf("%s %s: %s", method, path, w.Body)
		case w.Code == http.StatusOK && request.URL.Path == "/v1/nodes" && authorization != "Bearer the-token-of-the-site" &&
			strings.TrimSpace(strings.TrimPrefix(authorization, "Bearer ")) != "the-token-of-the-site":
			t.Errorf("let in with %q", authorization)
		}
		for name, password := range store.claimed {
			if name == "n1" || !pki.ValidNodeName(name) || !pki.ValidNodePassword(password) || w.Code != http.StatusOK {
				t.Errorf("claimed %q with %q, answer %d", name, password, w.Code)
			}
		}
	})
}

// FuzzAnswers reads what a server that nobody trusts yet may send.
func FuzzAnswers(f *testing.F) {
	f.Add(401, "application/problem+json", "3", []byte(`{"detail":"no","remedy":"try","code":"wrong-token"}`))
	f.Add(503, "application/problem+json; charset=utf-8", "-1", []byte(`{"detail":"\u001b[31mred\n"}`))
	f.Add(404, "text/html", "", []byte("<html>"))
	f.Add(200, ";", "", []byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, status int, kind, after string, body []byte) {
		if cert, err := formation.ParseAuthority(body); err == nil && !cert.IsCA {
			t.Error("not an authority")
		}
		err := formation.ReadProblem(&http.Response{
			Status: kind, StatusCode: status, Header: http.Header{"Content-Type": {kind}, "Retry-After": {after}}, Body: io.NopCloser(bytes.NewReader(body)),
		})
		if err == nil {
			t.Fatal("no error")
		}
		for _, c := range err.Error() + remedy.Of(err) {
			if unicode.IsControl(c) {
				t.Errorf("control character %q would reach a terminal: %q", c, err)
			}
		}
		if len(err.Error()) > 4000 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	})
}
