package pki_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

const (
	hash   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	secret = "s3cret-of-the-shop"
)

func TestParseToken(t *testing.T) {
	for _, row := range []struct {
		name, text         string
		hash, user, secret string
		err                string
	}{
		{name: "short", text: secret, secret: secret},
		{name: "short with white space around", text: " " + secret + "\n", secret: secret},
		{name: "short that starts like a full one", text: "A10-street", secret: "A10-street"},
		{name: "short, expiring", text: "abcdef.0123456789abcdef", secret: "abcdef.0123456789abcdef"},
		{name: "server", text: "A10" + hash + "::server:" + secret, hash: hash, user: "server", secret: secret},
		{name: "agent", text: "A10" + hash + "::agent:" + secret, hash: hash, user: "agent", secret: secret},
		{name: "upper case hash", text: "A10" + strings.ToUpper(hash) + "::agent:" + secret, hash: hash, user: "agent", secret: secret},
		{name: "colons in the secret", text: "A10" + hash + "::server:a:b::c:defg", hash: hash, user: "server", secret: "a:b::c:defg"},
		{name: "expiring", text: "A10" + hash + "::abcdef.0123456789abcdef", hash: hash, secret: "abcdef.0123456789abcdef"},
		{name: "empty", text: " \n", err: "empty"},
		{name: "K3s", text: "K10" + hash + "::server:" + secret, err: "K3s"},
		{name: "hash cut", text: "A10" + hash[1:] + "::server:" + secret, err: "63 characters"},
		{name: "hash not hex", text: "A10" + strings.Repeat("x", 64) + "::server:" + secret, err: "hexadecimal"},
		{name: "no user", text: "A10" + hash + "::" + secret, err: "must be followed by"},
		{name: "unknown user", text: "A10" + hash + "::root:" + secret, err: "must be followed by"},
		{name: "secret missing", text: "A10" + hash + "::server:", err: "0 characters"},
		{name: "too short", text: "1234567", err: "7 characters"},
		{name: "too long", text: strings.Repeat("x", 257), err: "257 characters"},
		{name: "endless", text: strings.Repeat("x", 1<<20), err: "more than 512"},
		{name: "space inside", text: "two words", err: "space"},
		{name: "not ASCII", text: "pässwörter", err: "not ASCII"},
		{name: "header injection", text: "secret12\r\nX-Evil: 1", err: "control character"},
	} {
		t.Run(row.name, func(t *testing.T) {
			token, err := pki.ParseToken(row.text)
			if row.err != "" {
				if err == nil || !strings.Contains(err.Error(), row.err) || remedy.Of(err) == "" {
					t.Errorf("error %v (remedy %q), want %q", err, remedy.Of(err), row.err)
				}
				return
			}
			if err != nil || token.CAHash() != row.hash || token.User() != row.user || token.Secret() != row.secret {
				t.Errorf("hash %q user %q secret %q, %v", token.CAHash(), token.User(), token.Secret(), err)
			}
			if again, err := pki.ParseToken(token.Full()); err != nil || again != token {
				t.Errorf("%q does not parse to the same token: %v", token.Full(), err)
			}
		})
	}
}

func TestTokensDoNotLeak(t *testing.T) {
	token, err := pki.ParseToken("A10" + hash + "::server:" + secret)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("token", "token", token, "in", struct{ T pki.Token }{token})
	slog.New(slog.NewTextHandler(&out, nil)).Info("token", "token", token, "in", struct{ T pki.Token }{token})
	fmt.Fprintf(&out, "%v %+v %#v %s %q %v", token, token, token, token, token, &token)
	_ = json.NewEncoder(&out).Encode(map[string]any{"t": token})
	if strings.Contains(out.String(), secret) || !strings.Contains(out.String(), "redacted") {
		t.Errorf("leaks:\n%s", &out)
	}
	for _, bad := range []string{"K10" + hash + "::server:" + secret, "A10" + hash[2:] + "::server:" + secret, secret + " " + secret} {
		if _, err := pki.ParseToken(bad); err == nil || strings.Contains(err.Error()+remedy.Of(err), secret) {
			t.Errorf("error without or with the secret: %v", err)
		}
	}
}

