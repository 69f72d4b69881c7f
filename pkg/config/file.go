package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/atollhq/atoll/pkg/remedy"
)

// maxFileBytes bounds a configuration file. A real one has a few hundred bytes; what is larger was not meant to be one.
const maxFileBytes = 1 << 20

// maxKeys bounds the keys of one file: each unknown one is compared with every name there is.
const maxKeys = 1000

// maxDropIns bounds the files of the drop-in folder.
const maxDropIns = 1000

// entry is one key of a file.
type entry struct {
	name   string // without the plus
	add    bool   // written as `name+`
	shape  yaml.Kind
	values []given
	at     Origin
}

// readFiles reads the main file and its drop-ins, in the order in which they apply, and merges them.
// A main file that is missing is an error when required.
func readFiles(path string, required bool) (merged layer, files, warnings []string, err error) {
	var errs []error
	merged = layer{}
	dropIns, err := listDropIns(path + ".d")
	if err != nil {
		errs = append(errs, err)
	}
	for i, file := range append([]string{path}, dropIns...) {
		data, mode, err := readBounded(file)
		if i == 0 && !required && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, &problem{"config", err})
			continue
		}
		files = append(files, file)
		entries, err := parseFile(file, data)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, merge(merged, entries)...)
		if mode.Perm()&0o004 != 0 && holdsSecret(entries) {
			warnings = append(warnings, fmt.Sprintf("%s holds a secret and every user of this machine can read it: run chmod 600 %s", file, file))
		}
	}
	return merged, files, warnings, errors.Join(errs...)
}

// listDropIns returns the YAML files of folder by name; a missing folder has none.
func listDropIns(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &problem{"config", remedy.Wrap(fmt.Errorf("list drop-ins: %w", err), "make %s a folder that root can read, or remove it", folder)}
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(folder, e.Name()))
		}
	}
	if len(files) > maxDropIns {
		return nil, problemf("config", "remove what does not belong into "+folder, "%s has %d files, more than %d", folder, len(files), maxDropIns)
	}
	return files, nil
}

// readBounded reads a regular file of at most maxFileBytes.
func readBounded(path string) ([]byte, fs.FileMode, error) {
	if strings.HasPrefix(path, "http://") || strings.HasPrefix(path, "https://") {
		return nil, 0, remedy.Wrap(fmt.Errorf("configuration file %s is not a path", path), "download it first, and give --config the path of the copy")
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, remedy.Wrap(fmt.Errorf("read configuration: %w", err), "create %s, or name another file with --config", path)
	}
	if !info.Mode().IsRegular() {
		return nil, 0, remedy.Wrap(fmt.Errorf("configuration %s is not a regular file", path), "replace %s by a file, or name another with --config", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, remedy.Wrap(fmt.Errorf("read configuration: %w", err), "run this as root, or make %s readable", path)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, 0, remedy.Wrap(fmt.Errorf("read configuration: %w", err), "check the disk that holds %s", path)
	}
	if len(data) > maxFileBytes {
		return nil, 0, remedy.Wrap(fmt.Errorf("configuration %s is larger than 1 MiB", path), "check that %s is the right file: a configuration has a few hundred bytes", path)
	}
	return data, info.Mode(), nil
}

// parseFile turns YAML into entries. It knows the shape of a configuration (a mapping to scalars, lists of scalars or
// mappings of scalars), not the names in it.
func parseFile(path string, data []byte) ([]entry, error) {
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil // empty, or nothing but comments
	} else if err != nil {
		return nil, syntaxError(path, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, syntaxError(path, err)
		}
		return nil, problemf("config", "remove the line with --- and what follows it, or make a drop-in of it", "%s has more than one YAML document", path)
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, problemf("config", "write one setting per line, such as data-dir: /var/lib/atoll", "%s:%d: expected settings as key: value", path, top.Line)
	}
	if keys := len(top.Content) / 2; keys > maxKeys {
		return nil, problemf("config", "check that "+path+" is the right file", "%s has %d keys, more than there are settings", path, keys)
	}
	var entries []entry
	var errs []error
	for i := 0; i+1 < len(top.Content); i += 2 {
		e, err := parseEntry(path, top.Content[i], top.Content[i+1])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		entries = append(entries, e)
	}
	return entries, errors.Join(errs...)
}

