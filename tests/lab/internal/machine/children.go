package machine

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// children starts processes and reaps them all, its own and those that the node's other processes leave behind.
//
// os/exec is not used: it waits for its own children by itself, and PID 1 must wait for any.
type children struct {
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
	started chan struct{} // wakes the reaper when there was nothing to wait for
}

func newChildren() *children {
	return &children{waiting: map[int]chan unix.WaitStatus{}, started: make(chan struct{}, 1)}
}

// start runs a program. Its exit status comes on the channel, once. files become its descriptors 0, 1, 2.
func (c *children) start(path string, argv, env []string, dir string, files []*os.File, group string) (int, <-chan unix.WaitStatus, error) {
	attr := &syscall.ProcAttr{Env: env, Dir: dir, Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	if group != "" {
		d, err := os.Open(group)
		if err != nil {
			return 0, nil, err
		}
		defer d.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(d.Fd())
	}
	// The reaper may see the child's end before we know its number; it then waits for this lock.
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, &os.PathError{Op: "start", Path: path, Err: err}
	}
	done := make(chan unix.WaitStatus, 1)
	c.waiting[pid] = done
	select {
	case c.started <- struct{}{}:
	default:
	}
	return pid, done, nil
}

// signal sends a signal to a child that has not been reaped, or to its session's process group when group is set.
func (c *children) signal(pid int, sig unix.Signal, group bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.waiting[pid]; !ok {
		return unix.ESRCH
	}
	if group {
		pid = -pid
	}
	return unix.Kill(pid, sig)
}

// reap never returns.
func (c *children) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.ECHILD:
			// Orphans appear only below children, so with no child at all only a start can bring one.
			// The timeout covers one case: a process of the host that was put into this PID namespace.
			select {
			case <-c.started:
			case <-time.After(time.Second):
			}
		case err == nil:
			c.mu.Lock()
			done := c.waiting[pid]
			delete(c.waiting, pid)
			c.mu.Unlock()
			if done != nil {
				done <- status
			}
		}
	}
}
