package config_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/pkg/config"
)

func TestWrongFiles(t *testing.T) {
	for _, row := range []struct {
		name, yaml string
		want       []string
	}{
		{"unknown key, one letter off", "debug: true\ntsl-san: a.example\n", []string{"config.yaml:2: tsl-san is not known, the nearest is tls-san"}},
		{"unknown key, underscore", "write_kubeconfig_mode: 644\n", []string{"config.yaml:1:", "the nearest is write-kubeconfig-mode"}},
		{"unknown key, capital letters", "Cluster-CIDR: 10.0.0.0/16\n", []string{"the nearest is cluster-cidr"}},
		{"unknown key, nothing near", "pizza-topping: ham\n", []string{"config.yaml:1: pizza-topping is not known", "see atoll server --help"}},
		{"key there twice", "debug: true\nv: 1\ndebug: false\n", []string{"config.yaml:3: debug is already set on line 1"}},
		{"key there under two names", "token: a\nt: b\n", []string{"config.yaml:2: token is already set on line 1"}},
		{"text for a number", "https-listen-port: https\n", []string{`config.yaml:1: https-listen-port is "https": expected a whole number`}},
		{"number for a switch", "\n\ndebug: 3\n", []string{`config.yaml:3: debug is "3": expected true or false`}},
		{"text for an address", "node-ip: [10.0.0.1, till]\n", []string{`node-ip is "till": expected an IP address`}},
		{"bad element is on its own line", "node-ip:\n  - 10.0.0.1\n  - till\n", []string{"config.yaml:3: node-ip"}},
		{"address for a range", "cluster-cidr: 10.42.0.0\n", []string{"expected an address range such as 10.42.0.0/16"}},
		{"two ranges", "cluster-cidr: 10.42.0.0/16,fd00::/48\n", []string{"expected an address range"}},
		{"label without a value", "node-label: till\n", []string{`node-label is "till": expected key=value`}},
		{"taint without an effect", "node-taint: dedicated=pos\n", []string{"expected a taint such as"}},
		{"mode that is not octal", "write-kubeconfig-mode: 0899\n", []string{"expected an octal file mode"}},
		{"ports without a dash", "service-node-port-range: 30000\n", []string{"expected two ports"}},
		{"list for one value", "data-dir: [/a, /b]\n", []string{"config.yaml:1: data-dir: expected a text"}},
		{"mapping for one value", "data-dir:\n  path: /a\n", []string{"config.yaml:1: data-dir: expected a text"}},
		{"mapping for a list", "tls-san:\n  a: b\n", []string{"config.yaml:1: tls-san: expected a list, each a text"}},
		{"list of lists", "tls-san: [[a]]\n", []string{"tls-san is nested too deeply"}},
		{"no value", "debug:\n", []string{"config.yaml:1: debug has no value"}},
		{"empty element", "tls-san:\n  - a\n  -\n", []string{"config.yaml:3: tls-san has no value"}},
		{"plus on one value", "data-dir+: /a\n", []string{"data-dir takes one value, so nothing can be appended"}},
		{"list at the top", "- debug\n", []string{"config.yaml:1: expected settings as key: value"}},
		{"text at the top", "debug\n", []string{"expected settings as key: value"}},
		{"two documents", "debug: true\n---\nv: 1\n", []string{"more than one YAML document"}},
		{"alias", "tls-san: &a [x.example]\nnode-label: *a\n", []string{"config.yaml:1: tls-san uses an anchor"}},
		{"tag", "debug: !!str true\n", []string{"config.yaml:1: debug uses an anchor, alias or tag"}},
		{"merge key", "<<: {debug: true}\n", []string{"expected the name of a setting"}},
		{"key that is no text", "[a]: b\n", []string{"config.yaml:1: expected the name of a setting"}},
		{"bad indent", "debug: true\n tls-san: a\n", []string{"config.yaml:2:", "correct the YAML"}},
		{"tab", "tls-san:\n\t- a\n", []string{"config.yaml:2:", "correct the YAML"}},
		{"not UTF-8", "debug: \xff\xfe\n", []string{"correct the YAML"}},
		{"secret of the wrong shape is not quoted", "token: [hush, hush2]\n", []string{"config.yaml:1: token: expected a text"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := config.Load(server(t, row.yaml))
			wantError(t, err, row.want...)
			if strings.Contains(fmt.Sprint(err), "hush") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestFilesThatAreFine(t *testing.T) {
	for _, row := range []struct{ name, yaml, setting, want string }{
		{"empty", "", "debug", "false"},
		{"comments", "# nothing\n", "debug", "false"},
		{"only a document start", "---\n", "debug", "false"},
		{"null", "~\n", "debug", "false"},
		{"byte order mark", "\ufeffdebug: true\n", "debug", "true"},
		{"CRLF", "debug: true\r\nv: 2\r\n", "v", "2"},
		{"mode as a number", "write-kubeconfig-mode: 644\n", "write-kubeconfig-mode", "0644"},
		{"mode as an octal number", "write-kubeconfig-mode: 0644\n", "write-kubeconfig-mode", "0644"},
		{"mode as text", "write-kubeconfig-mode: \"0644\"\n", "write-kubeconfig-mode", "0644"},
		{"yes", "debug: yes\n", "debug", "true"},
		{"one value for a list", "tls-san: a.example\n", "tls-san", "a.example"},
		{"list of one for one value", "cluster-cidr:\n  - 10.44.0.0/16\n", "cluster-cidr", "10.44.0.0/16"},
		{"empty list", "tls-san: []\n", "tls-san", ""},
		{"empty text for a default that is computed", "cluster-dns: \"\"\n", "cluster-dns", ""},
		{"labels as a mapping", "node-label:\n  till: 1\n  zone: b\n", "node-label", "till=1,zone=b"},
		{"label with an empty value", "node-label: edge=\n", "node-label", "edge="},
		{"flow style", "{debug: true, tls-san: [a.example, b.example]}\n", "tls-san", "a.example,b.example"},
		{"JSON", `{"debug": true}`, "debug", "true"},
	} {
		t.Run(row.name, func(t *testing.T) {
			l, err := config.Load(server(t, row.yaml))
			if err != nil {
				t.Fatal(err)
			}
			if got := value(t, l, row.setting); got != row.want {
				t.Errorf("%s = %q, want %q", row.setting, got, row.want)
			}
		})
	}
}

// Input that makes naive readers slow or large must be refused, or read, quickly.
func TestHostileYAML(t *testing.T) {
	for _, row := range []struct{ name, yaml string }{
		{"deep flow lists", strings.Repeat("[", 1<<20-1)},
		{"deep flow mappings", strings.Repeat("{a: ", 200_000)},
		{"deep block lists", strings.Repeat("- ", 1<<19-1)},
		{"deep block mappings", deepMappings(1200)},
		{"billion laughs", laughs()},
		{"key of a megabyte", strings.Repeat("k", 1<<20-10) + ": 1\n"},
		{"explicit key of a megabyte", "? " + strings.Repeat("k", 1<<20-10) + "\n: 1\n"},
		{"value of a megabyte", "node-ip: " + strings.Repeat("k", 1<<20-10) + "\n"},
		{"many keys", manyKeys(50_000)},
	} {
		t.Run(row.name, func(t *testing.T) {
			start := time.Now()
			_, errs := config.LoadYAML(config.Server, []byte(row.yaml))
			if len(errs) == 0 {
				t.Error("no error")
			}
			for _, err := range errs {
				if len(err.Error()) > 1000 {
					t.Errorf("an error of %d bytes: %.200s", len(err.Error()), err)
				}
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func deepMappings(depth int) string {
	var b strings.Builder
	for i := range depth {
		fmt.Fprintf(&b, "%*sk:\n", i, "")
	}
	return b.String()
}

func laughs() string {
	var b strings.Builder
	b.WriteString("l0: &l0 [ha, ha]\n")
	for i := 1; i < 40; i++ {
		fmt.Fprintf(&b, "l%d: &l%d [*l%d, *l%d]\n", i, i, i-1, i-1)
	}
	return b.String()
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "key-%d: 1\n", i)
	}
	return b.String()
}

// Whatever the bytes: no panic, an error that counts as asked wrongly, no secret in it, and the same result twice.
func FuzzYAML(f *testing.F) {
	for _, seed := range []string{
		"", "debug: true\n", "tls-san: [a, b]\nnode-label: {a: b}\n", "token: hushhush\n", "a: &x [*x]\n", "? [a]\n: b\n", "---\n...\n---\n", "\xff", "node-taint+: a=b:NoSchedule\n",
		"cluster-cidr: 10.43.0.0/16\n", "docker: true\n", "\"\\u0000\": 1\n", "v: 1\nv: 2\n", "<<: *a\n", "disable: [traefik, corends]\n", "node-ip: ::ffff:1.2.3.4\nserver: 'https://[::1%25x]:1'\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			t.Skip()
		}
		l, errs := config.LoadYAML(config.Server, data)
		for _, err := range errs {
			if !errors.Is(err, config.ErrInvalid) {
				t.Errorf("not ErrInvalid: %v", err)
			}
		}
		if len(errs) == 0 && l.Config.Token.Reveal() != "" && l.Config.Token.String() != "[redacted]" {
			t.Error("the token can be seen")
		}
		_, again := config.LoadYAML(config.Server, data)
		if fmt.Sprint(errs) != fmt.Sprint(again) {
			t.Errorf("two results for one file:\n%v\n%v", errs, again)
		}
	})
}
