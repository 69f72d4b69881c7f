package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// errDamaged marks content that cannot be what was written.
var errDamaged = errors.New("damaged")

// Larger files are not ours.
const maxFileBytes = 256 << 10

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s: %w: longer than %d bytes", path, errDamaged, maxFileBytes)
	}
	return data, nil
}

// readLeaf reads a file that holds a certificate and its key.
func readLeaf(path string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, nil, err
	}
	cert, key, err := parsePEM(data)
	switch {
	case err != nil:
	case cert == nil:
		err = errors.New("no certificate in the file")
	case key == nil:
		err = errors.New("no key in the file")
	case !key.PublicKey.Equal(cert.PublicKey):
		err = errors.New("the key is not that of the certificate")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w: %w", path, errDamaged, err)
	}
	return cert, key, nil
}

// ReadCertificate reads the first certificate in a file.
func ReadCertificate(path string) (*x509.Certificate, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	cert, _, err := parsePEM(data)
	if err == nil && cert == nil {
		err = errors.New("no certificate in the file")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, errDamaged, err)
	}
	return cert, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	_, key, err := parsePEM(data)
	if err == nil && key == nil {
		err = errors.New("no key in the file")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, errDamaged, err)
	}
	return key, tighten(path)
}

// parsePEM returns the first certificate and the first key in data; either may be missing.
func parsePEM(data []byte) (cert *x509.Certificate, key *ecdsa.PrivateKey, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return cert, key, nil
		}
		switch {
		case block.Type == "CERTIFICATE" && cert == nil:
			cert, err = x509.ParseCertificate(block.Bytes)
		case block.Type == "EC PRIVATE KEY" && key == nil:
			key, err = x509.ParseECPrivateKey(block.Bytes)
			if err == nil && key.Curve != elliptic.P256() {
				err = errors.New("the key is not on the curve P-256")
			}
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// keyPEM writes a key in the older of two forms: Kubernetes takes the public half of a private key file from this one only.
func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// tighten takes from others the right to read a secret.
func tighten(path string) error { return tightenTo(path, 0o600) }

func tightenTo(path string, perm fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	return os.Chmod(path, perm)
}

func writeFile(path string, data []byte, perm fs.FileMode) error {
	_, err := atomicfile.WriteIfChanged(path, data, perm)
	return err
}

// lock waits for and takes the lock that keeps two processes from issuing at once.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the certificates: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock the certificates: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
