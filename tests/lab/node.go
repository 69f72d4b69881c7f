package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/lab/internal/ctl"
)

// Node is one box.
type Node struct {
	site   *Site
	number int
}

// Config is how a node is run. It is written at Create; Configure changes it.
type Config struct {
	Role     string   `json:"role"`           // "server" or "agent"
	Args     []string `json:"args,omitempty"` // after "atoll server" or "atoll agent"
	Env      []string `json:"env,omitempty"`
	Binary   string   `json:"binary"`             // what a new disk gets as /usr/local/bin/atoll; see SetBinary
	ReadOnly bool     `json:"readOnly,omitempty"` // mount /var read-only, from the next power-on

	Files        map[string]string `json:"files,omitempty"`  // of a new disk
	Images       []string          `json:"images,omitempty"` // of a new disk
	DiskMB       int               `json:"diskMB,omitempty"` // of a new disk
	RestartAfter time.Duration     `json:"restartAfter,omitempty"`
}

// States of a node.
const (
	StateOff     = "off"     // no power
	StateStopped = "stopped" // atoll is stopped; pods may run
	StateRunning = "running" // atoll runs
	StateExited  = "exited"  // atoll ended by itself
)

// Status is what can be seen from outside.
type Status struct {
	State    string
	PID      int // of atoll, on the host
	Exit     int // of atoll's last run; 128+n after signal n
	Started  time.Time
	Notified bool // atoll said READY=1 to the init system
}

// ErrOff is returned by calls that need a node with power.
var ErrOff = ctl.ErrOff

// Name is "s1/n1".
func (n *Node) Name() string { return n.site.Name() + "/" + n.Hostname() }

// Hostname is "n1", which is also the name of its Kubernetes node.
func (n *Node) Hostname() string { return fmt.Sprintf("n%d", n.number) }

// Address is the node's address on its site's LAN.
func (n *Node) Address() netip.Addr {
	r, err := n.site.lab.record()
	if err != nil {
		return netip.Addr{}
	}
	return r.plan().Node(n.site.number, n.number)
}

func (n *Node) dir() string   { return filepath.Join(n.site.dir(), n.Hostname()) }
func (n *Node) group() string { return n.site.Name() + "-" + n.Hostname() }

func (n *Node) record() (nodeRecord, error) {
	var r nodeRecord
	err := readJSON(filepath.Join(n.dir(), "node.json"), &r)
	return r, err
}

func (n *Node) save(r nodeRecord) error { return writeJSON(filepath.Join(n.dir(), "node.json"), r) }

// update changes node.json and calls f under the node's lock, which every change of power or cables holds.
func (n *Node) update(f func(*nodeRecord) error) error {
	return locked(filepath.Join(n.dir(), "lock"), func() error {
		r, err := n.record()
		if err != nil {
			return err
		}
		if err := f(&r); err != nil {
			return err
		}
		return n.save(r)
	})
}

// Configure changes how the node is run, from its next start on.
func (n *Node) Configure(change func(*Config)) error {
	return n.update(func(r *nodeRecord) error { change(&r.Config); return nil })
}

func (n *Node) server() bool {
	r, err := n.record()
	return err == nil && r.Config.Role == "server"
}

func (n *Node) call(ctx context.Context, req ctl.Request, files ...*os.File) (ctl.Reply, *os.File, error) {
	reply, file, err := ctl.Call(ctx, n.dir(), req, files...)
	if err != nil {
		err = fmt.Errorf("%s: %w", n.Name(), err)
		if errors.Is(err, ErrOff) {
			err = remedy.Wrap(err, "switch it on with start %s", n.Name())
		}
	}
	return reply, file, err
}

// Status looks at the node.
func (n *Node) Status(ctx context.Context) (Status, error) {
	reply, _, err := n.call(ctx, ctl.Request{Op: "status"})
	if errors.Is(err, ErrOff) {
		return Status{State: StateOff}, nil
	}
	if err != nil {
		return Status{}, err
	}
	s := reply.Service
	status := Status{State: s.State, Exit: s.Exit, Started: s.Started, Notified: s.Notified}
	if s.PID != 0 {
		status.PID, err = n.hostPID(s.PID)
	}
	return status, err
}

