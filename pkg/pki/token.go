package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// The full form of a token is A10<hash of the server authority in hex>::<user>:<secret>, or, for one that expires,
// A10<hash>::<id>.<secret>. The hash lets a joining node know the site before it shows the secret. The short form is what
// follows the last mark: the secret alone, or <id>.<secret>. It trusts whoever answers first.
const (
	tokenPrefix    = "A10"
	hashLen        = 2 * sha256.Size
	minSecretLen   = 8
	maxSecretLen   = 256
	maxTokenLen    = 512
	UserServer     = "server"
	UserAgent      = "agent"
	secretAlphabet = "letters, digits and marks without spaces"
)

var joinTokenPattern = regexp.MustCompile(`\A([a-z0-9]{6})\.([a-z0-9]{16})\z`)

// Token is a parsed token. It prints as "[redacted]" everywhere; Full gives the text.
type Token struct {
	caHash string
	user   string
	secret string
}

// ParseToken reads a token in either form. White space around it is ignored. Errors never contain the token.
func ParseToken(s string) (Token, error) {
	const again = "copy the whole line from <data-dir>/server/token of a server, or make one there with `atoll token create`"
	s = strings.TrimSpace(s)
	switch {
	case s == "":
		return Token{}, remedy.Wrap(errors.New("the token is empty"), "%s", again)
	case len(s) > maxTokenLen:
		return Token{}, remedy.Wrap(fmt.Errorf("the token is %d characters long, more than %d", len(s), maxTokenLen), "%s", again)
	case isFull(s, "K10"):
		return Token{}, remedy.Wrap(errors.New("this is a token of a K3s cluster"),
			"use a token of this site, which starts with %s: %s", tokenPrefix, again)
	case isFull(s, tokenPrefix):
		return parseFull(s, again)
	}
	t := Token{secret: s}
	if err := checkSecret(s); err != nil {
		return Token{}, err
	}
	return t, nil
}

func isFull(s, prefix string) bool {
	return strings.HasPrefix(s, prefix) && strings.Contains(s, "::")
}

func parseFull(s, again string) (Token, error) {
	hash, rest, _ := strings.Cut(strings.TrimPrefix(s, tokenPrefix), "::")
	if _, err := hex.DecodeString(hash); err != nil || len(hash) != hashLen {
		return Token{}, remedy.Wrap(fmt.Errorf("the token is damaged: %d characters between %s and :: instead of %d hexadecimal digits",
			len(hash), tokenPrefix, hashLen), "%s", again)
	}
	t := Token{caHash: strings.ToLower(hash), secret: rest}
	if !joinTokenPattern.MatchString(rest) {
		var found bool
		if t.user, t.secret, found = strings.Cut(rest, ":"); !found || (t.user != UserServer && t.user != UserAgent) {
			return Token{}, remedy.Wrap(fmt.Errorf("the token is damaged: :: must be followed by %s:, %s: or an expiring token", UserServer, UserAgent), "%s", again)
		}
	}
	if err := checkSecret(t.secret); err != nil {
		return Token{}, err
	}
	return t, nil
}

func checkSecret(s string) error {
	if len(s) < minSecretLen || len(s) > maxSecretLen {
		return remedy.Wrap(fmt.Errorf("the secret of the token has %d characters, not %d to %d", len(s), minSecretLen, maxSecretLen),
			"use the output of `atoll token generate`")
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return remedy.Wrap(errors.New("the secret of the token contains a space, a control character or a character that is not ASCII"),
				"use %s, or the output of `atoll token generate`", secretAlphabet)
		}
	}
	return nil
}

// NewToken puts a token together. hash may be empty for the short form. secret is a plain secret or an expiring "<id>.<secret>",
// for which user does not count.
func NewToken(hash, user, secret string) (Token, error) {
	if hash == "" {
		return ParseToken(secret)
	}
	if joinTokenPattern.MatchString(secret) {
		return ParseToken(tokenPrefix + hash + "::" + secret)
	}
	return ParseToken(tokenPrefix + hash + "::" + user + ":" + secret)
}

// GenerateSecret returns a secret of 128 random bits.
func GenerateSecret() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// CAHash is the hash of the authority that the token vouches for, or "" in the short form.
func (t Token) CAHash() string { return t.caHash }

// User is UserServer, UserAgent, or "" for short and expiring tokens.
func (t Token) User() string { return t.user }

// Secret is what proves membership: the plain secret or "<id>.<secret>".
func (t Token) Secret() string { return t.secret }

