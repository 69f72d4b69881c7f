package machine

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/tests/lab/internal/ctl"
)

// service is atoll's main process, as an init system sees it.
type service struct {
	spec     ServiceSpec
	children *children
	out      *os.File
	log      *slog.Logger
	group    string // v2 control group to start in, if any

	mu       sync.Mutex
	state    ctl.Service
	argv     []string // of the last start, for restarts
	env      []string
	ended    chan struct{} // closed when the running process has ended
	stopping bool          // the coming end was asked for
}

func newService(spec ServiceSpec, c *children, out *os.File, log *slog.Logger) *service {
	return &service{spec: spec, children: c, out: out, log: log, state: ctl.Service{State: "stopped"}}
}

// start starts the process; argv, when set, replaces the node's own for this and later automatic starts.
func (s *service) start(argv, env []string) (ctl.Service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(argv) == 0 {
		argv = s.spec.Argv
	}
	return s.startLocked(argv, append(append([]string{}, s.spec.Env...), env...))
}

func (s *service) startLocked(argv, env []string) (ctl.Service, error) {
	if s.state.State == "running" {
		return s.state, errors.New("atoll runs already")
	}
	if len(argv) == 0 {
		return s.state, errors.New("this node has no service")
	}
	path, err := lookPath(argv[0], servicePath)
	if err != nil {
		return s.state, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return s.state, err
	}
	defer null.Close()
	// No HOME, as systemd has it for system services.
	full := append([]string{servicePath, "LANG=C.UTF-8", "NOTIFY_SOCKET=" + notifySocket}, env...)
	pid, done, err := s.children.start(path, argv, full, "/", []*os.File{null, s.out, s.out}, s.group)
	if err != nil {
		return s.state, err
	}
	s.argv, s.env, s.stopping, s.ended = argv, env, false, make(chan struct{})
	s.state = ctl.Service{State: "running", PID: pid, Started: now(), Starts: s.state.Starts + 1}
	s.log.Info("service started", "pid", pid, "args", strings.Join(argv, " "))
	go s.wait(pid, done, s.ended)
	return s.state, nil
}

// wait notes the end of one run.
func (s *service) wait(pid int, done <-chan unix.WaitStatus, ended chan struct{}) {
	status := <-done
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Exit, s.state.PID, s.state.Notified = exitCode(status), 0, false
	s.state.State = "exited"
	if s.stopping {
		s.state.State = "stopped"
	}
	close(ended)
	s.log.Info("service ended", "pid", pid, "exit", s.state.Exit, "asked", s.stopping)
	if s.spec.RestartAfter > 0 && !s.stopping {
		runs := s.state.Starts
		time.AfterFunc(s.spec.RestartAfter, func() { s.restart(runs) })
	}
}

// restart starts the service again unless somebody else did since the end of run number runs, or asked it to stay stopped.
func (s *service) restart(runs int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Starts != runs || s.stopping {
		return
	}
	if _, err := s.startLocked(s.argv, s.env); err != nil {
		s.log.Error("service did not start again", "err", err)
	}
}

// stop asks the main process, and only that, to end, and waits up to timeout.
func (s *service) stop(timeout time.Duration) (ctl.Service, error) {
	s.mu.Lock()
	state, ended := s.state, s.ended
	s.stopping = true
	if state.State != "running" {
		s.state.State = "stopped"
		state = s.state
		s.mu.Unlock()
		return state, nil
	}
	s.mu.Unlock()
	began := time.Now()
	if err := s.children.signal(state.PID, unix.SIGTERM, false); err != nil && !errors.Is(err, unix.ESRCH) {
		return state, fmt.Errorf("stop atoll: %w", err)
	}
	select {
	case <-ended:
	case <-time.After(timeout):
		return s.current(), fmt.Errorf("atoll (pid %d in the node) still runs %s after SIGTERM", state.PID, timeout)
	}
	s.log.Info("service stopped", "took", time.Since(began))
	return s.current(), nil
}

// signal sends any signal to the main process. An end that follows counts as its own.
func (s *service) signal(sig unix.Signal) error {
	state := s.current()
	if state.State != "running" {
		return errors.New("atoll does not run")
	}
	return s.children.signal(state.PID, sig, false)
}

func (s *service) current() ctl.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// listenNotify offers what systemd offers to services of Type=notify.
func (s *service) listenNotify() error {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySocket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listen for notifications: %w", err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				s.log.Error("notifications ended", "err", err)
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				s.notified(strings.TrimSpace(line))
			}
		}
	}()
	return nil
}

func (s *service) notified(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Info("service says", "text", line)
	if line == "READY=1" && s.state.State == "running" {
		s.state.Notified = true
	}
}
