package config_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/remedy"
)

func TestDefaultIsValidAndOfTheContract(t *testing.T) {
	l, err := config.Load(config.Input{Role: config.Server, Hostname: hostname("Box-1")})
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.NodeName = "box-1" // Kubernetes wants lower case
	if !reflect.DeepEqual(l.Config, want) {
		t.Errorf("config = %+v\nwant %+v", l.Config, want)
	}
	if len(l.Warnings) > 0 || len(l.Files) > 0 {
		t.Errorf("warnings %q, files %q; want none", l.Warnings, l.Files)
	}
	for name, want := range map[string]string{
		"https-listen-port": "6443", "cluster-cidr": "10.42.0.0/16", "service-cidr": "10.43.0.0/16", "service-node-port-range": "30000-32767",
		"cluster-domain": "cluster.local", "data-dir": "/var/lib/atoll", "write-kubeconfig-mode": "0600", "secrets-encryption": "true", "pod-security": "baseline", "audit": "true",
	} {
		if got := value(t, l, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func value(t *testing.T, l *config.Loaded, name string) string {
	t.Helper()
	for _, v := range l.View() {
		if v.Name == name {
			return v.Value
		}
	}
	t.Fatalf("no setting %s in the view", name)
	return ""
}

func TestHighestLayerWins(t *testing.T) {
	const (
		yaml = "data-dir: /from-file\n"
		env  = "ATOLL_DATA_DIR=/from-env"
	)
	for _, row := range []struct {
		name, yaml   string
		env          []string
		flags        map[string][]string
		want, origin string
	}{
		{name: "default", want: "/var/lib/atoll", origin: "default"},
		{name: "environment over default", env: []string{env}, want: "/from-env", origin: "environment ATOLL_DATA_DIR"},
		{name: "file over environment", env: []string{env}, yaml: yaml, want: "/from-file", origin: "config.yaml:1"},
		{name: "flag over file and environment", env: []string{env}, yaml: yaml, flags: map[string][]string{"data-dir": {"/from-flag"}}, want: "/from-flag", origin: "flag --data-dir"},
		{name: "short flag", yaml: yaml, flags: map[string][]string{"d": {"/from-flag"}}, want: "/from-flag", origin: "flag -d"},
		{name: "short key", yaml: "# comment\nd: /from-file\n", want: "/from-file", origin: "config.yaml:2"},
		{name: "last flag of two", flags: map[string][]string{"data-dir": {"/one", "/two"}}, want: "/two", origin: "flag --data-dir"},
		{name: "empty variable is none", env: []string{"ATOLL_DATA_DIR="}, want: "/var/lib/atoll", origin: "default"},
	} {
		t.Run(row.name, func(t *testing.T) {
			in := server(t, row.yaml)
			in.Env, in.Flags = row.env, row.flags
			l, err := config.Load(in)
			if err != nil {
				t.Fatal(err)
			}
			if l.Config.DataDir != row.want {
				t.Errorf("data-dir = %q, want %q", l.Config.DataDir, row.want)
			}
			if got := l.OriginOf("data-dir"); !strings.HasSuffix(got, row.origin) {
				t.Errorf("origin = %q, want %q", got, row.origin)
			}
		})
	}
}

func TestListsOfAHigherLayerReplaceThoseOfALowerOne(t *testing.T) {
	in := server(t, "tls-san: [a.example, b.example]\n")
	in.Flags = map[string][]string{"tls-san": {"c.example,d.example", "10.0.0.1"}}
	l, err := config.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.Config.TLSSAN, []string{"c.example", "d.example", "10.0.0.1"}; !slices.Equal(got, want) {
		t.Errorf("tls-san = %q, want %q", got, want)
	}
}

func TestDropIns(t *testing.T) {
	dir := write(t, map[string]string{
		"config.yaml":                 "tls-san: [a.example]\nnode-label: [one=1, two=2]\ndebug: true\nkubelet-arg: [max-pods=50]\n",
		"config.yaml.d/20-more.yaml":  "tls-san+: b.example\nnode-label+: {three: 3, one: uno}\n",
		"config.yaml.d/10-first.yaml": "debug: false\nkubelet-arg: eviction-hard=memory.available<100Mi,nodefs.available<1Gi\n",
		"config.yaml.d/30-last.yml":   "tls-san+:\n  - c.example\nnode-taint+: [dedicated=pos:NoSchedule]\n",
		"config.yaml.d/README":        "not: [read",
		"config.yaml.d/sub/x.yaml":    "not: [read",
	})
	main := filepath.Join(dir, "config.yaml")
	l, err := config.Load(config.Input{Role: config.Server, File: main, Hostname: hostname("box")})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.Config.TLSSAN, []string{"a.example", "b.example", "c.example"}; !slices.Equal(got, want) {
		t.Errorf("key+ did not append: tls-san = %q, want %q", got, want)
	}
	if got, want := l.Config.NodeLabels, map[string]string{"one": "uno", "two": "2", "three": "3"}; !reflect.DeepEqual(got, want) {
		t.Errorf("node-label = %v, want %v", got, want)
	}
	if l.Config.Debug {
		t.Error("a drop-in did not replace debug")
	}
	if got, want := l.Config.KubeletArgs, []string{"eviction-hard=memory.available<100Mi,nodefs.available<1Gi"}; !slices.Equal(got, want) {
		t.Errorf("kubelet-arg = %q, want %q (replaced, and not cut at the comma)", got, want)
	}
	if got, want := l.Config.NodeTaints, []config.Taint{{Key: "dedicated", Value: "pos", Effect: "NoSchedule"}}; !slices.Equal(got, want) {
		t.Errorf("node-taint = %v, want %v", got, want)
	}
	want := []string{main, main + ".d/10-first.yaml", main + ".d/20-more.yaml", main + ".d/30-last.yml"}
	if !slices.Equal(l.Files, want) {
		t.Errorf("files = %q, want %q", l.Files, want)
	}
	wantOrigin := strings.Join([]string{main + ":1", main + ".d/20-more.yaml:1", main + ".d/30-last.yml:2"}, ", ")
	if got := l.OriginOf("tls-san"); got != wantOrigin {
		t.Errorf("origin of a list of three files = %q, want %q", got, wantOrigin)
	}
}

func TestWhichFileIsRead(t *testing.T) {
	dir := write(t, map[string]string{
		"default.yaml": "node-name: by-default\n", "env.yaml": "node-name: by-env\n", "flag.yaml": "node-name: by-flag\n",
		"only-drop-in.yaml.d/a.yaml": "node-name: by-drop-in\n",
	})
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, row := range []struct {
		name  string
		in    config.Input
		want  string
		error string
	}{
		{name: "default", in: config.Input{File: file("default.yaml")}, want: "by-default"},
		{name: "default missing", in: config.Input{File: file("no.yaml")}, want: "box"},
		{name: "default missing, drop-in there", in: config.Input{File: file("only-drop-in.yaml")}, want: "by-drop-in"},
		{name: "variable", in: config.Input{File: file("default.yaml"), Env: []string{"ATOLL_CONFIG_FILE=" + file("env.yaml")}}, want: "by-env"},
		{name: "variable, missing", in: config.Input{Env: []string{"ATOLL_CONFIG_FILE=" + file("no.yaml")}}, error: "no.yaml: no such file"},
		{name: "flag over variable", in: config.Input{Env: []string{"ATOLL_CONFIG_FILE=" + file("env.yaml")}, Flags: map[string][]string{"config": {file("flag.yaml")}}}, want: "by-flag"},
		{name: "flag, missing", in: config.Input{Flags: map[string][]string{"config": {file("no.yaml")}}}, error: "no.yaml: no such file"},
		{name: "folder", in: config.Input{Flags: map[string][]string{"config": {dir}}}, error: "not a regular file"},
		{name: "URL", in: config.Input{Flags: map[string][]string{"config": {"https://x/config.yaml"}}}, error: "download it first"},
		{name: "none", in: config.Input{}, want: "box"},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.in.Role, row.in.Hostname = config.Server, hostname("box")
			l, err := config.Load(row.in)
			if row.error != "" {
				wantError(t, err, row.error)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if l.Config.NodeName != row.want {
				t.Errorf("node-name = %q, want %q", l.Config.NodeName, row.want)
			}
		})
	}
}

func TestFileIsBounded(t *testing.T) {
	big := strings.Repeat("# padding padding padding padding\n", 1<<20/34+1)
	wantError(t, second(config.Load(server(t, big))), "larger than 1 MiB")
	if _, err := config.Load(server(t, big[:1<<20-1])); err != nil {
		t.Errorf("a file just under the bound is refused: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// Every setting must reach its field from each layer that the struct says it has. A field whose type nobody decodes panics here.
func TestEverySettingFromEveryLayer(t *testing.T) {
	sample := map[string][2]string{ // what to write, what the view shows
		"bool": {"true", "true"}, "int": {"7443", "7443"}, "string": {"/some/text", "/some/text"}, "config.Secret": {"hush", "[redacted]"},
		"[]string": {"some.text", "some.text"}, "map[string]string": {"a=b", "a=b"}, "[]config.Taint": {"a=b:NoExecute", "a=b:NoExecute"},
		"netip.Addr": {"10.9.8.7", "10.9.8.7"}, "[]netip.Addr": {"10.9.8.7", "10.9.8.7"}, "netip.Prefix": {"10.9.0.0/16", "10.9.0.0/16"},
		"config.FileMode": {"0640", "0640"}, "config.PortRange": {"31000-31999", "31000-31999"},
	}
	for _, s := range config.Settings() {
		pair, ok := sample[s.Field]
		if !ok {
			t.Errorf("%s has the type %s, which this test has no sample of", s.Name, s.Field)
			continue
		}
		check := func(layer string, in config.Input) {
			in.Hostname = hostname("box")
			l, _ := config.Load(in) // the sample need not be sensible, only reach its field
			if got := value(t, l, s.Name); got != pair[1] {
				t.Errorf("%s from %s = %q, want %q", s.Name, layer, got, pair[1])
			}
			if l.OriginOf(s.Name) == "default" {
				t.Errorf("%s from %s has the origin default", s.Name, layer)
			}
		}
		for _, name := range append([]string{s.Name}, s.Aliases...) {
			check("flag", config.Input{Flags: map[string][]string{name: {pair[0]}}})
			in := server(t, name+": "+pair[0]+"\n")
			in.Role = ""
			check("file", in)
		}
		if s.Env != "" {
			check("environment", config.Input{Env: []string{s.Env + "=" + pair[0]}})
		}
	}
}

func TestStructIsInOrder(t *testing.T) {
	seen := map[string]string{}
	claim := func(what, owner string) {
		if other, ok := seen[what]; ok {
			t.Errorf("%s belongs to %s and to %s", what, other, owner)
		}
		seen[what] = owner
	}
	tagged := 0
	for _, s := range config.Settings() {
		tagged++
		for _, n := range append([]string{s.Name}, s.Aliases...) {
			claim(n, s.Name)
		}
		if s.Env != "" {
			claim(s.Env, s.Name)
		}
		if s.Group == "" || s.Help == "" || s.Value == "" && !s.Bool {
			t.Errorf("%s lacks a group, help or value tag", s.Name)
		}
		if strings.HasSuffix(s.Help, ".") || s.Role != "" && s.Role != config.Server && s.Role != config.Agent {
			t.Errorf("%s: help is a phrase without a full stop, and for is server or agent", s.Name)
		}
	}
	for _, f := range config.Foreigners() {
		claim(f.Name, "K3s")
		claim(f.Variable, "K3s")
	}
	if fields := reflect.TypeFor[config.Config]().NumField(); fields != tagged+1 {
		t.Errorf("%d fields but %d settings: only Role may go without a name tag", fields, tagged)
	}
}

func TestWrongEnvironment(t *testing.T) {
	for _, row := range []struct {
		name, variable, warning, error string
	}{
		{name: "K3s name", variable: "K3S_TOKEN=x", warning: "call it ATOLL_TOKEN"},
		{name: "K3s name of nothing", variable: "K3S_WHATEVER=x"},
		{name: "near miss", variable: "ATOLL_TOKNE=x", warning: "did you mean ATOLL_TOKEN?"},
		{name: "somebody else's", variable: "ATOLL_LAB_FOLDER=x"},
		{name: "installer's", variable: "INSTALL_ATOLL_EXEC=x"},
		{name: "unsupported", variable: "ATOLL_CLUSTER_INIT=true", error: "environment ATOLL_CLUSTER_INIT: cluster-init is not supported"},
		{name: "unsupported, off", variable: "ATOLL_SELINUX=false", warning: "selinux can be removed"},
		{name: "wrong type", variable: "ATOLL_DEBUG=perhaps", error: `environment ATOLL_DEBUG: debug is "perhaps": expected true or false`},
	} {
		t.Run(row.name, func(t *testing.T) {
			l, err := config.Load(config.Input{Role: config.Server, Env: []string{row.variable}, Hostname: hostname("box")})
			switch {
			case row.error != "":
				wantError(t, err, row.error)
			case err != nil:
				t.Fatal(err)
			case row.warning == "" && len(l.Warnings) > 0:
				t.Errorf("warnings %q, want none", l.Warnings)
			case row.warning != "" && (len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], row.warning)):
				t.Errorf("warnings %q, want one with %q", l.Warnings, row.warning)
			}
		})
	}
}

func TestSettingsOfTheOtherRole(t *testing.T) {
	in := server(t, "token: abc\nserver: https://10.0.0.1:6443\ncluster-cidr: 10.44.0.0/16\n")
	in.Role = config.Agent
	l, err := config.Load(in)
	if err != nil {
		t.Fatalf("an agent cannot use the file of a server: %v", err)
	}
	if len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], "config.yaml:3: cluster-cidr is a setting of atoll server") {
		t.Errorf("warnings = %q", l.Warnings)
	}
	if l.Config.ClusterCIDR != netip.MustParsePrefix("10.42.0.0/16") {
		t.Error("the agent took cluster-cidr all the same")
	}
	if slices.ContainsFunc(l.View(), func(v config.Value) bool { return v.Name == "cluster-cidr" }) {
		t.Error("the view of an agent shows cluster-cidr")
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := config.Load(server(t, strings.Join([]string{
		"cluster-cidr: 10.43.0.0/17", // overlaps
		"https-listen-port: 99999",
		"node-name: Till_1",
		"write-kubeconfig: kubeconfig",
	}, "\n")))
	wantError(t, err, "config.yaml:1: service-cidr", "config.yaml:2: https-listen-port is 99999", "config.yaml:3: node-name", "config.yaml:4: write-kubeconfig")
	if got := len(remedy.All(err)); got != 4 {
		t.Errorf("%d remedies for 4 problems: %q", got, remedy.All(err))
	}
	_, err = config.Load(server(t, "debug: maybe\nno-such-key: 1\nnode-ip: here\n"))
	wantError(t, err, "config.yaml:1: debug", "config.yaml:2: no-such-key", "config.yaml:3: node-ip")
}

func TestHostnameFails(t *testing.T) {
	_, err := config.Load(config.Input{Role: config.Server, Hostname: func() (string, error) { return "", errors.New("no such call") }})
	wantError(t, err, "read the host name: no such call", "set node-name")
}

func TestSecretInAFileThatAllCanRead(t *testing.T) {
	for _, row := range []struct {
		name, yaml string
		perm       os.FileMode
		want       int
	}{
		{"token, readable", "token: abc\n", 0o644, 1},
		{"token, private", "token: abc\n", 0o600, 0},
		{"short key", "t: abc\n", 0o644, 1},
		{"no secret", "debug: true\n", 0o644, 0},
	} {
		in := server(t, row.yaml)
		if err := os.Chmod(in.File, row.perm); err != nil {
			t.Fatal(err)
		}
		l, err := config.Load(in)
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Warnings) != row.want {
			t.Errorf("%s: warnings %q, want %d", row.name, l.Warnings, row.want)
		}
	}
}
