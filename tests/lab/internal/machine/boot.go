package machine

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitArgs are the arguments that make the lab's command run Init.
var initArgs = []string{"init"}

// Files are what the host hands to a new node. Boot and Init share the descriptors.
type Files struct {
	Spec, Ready, Socket, Log, OwnLog *os.File
}

// List returns the files in the order that Boot expects them in exec.Cmd.ExtraFiles.
func (f Files) List() []*os.File {
	return []*os.File{f.Spec, f.Ready, f.Socket, f.Log, f.OwnLog}
}

// Boot runs in a process of its own, started by the host's command with Files.List as extra files. It calls join, which must put
// this process into the node's control groups, starts Init in new namespaces and writes its process id to out.
//
// It is a process of its own because the root of a control group namespace is where its maker is at that moment, and the host's
// command (or a test) must not move itself.
func Boot(exe, name string, join func(pid int) error, out io.Writer) error {
	if err := join(os.Getpid()); err != nil {
		return err
	}
	raiseFileLimit()
	cmd := exec.Command(exe, append(initArgs, name)...)
	cmd.Args[0] = "atoll-lab"
	cmd.Env = []string{toolsPath}
	cmd.Dir = "/"
	for fd := fdSpec; fd <= fdOwnLog; fd++ {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), "inherited"))
	}
	ownLog := cmd.ExtraFiles[fdOwnLog-fdSpec]
	cmd.Stdout, cmd.Stderr = ownLog, ownLog // a panic of PID 1 must not vanish
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID |
			unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PID 1 of %s in new namespaces: %w", name, err)
	}
	_, err := fmt.Fprintln(out, cmd.Process.Pid)
	return err
}

// raiseFileLimit allows as many open files as the host lets us: containers inherit the limit.
func raiseFileLimit() {
	const wanted = 1 << 20
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: wanted, Max: wanted}) == nil {
		return
	}
	// Without CAP_SYS_RESOURCE the hard limit stands.
	var now unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &now) == nil {
		now.Cur = now.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &now)
	}
}
