package process

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Args is a set of command-line arguments of an upstream component: flag name without dashes to value.
type Args map[string]string

// With returns a copy of a in which the users' arguments, "name=value" or "--name=value" or just "name", have replaced ours.
// Only the last value of a name counts, except that feature-gates are joined.
func (a Args) With(user []string) Args {
	out := maps.Clone(a)
	for _, arg := range user {
		name, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !ok {
			value = "true"
		}
		if name == "feature-gates" && out[name] != "" {
			value = out[name] + "," + value
		}
		out[name] = value
	}
	return out
}

// List returns the arguments as --name=value in name order.
func (a Args) List() []string {
	out := make([]string, 0, len(a))
	for _, name := range slices.Sorted(maps.Keys(a)) {
		out = append(out, "--"+name+"="+a[name])
	}
	return out
}

// Parse parses a with the flags of an upstream component. A flag that the component does not know is an error with a remedy that
// names the atoll flag through which the user gave it.
func Parse(component string, args Args, sets cliflag.NamedFlagSets) (*pflag.FlagSet, error) {
	fs := pflag.NewFlagSet(component, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, name := range sets.Order {
		fs.AddFlagSet(sets.FlagSets[name])
	}
	if err := fs.Parse(args.List()); err != nil {
		return nil, remedy.Wrap(fmt.Errorf("arguments of %s: %w", component, err),
			"check --%s-arg and its values in the configuration file", component)
	}
	return fs, nil
}