func TestEnsureTokens(t *testing.T) {
	dir := t.TempDir()
	server, agent, err := pki.EnsureTokens(dir, hash, "", "")
	if err != nil || server.Secret() != agent.Secret() || server.CAHash() != hash || len(server.Secret()) != 32 {
		t.Fatalf("%q %q %v", server.Full(), agent.Full(), err)
	}
	if got := strings.TrimSpace(read(t, pki.PathsIn(dir).ServerToken)); got != server.Full() || !strings.Contains(got, "::server:") {
		t.Errorf("file has %q", got)
	}
	for _, given := range []string{"", server.Secret(), server.Full()} {
		again, _, err := pki.EnsureTokens(dir, hash, given, "")
		if err != nil || again != server {
			t.Errorf("given %q: %v", given, err)
		}
	}
	if _, _, err := pki.EnsureTokens(dir, hash, "something-else", ""); err == nil || !strings.Contains(remedy.Of(err), "rotate") {
		t.Errorf("another token: error %v, remedy %q", err, remedy.Of(err))
	}
	if _, _, err := pki.EnsureTokens(t.TempDir(), hash, "abcdef.0123456789abcdef", ""); err == nil || remedy.Of(err) == "" {
		t.Errorf("expiring token as the server's: %v", err)
	}
	own := t.TempDir()
	server, agent, err = pki.EnsureTokens(own, hash, "of-the-servers", "of-the-agents")
	if err != nil || server.Secret() != "of-the-servers" || agent.Secret() != "of-the-agents" || agent.User() != pki.UserAgent {
		t.Errorf("%q %q %v", server.Full(), agent.Full(), err)
	}
	if err := os.WriteFile(pki.PathsIn(own).ServerToken, []byte("A10damaged::"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pki.EnsureTokens(own, hash, "", ""); err == nil || remedy.Of(err) == "" {
		t.Errorf("damaged file: %v", err)
	}
	if server, _, err = pki.EnsureTokens(own, hash, "of-the-servers", ""); err != nil || server.Secret() != "of-the-servers" {
		t.Errorf("damaged file and a given token: %v", err)
	}
}

func TestRotateToken(t *testing.T) {
	dir := t.TempDir()
	old, _, err := pki.EnsureTokens(dir, hash, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ name, old, next, want string }{
		{"wrong proof", "not-the-token", "", "a different one"},
		{"no proof", "", "", "empty"},
		{"bad new one", old.Full(), "short", "5 characters"},
		{"expiring new one", old.Full(), "abcdef.0123456789abcdef", "expiring"},
	} {
		if _, err := pki.RotateToken(dir, pki.UserServer, row.old, row.next); err == nil || !strings.Contains(err.Error(), row.want) || remedy.Of(err) == "" {
			t.Errorf("%s: error %v, remedy %q", row.name, err, remedy.Of(err))
		}
	}
	next, err := pki.RotateToken(dir, pki.UserServer, old.Secret(), "")
	if err != nil || next.Matches(old.Secret()) || next.CAHash() != hash {
		t.Fatalf("%q, %v", next.Full(), err)
	}
	server, agent, err := pki.EnsureTokens(dir, hash, "", "")
	if err != nil || server != next || agent.Secret() != next.Secret() {
		t.Errorf("after: server %q agent %q, %v", server.Full(), agent.Full(), err)
	}
	if _, err := pki.RotateToken(dir, pki.UserAgent, next.Secret(), "for-agents-only"); err != nil {
		t.Fatal(err)
	}
	if server, agent, err = pki.EnsureTokens(dir, hash, "", ""); err != nil || server != next || agent.Secret() != "for-agents-only" {
		t.Errorf("after: server %q agent %q, %v", server.Full(), agent.Full(), err)
	}
}

func FuzzParseToken(f *testing.F) {
	for _, seed := range []string{"", secret, "A10" + hash + "::server:" + secret, "A10" + hash + "::abcdef.0123456789abcdef", "K10::", "A10::", "A10" + hash + "::", "a\x00bcdefgh"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, err := pki.ParseToken(s)
		if err != nil {
			return
		}
		if n := len(token.Secret()); n < 8 || n > 256 {
			t.Errorf("secret of %d characters", n)
		}
		for _, c := range token.Secret() {
			if c <= ' ' || c > '~' {
				t.Errorf("secret with %q", c)
			}
		}
		again, err := pki.ParseToken(token.Full())
		if err != nil || again != token {
			t.Errorf("does not survive a round trip: %v", err)
		}
	})
}
