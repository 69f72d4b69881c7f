// Package cgroup keeps the control groups of a lab: one folder per node in every hierarchy that the host has mounted.
//
// It works on cgroup v1, on the hybrid of v1 and v2, and on v2. Every process of a lab lives in the lab's groups, which makes them
// the record of what belongs to the lab: whatever is in them may be killed, nothing else may.
//
// On v1 the lab's folder is made below the group of the caller, so that limits and accounting that hold for the caller hold for the
// lab too. On v2 a group that holds processes cannot hand controllers to its children, so there it is made at the root.
package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Prefix starts the name of every lab's folder. Nothing is killed or removed in folders with other names.
const Prefix = "atoll-lab"

// Hierarchy is one mounted tree of control groups.
type Hierarchy struct {
	Controllers string // as in /proc/self/cgroup: "memory", "cpu,cpuacct", "name=systemd"; empty for v2
	Mount       string // where it is mounted
	Own         string // folder of the calling process, below Mount
}

// Unified tells whether this is the v2 tree.
func (h Hierarchy) Unified() bool { return h.Controllers == "" }

// Hierarchies returns the host's mounted trees, as seen by this process.
func Hierarchies() ([]Hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list control group mounts: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("list own control groups: %w", err)
	}
	hs := Parse(string(mounts), string(own))
	if len(hs) == 0 {
		return nil, errors.New("no control group file system is mounted")
	}
	return hs, nil
}

// Parse joins the texts of /proc/self/mountinfo and /proc/self/cgroup.
func Parse(mountinfo, own string) []Hierarchy {
	var hs []Hierarchy
	for line := range strings.Lines(own) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mount, root, ok := findMount(mountinfo, parts[1])
		if !ok {
			continue
		}
		// A container may see only a part of the tree; then the path of the mount's root is not part of the folder's path.
		rel, inside := strings.CutPrefix(parts[2], strings.TrimSuffix(root, "/"))
		if !inside || strings.Contains(rel, "..") {
			rel = ""
		}
		hs = append(hs, Hierarchy{Controllers: parts[1], Mount: mount, Own: filepath.Join(mount, rel)})
	}
	return hs
}

