package formation

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

// SupervisorConfig is what the supervisor of a server needs.
type SupervisorConfig struct {
	DataDir   string
	Listener  net.Listener // of Mux.Supervisor; closed when the supervisor stops
	NodeName  string       // of this server
	Password  string       // of this server, so that nobody takes its name; see pki.EnsureNodePassword
	Cluster   func() Cluster
	Tokens    TokenStore
	Passwords PasswordStore
	Clock     *pki.Clock
}

// Supervisor is the component that lets nodes join.
type Supervisor struct {
	SupervisorConfig
	log     *slog.Logger
	paths   pki.Paths
	limiter *limiter
	serving servingCertificate
}

// NewSupervisor prepares a supervisor.
func NewSupervisor(c SupervisorConfig, log *slog.Logger) *Supervisor {
	paths := pki.PathsIn(c.DataDir)
	return &Supervisor{
		SupervisorConfig: c, log: log.With("component", "supervisor"), paths: paths, limiter: newLimiter(),
		serving: servingCertificate{file: paths.APIServer},
	}
}

// Name implements run.Component.
func (s *Supervisor) Name() string { return "supervisor" }

// Run implements run.Component. It runs once: its listener is closed when it ends.
func (s *Supervisor) Run(ctx context.Context, ready func()) error {
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      40 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // what strangers do wrong is not news
		ConnContext:       rememberTLS,
	}
	listener := newTLSListener(s.Listener, &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{Protocol},
		GetCertificate: s.serving.get,
		// Handlers verify, so that a client hears what is wrong with its certificate, and one without can ask for the authority.
		ClientAuth: tls.RequestClientCert,
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	claimCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.claimOwnName(claimCtx) })
	wg.Go(func() {
		<-claimCtx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	ready()
	err := server.Serve(listener)
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve nodes: %w", err)
}

// claimOwnName makes the name of this server its own. Until then handleJoin refuses the name, so nothing waits for this.
func (s *Supervisor) claimOwnName(ctx context.Context) {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := s.Passwords.Claim(attempt, s.NodeName, s.Password)
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrNameTaken) { // works all the same; a person may have restored the site on a new machine
			s.log.Warn("the password of this server is not the one that the site remembers", "err", err, "try", remedy.Of(err))
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (s *Supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/ca", s.handle(s.handleCA))
	mux.Handle("GET /v1/cluster", s.handle(s.handleCluster))
	mux.Handle("POST /v1/nodes", s.handle(s.handleJoin))
	mux.Handle("POST /v1/nodes/renew", s.handle(s.handleRenew))
	mux.Handle("/", s.handle(func(*http.Request) (any, error) {
		return nil, remedy.Wrap(fmt.Errorf("%w: there is no such resource", ErrBadRequest), "use the same version of atoll on all nodes")
	}))
	return mux
}

// handle turns a function into a handler: a deadline, a bound on the body, JSON out, errors as problems.
func (s *Supervisor) handle(fn func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, maxRequestBytes)
		answer, err := fn(r.WithContext(ctx))
		if err != nil {
			s.logFailure(r, err)
			writeProblem(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(answer) // a client that is gone reads nothing
	})
}

func (s *Supervisor) logFailure(r *http.Request, err error) {
	level := slog.LevelDebug // strangers must not fill the log
	var cause any = err
	var later *notReadyError
	switch {
	case errors.As(err, &later):
		level, cause = slog.LevelWarn, later.cause
	case errors.Is(err, ErrWrongToken), errors.Is(err, ErrTokenExpired), errors.Is(err, ErrNameTaken):
		level = slog.LevelInfo // of these the limiter lets few through
	case !isRefusal(err):
		level = slog.LevelWarn
	}
	s.log.Log(r.Context(), level, "request of a node refused", "path", r.URL.Path, "peer", r.RemoteAddr, "err", cause)
}

func (s *Supervisor) handleCA(*http.Request) (any, error) {
	authority, err := os.ReadFile(s.paths.ServerCA.Cert)
	if err != nil {
		return nil, fmt.Errorf("read the server authority: %w", err)
	}
	return caAnswer{ServerCA: string(authority)}, nil
}

func (s *Supervisor) handleJoin(r *http.Request) (any, error) {
	from := peer(r)
	if !s.limiter.allow(from) {
		return nil, remedy.Wrap(fmt.Errorf("%w from %s", ErrTooMany, from), "wait a minute, and check the token")
	}
	now := s.Clock.Read()
	shown, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if err := checkToken(r.Context(), s.paths, s.Tokens, shown, now.Now); err != nil {
		if !errors.Is(err, ErrNotReady) {
			s.limiter.fail(from)
		}
		return nil, err
	}
	var join joinRequest
	if err := decode(r, &join); err != nil {
		return nil, err
	}
	if err := join.validate(); err != nil {
		return nil, err
	}
	if join.Name == s.NodeName {
		return nil, remedy.Wrap(fmt.Errorf("%w: %s is a server of this site", ErrNameTaken, join.Name), "give this machine another name with --node-name")
	}
	// Signed before the name is taken: a request that cannot be signed takes nothing.
	answer, err := s.sign(join.Name, join.Addresses, from, join.Requests, now)
	if err != nil {
		return nil, err
	}
	if err := s.Passwords.Claim(r.Context(), join.Name, join.Password); err != nil {
		if errors.Is(err, ErrNameTaken) {
			s.limiter.fail(from)
			return nil, err
		}
		return nil, notReady(err)
	}
	s.log.Info("node joined", "node", join.Name, "peer", from)
	return answer, nil
}

func (s *Supervisor) handleRenew(r *http.Request) (any, error) {
	node, now, err := s.member(r)
	if err != nil {
		return nil, err
	}
	var renew renewRequest
	if err := decode(r, &renew); err != nil {
		return nil, err
	}
	if err := checkAddresses(renew.Addresses); err != nil {
		return nil, err
	}
	answer, err := s.sign(node, renew.Addresses, peer(r), renew.Requests, now)
	if err == nil {
		s.log.Info("certificates of a node renewed", "node", node)
	}
	return answer, err
}

func (s *Supervisor) handleCluster(r *http.Request) (any, error) {
	_, now, err := s.member(r)
	if err != nil {
		return nil, err
	}
	return clusterAnswer{Cluster: s.Cluster(), Time: now.Effective.UTC()}, nil
}

// member returns the name of the node that asks, which must still belong to the site: whoever deletes a node's password takes from it
// the right to renew.
func (s *Supervisor) member(r *http.Request) (string, pki.Reading, error) {
	now := s.Clock.Read()
	node, err := nodeOf(r, s.paths, now.Now)
	if err != nil {
		return "", now, err
	}
	known, err := s.Passwords.Known(r.Context(), node)
	if err != nil {
		return "", now, notReady(err)
	}
	if !known {
		return "", now, remedy.Wrap(fmt.Errorf("%w: %s", ErrUnknownNode, node), "start the node with a token; it joins again")
	}
	return node, now, nil
}

func (s *Supervisor) sign(node string, claimed []netip.Addr, seen netip.Addr, requests pki.NodeRequests, now pki.Reading) (nodeAnswer, error) {
	cluster := s.Cluster()
	certificates, err := pki.SignNode(s.DataDir, node, sensible(claimed, seen, cluster), requests, now.Effective)
	var bad *pki.RequestError
	if errors.As(err, &bad) {
		err = remedy.Wrap(fmt.Errorf("%w: %w", ErrBadRequest, err), "use the same version of atoll on all nodes")
	}
	return nodeAnswer{Certificates: certificates, Cluster: cluster, Time: now.Effective.UTC()}, err
}

// sensible returns the addresses that the kubelet of a node may serve under: those that it claims, or else the one that it was seen
// with, without any that cannot be its own.
func sensible(claimed []netip.Addr, seen netip.Addr, cluster Cluster) []netip.Addr {
	if len(claimed) == 0 {
		claimed = []netip.Addr{seen}
	}
	var addrs []netip.Addr
	for _, a := range claimed {
		a = a.Unmap().WithZone("")
		inCluster := func(p netip.Prefix) bool { return p.Contains(a) }
		if !a.IsGlobalUnicast() || slices.ContainsFunc(cluster.ServiceCIDRs, inCluster) || slices.ContainsFunc(cluster.ClusterCIDRs, inCluster) {
			continue
		}
		addrs = append(addrs, a)
	}
	return addrs
}

func (j joinRequest) validate() error {
	if !pki.ValidNodeName(j.Name) {
		return remedy.Wrap(fmt.Errorf("%w: %q is not the name of a node", ErrBadRequest, printable(j.Name)),
			"use lower-case letters, digits, dashes and dots, for instance --node-name till-1")
	}
	if !pki.ValidNodePassword(j.Password) {
		return remedy.Wrap(fmt.Errorf("%w: the password of the node is not one", ErrBadRequest), "remove <data-dir>/agent/cred/node-password on the node; it makes a new one")
	}
	return checkAddresses(j.Addresses)
}

func checkAddresses(addrs []netip.Addr) error {
	if len(addrs) > maxNodeAddresses {
		return remedy.Wrap(fmt.Errorf("%w: more than %d addresses", ErrBadRequest, maxNodeAddresses), "name the addresses that count with --node-ip")
	}
	return nil
}

func decode(r *http.Request, into any) error {
	err := json.NewDecoder(r.Body).Decode(into)
	var long *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &long):
		err = fmt.Errorf("%w: the body is longer than %d bytes", ErrBadRequest, long.Limit)
	default: // without the cause, which may quote the password
		err = fmt.Errorf("%w: the body is not what was expected", ErrBadRequest)
	}
	return remedy.Wrap(err, "use the same version of atoll on all nodes")
}

func peer(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	return at.Addr().Unmap()
}
