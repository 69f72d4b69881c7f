package config

import (
	"slices"
	"strings"
)

// Complete lists what the shell may put in place of word, the last and unfinished word of a command line; before is the word
// in front of it. It returns nothing where a path or a value of the owner's own is wanted.
// The completion of cli offers hidden flags too, and no values.
func Complete(role Role, before, word string) []string {
	flagName, value, hasValue := strings.Cut(word, "=")
	if hasValue && strings.HasPrefix(word, "--") {
		return prefixed(flagName+"=", valuesOf(role, strings.TrimLeft(flagName, "-")), value)
	}
	if s, ok := find(settings(), strings.TrimLeft(before, "-")); ok && strings.HasPrefix(before, "-") && !s.isBool() {
		return prefixed("", valuesOf(role, s.name), word)
	}
	if before == "--config" || before == "-c" {
		return nil
	}
	var out []string
	for _, name := range FlagNames(role) {
		if f := dashes(name); strings.HasPrefix(f, word) && (strings.HasPrefix(word, "-") || word == "") && len(name) > 1 {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return out
}

// valuesOf lists the words that a setting takes, if it takes only certain words.
func valuesOf(role Role, name string) []string {
	s, ok := find(settings(), name)
	switch {
	case !ok || !s.has(role):
		return nil
	case s.name == "disable":
		return parts()
	case s.isBool():
		return []string{"true", "false"}
	}
	return s.oneOf
}

func prefixed(front string, words []string, start string) []string {
	var out []string
	for _, w := range words {
		if strings.HasPrefix(w, start) {
			out = append(out, front+w)
		}
	}
	return out
}
