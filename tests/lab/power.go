package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/tests/lab/internal/ctl"
	"github.com/atollhq/atoll/tests/lab/internal/machine"
	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// powerOnTimeout is ample: a node without atoll is up in some tens of milliseconds.
const powerOnTimeout = 30 * time.Second

var errAlreadyOn = errors.New("the node has power already")

// PowerOn boots the node without starting atoll.
func (n *Node) PowerOn(ctx context.Context) error {
	err := n.update(func(r *nodeRecord) error {
		if r.Init.alive() {
			return errAlreadyOn
		}
		return n.boot(ctx, r)
	})
	if err != nil {
		return fmt.Errorf("power %s on: %w", n.Name(), err)
	}
	return nil
}

// boot makes the node's processes and networks anew. On failure nothing of the node runs.
func (n *Node) boot(ctx context.Context, r *nodeRecord) (err error) {
	lab, err := n.site.lab.record()
	if err != nil {
		return err
	}
	router, err := lab.namespace(n.site.Name())
	if err != nil {
		return err
	}
	// Left from a node whose PID 1 ended by itself.
	if err := lab.Tree.Empty(ctx, n.group()); err != nil {
		return err
	}
	if err := n.waitDiskFree(ctx, *r); err != nil {
		return err
	}
	if err := lab.Tree.CreateGroup(n.group()); err != nil {
		return err
	}
	b, err := n.startInit(lab)
	if err != nil {
		return err
	}
	defer b.close()
	defer func() {
		if err != nil {
			_ = unix.Kill(b.init.PID, unix.SIGKILL)
			err = errors.Join(err, lab.Tree.Empty(context.WithoutCancel(ctx), n.group()))
		}
	}()
	r.Init = b.init
	if err := n.save(*r); err != nil { // before PID 1 does anything
		return err
	}
	if err := wiring.PlugNode(lab.plan(), router, wiring.Namespace{PID: b.init.PID}, n.site.number, n.number); err != nil {
		return err
	}
	if err := b.run(n.spec(lab, *r)); err != nil {
		return err
	}
	// Not earlier: a switch opens a port when its link comes up. atoll does not run yet.
	if r.Shape != (Shape{}) {
		if r.Wire, err = n.startWire(lab, r.Shape); err != nil {
			return err
		}
	}
	return n.applyCuts(*r)
}

// spec is what PID 1 is told.
func (n *Node) spec(lab record, r nodeRecord) machine.Spec {
	plan := lab.plan()
	argv := append([]string{"atoll", r.Config.Role}, r.Config.Args...)
	s := machine.Spec{
		Name: n.Name(), Hostname: n.Hostname(), Root: n.root(), ReadOnly: r.Config.ReadOnly,
		Tools: filepath.Join(n.site.lab.dir, "tools"), Delegate: lab.Tree.Delegate,
		Interface: wiring.Interface, Address: plan.Node(n.site.number, n.number).String() + "/24",
		Gateway: plan.Gateway(n.site.number).String(),
		Service: machine.ServiceSpec{Argv: argv, RestartAfter: r.Config.RestartAfter},
	}
	if r.Config.DiskMB > 0 {
		s.DataDisk = n.diskImage()
	}
	return s
}

// booting is a PID 1 that waits for its specification.
type booting struct {
	init        process
	spec, ready *os.File
}

// startInit starts PID 1 in new namespaces and in the node's control groups. It ends by itself if we die before run.
func (n *Node) startInit(lab record) (b *booting, err error) {
	specRead, specWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specRead.Close()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		_ = specWrite.Close()
		return nil, err
	}
	defer readyWrite.Close()
	b = &booting{spec: specWrite, ready: readyRead}
	defer func() {
		if err != nil {
			b.close()
		}
	}()

	listener, err := ctl.Listen(n.dir())
	if err != nil {
		return b, err
	}
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		return b, err
	}
	defer socket.Close()
	out, err := appendTo(n.LogFile())
	if err != nil {
		return b, err
	}
	defer out.Close()
	own, err := appendTo(filepath.Join(n.dir(), "init.log"))
	if err != nil {
		return b, err
	}
	defer own.Close()

	files := machine.Files{Spec: specRead, Ready: readyWrite, Socket: socket, Log: out, OwnLog: own}
	pid, err := runBoot(lab.Options.Command, n.site.lab.dir, n.Name(), files.List())
	if err != nil {
		return b, err
	}
	b.init, err = identify(pid)
	return b, err
}

