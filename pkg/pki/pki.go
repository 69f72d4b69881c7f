// Package pki makes and keeps the authorities, certificates, keys and tokens of one site.
//
// Ensure brings the files of a server to the wanted state; a Keeper keeps them there for as long as the process runs, so that no
// node ever needs a restart or a person for a certificate. Agents own no authority: their certificates are signed by a server
// (SignNode), and written and renewed by package formation.
//
// # Files
//
// Paths names them all. An authority is a .crt and a .key. A leaf is ONE .pem file with certificate and key, so that a rename
// replaces both at once and no reader can see the certificate of one pair with the key of another; every consumer is given the
// same path as certificate file and as key file. Renewal keeps the key (a file read twice, as Kubernetes does, then gives a valid
// pair whatever happens in between); Rotate makes new keys.
//
// # Clocks
//
// Shop boxes boot in 1970 or 2099. Every certificate is valid from 1970-01-01, so none is ever "not yet valid": an early start
// gives nobody anything, because a certificate proves who holds a key, not when. The end of validity counts from the later of
// now and the time that is known to have passed (Clock), so a box that is set up with its clock at 1970 does not get certificates
// that are over when the clock is put right.
//
// # Failure
//
// A damaged leaf is moved aside and issued again. A damaged or lost authority, service account key or encryption key is an error
// with a remedy, never replaced: a new one would lock every node and every stored secret out. What is lost is told from what was
// never made by order: those roots are on disk before the first leaf is.
//
// # Who reads the files, and when a new certificate is used (checked in the sources of Kubernetes 1.36.3)
//
//   - kube-apiserver serving and front-proxy client: dynamiccertificates.NewDynamicServingContentFromFiles, by fsnotify and every minute.
//   - kube-apiserver to kubelet: kubelet/client sets ReloadTLSFiles; as any client of client-go below.
//   - clients with a kubeconfig that names files (Kubeconfig): client-go reads the files at every handshake (at most once a second) and
//     every 5 minutes, and closes connections made with the old certificate (transport/cert_rotation.go). Embedded data is never reloaded.
//   - kubelet serving: tlsCertFile and tlsPrivateKeyFile are watched; the gate ReloadKubeletServerCertificateFile is on by default.
//     This needs serverTLSBootstrap off. The client certificate comes through its kubeconfig; rotateCertificates stays off.
//   - controller-manager and scheduler serving: --tls-cert-file, as the API server. Without the flag they make a certificate for one
//     year at start, which nothing renews.
//   - authorities: --client-ca-file and the like are reloaded too, but authorities do not change.
package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
)

// How long certificates are valid, and when they are issued again.
const (
	LeafLifetime      = 365 * 24 * time.Hour
	AuthorityLifetime = 10 * 365 * 24 * time.Hour
	RenewBefore       = 120 * 24 * time.Hour

	// A leaf that ends later than this was issued with a clock far ahead; it is issued again, so that renewal keeps being exercised.
	longestSane = 2 * LeafLifetime
)

// Subject is what the certificates of a server say about it.
type Subject struct {
	NodeName   string
	Addresses  []netip.Addr // of the node, all that clients may use
	ServiceIPs []netip.Addr // of the Service "kubernetes", one for each family
	Domain     string       // cluster domain; "cluster.local" when empty
	ExtraNames []string     // --tls-san: names or addresses
	APIServer  string       // URL that kubeconfigs of this machine name; "https://127.0.0.1:6443" when empty
}

// Problem is a condition for the status page.
type Problem struct {
	Text   string `json:"text"`
	Remedy string `json:"remedy"`
}

// Set is the result of Ensure.
type Set struct {
	Paths
	CAHash   string    // SHA-256 of the server authority in hex, as in full tokens
	Issued   []string  // names of the leaves that this call issued, sorted
	Problems []Problem // what works for now but needs a person
}

// Ensure creates what is missing under dataDir and issues leaves again that are damaged, end within RenewBefore, or no longer say
// what they should. Authorities and keys that are there are never touched; a damaged one is an error with a remedy.
// A wish for new keys (Rotate) is fulfilled. Several processes may call it at once; they take turns.
func Ensure(dataDir string, s Subject, clock *Clock, log *slog.Logger) (Set, error) {
	p := PathsIn(dataDir)
	for _, dir := range []string{p.ServerTLS, p.ServerCred, p.AgentTLS, p.AgentCred} {
		if err := makeDir(dir); err != nil {
			return Set{}, err
		}
	}
	unlock, err := lock(p.lockFile)
	if err != nil {
		return Set{}, err
	}
	defer unlock()

	at := clock.Read()
	set := Set{Paths: p, Problems: at.problems()}
	specs := serverLeaves(p, s)
	authorities, err := ensureRoots(p, specs, at)
	if err != nil {
		return Set{}, err
	}
	set.CAHash = Hash(authorities[serverCA].cert)
	for _, name := range authorityNames {
		if prob, bad := authorityProblem(name, authorities[name].cert, at); bad {
			set.Problems = append(set.Problems, prob)
		}
	}
	rotating := exists(p.RotateMarker)
	if set.Issued, err = ensureLeaves(specs, authorities, at, rotating, log); err != nil {
		return Set{}, err
	}
	if err := writeDerived(p, s, authorities, log); err != nil {
		return Set{}, err
	}
	if rotating {
		if err := os.Remove(p.RotateMarker); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Set{}, fmt.Errorf("remove the mark for new keys: %w", err)
		}
	}
	if err := clock.Save(at); err != nil {
		log.Warn("the time is not remembered", "err", err) // costs protection against a clock that falls back, nothing else
	}
	return set, nil
}

