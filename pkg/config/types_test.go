package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/atollhq/atoll/pkg/config"
)

func TestSecretIsNeverShown(t *testing.T) {
	secret := config.NewSecret("hushhush")
	type inner struct{ Token config.Secret }
	type hidden struct{ token config.Secret }
	type hiddenPointer struct{ cfg *inner }
	c := config.Default()
	c.Token, c.AgentToken, c.DatastoreEndpoint = secret, secret, secret
	for _, v := range []any{secret, &secret, inner{secret}, &inner{secret}, hidden{secret}, []config.Secret{secret}, map[string]config.Secret{"a": secret}, hiddenPointer{&inner{secret}}, c, &c, struct{ cfg config.Config }{c}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, "hush") || strings.Contains(strings.ToLower(text), "68757368") {
				t.Errorf("%s of %T shows it: %s", verb, v, text)
			}
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		asYAML, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{log.String(), string(encoded), string(asYAML)} {
			if strings.Contains(text, "hush") {
				t.Errorf("%T is shown: %s", v, text)
			}
		}
	}
	if got := fmt.Sprint(secret); got != "[redacted]" {
		t.Errorf("printed as %q", got)
	}
	if got := fmt.Sprint(config.Secret{}); got != "" {
		t.Errorf("an empty one is printed as %q", got)
	}
	if secret.Reveal() != "hushhush" || secret.IsEmpty() || !config.NewSecret("").IsEmpty() {
		t.Error("the value is lost")
	}
}

func TestViewRedacts(t *testing.T) {
	l, err := config.Load(server(t, "token: hushhush\nagent-token: hushhush2\ndatastore-endpoint: postgres://u:hushhush3@db/x\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range l.View() {
		if strings.Contains(v.Value, "hush") {
			t.Errorf("the view shows %s", v.Name)
		}
	}
	if got := value(t, l, "datastore-endpoint"); got != "[redacted]" {
		t.Errorf("datastore-endpoint = %q", got)
	}
}

func TestTextFormsRoundTrip(t *testing.T) {
	for _, row := range []struct {
		name, in, want string
		v              interface {
			UnmarshalText([]byte) error
			fmt.Stringer
		}
	}{
		{"mode", "600", "0600", new(config.FileMode)},
		{"mode with 0o", "0o640", "0640", new(config.FileMode)},
		{"all bits", "777", "0777", new(config.FileMode)},
		{"ports", "1-65535", "1-65535", new(config.PortRange)},
		{"taint", "a=b:NoSchedule", "a=b:NoSchedule", new(config.Taint)},
		{"taint without value", "a:NoExecute", "a=:NoExecute", new(config.Taint)},
		{"taint with a domain", "example.com/a=b:PreferNoSchedule", "example.com/a=b:PreferNoSchedule", new(config.Taint)},
	} {
		if err := row.v.UnmarshalText([]byte(row.in)); err != nil {
			t.Errorf("%s: %v", row.name, err)
		} else if got := row.v.String(); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
	for _, row := range []struct {
		in string
		v  interface{ UnmarshalText([]byte) error }
	}{
		{"1000", new(config.FileMode)}, {"-1", new(config.FileMode)}, {"rw", new(config.FileMode)}, {"", new(config.FileMode)},
		{"1", new(config.PortRange)}, {"1-65536", new(config.PortRange)}, {"a-b", new(config.PortRange)}, {"1-2-3", new(config.PortRange)},
		{"a=b", new(config.Taint)},
	} {
		if row.v.UnmarshalText([]byte(row.in)) == nil {
			t.Errorf("%T takes %q", row.v, row.in)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"tls-san", "token", "data-dir", "disable", "write-kubeconfig"}
	for _, row := range []struct{ in, want string }{
		{"tls-sna", "tls-san"}, {"TLS_SAN", "tls-san"}, {"tocken", "token"}, {"datadir", "data-dir"}, {"disabel", "disable"}, {"write-kube-config", "write-kubeconfig"},
		{"pizza", ""}, {"x", ""}, {"", ""}, {strings.Repeat("tls-san", 1000), ""},
	} {
		if got := config.Nearest(row.in, words); got != row.want {
			t.Errorf("nearest to %.20q = %q, want %q", row.in, got, row.want)
		}
	}
	for _, row := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "ab", 1}, {"abc", "xabc", 1}, {"abc", "axc", 1}, {"kitten", "sitting", 3}} {
		if got := config.Distance(row.a, row.b); got != row.want {
			t.Errorf("distance(%q, %q) = %d, want %d", row.a, row.b, got, row.want)
		}
		if got := config.Distance(row.b, row.a); got != row.want {
			t.Errorf("distance(%q, %q) = %d, want %d", row.b, row.a, got, row.want)
		}
	}
}
