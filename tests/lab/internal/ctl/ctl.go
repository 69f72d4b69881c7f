// Package ctl is the wire between the lab's command on the host and PID 1 of a node.
//
// PID 1 listens on a Unix socket that was opened outside the node, so that it answers whatever state the node's network and disk
// are in. One connection carries one request: a JSON line, with open files beside it where the request needs some, and one JSON
// line back. Closing the connection early cancels the request: a program that was started by it is killed.
package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the socket's file name in the folder of a node.
const SocketName = "ctl.sock"

// maxLine bounds one message. Requests carry arguments and environments, not data.
const maxLine = 256 << 10

// ErrOff means that nobody answers: the node is powered off.
var ErrOff = errors.New("node is powered off")

// Request is what the host asks.
type Request struct {
	// Op is "status", "start", "stop", "signal", "exec" or "dial".
	Op string `json:"op"`

	Signal  int           `json:"signal,omitempty"`  // signal: what to send to atoll's main process
	Timeout time.Duration `json:"timeout,omitempty"` // stop, dial: how long to wait

	Argv []string `json:"argv,omitempty"` // exec: program and arguments; start: replaces the node's own when set
	Env  []string `json:"env,omitempty"`  // exec: added to the tools' environment; start: to the service's
	Dir  string   `json:"dir,omitempty"`  // exec: working directory

	Network string `json:"network,omitempty"` // dial
	Address string `json:"address,omitempty"` // dial
}

// Reply is the answer of PID 1.
type Reply struct {
	Error string `json:"error,omitempty"`

	Service Service `json:"service"` // status, start, stop
	Exit    int     `json:"exit"`    // exec: exit code, 128+n after signal n
}

// Service is what PID 1 knows of the atoll process that it started.
type Service struct {
	State    string    `json:"state"`              // "running", "stopped" (asked to) or "exited" (by itself)
	PID      int       `json:"pid,omitempty"`      // in the node's own numbering
	Exit     int       `json:"exit,omitempty"`     // of the last run; 128+n after signal n
	Started  time.Time `json:"started,omitzero"`   // of the last run
	Notified bool      `json:"notified,omitempty"` // it has said READY=1 on NOTIFY_SOCKET
	Starts   int       `json:"starts,omitempty"`   // since power-on
}

// Listen opens the socket in the folder dir.
func Listen(dir string) (*net.UnixListener, error) {
	var l *net.UnixListener
	err := throughFolder(dir, func(path string) (err error) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			l.SetUnlinkOnClose(false) // the host closes its copy while PID 1 keeps listening
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on control socket in %s: %w", dir, err)
	}
	return l, nil
}

// throughFolder calls f with a short path to the socket: a socket's path may have only 107 bytes, folders of tests are longer.
func throughFolder(dir string, f func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(filepath.Join(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), SocketName))
}

// Call sends one request, with files beside it, to the node whose folder is dir, and waits for the reply.
// The second result is the file that came with the reply, if any. A reply with an error is returned as one.
func Call(ctx context.Context, dir string, req Request, files ...*os.File) (Reply, *os.File, error) {
	conn, err := connect(ctx, dir)
	if err != nil {
		return Reply{}, nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	if err := Send(conn, req, files...); err != nil {
		return Reply{}, nil, fmt.Errorf("ask node: %w", err)
	}
	var reply Reply
	got, err := Receive(conn, &reply)
	if ctx.Err() != nil {
		return Reply{}, nil, ctx.Err()
	}
	if err != nil {
		// The connection ends without an answer when the node is killed meanwhile.
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			err = ErrOff
		}
		return Reply{}, nil, fmt.Errorf("ask node to %s: %w", req.Op, err)
	}
	var file *os.File
	for i, f := range got {
		if i > 0 {
			_ = f.Close()
			continue
		}
		file = f
	}
	if reply.Error != "" {
		return reply, file, errors.New(reply.Error)
	}
	return reply, file, nil
}

func connect(ctx context.Context, dir string) (*net.UnixConn, error) {
	var conn net.Conn
	err := throughFolder(dir, func(path string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, ErrOff
	case err != nil:
		return nil, fmt.Errorf("reach node: %w", err)
	}
	return conn.(*net.UnixConn), nil
}

// Send writes v as one line, with files beside its first byte.
func Send(conn *net.UnixConn, v any, files ...*os.File) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(line) >= maxLine {
		return fmt.Errorf("message of %d bytes is too long", len(line))
	}
	line = append(line, '\n')
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(line, rights, nil)
	if err != nil {
		return err
	}
	if n < len(line) {
		_, err = conn.Write(line[n:])
	}
	return err
}

// Receive reads one line into v and returns the files that came with it.
func Receive(conn *net.UnixConn, v any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			files = nil
		}
	}()
	var line []byte
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*8))
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return files, err
		}
		got, err := parseRights(oob[:oobn])
		if err != nil {
			return files, err
		}
		files = append(files, got...)
		if n == 0 {
			return files, io.EOF
		}
		line = append(line, buf[:n]...)
		if line[len(line)-1] == '\n' {
			return files, json.Unmarshal(line, v)
		}
		if len(line) > maxLine {
			return files, errors.New("message is too long")
		}
	}
}

func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}
