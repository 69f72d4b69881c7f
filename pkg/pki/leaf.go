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
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// leafSpec is what a certificate has to say.
type leafSpec struct {
	name  string // as in messages: "apiserver"
	path  string
	ca    string // name of the authority
	cn    string
	orgs  []string
	usage x509.ExtKeyUsage
	names []string     // sorted, distinct
	addrs []netip.Addr // sorted, distinct
}

// serverLeaves lists all leaves of a server.
func serverLeaves(p Paths, s Subject) []leafSpec {
	domain := s.Domain
	if domain == "" {
		domain = "cluster.local"
	}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	apiNames, apiAddrs := namesAndAddresses(s.ExtraNames)
	// The last name is that of the API server's client of itself (LoopbackClientServerNameOverride). Upstream serves it with a
	// certificate that is made at start and breaks when the clock is put right by years; with the name here, this one can serve it.
	apiNames = append(apiNames, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc."+domain,
		"localhost", s.NodeName, "apiserver-loopback-client")
	apiAddrs = slices.Concat(apiAddrs, loopback, s.ServiceIPs, s.Addresses)
	metrics := "metrics-server.kube-system.svc"

	client := func(path, cn string, orgs ...string) leafSpec {
		return leafSpec{path: path, ca: clientCA, cn: cn, orgs: orgs, usage: x509.ExtKeyUsageClientAuth}
	}
	proxy := client(p.FrontProxyClient, UserFrontProxy)
	proxy.ca = requestHeaderCA
	specs := []leafSpec{
		{path: p.APIServer, ca: serverCA, cn: "kube-apiserver", usage: x509.ExtKeyUsageServerAuth, names: apiNames, addrs: apiAddrs},
		{path: p.Local, ca: serverCA, cn: "localhost", usage: x509.ExtKeyUsageServerAuth, addrs: loopback,
			names: []string{"localhost", metrics, metrics + "." + domain}},
		client(p.APIServerKubeletClient, UserAPIServer, GroupKubeletAdmins),
		proxy,
		client(p.ControllerManager, "system:kube-controller-manager"),
		client(p.Scheduler, "system:kube-scheduler"),
		client(p.Admin, "system:admin", "system:masters"),
		client(p.Controller, UserController),
		client(p.CoreDNS, UserCoreDNS),
		client(p.Metrics, UserMetrics),
	}
	return finish(append(specs, nodeLeaves(p, s.NodeName, slices.Concat(s.Addresses, loopback))...))
}

// nodeLeaves lists the leaves that every node has.
func nodeLeaves(p Paths, node string, addrs []netip.Addr) []leafSpec {
	client := func(path, cn string, orgs ...string) leafSpec {
		return leafSpec{path: path, ca: clientCA, cn: cn, orgs: orgs, usage: x509.ExtKeyUsageClientAuth}
	}
	return finish([]leafSpec{
		client(p.KubeletClient, UserNodePrefix+node, GroupNodes),
		{path: p.KubeletServing, ca: kubeletCA, cn: UserNodePrefix + node, orgs: []string{GroupNodes},
			usage: x509.ExtKeyUsageServerAuth, names: []string{node, "localhost"}, addrs: addrs},
		client(p.KubeProxy, "system:kube-proxy"),
		client(p.AgentClient, UserAgentPrefix+node, GroupAgents),
	})
}

// finish gives specs their names and puts alternative names into the order in which they are compared.
func finish(specs []leafSpec) []leafSpec {
	for i := range specs {
		spec := &specs[i]
		spec.name = strings.TrimSuffix(filepath.Base(spec.path), ".pem")
		slices.Sort(spec.names)
		spec.names = slices.DeleteFunc(slices.Compact(spec.names), func(n string) bool { return n == "" })
		spec.addrs = slices.DeleteFunc(slices.Clone(spec.addrs), func(a netip.Addr) bool { return !a.IsValid() })
		for j, a := range spec.addrs {
			spec.addrs[j] = a.Unmap().WithZone("")
		}
		slices.SortFunc(spec.addrs, netip.Addr.Compare)
		spec.addrs = slices.Compact(spec.addrs)
	}
	return specs
}

