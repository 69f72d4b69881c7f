// Package run is the life of a process that consists of components.
//
// Components start in the order in which they were added, each when those it needs are ready, and stop in the reverse order.
// A component that may be started again (AddRestartable) is, with a growing pause; the failure of any other ends the group,
// so that the init system starts the whole process again. Every stop has a deadline, after which the group gives up waiting,
// writes what all goroutines are doing, and goes on with the next.
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// Component is one long-running part of a node.
type Component interface {
	// Name is stable and lower case; it is used in logs, metrics and status: "datastore", "kubelet".
	Name() string
	// Run works until ctx ends, then returns nil with no goroutine left behind.
	// It calls ready once others may depend on it. Returning before ctx ends is a failure, even with nil.
	Run(ctx context.Context, ready func()) error
}

// Func makes a component of a function.
func Func(name string, fn func(ctx context.Context, ready func()) error) Component {
	return funcComponent{name, fn}
}

type funcComponent struct {
	name string
	fn   func(ctx context.Context, ready func()) error
}

func (f funcComponent) Name() string                                { return f.name }
func (f funcComponent) Run(ctx context.Context, ready func()) error { return f.fn(ctx, ready) }

// ErrStoppedEarly is the failure of a component whose Run returned nil although nobody asked it to stop.
var ErrStoppedEarly = errors.New("stopped although nobody asked it to")

// State is where a component is in its life.
type State string

// The states of a component.
const (
	Waiting  State = "waiting"  // for a component that it needs
	Starting State = "starting" // runs, not ready yet
	Ready    State = "ready"
	Backoff  State = "backoff" // failed, is started again after a pause
	Stopped  State = "stopped"
	Failed   State = "failed"
)

// Status tells how one component is doing.
type Status struct {
	Name     string    `json:"name"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts,omitempty"`
	Error    string    `json:"error,omitempty"` // of the last failure
}

// Handle is a component's place in a group; pass it to Add as something that a later component needs.
type Handle struct {
	c           Component
	needs       []*Handle
	restartable bool
	lingers     bool
	stopWithin  time.Duration
	ready       chan struct{} // closed at the first ready
	done        chan struct{} // closed when the component will not run again
	cancel      context.CancelFunc

	mu     sync.Mutex
	status Status
}

// Group runs components. The zero value is empty and usable; set the fields before Run.
type Group struct {
	Log *slog.Logger
	// StopWithin is the time that one component has to stop; 5 s when zero.
	StopWithin time.Duration
	// Pause is the first pause before a restartable component runs again; it doubles up to a minute. 1 s when zero.
	Pause time.Duration

	mu    sync.Mutex
	parts []*Handle
}

// Option changes how a group treats one component.
type Option func(*Handle)

// Lingers marks a component that cannot be stopped inside the process (upstream's kubelet and kube-proxy): the group leaves it
// alone and it ends with the process. Its context is not cancelled either: a half-stopped kubelet would find its probes failing, call
// pods not ready, and have services lose them.
func Lingers() Option { return func(h *Handle) { h.lingers = true } }

// StopWithin sets a deadline for stopping this component.
func StopWithin(d time.Duration) Option { return func(h *Handle) { h.stopWithin = d } }

// Needs makes the component wait until the given ones are ready; it stops before they do.
func Needs(needs ...*Handle) Option {
	return func(h *Handle) { h.needs = append(h.needs, needs...) }
}

// Restartable marks a component that is started again when it fails.
func Restartable() Option { return func(h *Handle) { h.restartable = true } }

// Add puts a component at the end of the group. Needed components must have been added before.
func (g *Group) Add(c Component, opts ...Option) *Handle {
	h := &Handle{c: c, ready: make(chan struct{}), done: make(chan struct{})}
	h.status = Status{Name: c.Name(), State: Waiting, Since: time.Now()}
	for _, o := range opts {
		o(h)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parts = append(g.parts, h)
	return h
}

// Status returns the state of every component in start order.
func (g *Group) Status() []Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Status, len(g.parts))
	for i, h := range g.parts {
		h.mu.Lock()
		out[i] = h.status
		h.mu.Unlock()
	}
	return out
}

// Run starts the components and blocks until ctx ends or a component that must not stop does.
// It returns that component's failure, or nil after a stop that was asked for.
func (g *Group) Run(ctx context.Context) error {
	log := g.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	started := time.Now()
	groupCtx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	g.mu.Lock()
	parts := g.parts
	g.mu.Unlock()
	for _, h := range parts {
		// Each component has a context of its own, so that the stop can go through them one by one.
		partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		h.cancel = cancel
		go g.drive(partCtx, groupCtx, h, log, started, fail)
	}
	<-groupCtx.Done()

	stopping := time.Now()
	for i := len(parts) - 1; i >= 0; i-- {
		g.stop(parts[i], log)
	}
	log.Info("all components stopped", "took", time.Since(stopping).Round(time.Millisecond))
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(groupCtx)
}

// drive brings one component through its life and ends when it will not run again.
func (g *Group) drive(ctx, groupCtx context.Context, h *Handle, log *slog.Logger, started time.Time, fail context.CancelCauseFunc) {
	defer close(h.done)
	for _, need := range h.needs {
		select {
		case <-need.ready:
		case <-groupCtx.Done():
			h.set(Stopped, nil)
			return
		}
	}
	pause := g.Pause
	if pause == 0 {
		pause = time.Second
	}
	first := pause
	for {
		began := time.Now()
		h.set(Starting, nil)
		err := protect(ctx, h.c, func() { h.becomeReady(log, started) })
		if ctx.Err() != nil {
			h.set(Stopped, err)
			if err != nil {
				log.Warn("component stopped with an error", "name", h.c.Name(), "err", err)
			}
			return
		}
		if err == nil {
			err = ErrStoppedEarly
		}
		if !h.restartable {
			h.set(Failed, err)
			fail(fmt.Errorf("%s: %w", h.c.Name(), err))
			return
		}
		if time.Since(began) > time.Minute {
			pause = first
		}
		h.failed(err)
		log.Warn("component failed and is started again", "name", h.c.Name(), "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			h.set(Stopped, err)
			return
		}
		pause = min(2*pause, time.Minute)
	}
}

func (g *Group) stop(h *Handle, log *slog.Logger) {
	if h.lingers {
		return
	}
	began := time.Now()
	h.cancel()
	within := h.stopWithin
	if within == 0 {
		within = g.StopWithin
	}
	if within == 0 {
		within = 5 * time.Second
	}
	select {
	case <-h.done:
		log.Debug("component stopped", "name", h.c.Name(), "took", time.Since(began).Round(time.Millisecond))
	case <-time.After(within):
		log.Warn("component did not stop in time", "name", h.c.Name(), "within", within)
		log.Debug("goroutines at that moment", "stacks", stacks())
	}
}

func (h *Handle) set(s State, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status.State, h.status.Since = s, time.Now()
	if err != nil {
		h.status.Error = err.Error()
	}
}

func (h *Handle) failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status.Restarts++
	h.status.State, h.status.Since, h.status.Error = Backoff, time.Now(), err.Error()
}

func (h *Handle) becomeReady(log *slog.Logger, started time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.status.State == Ready {
		return
	}
	h.status.State, h.status.Since, h.status.Error = Ready, time.Now(), ""
	select {
	case <-h.ready:
	default:
		close(h.ready)
		log.Info("component ready", "name", h.c.Name(), "after", time.Since(started).Round(time.Millisecond))
	}
}

// protect runs c and turns a panic of its own goroutine into an error.
func protect(ctx context.Context, c Component, ready func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return c.Run(ctx, ready)
}

func stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
