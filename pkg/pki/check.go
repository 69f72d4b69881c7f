package pki

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"time"
)

// States of a certificate, from good to bad.
const (
	StateOK      = "ok"
	StateDue     = "due" // is renewed soon, by itself; for an authority: a person must plan
	StateExpired = "expired"
	StateNotYet  = "not yet valid"
	StateDamaged = "damaged"
	StateMissing = "missing"
)

// Info describes one certificate on disk.
type Info struct {
	Name      string    `json:"name"`
	File      string    `json:"file"`
	Authority bool      `json:"authority"`
	Subject   string    `json:"subject,omitempty"`
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	Days      int       `json:"days"` // left, rounded down; negative after the end
	SHA256    string    `json:"sha256,omitempty"`
	State     string    `json:"state"`
	Error     string    `json:"error,omitempty"`
}

// Check describes every certificate that a node with this data folder should have. An agent has those of every node only.
// It changes nothing and needs no running process.
func Check(dataDir string, now time.Time) []Info {
	p := PathsIn(dataDir)
	specs := nodeLeaves(p, "", nil)
	var infos []Info
	if _, err := os.Stat(p.ServerTLS); err == nil {
		specs = serverLeaves(p, Subject{})
		for _, name := range authorityNames {
			infos = append(infos, checkFile(name, p.authority(name).Cert, true, now))
		}
	} else {
		infos = append(infos, checkFile(serverCA, p.AgentServerCA, true, now), checkFile(clientCA, p.AgentClientCA, true, now))
	}
	for _, spec := range specs {
		infos = append(infos, checkFile(spec.name, spec.path, false, now))
	}
	return infos
}

func checkFile(name, path string, isAuthority bool, now time.Time) Info {
	info := Info{Name: name, File: path, Authority: isAuthority}
	var cert *x509.Certificate
	var err error
	if isAuthority {
		cert, err = ReadCertificate(path)
	} else {
		cert, _, err = readLeaf(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		info.State = StateMissing
		return info
	case err != nil:
		info.State, info.Error = StateDamaged, err.Error()
		return info
	}
	info.Subject, info.Issuer = cert.Subject.String(), cert.Issuer.CommonName
	info.NotBefore, info.NotAfter, info.SHA256 = cert.NotBefore, cert.NotAfter, Hash(cert)
	left := cert.NotAfter.Sub(now)
	info.Days = int(left / (24 * time.Hour))
	due := RenewBefore
	if isAuthority {
		due = LeafLifetime
	}
	switch {
	case now.Before(cert.NotBefore):
		info.State = StateNotYet
	case left < 0:
		info.State = StateExpired
		info.Days--
	case left < due:
		info.State = StateDue
	default:
		info.State = StateOK
	}
	return info
}
