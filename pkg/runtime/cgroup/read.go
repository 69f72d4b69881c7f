package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// absent stands for the content of a file that does not exist.
const absent = "-"

// reader reads files below a root.
type reader struct{ root string }

// text returns the content of a file without the space around it, or absent.
func (r reader) text(name string) string {
	data, err := os.ReadFile(filepath.Join(r.root, name))
	if err != nil {
		return absent
	}
	return strings.TrimSpace(string(data))
}

func (r reader) words(name string) []string {
	if t := r.text(name); t != absent {
		return strings.Fields(t)
	}
	return nil
}

// field returns what follows "key:" in a file, or "".
func (r reader) field(name, key string) string {
	for line := range strings.Lines(r.text(name)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func (r reader) exists(name string) bool {
	_, err := os.Lstat(filepath.Join(r.root, name))
	return !errors.Is(err, fs.ErrNotExist)
}

// read looks at the control groups of the machine below root.
func read(root string) (State, error) {
	r := reader{root}
	f, err := os.Open(filepath.Join(root, "/proc/self/mountinfo"))
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return State{}, err
	}
	s := State{Systemd: r.exists("/run/systemd/system") || r.exists(Dir+"/init.scope") || r.exists(Dir+"/systemd/init.scope")}
	for _, m := range mounts { // a later one lies on top
		if m.Mountpoint == Dir {
			s.V2 = m.FSType == "cgroup2"
		}
		s.Base = s.Base || m.Mountpoint == Dir || strings.HasPrefix(m.Mountpoint, Dir+"/")
	}
	if s.V2 {
		r.readV2(&s)
		return s, nil
	}
	r.readV1(&s, mounts)
	return s, nil
}

func (r reader) readV2(s *State) {
	s.Controllers = r.words(Dir + "/cgroup.controllers")
	s.Enabled = r.words(Dir + "/cgroup.subtree_control")
	s.Contained = r.exists(Dir + "/cgroup.type") // the true root has no such file
	s.Processes = len(r.words(Dir + "/cgroup.procs"))
}

// wanted are the controllers of version 1 that are mounted where they can be.
func wanted() []string { return append(needed(false), "pids", "blkio") }

func (r reader) readV1(s *State, mounts []*mountinfo.Info) {
	var mounted []string
	groups := false
	for _, m := range mounts {
		groups = groups || m.FSType == "cgroup" || m.FSType == "cgroup2"
		if m.FSType == "cgroup" {
			mounted = append(mounted, strings.Split(m.VFSOptions, ",")...)
		}
	}
	hierarchies, used := r.hierarchies()
	for _, controllers := range hierarchies {
		isMounted := slices.ContainsFunc(controllers, func(c string) bool { return slices.Contains(mounted, c) })
		isWanted := slices.ContainsFunc(controllers, func(c string) bool { return slices.Contains(wanted(), c) })
		if isWanted && !isMounted {
			s.Hierarchies = append(s.Hierarchies, controllers)
		}
	}
	s.Empty = !groups && !used && slices.Contains(r.words("/proc/filesystems"), "cgroup2")
	s.CPUs, s.Mems = r.text(Dir+"/cpuset/cpuset.cpus"), r.text(Dir+"/cpuset/cpuset.mems")
	s.AllowedCPUs, s.AllowedMems = r.field("/proc/self/status", "Cpus_allowed_list"), r.field("/proc/self/status", "Mems_allowed_list")
	s.UseHierarchy = r.text(Dir + "/memory/memory.use_hierarchy")
}

// hierarchies reads /proc/cgroups: the controllers that are switched on, those together that are in one hierarchy, which can only be
// mounted together. used tells whether any is in a hierarchy of version 1, mounted here or elsewhere.
func (r reader) hierarchies() (out [][]string, used bool) {
	place := map[string]int{}
	for line := range strings.Lines(r.text("/proc/cgroups")) {
		f := strings.Fields(line)
		if len(f) != 4 || strings.HasPrefix(line, "#") || f[3] != "1" {
			continue
		}
		name, number := f[0], f[1]
		if at, known := place[number]; known {
			out[at] = append(out[at], name)
			continue
		}
		if number != "0" { // 0 is that of the controllers that are in none
			place[number] = len(out)
			used = true
		}
		out = append(out, []string{name})
	}
	return out, used
}