// runBoot runs the process that becomes part of the node's control groups, forks PID 1 and leaves.
func runBoot(command, dir, name string, files []*os.File) (pid int, err error) {
	if err := keepFiles(); err != nil {
		return 0, err
	}
	cmd := exec.Command(command, "boot", dir, name)
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("start PID 1: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strconv.Atoi(strings.TrimSpace(out.String()))
}

// Boot is the body of the process started by runBoot.
func Boot(dir, name, command string, out io.Writer) error {
	l := &Lab{dir: dir}
	site, number, err := ParseName(name)
	if err != nil {
		return err
	}
	n := l.Site(site).Node(number)
	r, err := l.record()
	if err != nil {
		return err
	}
	join := func(pid int) error { return r.Tree.Join(n.group(), pid) }
	return machine.Boot(command, name, join, out)
}

// run sends the specification and waits until the node is up.
func (b *booting) run(s machine.Spec) error {
	if err := json.NewEncoder(b.spec).Encode(s); err != nil {
		return err
	}
	if err := b.spec.Close(); err != nil {
		return err
	}
	if err := b.ready.SetReadDeadline(time.Now().Add(powerOnTimeout)); err != nil {
		return err
	}
	var ready machine.Ready
	err := json.NewDecoder(b.ready).Decode(&ready)
	if errors.Is(err, io.EOF) {
		err = errors.New("PID 1 ended, see init.log in the node's folder")
	}
	if err == nil && ready.Error != "" {
		err = errors.New(ready.Error)
	}
	return err
}

func (b *booting) close() {
	_ = b.spec.Close()
	_ = b.ready.Close()
}

func appendTo(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// Kill cuts the node's power: every process ends at once, /run and /tmp are lost. The disk stays; see the package comment for what
// of it is lost. It is not an error when the node is off.
func (n *Node) Kill(ctx context.Context) error {
	return n.site.lab.Kill(ctx, n)
}

// cutPower does not wait, so that several nodes can lose power together.
func (n *Node) cutPower() error {
	r, err := n.record()
	if err != nil {
		return err
	}
	if !r.Init.alive() {
		return nil
	}
	if r.Config.DiskMB > 0 {
		if err := loseUnsynced(r.Init); err != nil {
			return fmt.Errorf("cut power of %s: %w", n.Name(), err)
		}
	}
	// The end of PID 1 is the end of its PID namespace: the kernel kills all in it, pods included, before it lets PID 1 go.
	if err := unix.Kill(r.Init.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cut power of %s: %w", n.Name(), err)
	}
	return nil
}

// loseUnsynced shuts the node's own file system down without a last flush: from now on every write to it fails and what was not
// synced yet never reaches the image. It comes before the kill, so that nothing can be acknowledged in between and then be lost.
func loseUnsynced(init process) error {
	const (
		ext4Shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
		noLogFlush   = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	fs, err := os.Open(fmt.Sprintf("/proc/%d/root/var", init.PID))
	if errors.Is(err, os.ErrNotExist) {
		return nil // not mounted yet, or ended
	}
	if err != nil {
		return fmt.Errorf("shut down data disk: %w", err)
	}
	defer fs.Close()
	if err := unix.IoctlSetPointerInt(int(fs.Fd()), ext4Shutdown, noLogFlush); err != nil {
		return fmt.Errorf("shut down data disk: %w", err)
	}
	return nil
}

// settleOff waits until nothing of a node without power is left, its control groups included: after a reboot they are empty too.
func (n *Node) settleOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	return n.update(func(r *nodeRecord) error {
		lab, err := n.site.lab.record()
		if err != nil {
			return err
		}
		if err := lab.Tree.Empty(ctx, n.group()); err != nil {
			return fmt.Errorf("power %s off: %w", n.Name(), err)
		}
		r.Init = process{}
		return n.waitDiskFree(ctx, *r)
	})
}

// applyCuts brings the network into the state that r asks for. A node without power has no port; its cuts come with the next boot.
func (n *Node) applyCuts(r nodeRecord) error {
	lab, err := n.site.lab.record()
	if err != nil {
		return err
	}
	router, err := lab.namespace(n.site.Name())
	if err != nil {
		return err
	}
	if err := wiring.SetLAN(router, n.number, !r.CutLAN); err != nil {
		return err
	}
	return wiring.SetNodeWAN(lab.plan(), router, n.site.number, n.number, !r.CutWAN)
}
