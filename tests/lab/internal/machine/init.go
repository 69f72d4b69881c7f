package machine

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/tests/lab/internal/cgroup"
)

// Init is PID 1 of a node. It returns only when the node could not be built.
func Init() error {
	unix.Umask(0o022)
	var s Spec
	if err := readSpec(&s); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.NewFile(fdOwnLog, "log"), nil))
	ready := os.NewFile(fdReady, "ready")
	m, err := build(s, log)
	answer := Ready{}
	if err != nil {
		answer.Error = err.Error()
	}
	// The host may be gone by now; the node then runs on without it.
	_ = json.NewEncoder(ready).Encode(answer)
	_ = ready.Close()
	if err != nil {
		return err
	}
	if s.Service.Start {
		if _, err := m.service.start(nil, nil); err != nil {
			log.Error("service did not start", "err", err)
		}
	}
	log.Info("node is up", "name", s.Name)
	m.reap() // for ever
	return nil
}

// machine is the running node.
type machine struct {
	*children
	service *service
	log     *slog.Logger
}

func readSpec(s *Spec) error {
	f := os.NewFile(fdSpec, "spec")
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("wait for the node's specification: %w", err)
	}
	if len(data) == 0 {
		return fmt.Errorf("wait for the node's specification: the command that builds the node ended")
	}
	return json.Unmarshal(data, s)
}

// build makes the node out of the namespaces that this process was started in.
func build(s Spec, log *slog.Logger) (*machine, error) {
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return nil, fmt.Errorf("set host name: %w", err)
	}
	if err := enterRoot(s); err != nil {
		return nil, err
	}
	if err := raiseNetwork(s); err != nil {
		return nil, err
	}
	if s.Delegate {
		if err := spreadControlGroups(); err != nil {
			return nil, err
		}
	}
	file := os.NewFile(fdSocket, "control socket")
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("take over control socket: %w", err)
	}
	_ = file.Close()
	out := os.NewFile(fdLog, "atoll log")
	for _, fd := range []int{fdLog, fdOwnLog} {
		unix.CloseOnExec(fd)
	}
	c := newChildren()
	m := &machine{children: c, log: log, service: newService(s.Service, c, out, log)}
	if s.Delegate {
		m.service.group = serviceGroup
	}
	if err := m.service.listenNotify(); err != nil {
		return nil, err
	}
	go m.serve(listener.(*net.UnixListener))
	return m, nil
}

// raiseNetwork configures the loopback and the one interface that the host has put into this namespace.
func raiseNetwork(s Spec) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	if s.Interface == "" {
		return nil
	}
	link, err := netlink.LinkByName(s.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", s.Interface, err)
	}
	addr, err := netlink.ParseAddr(s.Address)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s: %w", s.Address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("raise %s: %w", s.Interface, err)
	}
	if s.Gateway == "" {
		return nil
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(s.Gateway)}); err != nil {
		return fmt.Errorf("add default route via %s: %w", s.Gateway, err)
	}
	return nil
}

const (
	serviceGroup = "/sys/fs/cgroup/system.slice/atoll.service"
	toolsGroup   = "/sys/fs/cgroup/lab.scope"
	initGroup    = "/sys/fs/cgroup/init.scope"
)

// spreadControlGroups arranges a v2 tree as systemd does: processes in leaves only, controllers enabled at the root.
func spreadControlGroups() error {
	for _, dir := range []string{serviceGroup, toolsGroup, initGroup} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make control group: %w", err)
		}
	}
	if err := enterGroup(initGroup, 0); err != nil {
		return err
	}
	if err := cgroup.HandDown("/sys/fs/cgroup"); err != nil {
		return err
	}
	return cgroup.HandDown(filepath.Dir(serviceGroup))
}

// enterGroup moves a process (0: this one) into a v2 group.
func enterGroup(dir string, pid int) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendf(nil, "%d", pid), 0)
	if err != nil {
		return fmt.Errorf("enter control group: %w", err)
	}
	return nil
}

// lookPath finds a program as a shell with this PATH= setting would. exec.LookPath would use our own environment.
func lookPath(program, path string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for dir := range strings.SplitSeq(strings.TrimPrefix(path, "PATH="), ":") {
		file := filepath.Join(dir, program)
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("no program %q on the node", program)
}

// exitCode is the shell's way to put an exit status into one number.
func exitCode(w unix.WaitStatus) int {
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}

// now drops the monotonic part, which means nothing to another process.
func now() time.Time { return time.Now().Round(0) }
