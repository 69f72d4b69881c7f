package config

// What the tests look at besides the API.

// Foreign is a K3s setting that atoll does not have.
type Foreign struct {
	Name, Variable, Why, Instead string
	TakesValue                   bool
	Harmless                     []string
}

func Foreigners() []Foreign {
	var out []Foreign
	for _, f := range foreigners() {
		out = append(out, Foreign{f.name, f.variable(), f.why, f.instead, f.takesValue, f.harmless})
	}
	return out
}

// Setting is one line of Config.
type Setting struct {
	Name, Env, Group, Help, Value, Field string
	Aliases                              []string
	Role                                 Role
	Bool, List                           bool
}

func Settings() []Setting {
	var out []Setting
	for _, s := range settings() {
		out = append(out, Setting{s.name, s.env, s.group, s.help, s.value, s.typ.String(), s.aliases, s.role, s.isBool(), s.isList()})
	}
	return out
}

// ParseYAML is what reads one file: it returns the number of keys.
func ParseYAML(name string, data []byte) (int, error) {
	entries, err := parseFile(name, data)
	return len(entries), err
}

// LoadYAML applies data as the only file, without touching the disk.
func LoadYAML(role Role, data []byte) (*Loaded, []error) {
	l := &Loaded{Config: Default(), origins: map[string][]Origin{}}
	l.Config.Role = role
	entries, err := parseFile("config.yaml", data)
	if err != nil {
		return l, split(err)
	}
	merged := layer{}
	if errs := merge(merged, entries); len(errs) > 0 {
		return l, errs
	}
	if errs := l.apply(merged); len(errs) > 0 {
		return l, errs
	}
	return l, l.validate()
}

// Distance is the edit distance.
var Distance = distance
