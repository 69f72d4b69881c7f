package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

var quiet = slog.New(slog.DiscardHandler)

func subject() pki.Subject {
	return pki.Subject{
		NodeName:   "n1",
		Addresses:  []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
		ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.1")},
		ExtraNames: []string{"shop.example", "198.51.100.1"},
	}
}

func fixed(t time.Time) *pki.Clock { return &pki.Clock{Now: func() time.Time { return t }} }

var today = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

func ensure(t testing.TB, dir string, now time.Time) pki.Set {
	t.Helper()
	set, err := pki.Ensure(dir, subject(), fixed(now), quiet)
	if err != nil {
		t.Fatalf("Ensure: %v (remedy: %s)", err, remedy.Of(err))
	}
	return set
}

// leaf reads a leaf the way Kubernetes does: the same file as certificate and as key.
func leaf(t testing.TB, file string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatalf("load %s: %v", file, err)
	}
	return pair.Leaf
}

func pool(t testing.TB, file string) *x509.CertPool {
	t.Helper()
	data, err := os.ReadFile(file)
	p := x509.NewCertPool()
	if err != nil || !p.AppendCertsFromPEM(data) {
		t.Fatalf("no authority in %s: %v", file, err)
	}
	return p
}

type use struct {
	file, ca string
	usage    x509.ExtKeyUsage
}

func leaves(p pki.Paths) map[string]use {
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	return map[string]use{
		"apiserver":                {p.APIServer, p.ServerCA.Cert, server},
		"local":                    {p.Local, p.ServerCA.Cert, server},
		"apiserver-kubelet-client": {p.APIServerKubeletClient, p.ClientCA.Cert, client},
		"front-proxy-client":       {p.FrontProxyClient, p.RequestHeaderCA.Cert, client},
		"controller-manager":       {p.ControllerManager, p.ClientCA.Cert, client},
		"scheduler":                {p.Scheduler, p.ClientCA.Cert, client},
		"admin":                    {p.Admin, p.ClientCA.Cert, client},
		"atoll-controller":         {p.Controller, p.ClientCA.Cert, client},
		"coredns":                  {p.CoreDNS, p.ClientCA.Cert, client},
		"metrics":                  {p.Metrics, p.ClientCA.Cert, client},
		"kubelet-client":           {p.KubeletClient, p.AgentClientCA, client},
		"kubelet-serving":          {p.KubeletServing, p.KubeletCA.Cert, server},
		"kube-proxy":               {p.KubeProxy, p.ClientCA.Cert, client},
		"atoll-agent":              {p.AgentClient, p.ClientCA.Cert, client},
	}
}

// verify checks every leaf as its consumers do, at the given times.
func verify(t testing.TB, p pki.Paths, at ...time.Time) {
	t.Helper()
	for name, u := range leaves(p) {
		cert := leaf(t, u.file)
		for _, now := range at {
			_, err := cert.Verify(x509.VerifyOptions{Roots: pool(t, u.ca), KeyUsages: []x509.ExtKeyUsage{u.usage}, CurrentTime: now})
			if err != nil {
				t.Errorf("%s at %s: %v", name, now.Format(time.DateOnly), err)
			}
		}
	}
}

