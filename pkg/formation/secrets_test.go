package formation_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/atollhq/atoll/pkg/formation"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

func TestJoinTokens(t *testing.T) {
	k, client := startKube(t)
	s := formation.NewSecrets(client)
	ctx := t.Context()
	day, err := s.CreateToken(ctx, 24*time.Hour, "for the till")
	if err != nil {
		t.Fatal(err)
	}
	hour, err := s.CreateToken(ctx, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	always, err := s.CreateToken(ctx, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if token, err := pki.ParseToken(day.Text()); err != nil || token.Secret() != day.Text() {
		t.Errorf("%q is no token: %v", day.Text(), err)
	}
	for _, want := range []formation.JoinToken{day, hour, always} {
		if got, err := s.Token(ctx, want.ID); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	list, err := s.Tokens(ctx)
	if err != nil || len(list) != 3 || list[0] != hour || list[1] != day || list[2] != always {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := s.DeleteToken(ctx, hour.ID); err != nil {
		t.Error(err)
	}
	if err := s.DeleteToken(ctx, day.Text()); err != nil { // as a person pastes it
		t.Error(err)
	}
	if list, err := s.Tokens(ctx); err != nil || len(list) != 1 {
		t.Errorf("list after deleting: %+v, %v", list, err)
	}
	for _, bad := range []string{hour.ID, "", "no such id", "../../secrets/x"} {
		if err := s.DeleteToken(ctx, bad); err == nil || remedy.Of(err) == "" {
			t.Errorf("deleting %q: %v", bad, err)
		}
	}
	// The API server must not take them for its own.
	k.change(t, "bootstrap-token-"+always.ID, func(s *corev1.Secret) {
		if s.Type != "bootstrap.kubernetes.io/token" || s.Data["usage-bootstrap-authentication"] != nil {
			t.Errorf("%s with %v", s.Type, s.Data)
		}
	})
	if _, err := s.CreateToken(ctx, -time.Hour, ""); err == nil || remedy.Of(err) == "" {
		t.Errorf("negative lifetime: %v", err)
	}
}

func TestStrangeSecretsAreNoTokens(t *testing.T) {
	for _, row := range []struct {
		name string
		edit func(*corev1.Secret)
	}{
		{"of kubeadm", func(s *corev1.Secret) { delete(s.Data, "usage-bootstrap-atoll-join") }},
		{"of another type", func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }},
		{"without a secret", func(s *corev1.Secret) { delete(s.Data, "token-secret") }},
		{"with the id of another", func(s *corev1.Secret) { s.Data["token-id"] = []byte("zzzzzz") }},
	} {
		k, client := startKube(t)
		s := formation.NewSecrets(client)
		token, err := s.CreateToken(t.Context(), time.Hour, "")
		if err != nil {
			t.Fatal(err)
		}
		k.change(t, "bootstrap-token-"+token.ID, row.edit)
		if _, err := s.Token(t.Context(), token.ID); !errors.Is(err, formation.ErrNoToken) {
			t.Errorf("%s: %v", row.name, err)
		}
		if err := s.DeleteToken(t.Context(), token.ID); !errors.Is(err, formation.ErrNoToken) {
			t.Errorf("%s: deleted: %v", row.name, err)
		}
	}
}

func TestUnreadableDateCountsAsPast(t *testing.T) {
	k, client := startKube(t)
	s := formation.NewSecrets(client)
	token, err := s.CreateToken(t.Context(), time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	k.change(t, "bootstrap-token-"+token.ID, func(s *corev1.Secret) { s.Data["expiration"] = []byte("tomorrow") })
	if got, err := s.Token(t.Context(), token.ID); err != nil || got.Expires.IsZero() || got.Expires.After(time.Now()) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLongExpiredTokensGo(t *testing.T) {
	_, client := startKube(t)
	s := formation.NewSecrets(client)
	now := time.Now()
	s.SetNow(func() time.Time { return now })
	if _, err := s.CreateToken(t.Context(), time.Hour, "old"); err != nil {
		t.Fatal(err)
	}
	now = now.Add(6 * 24 * time.Hour)
	if _, err := s.CreateToken(t.Context(), time.Hour, "newer"); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.Tokens(t.Context()); len(list) != 2 { // one that expired this week is kept, to tell so
		t.Errorf("list %+v", list)
	}
	now = now.Add(2 * 24 * time.Hour)
	if _, err := s.CreateToken(t.Context(), time.Hour, "newest"); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.Tokens(t.Context()); len(list) != 2 || list[0].Description != "newer" {
		t.Errorf("list %+v", list)
	}
}

const passwordA, passwordB = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"

func TestNodePasswords(t *testing.T) {
	k, client := startKube(t)
	s := formation.NewSecrets(client)
	ctx := t.Context()
	if known, err := s.Known(ctx, "n2"); err != nil || known {
		t.Errorf("known before it joined: %v, %v", known, err)
	}
	for range 2 {
		if err := s.Claim(ctx, "n2", passwordA); err != nil {
			t.Fatal(err)
		}
	}
	if known, err := s.Known(ctx, "n2"); err != nil || !known {
		t.Errorf("not known: %v, %v", known, err)
	}
	err := s.Claim(ctx, "n2", passwordB)
	if !errors.Is(err, formation.ErrNameTaken) || !strings.Contains(remedy.Of(err), "delete secret n2.node-password.atoll") {
		t.Errorf("another machine: %v, remedy %q", err, remedy.Of(err))
	}
	if text := k.text(); strings.Contains(text, passwordA) || strings.Contains(text, passwordB) {
		t.Error("a password is stored in the clear")
	}
	k.change(t, "n2.node-password.atoll", nil) // the remedy
	if err := s.Claim(ctx, "n2", passwordB); err != nil {
		t.Error(err)
	}
	k.change(t, "n2.node-password.atoll", func(s *corev1.Secret) { s.Data = nil })
	if err := s.Claim(ctx, "n2", passwordB); !errors.Is(err, formation.ErrNameTaken) {
		t.Errorf("emptied Secret: %v", err)
	}
	k.down.Store(true)
	if err := s.Claim(ctx, "n2", passwordB); err == nil || errors.Is(err, formation.ErrNameTaken) {
		t.Errorf("API server down: %v", err)
	}
	if _, err := s.Known(ctx, "n2"); err == nil {
		t.Error("API server down: known")
	}
}

func TestOneOfManyGetsAName(t *testing.T) {
	_, client := startKube(t)
	s := formation.NewSecrets(client)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 10 {
		wg.Go(func() {
			err := s.Claim(t.Context(), "n2", strings.Repeat(string("0123456789"[i]), 32))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, formation.ErrNameTaken) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d machines have the name", won)
	}
}
