package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// fileVariable names the environment variable that replaces DefaultFile.
const fileVariable = "ATOLL_CONFIG_FILE"

// Input is everything that settings come from.
type Input struct {
	Role     Role                   // decides which settings apply; "" for a command that is neither server nor agent
	Flags    map[string][]string    // flag as written, without dashes, to its values; "config" names the file
	Args     []string               // what was left over on the command line; a node takes none
	Env      []string               // as os.Environ gives it
	File     string                 // read when neither flag nor environment names one, and may then be missing; "" reads none
	Hostname func() (string, error) // for the default of node-name; nil leaves it empty
}

// Loaded is what Load found.
type Loaded struct {
	Config   Config
	Files    []string // configuration files that were read, in order
	Warnings []string // what was accepted but will surprise; to be logged once, at Warn

	origins map[string][]Origin
}

// Load builds the settings from defaults, environment, files and flags, and validates them. Loaded is never nil: with an error
// it holds what could be understood, so that it can be shown. Every problem is in the error, each with its place and a remedy.
func Load(in Input) (*Loaded, error) {
	l := &Loaded{Config: Default(), origins: map[string][]Origin{}}
	l.Config.Role = in.Role
	var errs []error
	if len(in.Args) > 0 {
		errs = append(errs, problemf("config", "write a switch that is off as --name=false, and put quotes around values with spaces",
			"unexpected argument %q", clip(in.Args[0])))
	}

	env, warnings := environment(in.Env)
	l.Warnings = append(l.Warnings, warnings...)
	path, required := configFile(in)
	files := layer{}
	if path != "" {
		var err error
		files, l.Files, warnings, err = readFiles(path, required)
		l.Warnings = append(l.Warnings, warnings...)
		errs = append(errs, split(err)...)
	}
	for _, values := range []layer{env, files, flags(in.Flags)} {
		errs = append(errs, l.apply(values)...)
	}
	l.defaultNodeName(in.Hostname, &errs)
	if len(errs) == 0 { // settings that were not understood would be reported twice, as missing
		errs = l.validate()
	}
	return l, errors.Join(errs...)
}

// configFile returns the file to read, and whether somebody asked for it by name.
func configFile(in Input) (path string, required bool) {
	if named := in.Flags["config"]; len(named) > 0 {
		return named[len(named)-1], true
	}
	if named := lookup(in.Env, fileVariable); named != "" {
		return named, true
	}
	return in.File, false
}

// apply puts one layer over what is there. A list of a higher layer replaces that of a lower one.
func (l *Loaded) apply(values layer) []error {
	var errs []error
	list := settings()
	for _, name := range values.inOrder() {
		occurrences := values[name]
		s, known := find(list, name)
		if !known {
			warning, err := foreignSetting(name, occurrences, list)
			errs = append(errs, err)
			l.warn(warning)
			continue
		}
		first := occurrences[0].at
		if l.Config.Role != "" && !s.has(l.Config.Role) {
			l.warn(fmt.Sprintf("%s: %s is a setting of atoll %s, an %s does not use it", first, s.name, s.role, l.Config.Role))
			continue
		}
		s.field(&l.Config).SetZero()
		l.origins[s.name] = nil
		for _, g := range occurrences {
			l.origins[s.name] = append(l.origins[s.name], g.at)
			errs = append(errs, at(g.at, s.add(&l.Config, g.raw)))
		}
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func (l *Loaded) warn(text string) {
	if text != "" {
		l.Warnings = append(l.Warnings, text)
	}
}

// defaultNodeName takes the host name where no name was given. Kubernetes wants lower case; host names come in any.
func (l *Loaded) defaultNodeName(hostname func() (string, error), errs *[]error) {
	if l.Config.NodeName == "" && hostname != nil {
		name, err := hostname()
		if err != nil {
			*errs = append(*errs, problemf("node-name", "set node-name", "read the host name: %w", err))
			return
		}
		l.Config.NodeName = name
	}
	l.Config.NodeName = strings.ToLower(l.Config.NodeName)
}

// validate runs Validate, puts the origin in front of each problem, and adds the warnings that need to know origins.
func (l *Loaded) validate() []error {
	var errs []error
	for _, err := range split(l.Config.Validate()) {
		var p *problem
		if errors.As(err, &p) {
			err = at(l.originOf(p.setting), err)
		}
		errs = append(errs, err)
	}
	for _, text := range l.Config.warnings() {
		l.warn(text)
	}
	return errs
}

// flags makes a layer of what the command line gave.
func flags(values map[string][]string) layer {
	list := settings()
	out := layer{}
	for name, raws := range values {
		if name == "config" || len(raws) == 0 {
			continue
		}
		canonical := name
		if s, ok := find(list, name); ok {
			canonical = s.name
		}
		origin := Origin{Kind: FromFlag, Name: "--" + name}
		if len(name) == 1 {
			origin.Name = "-" + name
		}
		for _, raw := range raws {
			out[canonical] = append(out[canonical], given{raw, origin})
		}
	}
	return out
}

// environment makes a layer of the variables that settings name, and warns of those that look like one but are none.
// Other ATOLL_ variables are left alone: the installer and the tests have theirs.
func environment(environ []string) (layer, []string) {
	byVariable := map[string]string{fileVariable: ""}
	for _, s := range settings() {
		if s.env != "" {
			byVariable[s.env] = s.name
		}
	}
	for _, f := range foreigners() {
		byVariable[f.variable()] = f.name
	}
	out := layer{}
	var warnings []string
	for _, pair := range slices.Sorted(slices.Values(environ)) {
		variable, value, _ := strings.Cut(pair, "=")
		name, known := byVariable[variable]
		rest, isK3s := strings.CutPrefix(variable, "K3S_")
		switch {
		case value == "":
		case known && name != "":
			out[name] = append(out[name], given{value, Origin{Kind: FromEnv, Name: variable}})
		case isK3s:
			if _, ok := byVariable["ATOLL_"+rest]; ok {
				warnings = append(warnings, fmt.Sprintf("environment %s is not read: call it ATOLL_%s", variable, rest))
			}
		case !known && strings.HasPrefix(variable, "ATOLL_"):
			if near := nearestVariable(variable, byVariable); near != "" {
				warnings = append(warnings, fmt.Sprintf("environment %s is not read: did you mean %s?", variable, near))
			}
		}
	}
	return out, warnings
}

// nearestVariable is stricter than Nearest: a false alarm about somebody else's variable is worse than a missed hint.
func nearestVariable(variable string, known map[string]string) string {
	for _, k := range slices.Sorted(maps.Keys(known)) {
		if distance(variable, k) <= 2 {
			return k
		}
	}
	return ""
}

func lookup(environ []string, variable string) string {
	for _, pair := range slices.Backward(environ) {
		if name, value, _ := strings.Cut(pair, "="); name == variable {
			return value
		}
	}
	return ""
}