func TestFirstGeneration(t *testing.T) {
	dir := t.TempDir()
	set := ensure(t, dir, today)
	if len(set.Issued) != len(leaves(set.Paths)) {
		t.Errorf("issued %d leaves, want %d: %v", len(set.Issued), len(leaves(set.Paths)), set.Issued)
	}
	verify(t, set.Paths, today, today.AddDate(0, 0, 364))

	for _, row := range []struct {
		file  string
		cn    string
		orgs  []string
		hosts []string
	}{
		{set.APIServer, "kube-apiserver", nil, []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local", "localhost", "n1", "127.0.0.1", "::1", "10.43.0.1", "192.0.2.7", "2001:db8::7",
			"shop.example", "198.51.100.1", "apiserver-loopback-client"}},
		{set.Local, "localhost", nil, []string{"localhost", "127.0.0.1", "metrics-server.kube-system.svc"}},
		{set.KubeletServing, "system:node:n1", []string{"system:nodes"}, []string{"n1", "192.0.2.7", "127.0.0.1"}},
		{set.KubeletClient, "system:node:n1", []string{"system:nodes"}, nil},
		{set.Admin, "system:admin", []string{"system:masters"}, nil},
		{set.APIServerKubeletClient, pki.UserAPIServer, []string{pki.GroupKubeletAdmins}, nil},
		{set.AgentClient, "system:atoll-agent:n1", []string{pki.GroupAgents}, nil},
	} {
		cert := leaf(t, row.file)
		if cert.Subject.CommonName != row.cn || !slices.Equal(cert.Subject.Organization, row.orgs) {
			t.Errorf("%s: subject %v, want %s %v", row.file, cert.Subject, row.cn, row.orgs)
		}
		for _, host := range row.hosts {
			if err := cert.VerifyHostname(host); err != nil {
				t.Errorf("%s: %v", row.file, err)
			}
		}
	}
	if leaf(t, set.APIServer).VerifyHostname("evil.example") == nil {
		t.Error("the certificate of the API server is good for any name")
	}
}

func TestKubeletCannotPoseAsAPIServer(t *testing.T) {
	set := ensure(t, t.TempDir(), today)
	_, err := leaf(t, set.KubeletServing).Verify(x509.VerifyOptions{Roots: pool(t, set.AgentServerCA), CurrentTime: today})
	if err == nil {
		t.Error("what clients of the API trust has signed the certificate of a kubelet")
	}
}

func TestModes(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, today)
	public := func(name string) bool { return strings.HasSuffix(name, ".crt") }
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm()
		switch {
		case d.IsDir() && filepath.Dir(path) != dir && mode != 0o700:
			t.Errorf("folder %s is %v", path, mode)
		case !d.IsDir() && !public(path) && mode != 0o600:
			t.Errorf("file %s is %v", path, mode)
		}
		if !d.IsDir() {
			files++
		}
		return nil
	})
	if err != nil || files < 25 {
		t.Errorf("looked at %d files: %v", files, err)
	}
}

