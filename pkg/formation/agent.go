package formation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

// AgentConfig is what a node needs that joins a site.
type AgentConfig struct {
	DataDir   string
	Server    string    // URL
	Token     pki.Token // may be zero for a node that has joined before
	NodeName  string
	Addresses func() []netip.Addr // of this machine; asked again, for they change
	Clock     *pki.Clock
	OnCluster func(Cluster) // told of changed facts while running; may be nil
}

// Agent joins a site and stays a member.
type Agent struct {
	AgentConfig
	log *slog.Logger

	mu      sync.Mutex
	cluster Cluster
	problem error
}

// NewAgent prepares an agent; it touches neither disk nor network.
func NewAgent(c AgentConfig, log *slog.Logger) *Agent {
	return &Agent{AgentConfig: c, log: log.With("component", "formation")}
}

// Join returns when this node is a member, or ctx ends. A node that has joined before goes on with what it has, also when
// no server can be reached. Whatever is wrong is logged once, shown by Problem, and tried again: a person may put it right elsewhere.
func (a *Agent) Join(ctx context.Context) (Cluster, error) {
	renew, err := pki.NodeValid(a.DataDir, a.NodeName, a.Addresses(), a.Clock.Read())
	if err == nil {
		if cluster, readErr := a.load(); readErr == nil {
			if renew != "" {
				a.log.Info("certificates are to be renewed", "why", renew)
			}
			a.set(cluster)
			return cluster, nil
		}
	}
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, time.Minute)
		err := a.join(attempt)
		cancel()
		if err == nil {
			return a.current(), nil
		}
		if ctx.Err() != nil {
			return Cluster{}, ctx.Err()
		}
		a.note(err)
		wait := pause + rand.N(pause/2)
		var r *refusal
		if errors.As(err, &r) {
			wait = max(wait, r.after)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Cluster{}, ctx.Err()
		}
	}
}

// Keeper returns the component that keeps the certificates valid and the facts of the cluster fresh. Run it after Join.
func (a *Agent) Keeper() *pki.Keeper {
	last := a.Addresses()
	first := true
	return &pki.Keeper{
		DataDir: a.DataDir, Clock: a.Clock, Log: a.log,
		// The first look is a minute after the start: a node that started without a server asks one soon.
		Changed: func() bool { return first || !reflect.DeepEqual(last, a.Addresses()) },
		Ensure: func(ctx context.Context) error {
			first = false
			addrs := a.Addresses()
			attempt, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			err := a.keep(attempt, addrs)
			_ = a.record(err) // the Keeper logs it
			if err == nil {
				last = addrs
			}
			return err
		},
	}
}

// Problem tells why this node is not, or not any more, in touch with its site.
func (a *Agent) Problem() (pki.Problem, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problem == nil {
		return pki.Problem{}, false
	}
	return pki.Problem{Text: a.problem.Error(), Remedy: remedy.Of(a.problem)}, true
}

// keep renews what has to be renewed.
func (a *Agent) keep(ctx context.Context, addrs []netip.Addr) error {
	why, err := pki.NodeValid(a.DataDir, a.NodeName, addrs, a.Clock.Read())
	if err != nil {
		a.log.Warn("the certificates of this node cannot be used, joining again", "err", err)
		return a.join(ctx)
	}
	if why == "" {
		return a.refresh(ctx)
	}
	rotate := pki.RotationAsked(a.DataDir)
	keys, err := pki.LoadNodeKeys(a.DataDir)
	if rotate {
		keys, err = pki.NewNodeKeys()
	}
	if err != nil {
		return err
	}
	bundle, err := tryServers(a.servers(), func(server string) (Bundle, error) {
		return Renew(ctx, server, a.DataDir, keys, addrs, a.Clock.Now)
	})
	if errors.Is(err, ErrUnknownNode) || errors.Is(err, ErrCertificate) {
		a.log.Warn("the server does not renew, joining again", "err", err)
		return a.join(ctx)
	}
	if err != nil {
		return err
	}
	if err := a.save(bundle); err != nil {
		return err
	}
	a.log.Info("certificates renewed", "why", why)
	if rotate {
		return pki.RotationDone(a.DataDir)
	}
	return nil
}