// findMount looks for the first mount of a hierarchy. Names of v1 hierarchies are mount options.
func findMount(mountinfo, controllers string) (mount, root string, ok bool) {
	s := bufio.NewScanner(strings.NewReader(mountinfo))
	for s.Scan() {
		before, after, found := strings.Cut(s.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(tail) < 3 {
			continue
		}
		switch {
		case controllers == "" && tail[0] == "cgroup2":
			return fields[4], fields[3], true
		case controllers != "" && tail[0] == "cgroup" && hasAll(tail[2], controllers):
			return fields[4], fields[3], true
		}
	}
	return "", "", false
}

func hasAll(options, controllers string) bool {
	have := strings.Split(options, ",")
	for c := range strings.SplitSeq(controllers, ",") {
		if !slices.Contains(have, c) {
			return false
		}
	}
	return true
}

// Tree is the lab's own folder in every hierarchy. The zero Tree is empty and safe to remove.
type Tree struct {
	V1 []string `json:"v1,omitempty"` // one folder per v1 hierarchy
	V2 string   `json:"v2,omitempty"` // folder in the v2 tree
	// Delegate says that V2 carries the controllers: there is no v1 hierarchy with controllers.
	Delegate bool `json:"delegate,omitempty"`
}

// Plan names the folders of a lab called name, without making them.
func Plan(hs []Hierarchy, name string) Tree {
	var t Tree
	t.Delegate = true
	for _, h := range hs {
		if !h.Unified() && !strings.HasPrefix(h.Controllers, "name=") {
			t.Delegate = false
		}
	}
	for _, h := range hs {
		switch {
		case !h.Unified():
			t.V1 = append(t.V1, filepath.Join(h.Own, name))
		case t.Delegate:
			t.V2 = filepath.Join(h.Mount, name)
		default:
			t.V2 = filepath.Join(h.Own, name)
		}
	}
	return t
}

func (t Tree) folders() []string {
	if t.V2 == "" {
		return t.V1
	}
	return append(slices.Clone(t.V1), t.V2)
}

// Exists returns the first folder of the tree that is there, or "".
func (t Tree) Exists() string {
	for _, dir := range t.folders() {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return ""
}

// Create makes the lab's folders and hands every controller down to them.
func (t Tree) Create() error {
	for _, dir := range t.V1 {
		if err := makeV1(dir); err != nil {
			return err
		}
	}
	if t.V2 == "" {
		return nil
	}
	if err := os.MkdirAll(t.V2, 0o755); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	if t.Delegate {
		if err := HandDown(filepath.Dir(t.V2)); err != nil {
			return err
		}
		return HandDown(t.V2)
	}
	return nil
}

// CreateGroup makes the group name (one path element) in every hierarchy.
func (t Tree) CreateGroup(name string) error {
	for _, dir := range t.V1 {
		if err := makeV1(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if t.V2 != "" {
		if err := os.MkdirAll(filepath.Join(t.V2, name), 0o755); err != nil {
			return fmt.Errorf("make control group: %w", err)
		}
	}
	return nil
}

// makeV1 makes a folder and gives it the parent's processors and memory nodes: a new cpuset is empty, and nothing can enter it.
func makeV1(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another controller
		}
		if err != nil {
			return fmt.Errorf("read control group: %w", err)
		}
		if len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return fmt.Errorf("read control group: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0); err != nil {
			return fmt.Errorf("fill control group: %w", err)
		}
	}
	return nil
}

// HandDown enables for the children of a v2 folder every controller that the folder has. Controllers already enabled stay.
func HandDown(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("hand down controllers: %w", err)
	}
	for _, c := range strings.Fields(string(have)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
		// A controller may refuse (cpu with real-time tasks in the tree); the kubelet names those that it misses.
		if err != nil && slices.Contains([]string{"cpu", "memory", "pids"}, c) {
			return fmt.Errorf("hand down controller %s: %w", c, err)
		}
	}
	return nil
}

// Join moves the process pid into the group name of every hierarchy.
func (t Tree) Join(name string, pid int) error {
	for _, dir := range t.folders() {
		file := filepath.Join(dir, name, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter control group: %w", err)
		}
	}
	return nil
}

// Processes returns the processes of the group name and of all groups below it; name "" means the whole lab.
func (t Tree) Processes(name string) ([]int, error) {
	pids := map[int]bool{}
	for _, dir := range t.folders() {
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			if err != nil || !d.IsDir() {
				return err
			}
			procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			for p := range strings.FieldsSeq(string(procs)) {
				// 0 is a process outside of our process namespace.
				if pid, convErr := strconv.Atoi(p); convErr == nil && pid > 0 {
					pids[pid] = true
				}
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of control group: %w", err)
		}
	}
	list := make([]int, 0, len(pids))
	for pid := range pids {
		list = append(list, pid)
	}
	slices.Sort(list)
	return list, nil
}

// Empty kills every process in the group name, and below it, and removes the folders; name "" means the whole lab.
// It returns once nothing is left, or with an error when ctx ends. Folders that do not exist are fine.
func (t Tree) Empty(ctx context.Context, name string) error {
	for _, dir := range t.folders() {
		if !strings.HasPrefix(filepath.Base(dir), Prefix) {
			return fmt.Errorf("control group %s is not a lab's", dir)
		}
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		pids, err := t.Processes(name)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if len(pids) == 0 {
			left, err := t.remove(name)
			if err != nil || left == "" {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("empty control group %s: %d processes left: %w", name, len(pids), ctx.Err())
		case <-time.After(wait):
		}
	}
}

// remove deletes the folders, deepest first, and returns one that is still busy.
func (t Tree) remove(name string) (busy string, err error) {
	for _, dir := range t.folders() {
		var all []string
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			return "", fmt.Errorf("remove control group: %w", err)
		}
		for _, path := range slices.Backward(all) {
			err := unix.Rmdir(path)
			switch {
			case errors.Is(err, unix.EBUSY):
				busy = path
			case err != nil && !errors.Is(err, fs.ErrNotExist):
				return "", fmt.Errorf("remove control group %s: %w", path, err)
			}
		}
	}
	return busy, nil
}