// ensureRoots loads or creates everything that must never be replaced. It returns when all of it is on disk.
func ensureRoots(p Paths, specs []leafSpec, at Reading) (map[string]*authority, error) {
	used := map[string]bool{} // authorities that have signed something that is on disk
	begun := false            // the first generation got as far as a leaf, so every root existed
	for _, spec := range specs {
		if exists(spec.path) && strings.HasPrefix(spec.path, p.ServerTLS) {
			begun, used[spec.ca] = true, true
		}
	}
	// A leaf of the agent's folder counts only beside other files of the server: emptying server/tls is how a person starts afresh.
	for _, spec := range specs {
		used[spec.ca] = used[spec.ca] || (begun && exists(spec.path))
	}

	authorities := map[string]*authority{}
	var mu sync.Mutex
	jobs := []func() error{
		func() error { return ensureServiceAccountKey(p.ServiceAccountKey, begun) },
		func() error { return ensureEncryption(p.EncryptionConfig, begun) },
	}
	for _, name := range authorityNames {
		jobs = append(jobs, func() error {
			a, err := ensureAuthority(name, p.authority(name), used[name], at)
			mu.Lock()
			defer mu.Unlock()
			authorities[name] = a
			return err
		})
	}
	return authorities, parallel(jobs)
}

// ensureLeaves issues what has to be issued and returns the names.
func ensureLeaves(specs []leafSpec, authorities map[string]*authority, at Reading, rotating bool, log *slog.Logger) ([]string, error) {
	var mu sync.Mutex
	var issued []string
	var jobs []func() error
	for _, spec := range specs {
		jobs = append(jobs, func() error {
			why, err := ensureLeaf(spec, authorities[spec.ca], at, rotating, log)
			if err != nil || why == "" {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			issued = append(issued, spec.name)
			if why != "new" {
				log.Info("certificate issued again", "name", spec.name, "why", why)
			}
			return nil
		})
	}
	err := parallel(jobs)
	slices.Sort(issued)
	return issued, err
}

// writeDerived writes what follows from the rest: copies of authorities for the agent's side, kubeconfigs, the node password.
func writeDerived(p Paths, s Subject, authorities map[string]*authority, log *slog.Logger) error {
	server := s.APIServer
	if server == "" {
		server = "https://127.0.0.1:6443"
	}
	jobs := []func() error{
		func() error { return writeFile(p.AgentServerCA, authorities[serverCA].certPEM, 0o644) },
		func() error { return writeFile(p.AgentClientCA, authorities[clientCA].certPEM, 0o644) },
		func() error { _, err := EnsureNodePassword(p.DataDir, log); return err },
	}
	for _, k := range p.serverKubeconfigs() {
		jobs = append(jobs, func() error { return writeFile(k.File, Kubeconfig(server, k.User, FilesOf(k.CA, k.Leaf)), 0o600) })
	}
	return parallel(jobs)
}

func authorityProblem(name string, cert *x509.Certificate, at Reading) (Problem, bool) {
	left := cert.NotAfter.Sub(at.Effective)
	if left > LeafLifetime {
		return Problem{}, false
	}
	return Problem{
		Text:   fmt.Sprintf("the authority %s is valid until %s; by the clock of this machine it is %s", name, day(cert.NotAfter), day(at.Now)),
		Remedy: "compare the clock with `date`; if it is right, plan a new cluster for this site before that day",
	}, true
}

// Hash is the SHA-256 of a certificate in lower-case hex: what full tokens carry, and what
// `openssl x509 -noout -fingerprint -sha256` prints with colons.
func Hash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// CAHash returns the hash of the server authority under dataDir.
func CAHash(dataDir string) (string, error) {
	p := PathsIn(dataDir)
	cert, err := ReadCertificate(p.ServerCA.Cert)
	if err != nil {
		return "", remedy.Wrap(fmt.Errorf("read the server authority: %w", err), "start `atoll server` once on this machine; it makes the authority")
	}
	return Hash(cert), nil
}

// parallel runs the jobs at once and returns their errors joined. The time goes to flushes of the disk, which overlap.
func parallel(jobs []func() error) error {
	errs := make([]error, len(jobs))
	var wg sync.WaitGroup
	for i, job := range jobs {
		wg.Go(func() { errs[i] = job() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