// refresh asks for the facts of the cluster. Only a node that was put out of the site hears an error: without a
// server in reach a node goes on, and its certificates are good.
func (a *Agent) refresh(ctx context.Context) error {
	cluster, err := tryServers(a.servers(), func(server string) (Cluster, error) {
		cluster, _, err := FetchCluster(ctx, server, a.DataDir, a.Clock.Now)
		return cluster, err
	})
	switch {
	case errors.Is(err, ErrUnknownNode):
		return a.join(ctx)
	case err != nil:
		a.log.Debug("facts of the cluster not refreshed", "err", err)
		return nil
	}
	return a.remember(cluster)
}

// join joins once, at the first server that lets this node in.
func (a *Agent) join(ctx context.Context) error {
	if a.Token == (pki.Token{}) {
		return remedy.Wrap(errors.New("this node has no valid certificates and no token to get some"), "give the token of the site with --token or ATOLL_TOKEN")
	}
	password, err := pki.EnsureNodePassword(a.DataDir, a.log)
	if err != nil {
		return err
	}
	keys, err := pki.NewNodeKeys()
	if err != nil {
		return err
	}
	known, err := os.ReadFile(pki.PathsIn(a.DataDir).AgentServerCA)
	if err != nil {
		known = nil // the first join
	}
	bundle, err := tryServers(a.servers(), func(server string) (Bundle, error) {
		return Join(ctx, server, a.Token, NodeRequest{
			Name: a.NodeName, Password: password, Addresses: a.Addresses(), Keys: keys, KnownCA: known, Now: a.Clock.Now,
		})
	})
	if err != nil {
		return err
	}
	if err := a.save(bundle); err != nil {
		return err
	}
	_ = a.record(nil)
	a.log.Info("joined the site", "node", a.NodeName)
	return pki.RotationDone(a.DataDir)
}

// tryServers goes through servers until one answers. A refusal ends it: the others would refuse too.
func tryServers[T any](servers []string, ask func(server string) (T, error)) (answer T, err error) {
	var failures []error
	for _, server := range servers {
		answer, err = ask(server)
		if err == nil || !(errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNotAtoll) || errors.Is(err, ErrNotReady)) {
			return answer, err
		}
		failures = append(failures, err)
	}
	return answer, errors.Join(failures...)
}

// servers lists the addresses to try: the one that was given, then those that the site has told.
func (a *Agent) servers() []string {
	servers := []string{a.Server}
	for _, s := range a.current().APIServers {
		if !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	return servers
}

func (a *Agent) save(b Bundle) error {
	if err := b.Certificates.Save(a.DataDir, b.Keys); err != nil {
		return err
	}
	return a.remember(b.Cluster)
}

func (a *Agent) clusterFile() string { return filepath.Join(a.DataDir, "agent", "etc", "cluster.json") }

// remember keeps the facts of the cluster for a start without a server.
func (a *Agent) remember(cluster Cluster) error {
	data, err := json.MarshalIndent(cluster, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(a.clusterFile()), 0o755); err != nil {
		return fmt.Errorf("remember the cluster: %w", err)
	}
	if _, err := atomicfile.WriteIfChanged(a.clusterFile(), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("remember the cluster: %w", err)
	}
	before := a.current()
	a.set(cluster)
	if a.OnCluster != nil && !reflect.DeepEqual(before, cluster) {
		a.OnCluster(cluster)
	}
	return nil
}

func (a *Agent) load() (Cluster, error) {
	var cluster Cluster
	data, err := os.ReadFile(a.clusterFile())
	if err != nil {
		return Cluster{}, err
	}
	return cluster, json.Unmarshal(data, &cluster)
}

func (a *Agent) set(c Cluster) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cluster = c
}

func (a *Agent) current() Cluster {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cluster
}

// note keeps an error for the status page and logs it when it is news.
func (a *Agent) note(err error) {
	if before := a.record(err); err != nil && (before == nil || before.Error() != err.Error()) {
		a.log.Warn("cannot join the site, trying again", "err", err, "try", remedy.Of(err))
	}
}

func (a *Agent) record(err error) (before error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, a.problem = a.problem, err
	return before
}
