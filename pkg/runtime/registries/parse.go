package registries

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/atollhq/atoll/pkg/config"
)

// maxEntries bounds the hosts of a section and the endpoints of a host: aliases of YAML make a small file name many.
const maxEntries = 1000

// parse reads the YAML strictly: what is not known is an error with its line and the nearest name. It does not check the values.
func parse(file string, data []byte) (Config, error) {
	r := &reader{file: file}
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return Config{}, nil
	} else if err != nil {
		return Config{}, r.syntax(err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		if err != nil {
			return Config{}, r.syntax(err)
		}
		return Config{}, place{file, 1}.wrong("remove the line with --- and what follows it", "the file has more than one YAML document")
	}
	c := Config{}
	r.mapping(doc.Content[0], "the file", []string{"mirrors", "configs"}, func(name string, _, v *yaml.Node) {
		switch name {
		case "mirrors":
			c.Mirrors = map[string]Mirror{}
			r.mapping(v, name, nil, func(host string, key, v *yaml.Node) { c.Mirrors[host] = r.mirror(host, key, v) })
		case "configs":
			c.Configs = map[string]Registry{}
			r.mapping(v, name, nil, func(host string, key, v *yaml.Node) { c.Configs[host] = r.registry(host, key, v) })
		}
	})
	return c, errors.Join(r.errs...)
}

// reader collects what is wrong while it walks the tree. Every level of the file has its own call, so no alias can send it in circles.
type reader struct {
	file string
	errs []error
}

func (r *reader) wrong(n *yaml.Node, try, format string, args ...any) {
	r.errs = append(r.errs, place{r.file, n.Line}.wrong(try, format, args...))
}

func (r *reader) syntax(err error) error {
	const try = `correct the YAML there or in the line before: indent with spaces, and put quotes around "*"`
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		number, what, _ := strings.Cut(rest, ": ")
		line, _ := strconv.Atoi(number)
		return place{r.file, line}.wrong(try, "%s", what)
	}
	return place{r.file, 1}.wrong(try, "%s", text)
}

func (r *reader) mirror(host string, key, value *yaml.Node) Mirror {
	m := Mirror{at: place{r.file, key.Line}}
	r.mapping(value, "mirror "+host, []string{"endpoint", "rewrite"}, func(name string, _, v *yaml.Node) {
		switch name {
		case "endpoint":
			m.Endpoints = r.list(v, "endpoint of "+host)
		case "rewrite":
			m.Rewrites = map[string]string{}
			r.mapping(v, "rewrite of "+host, nil, func(pattern string, _, v *yaml.Node) { m.Rewrites[pattern] = r.text(v, "rewrite of "+host) })
		}
	})
	return m
}

func (r *reader) registry(host string, key, value *yaml.Node) Registry {
	out := Registry{at: place{r.file, key.Line}}
	r.mapping(value, "config "+host, []string{"auth", "tls"}, func(name string, _, v *yaml.Node) {
		switch name {
		case "auth":
			out.Auth = r.auth(host, v)
		case "tls":
			out.TLS = r.tls(host, v)
		}
	})
	return out
}

func (r *reader) auth(host string, value *yaml.Node) *Auth {
	a := &Auth{}
	known := []string{"username", "password", "auth", "identity_token", "token"}
	r.mapping(value, "auth of "+host, known, func(name string, key, v *yaml.Node) {
		text := r.text(v, name+" of "+host)
		switch name {
		case "username":
			a.Username = text
		case "password":
			a.Password = config.NewSecret(text)
		case "auth":
			a.Auth = config.NewSecret(strings.TrimSpace(text))
		case "identity_token", "token": // K3s' code and its manual disagree about the name
			if a.IdentityToken.Reveal() != "" && text != "" {
				r.wrong(key, "keep identity_token", "%s has identity_token and token, which are the same", host)
			}
			a.IdentityToken = config.NewSecret(text)
		}
	})
	if *a == (Auth{}) {
		return nil
	}
	return a
}

func (r *reader) tls(host string, value *yaml.Node) *TLS {
	t := &TLS{}
	known := []string{"ca_file", "cert_file", "key_file", "insecure_skip_verify"}
	r.mapping(value, "tls of "+host, known, func(name string, _, v *yaml.Node) {
		switch name {
		case "ca_file":
			t.CAFile = r.text(v, name+" of "+host)
		case "cert_file":
			t.CertFile = r.text(v, name+" of "+host)
		case "key_file":
			t.KeyFile = r.text(v, name+" of "+host)
		case "insecure_skip_verify":
			v = resolve(v)
			if v.Tag != "!!null" && v.Decode(&t.InsecureSkipVerify) != nil {
				r.wrong(v, "write true or false, without quotes", "%s of %s is neither true nor false", name, host)
			}
		}
	})
	if *t == (TLS{}) {
		return nil
	}
	return t
}

// mapping calls visit for every key of n. With known names, others are errors. No value at all is an empty mapping.
func (r *reader) mapping(n *yaml.Node, what string, known []string, visit func(name string, key, value *yaml.Node)) {
	n = resolve(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.wrong(n, "write `key: value` lines, indented below it", "%s is not a mapping", what)
		return
	}
	if len(n.Content)/2 > maxEntries {
		r.wrong(n, "check that it is the right file", "%s has more than %d entries", what, maxEntries)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		switch line := seen[name]; {
		case key.Tag == "!!merge":
			r.wrong(key, "write out what the anchor stands for, or use it as the whole value: `KEY: *name`", "%s uses <<, which is not supported here", what)
			continue
		case key.Kind != yaml.ScalarNode || name == "":
			r.wrong(key, "write a name before the colon", "%s has a key that is not a name", what)
			continue
		case line != 0:
			r.wrong(key, "put both into one entry", "%s has %s twice, first in line %d", what, name, line)
			continue
		case known != nil && !slices.Contains(known, name):
			r.wrong(key, hint(name, known), "unknown key %s in %s", name, what)
			continue
		}
		seen[name] = key.Line
		visit(name, key, value)
	}
}

func (r *reader) list(n *yaml.Node, what string) []string {
	n = resolve(n)
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.wrong(n, "write each value in a line of its own that starts with a dash", "%s is not a list", what)
		return nil
	}
	if len(n.Content) > maxEntries {
		r.wrong(n, "check that it is the right file", "%s has more than %d values", what, maxEntries)
		return nil
	}
	var out []string
	for _, v := range n.Content {
		out = append(out, r.text(v, what))
	}
	return out
}

// text returns a scalar as it is written, so that a password of digits stays what it is. No value is "".
func (r *reader) text(n *yaml.Node, what string) string {
	n = resolve(n)
	switch {
	case isNull(n):
		return ""
	case n.Kind != yaml.ScalarNode || n.Tag == "!!binary":
		r.wrong(n, "write one value in quotes", "%s is not a text", what)
		return ""
	}
	return n.Value
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// hint names the key that was probably meant.
func hint(name string, known []string) string {
	var dashed []string // the form in which Nearest compares
	for _, k := range known {
		dashed = append(dashed, strings.ReplaceAll(k, "_", "-"))
	}
	if near := config.Nearest(name, dashed); near != "" {
		return fmt.Sprintf("did you mean %s?", strings.ReplaceAll(near, "-", "_"))
	}
	return "use one of " + strings.Join(known, ", ")
}
