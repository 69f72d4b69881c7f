// Package election runs something on exactly one server of a site at a time.
//
// Upstream's own election ends the process when a lease is lost. A slow disk or a paused machine loses leases, so here only the
// elected work stops; the process stays and stands for election again. Not leading means not running: a standby costs nothing.
package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Config describes one election.
type Config struct {
	Name     string // of the Lease in kube-system
	Identity string // of this server, unique in the site
	Client   kubernetes.Interface

	LeaseDuration time.Duration // how long others wait for a silent leader; 15 s when zero
	RenewDeadline time.Duration // how long a leader goes on without having renewed; 10 s when zero
	RetryPeriod   time.Duration // between attempts; 2 s when zero

	// Fatal tells errors of the work after which it cannot be started again in this process. Nil: there are none.
	Fatal func(error) bool
}

// Work runs while this server leads and returns soon after ctx ends.
type Work func(ctx context.Context) error

// New returns a component that stands for election again and again and runs work while it leads.
// It is ready from the start: that another server leads is a healthy state.
func New(cfg Config, work Work, log *slog.Logger) *Election {
	if cfg.LeaseDuration == 0 {
		cfg.LeaseDuration, cfg.RenewDeadline, cfg.RetryPeriod = 15*time.Second, 10*time.Second, 2*time.Second
	}
	return &Election{cfg: cfg, work: work, log: log}
}

// Election is one election and the work behind it.
type Election struct {
	cfg     Config
	work    Work
	log     *slog.Logger
	leading atomic.Bool
	terms   atomic.Int64
}

// Name implements run.Component.
func (e *Election) Name() string { return e.cfg.Name }

// Leading tells whether this server leads now.
func (e *Election) Leading() bool { return e.leading.Load() }

// Terms is the number of times that this server began to lead.
func (e *Election) Terms() int64 { return e.terms.Load() }

// Run implements run.Component.
func (e *Election) Run(ctx context.Context, ready func()) error {
	ready()
	for ctx.Err() == nil {
		err := e.term(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil && e.cfg.Fatal != nil && e.cfg.Fatal(err) {
			return err
		}
		if err != nil {
			e.log.Warn("elected work ended, standing for election again", "election", e.cfg.Name, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(e.cfg.RetryPeriod / 2):
		}
	}
	return nil
}

// term stands for election once and returns when the work, if it was begun, has ended.
func (e *Election) term(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: e.cfg.Name},
		Client:     e.cfg.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.cfg.Identity},
	}
	began := make(chan struct{})
	ended := make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		Name:            e.cfg.Name,
		LeaseDuration:   e.cfg.LeaseDuration,
		RenewDeadline:   e.cfg.RenewDeadline,
		RetryPeriod:     e.cfg.RetryPeriod,
		ReleaseOnCancel: true, // others need not wait when this server is stopped in good order
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				close(began)
				defer cancel() // work that ends by itself gives the lease back
				ended <- e.lead(ctx)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("election %s: %w", e.cfg.Name, err)
	}
	elector.Run(ctx)
	// The callback runs in a goroutine of its own. The elector has returned, so either it was begun before or it never will be,
	// except for the instant between acquiring and starting the goroutine: a cancelled context tells the late starter to leave.
	cancel()
	select {
	case <-began:
		return <-ended
	case <-time.After(50 * time.Millisecond):
		select {
		case <-began:
			return <-ended
		default:
			return nil
		}
	}
}

func (e *Election) lead(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	e.terms.Add(1)
	e.leading.Store(true)
	defer e.leading.Store(false)
	e.log.Info("leading", "election", e.cfg.Name)
	err := e.work(ctx)
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		e.log.Info("no longer leading", "election", e.cfg.Name)
		return nil
	}
	return err
}