func namesAndAddresses(mixed []string) (names []string, addrs []netip.Addr) {
	for _, s := range mixed {
		if a, err := netip.ParseAddr(s); err == nil {
			addrs = append(addrs, a)
		} else {
			names = append(names, strings.ToLower(s))
		}
	}
	return names, addrs
}

// ensureLeaf checks one leaf and issues it if need be. It returns why it did: "new", a reason, or "" when the file is good.
func ensureLeaf(spec leafSpec, ca *authority, at Reading, rotate bool, log *slog.Logger) (why string, err error) {
	cert, key, err := readLeaf(spec.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = "new"
	case errors.Is(err, errDamaged):
		aside, moveErr := moveAside(spec.path, at.Now)
		if moveErr != nil {
			return "", errors.Join(err, moveErr)
		}
		log.Warn("damaged certificate moved aside", "name", spec.name, "aside", aside, "err", err)
		why = "damaged"
	case err != nil:
		return "", fmt.Errorf("read the certificate %s: %w", spec.name, err)
	case rotate:
		why, key = "new keys were asked for", nil
	default:
		if why = whyReissue(spec, cert, ca.cert, at); why == "" {
			return "", tighten(spec.path)
		}
	}
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return "", err
		}
	}
	certPEM, err := ca.issue(spec, &key.PublicKey, at.Effective)
	if err != nil {
		return "", fmt.Errorf("issue the certificate %s: %w", spec.name, err)
	}
	private, err := keyPEM(key)
	if err != nil {
		return "", err
	}
	return why, atomicfile.Write(spec.path, append(certPEM, private...), 0o600)
}

// whyReissue tells what is wrong with a leaf, or "".
func whyReissue(spec leafSpec, cert, ca *x509.Certificate, at Reading) string {
	left := cert.NotAfter.Sub(at.Effective)
	switch {
	case cert.CheckSignatureFrom(ca) != nil:
		return "signed by another authority"
	case cert.Subject.CommonName != spec.cn || !slices.Equal(cert.Subject.Organization, spec.orgs):
		return "issued for another name"
	case !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{spec.usage}):
		return "issued for another use"
	case !slices.Equal(sortedNames(cert), spec.names) || !slices.Equal(sortedAddresses(cert), spec.addrs):
		return "names or addresses have changed"
	case at.Now.Before(cert.NotBefore):
		return "not valid yet"
	case cert.NotAfter.Before(at.Now):
		return "expired"
	case left < RenewBefore:
		return "expires on " + day(cert.NotAfter)
	case left > longestSane:
		return "issued with a clock that was far ahead"
	}
	return ""
}

// issue signs a certificate for the holder of pub.
func (a *authority) issue(spec leafSpec, pub *ecdsa.PublicKey, from time.Time) ([]byte, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: spec.cn, Organization: spec.orgs},
		NotBefore:             validFrom,
		NotAfter:              from.Add(LeafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{spec.usage},
		BasicConstraintsValid: true,
		DNSNames:              spec.names,
	}
	for _, addr := range spec.addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	return certificatePEM(der), nil
}

func sortedNames(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	slices.Sort(names)
	return names
}

func sortedAddresses(cert *x509.Certificate) []netip.Addr {
	var addrs []netip.Addr
	for _, ip := range cert.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// moveAside renames a damaged file, so that it can be looked at, and forgets all but the newest few of its kind.
func moveAside(path string, now time.Time) (string, error) {
	aside := path + ".bad-" + now.UTC().Format("20060102T150405Z")
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("move a damaged file aside: %w", err)
	}
	const keep = 3
	older, _ := filepath.Glob(path + ".bad-*") // sorted by name, which is by time
	for len(older) > keep {
		_ = os.Remove(older[0])
		older = older[1:]
	}
	return aside, atomicfile.SyncDir(filepath.Dir(path))
}
