package config_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/config"
)

// command runs `atoll ROLE args...` as pkg/cli does, and returns what Load made of it.
func command(t *testing.T, role config.Role, env []string, args ...string) (*config.Loaded, error) {
	t.Helper()
	var loaded *config.Loaded
	app := app(role, io.Discard, func(c *cli.Context) error {
		in := config.NewInput(c, role, env, hostname("box"))
		in.File = "" // not the one of the machine that runs the test
		var err error
		loaded, err = config.Load(in)
		return err
	})
	err := app.Run(append([]string{"atoll", string(role)}, args...))
	return loaded, err
}

func app(role config.Role, out io.Writer, action cli.ActionFunc) *cli.App {
	return &cli.App{
		Name: "atoll", Writer: out, ErrWriter: out, ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{{
			Name: string(role), Usage: "run a node", HideHelpCommand: true, Flags: config.Flags(role), Action: action,
			OnUsageError: func(_ *cli.Context, err error, _ bool) error { return config.UsageError(role, err) },
		}},
	}
}

func TestHelp(t *testing.T) {
	for _, role := range []config.Role{config.Server, config.Agent} {
		var out bytes.Buffer
		if err := app(role, &out, nil).Run([]string{"atoll", string(role), "--help"}); err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join("testdata", "help-"+string(role)+".txt"), out.String())
		if strings.Contains(out.String(), "cluster-init") {
			t.Errorf("%s: the help offers a flag that is not supported", role)
		}
	}
}

func TestCommandLine(t *testing.T) {
	l, err := command(t, config.Server, []string{"ATOLL_TOKEN=from-env", "ATOLL_KUBECONFIG_MODE=644"},
		"--tls-san", "a.example,b.example", "--tls-san=10.0.0.1", "-d", "/data", "--debug", "--audit=false", "-v", "4", "-t", "from-flag", "-i", "10.1.2.3",
		"--kubelet-arg", "eviction-hard=memory.available<1Gi,nodefs.available<1Gi", "--kubelet-arg=v=2", "-o", "/kubeconfig", "--node-label", "a=1,b=2", "--node-label", "c=3")
	if err != nil {
		t.Fatal(err)
	}
	c := l.Config
	if want := []string{"a.example", "b.example", "10.0.0.1"}; !slices.Equal(c.TLSSAN, want) {
		t.Errorf("tls-san = %q", c.TLSSAN)
	}
	if want := []string{"eviction-hard=memory.available<1Gi,nodefs.available<1Gi", "v=2"}; !slices.Equal(c.KubeletArgs, want) {
		t.Errorf("kubelet-arg = %q", c.KubeletArgs)
	}
	if c.DataDir != "/data" || !c.Debug || c.Audit || c.Verbosity != 4 || c.Token.Reveal() != "from-flag" || c.Kubeconfig != "/kubeconfig" || c.KubeconfigMode != 0o644 ||
		len(c.NodeIP) != 1 || len(c.NodeLabels) != 3 {
		t.Errorf("config = %+v", c)
	}
	if got := l.OriginOf("token"); got != "flag -t" {
		t.Errorf("origin of token = %q", got)
	}
	if got := l.OriginOf("write-kubeconfig-mode"); got != "environment ATOLL_KUBECONFIG_MODE" {
		t.Errorf("origin of write-kubeconfig-mode = %q", got)
	}
}

func TestConfigFlag(t *testing.T) {
	dir := write(t, map[string]string{"my.yaml": "node-name: mine\n", "my.yaml.d/1.yaml": "v: 3\n"})
	for _, args := range [][]string{{"--config", dir + "/my.yaml"}, {"-c", dir + "/my.yaml"}, {"--config=" + dir + "/my.yaml"}} {
		l, err := command(t, config.Server, nil, args...)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		if l.Config.NodeName != "mine" || l.Config.Verbosity != 3 {
			t.Errorf("%q: node-name %q, v %d", args, l.Config.NodeName, l.Config.Verbosity)
		}
	}
}

