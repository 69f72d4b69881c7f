package pki

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// encryptionConfig is the part of apiserver.config.k8s.io/v1 EncryptionConfiguration that we write. JSON, which is YAML too.
type encryptionConfig struct {
	Kind       string               `json:"kind"`
	APIVersion string               `json:"apiVersion"`
	Resources  []encryptedResources `json:"resources"`
}

type encryptedResources struct {
	Resources []string             `json:"resources"`
	Providers []encryptionProvider `json:"providers"`
}

type encryptionProvider struct {
	Secretbox *encryptionKeys `json:"secretbox,omitempty"`
	Identity  *struct{}       `json:"identity,omitempty"`
}

type encryptionKeys struct {
	Keys []encryptionKey `json:"keys"`
}

type encryptionKey struct {
	Name   string `json:"name"`
	Secret string `json:"secret"` // base64 of 32 bytes
}

// ensureEncryption makes the key that encrypts Secrets in the datastore, unless it is there. XSalsa20-Poly1305 ("secretbox") is what
// upstream recommends for a key that is kept locally. The provider "identity" lets Secrets be read that were stored without encryption.
func ensureEncryption(path string, begun bool) error {
	data, err := readBounded(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !begun:
		return writeEncryption(path)
	case err == nil:
		if err = checkEncryption(data); err == nil {
			return tighten(path)
		}
		err = fmt.Errorf("%s: %w: %w", path, errDamaged, err)
	}
	return lostRoot(fmt.Errorf("load the key that encrypts secrets: %w", err), path)
}

func writeEncryption(path string) error {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	config := encryptionConfig{
		Kind: "EncryptionConfiguration", APIVersion: "apiserver.config.k8s.io/v1",
		Resources: []encryptedResources{{
			Resources: []string{"secrets"},
			Providers: []encryptionProvider{
				{Secretbox: &encryptionKeys{Keys: []encryptionKey{{Name: "key1", Secret: base64.StdEncoding.EncodeToString(key)}}}},
				{Identity: &struct{}{}},
			},
		}},
	}
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// checkEncryption finds damage, not bad taste: a person may have added resources or providers.
func checkEncryption(data []byte) error {
	var config encryptionConfig
	if err := json.Unmarshal(data, &config); err != nil {
		return err
	}
	if config.Kind != "EncryptionConfiguration" || len(config.Resources) == 0 {
		return errors.New("not an EncryptionConfiguration")
	}
	for _, r := range config.Resources {
		for _, p := range r.Providers {
			if p.Secretbox == nil {
				continue
			}
			for _, k := range p.Secretbox.Keys {
				if key, err := base64.StdEncoding.DecodeString(k.Secret); err != nil || len(key) != 32 {
					return fmt.Errorf("the key %q is not base64 of 32 bytes", k.Name)
				}
			}
		}
	}
	return nil
}

var nodePasswordPattern = regexp.MustCompile(`\A[0-9a-f]{32}\z`)

// ValidNodePassword tells whether s can be a password made by EnsureNodePassword: 128 random bits in hex.
func ValidNodePassword(s string) bool { return nodePasswordPattern.MatchString(s) }

// EnsureNodePassword returns the password by which this machine proves to be the one that joined under its name, and makes it if
// it is not there. A damaged one is moved aside and replaced; the server then refuses the name and says what to do.
func EnsureNodePassword(dataDir string, log *slog.Logger) (string, error) {
	path := PathsIn(dataDir).NodePassword
	data, err := readBounded(path)
	if err == nil {
		if p := strings.TrimSpace(string(data)); ValidNodePassword(p) {
			return p, tighten(path)
		}
		aside, err := moveAside(path, time.Now())
		if err != nil {
			return "", err
		}
		log.Warn("damaged node password moved aside", "aside", aside)
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the node password: %w", err)
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return "", err
	}
	random := make([]byte, 16)
	_, _ = rand.Read(random)
	password := hex.EncodeToString(random)
	return password, atomicfile.Write(path, []byte(password+"\n"), 0o600)
}
