package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
)

const redacted = "[redacted]"

// Secret is a setting that must not be shown. Every way of printing, logging or encoding it gives "[redacted]", or "" when it is empty.
//
// The value is behind a pointer: fmt does not call methods of unexported fields, and so would print a plain string
// that lies in an unexported field of somebody else's struct.
type Secret struct{ value *string }

// NewSecret makes a Secret of s.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{&s}
}

// Reveal returns the value itself.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsEmpty tells whether there is no value.
func (s Secret) IsEmpty() bool { return s.Reveal() == "" }

// String returns "[redacted]", or "" when there is no value.
func (s Secret) String() string {
	if s.IsEmpty() {
		return ""
	}
	return redacted
}

// Format prints String whatever the verb, so that %x, %d and %#v do not get at the value or its address.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue is for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is for encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes the value itself.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}

// FileMode is the permission bits of a file, written in octal.
type FileMode fs.FileMode

// String returns the mode as 0600.
func (m FileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// MarshalText is String.
func (m FileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads 600, 0600 or 0o600.
func (m *FileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(string(text), "0o"), 8, 32)
	if err != nil || n > 0o777 {
		return errors.New("not an octal mode between 000 and 777")
	}
	*m = FileMode(n)
	return nil
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// String returns the range as FIRST-LAST.
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Contains tells whether port lies in the range.
func (r PortRange) Contains(port int) bool { return port >= int(r.First) && port <= int(r.Last) }

// MarshalText is String.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads FIRST-LAST.
func (r *PortRange) UnmarshalText(text []byte) error {
	first, last, _ := strings.Cut(string(text), "-")
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil {
		return errors.New("not two ports with a dash between them")
	}
	*r = PortRange{uint16(a), uint16(b)}
	return nil
}

// Taint keeps pods away from a node unless they tolerate it.
type Taint struct{ Key, Value, Effect string }

// String returns the taint as the kubelet's --register-with-taints wants it: KEY=VALUE:EFFECT.
func (t Taint) String() string { return t.Key + "=" + t.Value + ":" + t.Effect }

// MarshalText is String.
func (t Taint) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads KEY=VALUE:EFFECT or KEY:EFFECT. Whether the three are well-formed is for Validate.
func (t *Taint) UnmarshalText(text []byte) error {
	rest, effect, ok := strings.Cut(string(text), ":")
	if !ok {
		return errors.New("no effect after a colon")
	}
	key, value, _ := strings.Cut(rest, "=")
	*t = Taint{Key: key, Value: value, Effect: effect}
	return nil
}
