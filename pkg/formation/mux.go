package formation

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// A connection has this long to say what it wants.
	helloTimeout = 10 * time.Second
	// At most so many connections may be saying it; beyond, the oldest is closed, which is the most likely to be slow on purpose.
	maxHellos = 1024
	// At most so many connections wait for a service to accept them, as in the queue of a kernel's listener.
	maxQueue = 512
)

// Mux shares one listener between the API server and the supervisor. It is a component (run.Component): it accepts while it runs.
// Connections for a service that does not accept yet wait; those for one that has closed its listener are closed.
type Mux struct {
	listener   net.Listener
	log        *slog.Logger
	api        *endpoint
	supervisor *endpoint

	mu      sync.Mutex
	hellos  *list.List // of net.Conn, oldest first
	stopped bool
}

// NewMux returns a mux for a listener, which it owns from now on.
func NewMux(l net.Listener, log *slog.Logger) *Mux {
	return &Mux{listener: l, log: log, api: newEndpoint(l.Addr()), supervisor: newEndpoint(l.Addr()), hellos: list.New()}
}

// API returns the listener for the API server. Connections are as the kernel gave them: nothing consumed, keep-alive as the mux's
// listener sets it. They are not *net.TCPConn, so whoever sets options of TCP on what it accepts does not reach it.
func (m *Mux) API() net.Listener { return m.api }

// Supervisor returns the listener for the supervisor; TLS is still to be spoken.
func (m *Mux) Supervisor() net.Listener { return m.supervisor }

// Name implements run.Component.
func (m *Mux) Name() string { return "listener" }

// Run implements run.Component. When it ends, the port is free, and Accept of both listeners returns net.ErrClosed.
func (m *Mux) Run(ctx context.Context, ready func()) error {
	stop := context.AfterFunc(ctx, m.close)
	defer stop()
	defer m.close()
	ready()
	var wg sync.WaitGroup
	defer wg.Wait()
	pause := time.Duration(0)
	for {
		conn, err := m.listener.Accept()
		switch {
		case err == nil:
			if pause > 0 {
				m.log.Info("connections are accepted again")
				pause = 0
			}
			wg.Go(func() { m.sort(conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // no file descriptors or no memory: both pass
			if pause == 0 {
				m.log.Warn("connections are not accepted", "err", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// sort finds out what a connection wants and passes it on.
func (m *Mux) sort(conn net.Conn) {
	forget, ok := m.remember(conn)
	if !ok {
		_ = conn.Close()
		return
	}
	protocols, first, err := readHello(conn, helloTimeout)
	if !forget() || err != nil {
		_ = conn.Close()
		return
	}
	to := m.api
	if slices.Contains(protocols, Protocol) {
		to = m.supervisor
	}
	if !to.offer(&replayed{Conn: conn, first: first}) {
		_ = conn.Close()
	}
}

// remember enters conn into the list of those that say what they want. forget takes it out; false means that it was closed meanwhile.
func (m *Mux) remember(conn net.Conn) (forget func() bool, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil, false
	}
	if m.hellos.Len() >= maxHellos {
		_ = m.hellos.Remove(m.hellos.Front()).(net.Conn).Close()
	}
	e := m.hellos.PushBack(conn)
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		before := m.hellos.Len()
		m.hellos.Remove(e) // does nothing for an element that is not in the list any more
		return m.hellos.Len() < before
	}, true
}

// close ends everything; it may be called more than once.
func (m *Mux) close() {
	_ = m.listener.Close()
	m.mu.Lock()
	m.stopped = true
	for m.hellos.Len() > 0 {
		_ = m.hellos.Remove(m.hellos.Front()).(net.Conn).Close()
	}
	m.mu.Unlock()
	_ = m.api.Close()
	_ = m.supervisor.Close()
}

// endpoint is one of the two listeners.
type endpoint struct {
	addr   net.Addr
	closed chan struct{}

	mu     sync.Mutex // held while the queue is closed or written to, so that no connection is left in a closed one
	ended  bool
	queued chan net.Conn
}

func newEndpoint(addr net.Addr) *endpoint {
	return &endpoint{addr: addr, closed: make(chan struct{}), queued: make(chan net.Conn, maxQueue)}
}

// Accept implements net.Listener.
func (e *endpoint) Accept() (net.Conn, error) {
	select {
	case conn := <-e.queued:
		return conn, nil
	case <-e.closed:
		return nil, &net.OpError{Op: "accept", Net: e.addr.Network(), Addr: e.addr, Err: net.ErrClosed}
	}
}

// Addr implements net.Listener.
func (e *endpoint) Addr() net.Addr { return e.addr }

// Close implements net.Listener. Connections that were not accepted are closed; those that were are not touched.
func (e *endpoint) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil
	}
	e.ended = true
	close(e.closed)
	for {
		select {
		case conn := <-e.queued:
			_ = conn.Close()
		default:
			return nil
		}
	}
}

// offer queues a connection; it returns false when the endpoint is closed or full.
func (e *endpoint) offer(conn net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return false
	}
	select {
	case e.queued <- conn:
		return true
	default:
		return false
	}
}
