package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Kind tells from which layer a value came.
type Kind string

// The layers, lowest first.
const (
	FromDefault Kind = "default"
	FromEnv     Kind = "environment"
	FromFile    Kind = "file"
	FromFlag    Kind = "flag"
)

// Origin is the place that a value came from.
type Origin struct {
	Kind Kind
	Name string // the variable, the file or the flag as written
	Line int    // in a file, from 1
}

// String returns the place in words: "default", "environment ATOLL_TOKEN", "/etc/atoll/config.yaml:3" or "flag --token".
func (o Origin) String() string {
	switch o.Kind {
	case FromFile:
		return fmt.Sprintf("%s:%d", o.Name, o.Line)
	case FromDefault:
		return string(o.Kind)
	}
	return string(o.Kind) + " " + o.Name
}

// given is one value as somebody wrote it.
type given struct {
	raw string
	at  Origin
}

// layer holds what was given for each setting, by the name as written.
type layer map[string][]given

// inOrder returns the names by the place at which they were given first, so that messages follow the file.
func (l layer) inOrder() []string {
	names := slices.Sorted(maps.Keys(l))
	slices.SortStableFunc(names, func(a, b string) int {
		x, y := l[a][0].at, l[b][0].at
		return cmp.Or(strings.Compare(x.Name, y.Name), cmp.Compare(x.Line, y.Line))
	})
	return names
}

// Value is one row of `atoll config view`.
type Value struct {
	Name   string `json:"name"`
	Value  string `json:"value"` // secrets are redacted, lists joined by commas
	Origin string `json:"origin"`
}

// View returns every setting that the role has, in the order of the reference page, with its value and where that came from.
func (l *Loaded) View() []Value {
	var rows []Value
	for _, s := range settings() {
		if l.Config.Role == "" || s.has(l.Config.Role) {
			rows = append(rows, Value{s.name, s.show(l.Config), l.OriginOf(s.name)})
		}
	}
	return rows
}

// OriginOf tells in words where the value of a setting came from. A list that several files added to names them all.
func (l *Loaded) OriginOf(name string) string {
	var words []string
	for _, o := range l.origins[name] {
		if w := o.String(); !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	if len(words) == 0 {
		return string(FromDefault)
	}
	return strings.Join(words, ", ")
}

// originOf returns the first place that a setting came from.
func (l *Loaded) originOf(name string) Origin {
	if list := l.origins[name]; len(list) > 0 {
		return list[0]
	}
	return Origin{Kind: FromDefault}
}
