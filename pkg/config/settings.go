package config

import (
	"encoding"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// setting is one tagged field of Config.
type setting struct {
	name    string
	aliases []string
	env     string
	group   string
	help    string
	value   string
	normal  string // the default in words, where it is computed
	role    Role   // "" means both
	split   string
	oneOf   []string
	index   int
	typ     reflect.Type
}

// settings lists the tagged fields of Config in the order of the struct.
func settings() []setting {
	t := reflect.TypeFor[Config]()
	var list []setting
	for i := range t.NumField() {
		f := t.Field(i)
		names := f.Tag.Get("name")
		if names == "" {
			continue
		}
		parts := strings.Split(names, ",")
		s := setting{
			name: parts[0], aliases: parts[1:], env: f.Tag.Get("env"), group: f.Tag.Get("group"), help: f.Tag.Get("help"),
			value: f.Tag.Get("value"), normal: f.Tag.Get("default"), role: Role(f.Tag.Get("for")), split: f.Tag.Get("split"), index: i, typ: f.Type,
		}
		if words := f.Tag.Get("oneof"); words != "" {
			s.oneOf = strings.Split(words, ",")
		}
		list = append(list, s)
	}
	return list
}

// find returns the setting with that name or alias.
func find(list []setting, name string) (setting, bool) {
	i := slices.IndexFunc(list, func(s setting) bool { return s.name == name || slices.Contains(s.aliases, name) })
	if i < 0 {
		return setting{}, false
	}
	return list[i], true
}

func (s setting) names() []string { return append([]string{s.name}, s.aliases...) }

func (s setting) has(role Role) bool { return s.role == "" || s.role == role }

func (s setting) isBool() bool { return s.typ.Kind() == reflect.Bool }

// isList tells whether the setting may be given several times.
func (s setting) isList() bool { return s.typ.Kind() == reflect.Slice || s.typ.Kind() == reflect.Map }

func (s setting) isSecret() bool { return s.typ == reflect.TypeFor[Secret]() }

// field returns the setting's place in c.
func (s setting) field(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().Field(s.index) }

// standard returns the default as text.
func (s setting) standard() string {
	if s.normal != "" {
		return s.normal
	}
	return s.show(Default())
}

// separate cuts one given value of a list into several where the setting says so. An empty value is none.
func (s setting) separate(raw string) []string {
	if raw == "" {
		return nil
	}
	if s.split == "" {
		return []string{raw}
	}
	var out []string
	for part := range strings.SplitSeq(raw, s.split) {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// add decodes raw into the setting of c: it replaces a single value and extends a list.
func (s setting) add(c *Config, raw string) error {
	field := s.field(c)
	if !s.isList() {
		return s.decode(field, s.typ, raw)
	}
	for _, part := range s.separate(raw) {
		if s.typ.Kind() == reflect.Map {
			key, value, ok := strings.Cut(part, "=")
			if !ok {
				return s.mismatch(part, s.typ)
			}
			if field.IsNil() {
				field.Set(reflect.MakeMap(s.typ))
			}
			field.SetMapIndex(reflect.ValueOf(key), reflect.ValueOf(value))
			continue
		}
		element := reflect.New(s.typ.Elem()).Elem()
		if err := s.decode(element, s.typ.Elem(), part); err != nil {
			return err
		}
		field.Set(reflect.Append(field, element))
	}
	return nil
}

// decode parses one value into v.
func (s setting) decode(v reflect.Value, t reflect.Type, raw string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(raw)); err != nil {
			return s.mismatch(raw, t)
		}
		return nil
	}
	switch t.Kind() {
	case reflect.String:
		v.SetString(raw)
	case reflect.Bool:
		b, ok := parseBool(raw)
		if !ok {
			return s.mismatch(raw, t)
		}
		v.SetBool(b)
	case reflect.Int:
		n, err := strconv.Atoi(raw)
		if err != nil {
			return s.mismatch(raw, t)
		}
		v.SetInt(int64(n))
	default:
		panic(fmt.Sprintf("setting %s has a type that nobody decodes: %v", s.name, t))
	}
	return nil
}

// parseBool takes the words of YAML 1.1 too: K3s users write yes and no.
func parseBool(raw string) (value, ok bool) {
	switch strings.ToLower(raw) {
	case "true", "yes", "on", "1":
		return true, true
	case "false", "no", "off", "0":
		return false, true
	}
	return false, false
}

// mismatch is the error for a value of the wrong type. What the parser said is left out: the line says what is wanted.
func (s setting) mismatch(raw string, t reflect.Type) error {
	if s.isSecret() {
		raw = redacted
	}
	return problemf(s.name, fmt.Sprintf("write %s as %s", s.name, expected(t)), "%s is %q: expected %s", s.name, clip(raw), expected(t))
}

// clip shortens what is quoted in a message.
func clip(raw string) string {
	if len(raw) > 80 {
		return strings.ToValidUTF8(raw[:80], "") + "..."
	}
	return raw
}

// expected says in words what a type wants.
func expected(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return "an IP address such as 192.168.1.10"
	case reflect.TypeFor[netip.Prefix]():
		return "an address range such as 10.42.0.0/16"
	case reflect.TypeFor[FileMode]():
		return "an octal file mode such as 0600"
	case reflect.TypeFor[PortRange]():
		return "two ports such as 30000-32767"
	case reflect.TypeFor[Taint]():
		return "a taint such as dedicated=pos:NoSchedule"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Map:
		return "key=value"
	case reflect.Slice:
		return "a list, each " + expected(t.Elem())
	}
	return "a text"
}

// show returns the value of the setting in c as text; lists are joined by commas, secrets are redacted.
func (s setting) show(c Config) string {
	v := s.field(&c)
	switch v.Kind() {
	case reflect.Map:
		m := v.Interface().(map[string]string) //nolint:forcetypeassert // the only map type among the settings
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			parts = append(parts, k+"="+m[k])
		}
		return strings.Join(parts, ",")
	case reflect.Slice:
		var parts []string
		for i := range v.Len() {
			parts = append(parts, fmt.Sprint(v.Index(i).Interface()))
		}
		return strings.Join(parts, ",")
	}
	if a, ok := v.Interface().(netip.Addr); ok && !a.IsValid() {
		return ""
	}
	if p, ok := v.Interface().(netip.Prefix); ok && !p.IsValid() {
		return ""
	}
	return fmt.Sprint(v.Interface())
}
