package config

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Flags returns the flags of a command: --config, every setting that the role has, and, hidden, the K3s flags that atoll does not
// have, so that Load can say why. They only record what was given; NewInput collects it.
func Flags(role Role) []cli.Flag {
	list := []cli.Flag{configFlag()}
	for _, s := range settings() {
		if s.has(role) {
			list = append(list, newFlag(s))
		}
	}
	for _, f := range foreigners() {
		list = append(list, &recorder{names: []string{f.name}, boolean: !f.takesValue, hidden: true})
	}
	return list
}

// FlagsNamed returns --config and the flags of the named settings, for a command that needs only those.
func FlagsNamed(names ...string) []cli.Flag {
	list := []cli.Flag{configFlag()}
	for _, name := range names {
		s, ok := find(settings(), name)
		if !ok {
			panic("no setting is called " + name)
		}
		list = append(list, newFlag(s))
	}
	return list
}

func configFlag() cli.Flag {
	return &recorder{names: []string{"config", "c"}, group: "configuration", value: "FILE", env: fileVariable, standard: DefaultFile, help: "file to load settings from, besides FILE.d/*.yaml"}
}

func newFlag(s setting) cli.Flag {
	standard := s.standard()
	if s.isBool() && standard == "false" {
		standard = ""
	}
	help := s.help
	if s.isList() {
		help += "; may be repeated"
	}
	return &recorder{names: s.names(), group: s.group, value: s.value, env: s.env, help: help, standard: standard, boolean: s.isBool(), list: s.isList()}
}

// NewInput collects what the command line gave to the flags of this package, for Load.
func NewInput(c *cli.Context, role Role, environ []string, hostname func() (string, error)) Input {
	in := Input{Role: role, Flags: map[string][]string{}, Args: c.Args().Slice(), Env: environ, File: DefaultFile, Hostname: hostname}
	if c.Command == nil {
		return in
	}
	for _, f := range c.Command.Flags {
		if r, ok := f.(*recorder); ok {
			maps.Copy(in.Flags, r.given)
		}
	}
	if values, ok := in.Flags["c"]; ok {
		in.Flags["config"] = values
		delete(in.Flags, "c")
	}
	return in
}

// UsageError is for cli's OnUsageError: it explains a flag that the command does not know.
func UsageError(role Role, err error) error {
	const unknown = "flag provided but not defined: -"
	name, ok := strings.CutPrefix(err.Error(), unknown)
	if !ok {
		text := err.Error()
		if rest, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
			return problemf(strings.TrimLeft(rest, "-"), "write a value after it, or see --help", "flag %s needs a value", dashes(strings.TrimLeft(rest, "-")))
		}
		return problemf("config", "see --help", "%w", err)
	}
	name = strings.TrimLeft(name, "-") // the flag package takes off one dash
	list := settings()
	if s, ok := find(list, name); ok && !s.has(role) {
		return problemf(name, fmt.Sprintf("leave it out: it is set on servers only and holds for the whole cluster (this is atoll %s)", role),
			"flag %s belongs to atoll %s", dashes(name), s.role)
	}
	return unknownName("flag "+dashes(name), name, FlagNames(role))
}

// FlagNames lists the names of the flags of a command without dashes, for completion and hints.
func FlagNames(role Role) []string {
	names := []string{"config", "c"}
	for _, s := range settings() {
		if s.has(role) {
			names = append(names, s.names()...)
		}
	}
	return names
}

// unknownName is the error for a name that nobody knows; what says where it stands.
func unknownName(what, name string, words []string) error {
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return len(w) < 3 })
	try := "see atoll server --help for the settings there are, or remove it"
	if near := Nearest(name, words); near != "" {
		try = fmt.Sprintf("did you mean %s? See atoll server --help for all settings", near)
		return problemf(name, try, "%s is not known, the nearest is %s", clip(what), near)
	}
	return problemf(name, try, "%s is not known", clip(what))
}

func dashes(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + clip(name)
}

// recorder is a flag that keeps what was given, as text and under the name as written. The types of cli would parse values
// themselves (and stop at the first mistake), read the environment before the file, and cut lists at every comma.
type recorder struct {
	names                             []string
	group, value, env, help, standard string
	boolean, list, hidden             bool

	given map[string][]string
}

// copied is what Serialize returns. cli sets each alias of a flag to the serialized value of the name that was used; a NUL
// cannot be in an argument, so Set can tell that from a value.
const copied = "\x00"

// recorderValue is one name of a recorder, as package flag wants it.
type recorderValue struct {
	*recorder
	name string
}

func (v recorderValue) Set(raw string) error {
	if raw == copied {
		return nil
	}
	if v.boolean && raw == "" {
		return errors.New("expected true or false")
	}
	v.given[v.name] = append(v.given[v.name], raw)
	return nil
}

// String is also called by package flag on a zero value.
func (v recorderValue) String() string {
	if v.recorder == nil {
		return ""
	}
	return strings.Join(v.given[v.name], ",")
}

func (v recorderValue) Serialize() string { return copied }
func (v recorderValue) IsBoolFlag() bool  { return v.boolean }
func (v recorderValue) Get() any          { return v.given[v.name] }

// Apply registers every name; it forgets what an earlier parse recorded.
func (r *recorder) Apply(set *flag.FlagSet) error {
	r.given = map[string][]string{}
	for _, name := range r.names {
		set.Var(recorderValue{r, name}, name, r.help)
	}
	return nil
}

// String is the line of the help text.
func (r *recorder) String() string {
	var names []string
	for _, n := range r.names {
		n = dashes(n)
		if !r.boolean {
			n += " " + r.value
		}
		names = append(names, n)
	}
	line := strings.Join(names, ", ") + "\t" + r.help
	if r.standard != "" {
		line += " (default: " + r.standard + ")"
	}
	if r.env != "" {
		line += " [$" + r.env + "]"
	}
	return line
}

func (r *recorder) Names() []string        { return r.names }
func (r *recorder) IsSet() bool            { return len(r.given) > 0 }
func (r *recorder) TakesValue() bool       { return !r.boolean }
func (r *recorder) IsSliceFlag() bool      { return r.list }
func (r *recorder) GetUsage() string       { return r.help }
func (r *recorder) GetValue() string       { return "" }
func (r *recorder) GetDefaultText() string { return r.standard }
func (r *recorder) GetEnvVars() []string {
	if r.env == "" {
		return nil
	}
	return []string{r.env}
}
func (r *recorder) IsVisible() bool     { return !r.hidden }
func (r *recorder) GetCategory() string { return r.group }
