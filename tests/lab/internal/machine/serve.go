package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/tests/lab/internal/ctl"
)

// stopTimeout is how long a stop waits unless the request says otherwise.
const stopTimeout = 30 * time.Second

// serve answers the control socket, for ever.
func (m *machine) serve(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			m.log.Error("control socket ended", "err", err)
			return
		}
		go m.answer(conn)
	}
}

func (m *machine) answer(conn *net.UnixConn) {
	defer conn.Close()
	var req ctl.Request
	files, err := ctl.Receive(conn, &req)
	if err != nil {
		return // the caller left
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	// A read ends when the caller goes away, and never before: a request is one line.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	reply, file, err := m.handle(ctx, req, files)
	if err != nil {
		reply.Error = err.Error()
	}
	var beside []*os.File
	if file != nil {
		defer file.Close()
		beside = append(beside, file)
	}
	_ = ctl.Send(conn, reply, beside...)
}

func (m *machine) handle(ctx context.Context, req ctl.Request, files []*os.File) (reply ctl.Reply, file *os.File, err error) {
	switch req.Op {
	case "status":
		reply.Service = m.service.current()
	case "start":
		reply.Service, err = m.service.start(req.Argv, req.Env)
	case "stop":
		if req.Timeout == 0 {
			req.Timeout = stopTimeout
		}
		reply.Service, err = m.service.stop(req.Timeout)
	case "signal":
		err = m.service.signal(unix.Signal(req.Signal))
	case "exec":
		reply.Exit, err = m.exec(ctx, req, files)
	case "dial":
		file, err = dial(ctx, req)
	default:
		err = fmt.Errorf("unknown request %q", req.Op)
	}
	return reply, file, err
}

// exec runs a program beside atoll until it ends or the caller leaves.
func (m *machine) exec(ctx context.Context, req ctl.Request, files []*os.File) (int, error) {
	if len(req.Argv) == 0 || len(files) != 3 {
		return 0, errors.New("exec wants a program and three files")
	}
	path, err := lookPath(req.Argv[0], toolsPath)
	if err != nil {
		return 127, err
	}
	dir := req.Dir
	if dir == "" {
		dir = "/"
	}
	env := append([]string{toolsPath, "HOME=/root", "LANG=C.UTF-8", "KUBECONFIG=/etc/atoll/kubeconfig.yaml"}, req.Env...)
	group := ""
	if m.service.group != "" {
		group = toolsGroup
	}
	pid, done, err := m.start(path, req.Argv, env, dir, files, group)
	if err != nil {
		return 126, err
	}
	select {
	case status := <-done:
		return exitCode(status), nil
	case <-ctx.Done():
		// The whole session: a shell's children must not outlive the caller.
		_ = m.signal(pid, unix.SIGKILL, true)
		return exitCode(<-done), ctx.Err()
	}
}

// dial connects from inside the node and hands the connection out.
func dial(ctx context.Context, req ctl.Request) (*os.File, error) {
	if req.Timeout == 0 {
		req.Timeout = 10 * time.Second
	}
	conn, err := (&net.Dialer{Timeout: req.Timeout}).DialContext(ctx, req.Network, req.Address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("cannot hand out a %s connection", req.Network)
	}
	return c.File()
}