func TestModesAreRepaired(t *testing.T) {
	dir := t.TempDir()
	set := ensure(t, dir, today)
	secrets := []string{set.Admin, set.ServerCA.Key, set.ServiceAccountKey, set.EncryptionConfig, set.NodePassword}
	for _, file := range secrets {
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ensure(t, dir, today)
	for _, file := range secrets {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
}

// snapshot maps every file under dir to its content.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestSecondStartChangesNothing(t *testing.T) {
	dir := t.TempDir()
	first := ensure(t, dir, today)
	before := snapshot(t, dir)
	second := ensure(t, dir, today)
	if len(second.Issued) != 0 || second.CAHash != first.CAHash {
		t.Errorf("second start issued %v, hash %s then %s", second.Issued, first.CAHash, second.CAHash)
	}
	for path, content := range snapshot(t, dir) {
		if before[path] != content {
			t.Errorf("%s has changed", path)
		}
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func remove(t testing.TB, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func halve(t testing.TB, path string) { write(t, path, read(t, path)[:len(read(t, path))/2]) }

func TestLeavesHeal(t *testing.T) {
	for _, row := range []struct {
		name   string
		hurt   func(t *testing.T, p pki.Paths)
		change func(s *pki.Subject)
		after  time.Duration
		want   []string // issued again
		aside  bool     // the damaged file is kept
	}{
		{name: "missing", hurt: func(t *testing.T, p pki.Paths) { remove(t, p.Admin) }, want: []string{"admin"}},
		{name: "half written", hurt: func(t *testing.T, p pki.Paths) { halve(t, p.Admin) }, want: []string{"admin"}, aside: true},
		{name: "empty", hurt: func(t *testing.T, p pki.Paths) { write(t, p.Admin, "") }, want: []string{"admin"}, aside: true},
		{name: "garbage", hurt: func(t *testing.T, p pki.Paths) { write(t, p.Admin, strings.Repeat("\x00\xff", 700)) }, want: []string{"admin"}, aside: true},
		{name: "huge", hurt: func(t *testing.T, p pki.Paths) { write(t, p.Admin, strings.Repeat("a", 1<<20)) }, want: []string{"admin"}, aside: true},
		{name: "another key", hurt: func(t *testing.T, p pki.Paths) {
			cert, _, _ := strings.Cut(read(t, p.Admin), "-----BEGIN EC")
			_, key, _ := strings.Cut(read(t, p.Scheduler), "-----BEGIN EC")
			write(t, p.Admin, cert+"-----BEGIN EC"+key)
		}, want: []string{"admin"}, aside: true},
		{name: "certificate of somebody else", hurt: func(t *testing.T, p pki.Paths) { write(t, p.Admin, read(t, p.Scheduler)) }, want: []string{"admin"}},
		{name: "of another authority", hurt: func(t *testing.T, p pki.Paths) {
			other := ensure(t, t.TempDir(), today)
			write(t, p.Admin, read(t, other.Admin))
		}, want: []string{"admin"}},
		{name: "245 days old", after: 245*24*time.Hour - time.Minute},
		{name: "246 days old", after: 246 * 24 * time.Hour, want: []string{"admin", "apiserver", "apiserver-kubelet-client", "atoll-agent", "atoll-controller",
			"controller-manager", "coredns", "front-proxy-client", "kube-proxy", "kubelet-client", "kubelet-serving", "local", "metrics", "scheduler"}},
		{name: "new address", change: func(s *pki.Subject) { s.Addresses[0] = netip.MustParseAddr("192.0.2.8") }, want: []string{"apiserver", "kubelet-serving"}},
		{name: "new tls-san", change: func(s *pki.Subject) { s.ExtraNames = append(s.ExtraNames, "Till.Example") }, want: []string{"apiserver"}},
		{name: "new node name", change: func(s *pki.Subject) { s.NodeName = "n9" }, want: []string{"apiserver", "atoll-agent", "kubelet-client", "kubelet-serving"}},
		{name: "same addresses in another order and form", change: func(s *pki.Subject) {
			s.Addresses = []netip.Addr{s.Addresses[1], netip.AddrFrom16(s.Addresses[0].As16()), s.Addresses[1]}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			p := ensure(t, dir, today).Paths
			hash, _ := pki.CAHash(dir)
			if row.hurt != nil {
				row.hurt(t, p)
			}
			s := subject()
			if row.change != nil {
				row.change(&s)
			}
			now := today.Add(row.after)
			set, err := pki.Ensure(dir, s, fixed(now), quiet)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(set.Issued, row.want) {
				t.Errorf("issued %v, want %v", set.Issued, row.want)
			}
			if set.CAHash != hash {
				t.Error("the authority has changed")
			}
			aside, _ := filepath.Glob(p.Admin + ".bad-*")
			if (len(aside) == 1) != row.aside {
				t.Errorf("moved aside: %v", aside)
			}
			verify(t, p, now, now.Add(119*24*time.Hour))
		})
	}
}

func TestDamagedFilesDoNotPileUp(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, today).Paths
	for i := range 10 {
		halve(t, p.Admin)
		ensure(t, dir, today.Add(time.Duration(i)*time.Second))
	}
	if aside, _ := filepath.Glob(p.Admin + ".bad-*"); len(aside) != 3 {
		t.Errorf("%d damaged files kept, want 3", len(aside))
	}
}

func TestRenewalKeepsTheKeyAndRotationDoesNot(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, today).Paths
	first := leaf(t, p.Admin)
	ensure(t, dir, today.AddDate(0, 0, 300))
	second := leaf(t, p.Admin)
	if !first.PublicKey.(*ecdsa.PublicKey).Equal(second.PublicKey) || first.SerialNumber.Cmp(second.SerialNumber) == 0 {
		t.Error("renewal must make a new certificate for the same key")
	}
	if err := pki.Rotate(dir); err != nil {
		t.Fatal(err)
	}
	set := ensure(t, dir, today.AddDate(0, 0, 300))
	if len(set.Issued) != len(leaves(p)) {
		t.Errorf("rotation issued %v", set.Issued)
	}
	if second.PublicKey.(*ecdsa.PublicKey).Equal(leaf(t, p.Admin).PublicKey) {
		t.Error("rotation kept the key")
	}
	if again := ensure(t, dir, today.AddDate(0, 0, 300)); len(again.Issued) != 0 {
		t.Errorf("the wish for new keys was fulfilled twice: %v", again.Issued)
	}
}

func TestRotateElsewhere(t *testing.T) {
	if err := pki.Rotate(t.TempDir()); err == nil || remedy.Of(err) == "" {
		t.Errorf("error %v, remedy %q", err, remedy.Of(err))
	}
}

func TestRootsAreNeverReplaced(t *testing.T) {
	for _, row := range []struct {
		name string
		hurt func(t *testing.T, p pki.Paths)
		want string
	}{
		{"authority half written", func(t *testing.T, p pki.Paths) { halve(t, p.ServerCA.Cert) }, "server-ca.crt: damaged"},
		{"authority garbage", func(t *testing.T, p pki.Paths) { write(t, p.ClientCA.Cert, "\x00\x00\x00") }, "client-ca.crt: damaged"},
		{"authority key half written", func(t *testing.T, p pki.Paths) { halve(t, p.ClientCA.Key) }, "client-ca.key: damaged"},
		{"authority key of another", func(t *testing.T, p pki.Paths) { write(t, p.ClientCA.Key, read(t, p.ServerCA.Key)) }, "is not the key of"},
		{"authority certificate lost", func(t *testing.T, p pki.Paths) { remove(t, p.KubeletCA.Cert) }, "kubelet-ca.crt: no such file"},
		{"authority key lost", func(t *testing.T, p pki.Paths) { remove(t, p.RequestHeaderCA.Key) }, "request-header-ca.key: no such file"},
		{"authority lost", func(t *testing.T, p pki.Paths) { remove(t, p.KubeletCA.Cert, p.KubeletCA.Key) }, "kubelet-ca is gone"},
		{"leaf in place of an authority", func(t *testing.T, p pki.Paths) {
			write(t, p.ServerCA.Cert, read(t, p.Admin))
			write(t, p.ServerCA.Key, read(t, p.Admin))
		}, "not the certificate of an authority"},
		{"service account key half written", func(t *testing.T, p pki.Paths) { halve(t, p.ServiceAccountKey) }, "service account key"},
		{"service account key lost", func(t *testing.T, p pki.Paths) { remove(t, p.ServiceAccountKey) }, "service account key"},
		{"encryption key half written", func(t *testing.T, p pki.Paths) { halve(t, p.EncryptionConfig) }, "encrypts secrets"},
		{"encryption key lost", func(t *testing.T, p pki.Paths) { remove(t, p.EncryptionConfig) }, "encrypts secrets"},
		{"encryption key short", func(t *testing.T, p pki.Paths) {
			write(t, p.EncryptionConfig, strings.Replace(read(t, p.EncryptionConfig), `"secret": "`, `"secret": "AAAA`, 1))
		}, "not base64 of 32 bytes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			p := ensure(t, dir, today).Paths
			row.hurt(t, p)
			before := snapshot(t, dir)
			_, err := pki.Ensure(dir, subject(), fixed(today), quiet)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("error %v, want %q", err, row.want)
			}
			if !strings.Contains(remedy.Of(err), "backup") {
				t.Errorf("remedy %q", remedy.Of(err))
			}
			for path, content := range snapshot(t, dir) {
				if before[path] != content {
					t.Errorf("%s was changed", path)
				}
			}
		})
	}
}

