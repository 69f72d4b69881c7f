package cgroup

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Dir is where control groups are mounted.
const Dir = "/sys/fs/cgroup"

// State is what a machine's control groups look like.
type State struct {
	Systemd bool // manages them
	V2      bool // Dir is the unified hierarchy
	Empty   bool // nothing is mounted in Dir, and no controller is used anywhere

	// Version 2:
	Controllers []string // that the root has
	Enabled     []string // that the root hands down
	Contained   bool     // the root is some group of a bigger tree
	Processes   int      // in the root itself

	// Version 1:
	Hierarchies  [][]string // controllers that this kernel offers and are not mounted; those of one entry must be mounted together
	Base         bool       // something is mounted on Dir or below it, and must not be covered
	CPUs, Mems   string     // of the root of cpuset; "-" where there is none
	AllowedCPUs  string     // to this process
	AllowedMems  string
	UseHierarchy string // of the root of memory; "0" on old kernels
}

// Action is what a step does.
type Action string

// The actions.
const (
	Mount Action = "mount" // Kind on Path with the options Value
	Move  Action = "move"  // the processes in Path into its child Value
	Write Action = "write" // Value to the file Path
)

// Step is one change of a machine. Paths are absolute.
type Step struct {
	Do       Action
	Path     string
	Kind     string
	Value    string
	Optional bool // its failure breaks nothing
}

func (s Step) String() string {
	switch s.Do {
	case Mount:
		return fmt.Sprintf("mount %s %s on %s", s.Kind, s.Value, s.Path)
	case Move:
		return fmt.Sprintf("move processes of %s into %s", s.Path, s.Value)
	}
	return fmt.Sprintf("write %s to %s", s.Value, s.Path)
}

// needed are the controllers without which the kubelet does not start or pods have no limits.
func needed(v2 bool) []string {
	if v2 {
		return []string{"cpu", "cpuset", "memory", "pids"}
	}
	return []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer"}
}

// Plan returns what has to be done, in order. It returns nothing where nothing is to do.
func Plan(s State) []Step {
	switch {
	case s.Systemd:
		return nil
	case s.Empty:
		return []Step{{Do: Mount, Kind: "cgroup2", Path: Dir}}
	case s.V2:
		return planV2(s)
	}
	return planV1(s)
}

func planV2(s State) (steps []Step) {
	var missing []string
	for _, c := range s.Controllers {
		if !slices.Contains(s.Enabled, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	// The true root of the tree may hand down whatever processes it has.
	if s.Contained && s.Processes > 0 {
		steps = append(steps, Step{Do: Move, Path: Dir, Value: "init"})
	}
	for _, c := range missing { // one by one, so that one that cannot be does not stop the others
		steps = append(steps, Step{Do: Write, Path: Dir + "/cgroup.subtree_control", Value: "+" + c, Optional: !slices.Contains(needed(true), c)})
	}
	return steps
}

func planV1(s State) (steps []Step) {
	if !s.Base && len(s.Hierarchies) > 0 {
		steps = append(steps, Step{Do: Mount, Kind: "tmpfs", Path: Dir, Value: "mode=755,size=1m"})
	}
	for _, controllers := range s.Hierarchies {
		names := strings.Join(controllers, ",")
		required := slices.ContainsFunc(controllers, func(c string) bool { return slices.Contains(needed(false), c) })
		steps = append(steps, Step{Do: Mount, Kind: "cgroup", Path: path.Join(Dir, names), Value: names, Optional: !required})
	}
	if s.CPUs == "" && s.AllowedCPUs != "" {
		steps = append(steps, Step{Do: Write, Path: Dir + "/cpuset/cpuset.cpus", Value: s.AllowedCPUs})
	}
	if s.Mems == "" && s.AllowedMems != "" {
		steps = append(steps, Step{Do: Write, Path: Dir + "/cpuset/cpuset.mems", Value: s.AllowedMems})
	}
	if s.UseHierarchy == "0" { // without it a pod's limit does not hold for its containers; newer kernels know nothing else
		steps = append(steps, Step{Do: Write, Path: Dir + "/memory/memory.use_hierarchy", Value: "1", Optional: true})
	}
	return steps
}