// syntaxError gives the line that the YAML library names in its text.
func syntaxError(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		line, what, _ := strings.Cut(rest, ": ")
		return problemf("config", "correct the YAML in that line or the one before; indent with spaces and quote values with a colon in them", "%s:%s: %s", path, line, what)
	}
	return problemf("config", "correct the YAML of that file", "%s: %s", path, text)
}

func parseEntry(path string, key, value *yaml.Node) (entry, error) {
	here := Origin{Kind: FromFile, Name: path, Line: key.Line}
	if key.Kind != yaml.ScalarNode || key.Value == "" || key.Tag == "!!merge" {
		return entry{}, problemf("config", "write the name of a setting before the colon", "%s: expected the name of a setting", here)
	}
	e := entry{name: strings.TrimSuffix(key.Value, "+"), add: strings.HasSuffix(key.Value, "+"), shape: value.Kind, at: here}
	add := func(prefix string, n *yaml.Node) error {
		there := Origin{Kind: FromFile, Name: path, Line: n.Line}
		switch {
		case n.Anchor != "" || n.Kind == yaml.AliasNode || n.Style&yaml.TaggedStyle != 0:
			return problemf(e.name, "write the value itself", "%s: %s uses an anchor, alias or tag of YAML, which is not supported here", there, e.name)
		case n.Kind != yaml.ScalarNode:
			return problemf(e.name, "write simple values; the reference page shows each setting", "%s: %s is nested too deeply", there, e.name)
		case n.Tag == "!!null":
			return problemf(e.name, "give it a value, or remove the line", "%s: %s has no value", there, e.name)
		}
		e.values = append(e.values, given{prefix + n.Value, there})
		return nil
	}
	var errs []error
	switch {
	case value.Anchor != "" || value.Style&yaml.TaggedStyle != 0 || value.Kind == yaml.ScalarNode || value.Kind == yaml.AliasNode:
		errs = append(errs, add("", value))
	case value.Kind == yaml.SequenceNode:
		for _, n := range value.Content {
			errs = append(errs, add("", n))
		}
	case value.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(value.Content); i += 2 {
			errs = append(errs, add(value.Content[i].Value+"=", value.Content[i+1]))
		}
	}
	return e, errors.Join(errs...)
}

// merge applies the entries of one file to what the files before it gave. Names are made canonical, so that `t` replaces `token`.
func merge(merged layer, entries []entry) []error {
	var errs []error
	list := settings()
	seen := map[string]entry{}
	for _, e := range entries {
		s, known := find(list, e.name)
		if known {
			e.name = s.name
		}
		if other, ok := seen[e.name]; ok && other.add == e.add {
			errs = append(errs, problemf(e.name, "keep one of the two lines; a list takes several values below one key", "%s: %s is already set on line %d", e.at, e.name, other.at.Line))
			continue
		}
		seen[e.name] = e
		if known {
			if err := checkShape(s, e); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if !e.add {
			merged[e.name] = nil
		}
		if len(e.values) == 0 { // an empty list is a value too: it replaces what came before
			e.values = []given{{"", e.at}}
		}
		merged[e.name] = append(merged[e.name], e.values...)
	}
	return errs
}

// checkShape compares what the YAML looks like with what the setting takes.
func checkShape(s setting, e entry) error {
	wrong := func(try string) error {
		return problemf(s.name, try, "%s: %s: expected %s", e.at, s.name, expected(s.typ))
	}
	switch {
	case e.add && !s.isList():
		return problemf(s.name, fmt.Sprintf("write %s: VALUE, without the plus", s.name), "%s: %s takes one value, so nothing can be appended to it", e.at, s.name)
	case e.shape == yaml.MappingNode && s.typ.Kind() != reflect.Map:
		return wrong(fmt.Sprintf("write %s: VALUE on one line", s.name))
	case e.shape == yaml.SequenceNode && !s.isList() && len(e.values) != 1:
		return wrong(fmt.Sprintf("give %s one value instead of a list", s.name))
	}
	return nil
}

func holdsSecret(entries []entry) bool {
	list := settings()
	return slices.ContainsFunc(entries, func(e entry) bool {
		s, ok := find(list, e.name)
		return ok && s.isSecret()
	})
}
