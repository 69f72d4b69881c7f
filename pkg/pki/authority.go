package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// validFrom is the start of every certificate. See "Clocks" in the package comment.
var validFrom = time.Unix(0, 0).UTC()

// authority is a certificate authority in memory.
type authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     *ecdsa.PrivateKey
}

// ensureAuthority loads the authority, or creates it if nothing on disk was signed by it.
// The key is written before the certificate: a key alone is a creation that power interrupted, and is used; a certificate alone is damage.
func ensureAuthority(name string, files KeyPair, used bool, at Reading) (*authority, error) {
	haveCert, haveKey := exists(files.Cert), exists(files.Key)
	if haveCert || (haveKey && used) {
		a, err := loadAuthority(files)
		if err != nil {
			return nil, lostRoot(fmt.Errorf("load the authority %s: %w", name, err), files.Cert+" and "+files.Key)
		}
		return a, nil
	}
	if used {
		return nil, lostRoot(fmt.Errorf("the authority %s is gone, but certificates that it signed are here", name), files.Cert+" and "+files.Key)
	}
	var key *ecdsa.PrivateKey
	var err error
	if haveKey {
		key, err = readKey(files.Key)
	} else {
		key, err = newKeyFile(files.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("create the authority %s: %w", name, err)
	}
	a, err := newAuthority(name, key, at.Effective)
	if err != nil {
		return nil, fmt.Errorf("create the authority %s: %w", name, err)
	}
	return a, atomicfile.Write(files.Cert, a.certPEM, 0o644)
}

func newAuthority(name string, key *ecdsa.PrivateKey, from time.Time) (*authority, error) {
	template := &x509.Certificate{
		// The time in the name tells authorities of rebuilt sites apart: some clients choose an authority by its name.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("atoll-%s@%d", name, from.Unix())},
		NotBefore:             validFrom,
		NotAfter:              from.Add(AuthorityLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, certPEM: certificatePEM(der), key: key}, nil
}

func loadAuthority(files KeyPair) (*authority, error) {
	cert, err := ReadCertificate(files.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readKey(files.Key)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", files.Key, files.Cert)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("%s is not the certificate of an authority", files.Cert)
	}
	return &authority{cert: cert, certPEM: certificatePEM(cert.Raw), key: key}, nil
}

// lostRoot adds what a person can do about something that cannot be made again.
func lostRoot(err error, files string) error {
	return remedy.Wrap(err, "put back %s from a backup of this site; only to start a new, empty cluster remove the whole folder `server` of the data folder", files)
}

// newKeyFile makes a key and writes it. P-256 is what every client of Kubernetes can verify, and is made in microseconds.
func newKeyFile(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	data, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(path, data, 0o600)
}

// ensureServiceAccountKey makes the key with which the API server signs service account tokens (ES256), unless it is there.
func ensureServiceAccountKey(path string, begun bool) error {
	_, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) && !begun {
		_, err = newKeyFile(path)
		return err
	}
	if err != nil {
		return lostRoot(fmt.Errorf("load the service account key: %w", err), path)
	}
	return nil
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return remedy.Wrap(fmt.Errorf("make the folder %s: %w", dir, err), "check that the data folder is writable and the disk is not full")
	}
	return tightenTo(dir, 0o700)
}