// Expiring returns the two parts of a token made by `atoll token create`.
func (t Token) Expiring() (id, secret string, ok bool) {
	m := joinTokenPattern.FindStringSubmatch(t.secret)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// Full returns the text of the token, for files and for the person who asked.
func (t Token) Full() string {
	switch {
	case t.caHash == "":
		return t.secret
	case t.user == "":
		return tokenPrefix + t.caHash + "::" + t.secret
	}
	return tokenPrefix + t.caHash + "::" + t.user + ":" + t.secret
}

// Matches compares secrets in a time that does not depend on where they differ.
func (t Token) Matches(secret string) bool { return SameSecret(t.secret, secret) }

// SameSecret compares two secrets in a time that tells nothing about either.
func SameSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

const redacted = "[redacted]"

// String hides the token.
func (t Token) String() string { return redacted }

// GoString hides the token.
func (t Token) GoString() string { return redacted }

// LogValue hides the token.
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the token.
func (t Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ReadToken reads a token file. Errors: fs.ErrNotExist.
func ReadToken(path string) (Token, error) {
	data, err := readBounded(path)
	if err != nil {
		return Token{}, fmt.Errorf("read the token: %w", err)
	}
	t, err := ParseToken(string(data))
	if err != nil {
		return Token{}, fmt.Errorf("read the token in %s: %w", path, err)
	}
	return t, nil
}

// EnsureTokens writes the token files of a server: the given secrets (short or full form; either may be empty), or what is there,
// or new ones. Without an agent token agents use the server's. A given token that is not the one on disk is an error:
// tokens change by RotateToken, because other nodes hold the old one.
func EnsureTokens(dataDir, caHash, givenServer, givenAgent string) (server, agent Token, err error) {
	p := PathsIn(dataDir)
	if server, err = ensureToken(p.ServerToken, caHash, UserServer, givenServer, GenerateSecret()); err != nil {
		return Token{}, Token{}, err
	}
	agent, err = ensureToken(p.AgentToken, caHash, UserAgent, givenAgent, server.secret)
	return server, agent, err
}

func ensureToken(path, caHash, user, given, otherwise string) (Token, error) {
	secret := otherwise
	if given != "" {
		t, err := ParseToken(given)
		if err != nil {
			return Token{}, fmt.Errorf("the %s token that was given: %w", user, err)
		}
		if _, _, expiring := t.Expiring(); expiring {
			return Token{}, remedy.Wrap(fmt.Errorf("the %s token that was given is an expiring one, which only joins agents", user),
				"give a secret of your own, or none")
		}
		secret = t.secret
	}
	have, err := ReadToken(path)
	switch {
	case err == nil && given != "" && !have.Matches(secret):
		return Token{}, remedy.Wrap(fmt.Errorf("the %s token that was given is not the one of this site", user),
			"leave out the token, or give the one in %s; to change it use `atoll token rotate`", path)
	case err == nil:
		secret = have.secret
	case !errors.Is(err, fs.ErrNotExist) && given == "":
		return Token{}, remedy.Wrap(err, "write the token of this site into %s, or remove the file to get a new one", path)
	}
	return writeToken(path, caHash, user, secret)
}

func writeToken(path, caHash, user, secret string) (Token, error) {
	t, err := NewToken(caHash, user, secret)
	if err != nil {
		return Token{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Token{}, fmt.Errorf("write the token: %w", err)
	}
	_, err = atomicfile.WriteIfChanged(path, []byte(t.Full()+"\n"), 0o600)
	return t, err
}

// RotateToken replaces the secret of the server or agent token. old proves that the caller may; an empty next is made up.
// The supervisor reads the file at each join, so the new token counts at once. Nodes that have joined are not affected.
// While the agent token is the server's, both change.
func RotateToken(dataDir, user, old, next string) (Token, error) {
	p := PathsIn(dataDir)
	path := p.ServerToken
	if user == UserAgent {
		path = p.AgentToken
	}
	have, err := ReadToken(path)
	if err != nil {
		return Token{}, err
	}
	given, err := ParseToken(old)
	if err != nil {
		return Token{}, fmt.Errorf("the present token: %w", err)
	}
	if !have.Matches(given.secret) {
		return Token{}, remedy.Wrap(errors.New("the present token is a different one"), "give the token in %s", path)
	}
	if next == "" {
		next = GenerateSecret()
	}
	wanted, err := ParseToken(next)
	if err != nil {
		return Token{}, fmt.Errorf("the new token: %w", err)
	}
	if _, _, expiring := wanted.Expiring(); expiring {
		return Token{}, remedy.Wrap(errors.New("the new token looks like an expiring one"), "choose a secret without a dot, or none")
	}
	if user == UserServer {
		if agent, err := ReadToken(p.AgentToken); err == nil && agent.Matches(have.secret) {
			if _, err := writeToken(p.AgentToken, agent.caHash, UserAgent, wanted.secret); err != nil {
				return Token{}, err
			}
		}
	}
	return writeToken(path, have.caHash, user, wanted.secret)
}