func TestSecondRunForgetsTheFirst(t *testing.T) {
	var got []string
	a := app(config.Server, io.Discard, nil)
	a.Commands[0].Action = func(c *cli.Context) error {
		in := config.NewInput(c, config.Server, nil, nil)
		got = in.Flags["tls-san"]
		return nil
	}
	for range 2 {
		if err := a.Run([]string{"atoll", "server", "--tls-san", "a"}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, []string{"a"}) {
		t.Errorf("tls-san = %q after two runs", got)
	}
}

func TestWrongCommandLine(t *testing.T) {
	for _, row := range []struct {
		name string
		role config.Role
		args []string
		want []string
	}{
		{"one letter off", config.Server, []string{"--tls-sam", "x"}, []string{"flag --tls-sam is not known, the nearest is tls-san"}},
		{"nothing near", config.Server, []string{"--pizza"}, []string{"flag --pizza is not known", "atoll server --help"}},
		{"flag of the other role", config.Agent, []string{"--cluster-cidr", "10.0.0.0/16"}, []string{"flag --cluster-cidr belongs to atoll server"}},
		{"K3s flag", config.Server, []string{"--cluster-init"}, []string{"flag --cluster-init: cluster-init is not supported: atoll has no etcd", "starts a cluster by itself"}},
		{"K3s flag with a value", config.Agent, []string{"--vpn-auth", "name=x"}, []string{"flag --vpn-auth: vpn-auth is not supported"}},
		{"several at once", config.Server, []string{"--docker", "--rootless", "--v=x"}, []string{"docker is not supported", "rootless is not supported", `v is "x"`}},
		{"no value", config.Server, []string{"--data-dir"}, []string{"flag --data-dir needs a value"}},
		{"switch with a detached value", config.Server, []string{"--audit", "false"}, []string{`unexpected argument "false"`, "--name=false"}},
		{"both forms", config.Server, []string{"-t", "a", "--token", "b"}, []string{"two forms of the same flag"}},
		{"wrong type", config.Server, []string{"--https-listen-port", "x"}, []string{`flag --https-listen-port: https-listen-port is "x": expected a whole number`}},
		{"empty switch", config.Server, []string{"--debug="}, []string{"debug", "true or false"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := command(t, row.role, nil, row.args...)
			wantError(t, err, row.want...)
		})
	}
}

func TestFlagsNamed(t *testing.T) {
	var in config.Input
	a := &cli.App{
		Name: "atoll", Writer: io.Discard, Flags: config.FlagsNamed("data-dir"),
		Action: func(c *cli.Context) error { in = config.NewInput(c, "", nil, nil); return nil },
	}
	if err := a.Run([]string{"atoll", "-d", "/data"}); err != nil {
		t.Fatal(err)
	}
	in.File = ""
	l, err := config.Load(in)
	if err != nil {
		t.Fatalf("a command that is neither server nor agent needs no node name or token: %v", err)
	}
	if l.Config.DataDir != "/data" {
		t.Errorf("data-dir = %q", l.Config.DataDir)
	}
}

// Each K3s setting that atoll lacks must be refused with a reason and a way out from every layer, unless what it asks for is so anyway.
func TestForeignSettings(t *testing.T) {
	all := config.Foreigners()
	if len(all) < 60 {
		t.Errorf("%d foreign settings; the list has shrunk", len(all))
	}
	for _, f := range all {
		if f.Why == "" || f.Instead == "" || strings.HasSuffix(f.Why, ".") {
			t.Errorf("%s lacks a reason or a way out", f.Name)
		}
		bad := "true"
		if f.TakesValue {
			bad = "something"
		}
		layers := map[string]func(value string) config.Input{
			"flag": func(v string) config.Input {
				return config.Input{Role: config.Server, Flags: map[string][]string{f.Name: {v}}, Hostname: hostname("box")}
			},
			"file": func(v string) config.Input { return server(t, f.Name+": "+v+"\n") },
			"environment": func(v string) config.Input {
				return config.Input{Role: config.Server, Env: []string{f.Variable + "=" + v}, Hostname: hostname("box")}
			},
		}
		for layer, input := range layers {
			if !slices.Contains(f.Harmless, bad) {
				_, err := config.Load(input(bad))
				if err == nil {
					t.Errorf("%s %s=%s is ignored", layer, f.Name, bad)
					continue
				}
				wantError(t, err, f.Name+" is not supported: "+f.Why, f.Name+": "+f.Instead)
			}
			for _, v := range f.Harmless {
				l, err := config.Load(input(v))
				if err != nil {
					t.Errorf("%s %s=%s is refused: %v", layer, f.Name, v, err)
				} else if len(l.Warnings) != 1 {
					t.Errorf("%s %s=%s gives the warnings %q, want one", layer, f.Name, v, l.Warnings)
				}
			}
		}
	}
}

func TestComplete(t *testing.T) {
	for _, row := range []struct {
		name         string
		role         config.Role
		before, word string
		want         []string
	}{
		{"start of a flag", config.Server, "", "--write-", []string{"--write-kubeconfig", "--write-kubeconfig-group", "--write-kubeconfig-mode"}},
		{"not of the other role", config.Agent, "", "--write-", nil},
		{"not what is unsupported", config.Server, "", "--etcd", nil},
		{"value after a flag", config.Server, "--flannel-backend", "", []string{"vxlan", "host-gw"}},
		{"value after an equals sign", config.Server, "", "--pod-security=re", []string{"--pod-security=restricted"}},
		{"switch", config.Server, "", "--audit=", []string{"--audit=true", "--audit=false"}},
		{"parts", config.Server, "--disable", "s", []string{"servicelb"}},
		{"path: up to the shell", config.Server, "--data-dir", "", nil},
		{"configuration file: up to the shell", config.Server, "--config", "--", nil},
		{"after a switch comes a flag", config.Server, "--debug", "--audit-", []string{"--audit-policy-file"}},
	} {
		if got := config.Complete(row.role, row.before, row.word); !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
	if got := config.Complete(config.Server, "", ""); len(got) < 50 {
		t.Errorf("an empty word offers %d flags", len(got))
	}
}

func TestReferenceIsCurrent(t *testing.T) {
	if _, err := os.Stat("../../go.mod"); errors.Is(err, os.ErrNotExist) {
		t.Skip("not in the repository")
	}
	golden(t, filepath.Join("..", "..", "docs", "reference", "config.md"), config.Reference())
}
