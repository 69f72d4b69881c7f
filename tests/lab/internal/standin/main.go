// Command standin looks like atoll to the lab: enough of one to test the lab itself within seconds.
//
// "server" keeps its identity on the disk, writes a kubeconfig, answers for node objects on port 6443, leaves a child behind when it
// is told to end, and tells the init system that it is ready. "agent" joins a server by URL and token. "child" does nothing.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "server":
		err = serve(os.Args[2:])
	case "agent":
		err = join(os.Args[2:])
	case "child":
		for {
			_ = syscall.Pause()
		}
	case "fail":
		fmt.Println("I was told to fail")
		os.Exit(7)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

// options are the flags that the lab passes.
type options struct{ server, token string }

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("standin", flag.ContinueOnError)
	f.StringVar(&o.server, "server", "", "URL of a server")
	f.StringVar(&o.token, "token", "", "shared secret")
	return o, f.Parse(args)
}

// server answers for the nodes that have joined.
type server struct {
	token string
	mu    sync.Mutex
	ready map[string]bool
}

func serve(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	cert, err := credentials()
	if err != nil {
		return err
	}
	if err := startChild(); err != nil {
		return err
	}
	s := &server{token: o.token, ready: map[string]bool{name: true}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes/{name}", s.node)
	mux.HandleFunc("POST /join", s.join)
	web := &http.Server{
		Addr: ":6443", Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ReadHeaderTimeout: 10 * time.Second,
	}
	listener, err := net.Listen("tcp", web.Addr)
	if err != nil {
		return err
	}
	go func() { _ = web.ServeTLS(listener, "", "") }()
	notifyReady()
	fmt.Println("standin server is ready, data from", identity())
	<-ctx.Done()
	fmt.Println("standin server was told to end")
	return web.Close()
}

func (s *server) node(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready[r.PathValue("name")] {
		http.NotFound(w, r)
		return
	}
	fmt.Fprint(w, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`)
}

func (s *server) join(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("token") != s.token {
		http.Error(w, "wrong token", http.StatusForbidden)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready[r.FormValue("name")] = true
}

func join(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	client := &http.Client{
		Timeout: 2 * time.Second,
		// The stand-in has nothing to protect.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // see above
	}
	tick := time.NewTicker(100 * time.Millisecond)
	for ; ctx.Err() == nil; <-tick.C {
		resp, err := client.PostForm(o.server+"/join", url.Values{"name": {name}, "token": {o.token}})
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		break
	}
	notifyReady()
	<-ctx.Done()
	return nil
}

// startChild leaves a process that outlives this one, as containerd's shims do.
func startChild() error {
	cmd := exec.Command("/proc/self/exe", "child")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

func notifyReady() {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return // not started by an init system
	}
	defer conn.Close()
	fmt.Fprint(conn, "READY=1")
}

const identityFile = "/var/lib/atoll/identity"

func identity() string {
	data, err := os.ReadFile(identityFile)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// credentials makes one certificate that is authority, server and client, unless the disk has been used before.
func credentials() (tls.Certificate, error) {
	if err := os.MkdirAll("/var/lib/atoll", 0o700); err != nil {
		return tls.Certificate{}, err
	}
	certFile, keyFile := "/var/lib/atoll/cert", "/var/lib/atoll/key"
	if cert, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil {
		return cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "standin"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: addresses(),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	b64 := base64.StdEncoding.EncodeToString
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: default, cluster: {server: "https://127.0.0.1:6443", certificate-authority-data: %s}}]
users: [{name: default, user: {client-certificate-data: %s, client-key-data: %s}}]
`, b64(certPEM), b64(certPEM), b64(keyPEM))
	if err := os.MkdirAll("/etc/atoll", 0o700); err != nil {
		return tls.Certificate{}, err
	}
	for path, data := range map[string][]byte{
		certFile: certPEM, keyFile: keyPEM, "/etc/atoll/kubeconfig.yaml": []byte(config), identityFile: []byte(rand.Text()),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return tls.Certificate{}, err
		}
	}
	return tls.X509KeyPair(certPEM, keyPEM)
}

func addresses() []net.IP {
	var ips []net.IP
	addrs, _ := net.InterfaceAddrs() // none is fine too
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			ips = append(ips, n.IP)
		}
	}
	return ips
}
