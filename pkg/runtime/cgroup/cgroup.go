// Package cgroup makes a machine's control groups usable for the kubelet where no systemd has done it: in a container, under
// another init, or where nothing mounts them at all.
//
// The kubelet makes its groups at the root that it sees and expects controllers to be handed down from there. That fails in
// these cases, each of which is put right:
//
//   - Version 2 in a container: the root is a group like any other, and the kernel hands controllers down only from groups without
//     processes of their own. All processes are moved into a group below, init, as kind and K3s do.
//   - Version 2 with controllers that nobody has enabled: they are.
//   - Version 1 with controllers that nobody has mounted, or a cpuset root without processors: they are mounted, it is filled.
//     Groups below get theirs from the container runtime.
//   - Nothing mounted: version 2 is.
//
// Where systemd manages the groups nothing is touched. What to do is planned from a State by a pure function, carried out, and
// planned again, until nothing is left to do. Nothing here lasts beyond a reboot.
package cgroup

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Config is for tests; the zero value means this machine.
type Config struct {
	Root  string // folder under which /proc and /sys are found
	Mount func(kind, path, options string) error
}

// rounds bounds how often is planned. Three are the most that can be needed: mount, hand down, find nothing left.
const rounds = 5

// Prepare makes the control groups usable, or leaves them alone where they are. It may be called at every start, by root.
func Prepare(cfg Config, log *slog.Logger) error {
	if cfg.Mount == nil {
		cfg.Mount = mount
	}
	done := map[Step]bool{}
	for range rounds {
		state, err := read(cfg.Root)
		if err != nil {
			return remedy.Wrap(fmt.Errorf("look at the control groups: %w", err), "mount /proc and /sys")
		}
		steps := Plan(state)
		left := 0
		for _, s := range steps {
			if done[s] { // an optional step that did not help
				continue
			}
			done[s] = true
			left++
			if err := cfg.do(s); err != nil && !s.Optional {
				return explain(s, err)
			} else if err != nil {
				log.Debug("control group step not possible", "step", s.String(), "err", err)
				continue
			}
			log.Info("control group prepared", "step", s.String())
		}
		if left == 0 {
			return nil
		}
	}
	return fmt.Errorf("prepare control groups: still not done after %d rounds", rounds)
}

func (c Config) do(s Step) error {
	path := filepath.Join(c.Root, s.Path)
	switch s.Do {
	case Mount:
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		return c.Mount(s.Kind, path, s.Value)
	case Move:
		return moveAll(path, filepath.Join(path, s.Value))
	case Write:
		// No new file: a group that lacks it lacks what it stands for.
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(s.Value)
		return errors.Join(err, f.Close())
	}
	return fmt.Errorf("unknown step %q", s.Do)
}

func mount(kind, path, options string) error {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME)
	return unix.Mount(kind, path, kind, flags, options)
}

// passes bounds how often a group is looked through for processes: those that were there may have started others meanwhile.
const passes = 20

// errStuck means that a group cannot be emptied.
var errStuck = errors.New("processes that cannot be moved")

// moveAll puts every process of one group into another, which it makes.
func moveAll(from, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for range passes {
		list, err := os.ReadFile(filepath.Join(from, "cgroup.procs"))
		if err != nil {
			return err
		}
		pids := strings.Fields(string(list))
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if pid == "0" { // of another process namespace
				return fmt.Errorf("%w: started from outside of this container", errStuck)
			}
			err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(pid), 0)
			if err != nil && !errors.Is(err, syscall.ESRCH) { // ended meanwhile
				return fmt.Errorf("move process %s: %w", pid, err)
			}
		}
	}
	return errStuck
}

// explain says what a person can do when a step that is needed fails.
func explain(s Step, err error) error {
	err = fmt.Errorf("prepare control groups: %s: %w", s, err)
	switch {
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return remedy.Wrap(err, "run it as root; in a container, start that with --privileged and --cgroupns=private")
	case errors.Is(err, errStuck), errors.Is(err, syscall.EBUSY) && s.Do == Write:
		return remedy.Wrap(err, "start the container with --cgroupns=private, and end what was started in it from outside, such as `docker exec`")
	case errors.Is(err, syscall.EBUSY):
		return remedy.Wrap(err, "the controller is in use by version 2: boot with systemd.unified_cgroup_hierarchy=1, or with cgroup_no_v1= removed from the kernel's command line")
	}
	return remedy.Wrap(err, "see what `atoll check-config` says about cgroups")
}