// Processes returns the host's numbers of all processes of the node, containers included.
func (n *Node) Processes() ([]int, error) {
	r, err := n.site.lab.record()
	if err != nil {
		return nil, err
	}
	return r.Tree.Processes(n.group())
}

// hostPID translates a process number of the node's PID 1.
func (n *Node) hostPID(inner int) (int, error) {
	pids, err := n.Processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(text)) {
			// Ours, then the node's. Processes of pods have a third number.
			if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
				if f := strings.Fields(rest); len(f) == 2 && f[1] == fmt.Sprint(inner) {
					return pid, nil
				}
			}
		}
	}
	return 0, nil
}

// Start starts atoll, with args instead of the configured ones when given, and powers the node on before if it is off.
func (n *Node) Start(ctx context.Context) error {
	err := n.PowerOn(ctx)
	if err != nil && !errors.Is(err, errAlreadyOn) {
		return err
	}
	argv, env, err := n.command()
	if err != nil {
		return err
	}
	_, _, err = n.call(ctx, ctl.Request{Op: "start", Argv: argv, Env: env})
	return err
}

// command is atoll's command line and environment.
func (n *Node) command() (argv, env []string, err error) {
	r, err := n.record()
	if err != nil {
		return nil, nil, err
	}
	return append([]string{"atoll", r.Config.Role}, r.Config.Args...), r.Config.Env, nil
}

// Stop asks atoll to end (SIGTERM) and waits up to 30 s. What atoll started, pods above all, runs on.
func (n *Node) Stop(ctx context.Context) error {
	_, _, err := n.call(ctx, ctl.Request{Op: "stop", Timeout: 30 * time.Second})
	return err
}

// Restart is Stop and Start.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Stop(ctx); err != nil {
		return err
	}
	return n.Start(ctx)
}

// Signal sends a signal to atoll's main process and to nothing else.
func (n *Node) Signal(ctx context.Context, sig unix.Signal) error {
	_, _, err := n.call(ctx, ctl.Request{Op: "signal", Signal: int(sig)})
	return err
}

// WaitExit waits until atoll does not run, and returns its exit code.
func (n *Node) WaitExit(ctx context.Context) (int, error) {
	var code int
	err := poll(ctx, func() error {
		s, err := n.Status(ctx)
		if err == nil && s.State == StateRunning {
			err = errors.New("atoll still runs")
		}
		code = s.Exit
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("wait for atoll on %s to end: %w", n.Name(), err)
	}
	return code, nil
}

// WaitReady waits until the site's API says that this node is Ready. It gives up early when atoll ends by itself.
func (n *Node) WaitReady(ctx context.Context) error {
	var api *API
	defer func() {
		if api != nil {
			api.Close()
		}
	}()
	err := poll(ctx, func() error {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if s.State == StateExited || s.State == StateOff {
			return &giveUp{n.ended(s)}
		}
		if api == nil {
			if api, err = n.site.apiFor(ctx, n); err != nil {
				return err
			}
		}
		return api.nodeReady(ctx, n.Hostname())
	})
	if err != nil {
		return fmt.Errorf("wait for %s to be Ready: %w", n.Name(), err)
	}
	return nil
}

// ended says why a node without a running atoll will not become Ready, with atoll's last words.
func (n *Node) ended(s Status) error {
	if s.State == StateOff {
		return ErrOff
	}
	text, _ := n.Logs() // it may never have said anything
	return fmt.Errorf("atoll ended with exit code %d: %s", s.Exit, lastLine([]byte(text)))
}

// Ready looks once.
func (n *Node) Ready(ctx context.Context) error {
	api, err := n.site.apiFor(ctx, n)
	if err != nil {
		return err
	}
	defer api.Close()
	return api.nodeReady(ctx, n.Hostname())
}

// giveUp ends poll at once.
type giveUp struct{ error }

func (g *giveUp) Unwrap() error { return g.error }

// poll calls f until it returns nil or ctx ends; the last error of f is part of the result.
func poll(ctx context.Context, f func() error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		var final *giveUp
		if err == nil || errors.As(err, &final) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last seen: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// Dial connects from inside the node: "127.0.0.1:6443" is the node's own, whatever the links are.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	timeout := 10 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	_, file, err := n.call(ctx, ctl.Request{Op: "dial", Network: network, Address: address, Timeout: timeout})
	if err != nil {
		return nil, err
	}
	if file == nil {
		return nil, fmt.Errorf("%s: connection did not come out", n.Name())
	}
	defer file.Close()
	return net.FileConn(file)
}

// Exec runs a program on the node, beside atoll, with the lab's tools in PATH, and returns its standard output. An exit code other
// than 0 is an *ExitError. The program is killed when ctx ends.
func (n *Node) Exec(ctx context.Context, argv ...string) (string, error) {
	return n.ExecInput(ctx, nil, argv...)
}

// ExecInput is Exec with something on standard input.
func (n *Node) ExecInput(ctx context.Context, input []byte, argv ...string) (string, error) {
	// Files in memory, not pipes: a program left behind in the background would keep a pipe open.
	var files [3]*os.File
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			return "", fmt.Errorf("make memory file: %w", err)
		}
		files[i] = os.NewFile(uintptr(fd), name)
		defer files[i].Close()
	}
	if _, err := files[0].WriteAt(input, 0); err != nil {
		return "", err
	}
	code, err := n.Attach(ctx, argv, nil, files[0], files[1], files[2])
	out, readErr := io.ReadAll(io.NewSectionReader(files[1], 0, 1<<62))
	stderr, _ := io.ReadAll(io.NewSectionReader(files[2], 0, 1<<62))
	if err == nil {
		err = readErr
	}
	if err == nil && code != 0 {
		err = &ExitError{Node: n.Name(), Argv: argv, Code: code, Stderr: string(stderr)}
	}
	return string(out), err
}