func TestEmptiedFolderStartsAfresh(t *testing.T) {
	dir := t.TempDir()
	first := ensure(t, dir, today)
	if err := os.RemoveAll(first.ServerTLS); err != nil {
		t.Fatal(err)
	}
	second := ensure(t, dir, today)
	if first.CAHash == second.CAHash {
		t.Error("same authority")
	}
	verify(t, second.Paths, today) // those of the agent's folder too
}

// TestPowerCutWhileRootsAreMade goes through every state that an interrupted first start can leave: each root is absent, a key alone, or
// whole, and there is no leaf. The next start must use what is there and finish.
func TestPowerCutWhileRootsAreMade(t *testing.T) {
	whole := t.TempDir()
	p := ensure(t, whole, today).Paths
	states := [][]string{ // files that exist, by root and state
		{"", p.ServerCA.Key, p.ServerCA.Key + " " + p.ServerCA.Cert},
		{"", p.ClientCA.Key, p.ClientCA.Key + " " + p.ClientCA.Cert},
		{"", p.ServiceAccountKey},
		{"", p.EncryptionConfig},
	}
	var walk func(i int, files []string)
	walk = func(i int, files []string) {
		if i < len(states) {
			for _, s := range states[i] {
				walk(i+1, append(slices.Clip(files), strings.Fields(s)...))
			}
			return
		}
		dir := t.TempDir()
		for _, file := range files {
			rel, _ := filepath.Rel(whole, file)
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, rel)), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, rel), read(t, file))
		}
		set := ensure(t, dir, today)
		verify(t, set.Paths, today)
		for _, file := range files {
			rel, _ := filepath.Rel(whole, file)
			if read(t, filepath.Join(dir, rel)) != read(t, file) {
				t.Errorf("with %v: %s was made anew", files, rel)
			}
		}
	}
	walk(0, nil)
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	hashes := make([]string, 8)
	for i := range hashes {
		wg.Go(func() {
			set, err := pki.Ensure(dir, subject(), fixed(today), quiet)
			if err != nil {
				t.Error(err)
			}
			hashes[i] = set.CAHash
		})
	}
	wg.Wait()
	if len(slices.Compact(slices.Clone(hashes))) != 1 {
		t.Errorf("more than one authority: %v", hashes)
	}
	verify(t, pki.PathsIn(dir), today)
}

func TestDataFolderIsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, "")
	if _, err := pki.Ensure(file, subject(), fixed(today), quiet); err == nil || remedy.Of(err) == "" {
		t.Errorf("error %v, remedy %q", err, remedy.Of(err))
	}
}

func TestAuthorityNearItsEndIsAProblem(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, today)
	if set := ensure(t, dir, today.AddDate(8, 11, 0)); len(set.Problems) != 0 {
		t.Errorf("problems a year too early: %v", set.Problems)
	}
	for _, years := range []int{9, 11, 60} { // still valid, over, clock far ahead: it is said, and the node goes on
		set := ensure(t, dir, today.AddDate(years, 0, 0))
		if len(set.Problems) != 4 || set.Problems[0].Remedy == "" {
			t.Errorf("after %d years: %v", years, set.Problems)
		}
	}
}

func TestCAHashIsThatOfOpenSSL(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.CAHash(dir); err == nil || remedy.Of(err) == "" {
		t.Errorf("no authority: error %v, remedy %q", err, remedy.Of(err))
	}
	set := ensure(t, dir, today)
	block, _ := pem.Decode([]byte(read(t, set.ServerCA.Cert)))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := pki.CAHash(dir)
	if err != nil || hash != pki.Hash(cert) || hash != set.CAHash || len(hash) != 64 {
		t.Errorf("hash %s, %v", hash, err)
	}
}

func TestKeysOnOtherCurvesAreDamage(t *testing.T) {
	dir := t.TempDir()
	set := ensure(t, dir, today)
	key, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	der, _ := x509.MarshalECPrivateKey(key)
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	write(t, set.ServiceAccountKey, b.String())
	if _, err := pki.Ensure(dir, subject(), fixed(today), quiet); err == nil || !strings.Contains(err.Error(), "P-256") {
		t.Errorf("error %v", err)
	}
}

func BenchmarkFirstGeneration(b *testing.B) {
	for b.Loop() {
		if _, err := pki.Ensure(b.TempDir(), subject(), fixed(today), quiet); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNothingToDo(b *testing.B) {
	dir := b.TempDir()
	ensure(b, dir, today)
	for b.Loop() {
		ensure(b, dir, today)
	}
}
