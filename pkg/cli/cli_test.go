package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/cli"
)

// call runs one command line and returns exit code, standard output and standard error.
func call(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e strings.Builder
	code = cli.Main(t.Context(), cli.Streams{In: strings.NewReader(""), Out: &o, Err: &e}, append([]string{"atoll"}, args...))
	return code, o.String(), e.String()
}

func TestExitCodesAndRemedies(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(bad, []byte("tls-sann: [a]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"help", []string{"--help"}, 0, []string{"server", "agent", "status", "check-config"}},
		{"version", []string{"version"}, 0, []string{"atoll v", "linux/"}},
		{"unknown command names the nearest", []string{"sevrer"}, 2, []string{"sevrer", "Try:", "atoll server"}},
		{"unknown flag names the nearest", []string{"server", "--tls-sna", "x"}, 2, []string{"tls-sna", "Try:", "did you mean tls-san"}},
		{"unknown key names the nearest", []string{"server", "--config", bad}, 2, []string{bad + ":1", "tls-sann", "Try:", "tls-san"}},
		{"malformed range", []string{"server", "--cluster-cidr", "10.42.0.0/99"}, 2, []string{"cluster-cidr", "Try:"}},
		{"overlapping ranges", []string{"server", "--service-cidr", "10.42.0.0/20"}, 2, []string{"overlap", "Try:"}},
		{"agent without server", []string{"agent"}, 2, []string{"server", "Try:"}},
		{"agent without token", []string{"agent", "--server", "https://192.0.2.1:6443", "--token", ""}, 2, []string{"token", "Try:"}},
		{"wrong output format", []string{"status", "-o", "xml"}, 2, []string{"xml", "Try:"}},
		{"completion without a shell", []string{"completion"}, 2, []string{"bash", "Try:"}},
		{"completion", []string{"completion", "bash"}, 0, []string{"complete -o"}},
		{"generate a token", []string{"token", "generate"}, 0, nil},
		{"tokens need a server", []string{"token", "list", "--data-dir", filepath.Join(t.TempDir(), "none")}, 1, []string{"no server", "Try:"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			code, out, errs := call(t, row.args...)
			if code != row.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, row.code, out, errs)
			}
			for _, s := range row.says {
				if !strings.Contains(out+errs, s) {
					t.Errorf("does not say %q:\n%s%s", s, out, errs)
				}
			}
		})
	}
}

func TestConfigViewHidesSecrets(t *testing.T) {
	t.Setenv("ATOLL_TOKEN", "very-secret-token")
	code, out, errs := call(t, "config", "view")
	if code != 0 || !strings.Contains(out, "[redacted]") || strings.Contains(out+errs, "very-secret-token") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	if !strings.Contains(out, "10.42.0.0/16") {
		t.Errorf("defaults are not shown:\n%s", out)
	}
}