// Attach runs a program on the node with the given files as its standard input, output and error, and returns its exit code.
func (n *Node) Attach(ctx context.Context, argv, env []string, stdin, stdout, stderr *os.File) (int, error) {
	reply, _, err := n.call(ctx, ctl.Request{Op: "exec", Argv: argv, Env: env}, stdin, stdout, stderr)
	return reply.Exit, err
}

// ExitError says that a program on a node failed.
type ExitError struct {
	Node   string
	Argv   []string
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: %s: exit code %d: %s", e.Node, strings.Join(e.Argv, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// LogFile is where atoll's output is appended, over all starts.
func (n *Node) LogFile() string { return filepath.Join(n.dir(), "atoll.log") }

// Logs returns atoll's output so far.
func (n *Node) Logs() (string, error) {
	data, err := os.ReadFile(n.LogFile())
	return string(data), err
}

// apiFor returns a client that can tell about n: its own API server, or any of the site.
func (s *Site) apiFor(ctx context.Context, n *Node) (*API, error) {
	if n.server() {
		return s.API(n)
	}
	return s.anyAPI(ctx)
}

// CutLAN makes the node's switch port go silent; the link stays up. HealLAN undoes it, and ShapeLAN.
func (n *Node) CutLAN() error { return n.setLAN(true) }
func (n *Node) HealLAN() error {
	return errors.Join(n.ShapeLAN(Shape{}), n.setLAN(false))
}

func (n *Node) setLAN(cut bool) error {
	return n.update(func(r *nodeRecord) error { r.CutLAN = cut; return n.applyCuts(*r) })
}

// CutWAN drops in silence what this node sends through its site's line and what comes back. HealWAN undoes it.
func (n *Node) CutWAN() error  { return n.setWAN(true) }
func (n *Node) HealWAN() error { return n.setWAN(false) }

func (n *Node) setWAN(cut bool) error {
	return n.update(func(r *nodeRecord) error { r.CutWAN = cut; return n.applyCuts(*r) })
}

// Configured returns how the node is run.
func (n *Node) Configured() (Config, error) {
	r, err := n.record()
	r.Config.Args = slices.Clone(r.Config.Args)
	return r.Config, err
}

// Cuts names what is wrong with this node's links: "lan" and "wan" when they are cut, "lan-shaped".
func (n *Node) Cuts() []string {
	r, err := n.record()
	if err != nil {
		return nil
	}
	var cuts []string
	if r.CutLAN {
		cuts = append(cuts, "lan")
	}
	if r.CutWAN {
		cuts = append(cuts, "wan")
	}
	if r.Shape != (Shape{}) {
		cuts = append(cuts, "lan-shaped")
	}
	return cuts
}
