package cgroup_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/runtime/cgroup"
)

func TestPlan(t *testing.T) {
	all := []string{"cpu", "cpuset", "io", "memory", "pids"}
	for _, row := range []struct {
		name  string
		state cgroup.State
		want  []string
	}{
		{"systemd manages a tree that is not handed down", cgroup.State{Systemd: true, V2: true, Controllers: all, Contained: true, Processes: 3}, nil},
		{"v2, all handed down", cgroup.State{V2: true, Controllers: all, Enabled: all, Contained: true, Processes: 3}, nil},
		{"v2, true root", cgroup.State{V2: true, Controllers: []string{"cpu", "memory"}, Enabled: []string{"cpu"}, Processes: 200}, []string{"write +memory to /sys/fs/cgroup/cgroup.subtree_control"}},
		{"v2, container", cgroup.State{V2: true, Controllers: []string{"cpu", "io"}, Contained: true, Processes: 1}, []string{
			"move processes of /sys/fs/cgroup into init", "write +cpu to /sys/fs/cgroup/cgroup.subtree_control", "write +io to /sys/fs/cgroup/cgroup.subtree_control optional",
		}},
		{"v2, container whose root is empty already", cgroup.State{V2: true, Controllers: []string{"cpu"}, Contained: true}, []string{"write +cpu to /sys/fs/cgroup/cgroup.subtree_control"}},
		{"v2 without controllers", cgroup.State{V2: true, Contained: true, Processes: 1}, nil},
		{"nothing mounted", cgroup.State{Empty: true, Hierarchies: [][]string{{"cpu"}}}, []string{"mount cgroup2  on /sys/fs/cgroup"}},
		{"v1 as it should be", cgroup.State{Base: true, CPUs: "0-3", Mems: "0", AllowedCPUs: "0-3", AllowedMems: "0", UseHierarchy: "1"}, nil},
		{"v1, some not mounted", cgroup.State{Base: true, Hierarchies: [][]string{{"cpu", "cpuacct"}, {"pids"}}, CPUs: "-", Mems: "-", AllowedCPUs: "0"}, []string{
			"mount cgroup cpu,cpuacct on /sys/fs/cgroup/cpu,cpuacct", "mount cgroup pids on /sys/fs/cgroup/pids optional",
		}},
		{"v1, none mounted", cgroup.State{Hierarchies: [][]string{{"memory"}}}, []string{
			"mount tmpfs mode=755,size=1m on /sys/fs/cgroup", "mount cgroup memory on /sys/fs/cgroup/memory",
		}},
		{"v1, empty cpuset", cgroup.State{Base: true, AllowedCPUs: "0-1", AllowedMems: "0", UseHierarchy: "-"}, []string{
			"write 0-1 to /sys/fs/cgroup/cpuset/cpuset.cpus", "write 0 to /sys/fs/cgroup/cpuset/cpuset.mems",
		}},
		{"v1, old kernel", cgroup.State{Base: true, CPUs: "-", Mems: "-", UseHierarchy: "0"}, []string{"write 1 to /sys/fs/cgroup/memory/memory.use_hierarchy optional"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got []string
			for _, s := range cgroup.Plan(row.state) {
				text := s.String()
				if s.Optional {
					text += " optional"
				}
				got = append(got, text)
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("plan\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
		})
	}
}

// tree makes a root folder with files.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	rootMount = "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
	v2Mount   = rootMount + "24 22 0:6 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	v1Mounts  = rootMount + "24 22 0:6 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n25 24 0:7 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
	cgroups   = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
	status    = "Cpus_allowed:\tf\nCpus_allowed_list:\t0-3\nMems_allowed_list:\t0\n"
)

// mounter stands for the kernel: it notes what is mounted and makes the files that appear then.
type mounter struct {
	t     *testing.T
	root  string
	calls []string
	files map[string]map[string]string // by mount point
	fails map[string]error             // by options
}

func (m *mounter) mount(kind, path, options string) error {
	point := "/" + strings.TrimPrefix(strings.TrimPrefix(path, m.root), "/")
	m.calls = append(m.calls, strings.TrimSpace(kind+" "+point+" "+options))
	if err := m.fails[options]; err != nil {
		return err
	}
	table := filepath.Join(m.root, "proc/self/mountinfo")
	old, err := os.ReadFile(table)
	if err != nil {
		return err
	}
	line := "30 22 0:9 / " + point + " rw - " + kind + " " + kind + " rw," + options + "\n"
	for name, text := range m.files[point] {
		if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(table, append(old, line...), 0o644)
}

func content(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPrepare(t *testing.T) {
	for _, row := range []struct {
		name    string
		files   map[string]string
		appears map[string]map[string]string // files of a mount point
		mounts  []string
		after   map[string]string
	}{
		{
			name: "v2 in order",
			files: map[string]string{"proc/self/mountinfo": v2Mount, "sys/fs/cgroup/cgroup.controllers": "cpu memory\n", "sys/fs/cgroup/cgroup.subtree_control": "cpu memory\n",
				"sys/fs/cgroup/cgroup.type": "domain\n", "sys/fs/cgroup/cgroup.procs": "1\n"},
			after: map[string]string{"sys/fs/cgroup/cgroup.subtree_control": "cpu memory\n"},
		},
		{
			name: "systemd",
			files: map[string]string{"proc/self/mountinfo": v2Mount, "sys/fs/cgroup/cgroup.controllers": "cpu memory\n", "sys/fs/cgroup/cgroup.subtree_control": "",
				"sys/fs/cgroup/init.scope/cgroup.procs": "1\n"},
			after: map[string]string{"sys/fs/cgroup/cgroup.subtree_control": ""},
		},
		{
			name: "v1 in order",
			files: map[string]string{"proc/self/mountinfo": v1Mounts, "proc/cgroups": cgroups + "cpu\t2\t1\t1\ncpuacct\t2\t1\t1\nnet_cls\t0\t1\t1\nmemory\t0\t1\t0\n",
				"sys/fs/cgroup/cpuset/cpuset.cpus": "0-3\n", "sys/fs/cgroup/cpuset/cpuset.mems": "0\n", "proc/self/status": status},
			after: map[string]string{"sys/fs/cgroup/cpuset/cpuset.cpus": "0-3\n"},
		},
		{
			name: "v1, half mounted, and a cpuset that is empty once it is mounted",
			files: map[string]string{"proc/self/mountinfo": v1Mounts, "proc/self/status": status,
				"proc/cgroups": cgroups + "cpu\t2\t1\t1\ncpuacct\t2\t1\t1\ncpuset\t0\t1\t1\nmemory\t3\t1\t1\nperf_event\t3\t1\t1\nnet_prio\t7\t1\t1\n"},
			appears: map[string]map[string]string{"/sys/fs/cgroup/cpuset": {"cpuset.cpus": "\n", "cpuset.mems": "\n"}},
			mounts:  []string{"cgroup /sys/fs/cgroup/cpuset cpuset", "cgroup /sys/fs/cgroup/memory,perf_event memory,perf_event"},
			after:   map[string]string{"sys/fs/cgroup/cpuset/cpuset.cpus": "0-3", "sys/fs/cgroup/cpuset/cpuset.mems": "0"},
		},
		{
			name:    "nothing mounted",
			files:   map[string]string{"proc/self/mountinfo": rootMount, "proc/filesystems": "nodev\tcgroup\nnodev\tcgroup2\n", "proc/cgroups": cgroups + "cpu\t0\t1\t1\n"},
			appears: map[string]map[string]string{"/sys/fs/cgroup": {"cgroup.controllers": "cpu memory rdma\n", "cgroup.subtree_control": "cpu memory rdma\n"}},
			mounts:  []string{"cgroup2 /sys/fs/cgroup"},
		},
		{
			name:   "nothing mounted here, but version 1 in use elsewhere",
			files:  map[string]string{"proc/self/mountinfo": rootMount, "proc/filesystems": "nodev\tcgroup2\n", "proc/cgroups": cgroups + "cpu\t4\t1\t1\nfreezer\t0\t1\t1\n"},
			mounts: []string{"tmpfs /sys/fs/cgroup mode=755,size=1m", "cgroup /sys/fs/cgroup/cpu cpu", "cgroup /sys/fs/cgroup/freezer freezer"},
		},
		{
			name:   "mounted below a folder that is no mount",
			files:  map[string]string{"proc/self/mountinfo": rootMount + "25 22 0:7 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "proc/cgroups": cgroups + "cpu\t2\t1\t1\nfreezer\t0\t1\t1\n"},
			mounts: []string{"cgroup /sys/fs/cgroup/freezer freezer"},
		},
		{
			name:   "old kernel",
			files:  map[string]string{"proc/self/mountinfo": rootMount, "proc/filesystems": "nodev\tcgroup\n", "proc/cgroups": cgroups + "cpu\t0\t1\t1\n"},
			mounts: []string{"tmpfs /sys/fs/cgroup mode=755,size=1m", "cgroup /sys/fs/cgroup/cpu cpu"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			root := tree(t, row.files)
			m := &mounter{t: t, root: root, files: row.appears}
			if err := cgroup.Prepare(cgroup.Config{Root: root, Mount: m.mount}, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(m.calls, row.mounts) {
				t.Errorf("mounted %q, want %q", m.calls, row.mounts)
			}
			for name, want := range row.after {
				if got := content(t, root, name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
}

// A container on version 2. A folder is not a kernel: what is written to a file stays as it was written, so that the processes
// never leave and no controller shows up; what was written is what counts. The real thing is in kernel_test.go.
func TestPrepareContainer(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/self/mountinfo": v2Mount, "sys/fs/cgroup/cgroup.controllers": "memory\n", "sys/fs/cgroup/cgroup.subtree_control": "", "sys/fs/cgroup/cgroup.type": "domain\n",
		"sys/fs/cgroup/cgroup.procs": "17\n", "sys/fs/cgroup/init/cgroup.procs": "",
	})
	err := cgroup.Prepare(cgroup.Config{Root: root}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "cannot be moved") || !strings.Contains(remedy.Of(err), "--cgroupns=private") {
		t.Errorf("processes that never leave: %v", err)
	}
	if got := content(t, root, "sys/fs/cgroup/init/cgroup.procs"); got != "17" {
		t.Errorf("moved %q", got)
	}
}

func TestFailures(t *testing.T) {
	v2 := func(procs, control string) map[string]string {
		files := map[string]string{"proc/self/mountinfo": v2Mount, "sys/fs/cgroup/cgroup.controllers": control, "sys/fs/cgroup/cgroup.type": "domain\n", "sys/fs/cgroup/cgroup.procs": procs}
		return files
	}
	for _, row := range []struct {
		name  string
		files map[string]string
		fails map[string]error // mounts
		want  string           // part of the error, "" for none
		try   string
	}{
		{"no /proc", map[string]string{}, nil, "look at the control groups", "mount /proc"},
		{"process from outside", v2("0\n", "cpu"), nil, "started from outside", "--cgroupns=private"},
		{"needed controller cannot be handed down", v2("", "cpu"), nil, "write +cpu", "check-config"}, // there is no file to write it to
		{"other controller cannot be handed down", v2("", "rdma"), nil, "", ""},
		{"needed controller in use by version 2", map[string]string{"proc/self/mountinfo": v1Mounts, "proc/cgroups": cgroups + "memory\t0\t1\t1\n"}, map[string]error{"memory": syscall.EBUSY}, "mount cgroup memory", "in use by version 2"},
		{"other controller in use by version 2", map[string]string{"proc/self/mountinfo": v1Mounts, "proc/cgroups": cgroups + "blkio\t0\t1\t1\n"}, map[string]error{"blkio": syscall.EBUSY}, "", ""},
		{"not allowed to mount", map[string]string{"proc/self/mountinfo": v1Mounts, "proc/cgroups": cgroups + "memory\t0\t1\t1\n"}, map[string]error{"memory": syscall.EPERM}, "mount cgroup memory", "--privileged"},
	} {
		t.Run(row.name, func(t *testing.T) {
			root := tree(t, row.files)
			m := &mounter{t: t, root: root, fails: row.fails}
			var log bytes.Buffer
			err := cgroup.Prepare(cgroup.Config{Root: root, Mount: m.mount}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			if row.want == "" {
				if err != nil || !strings.Contains(log.String(), "not possible") {
					t.Errorf("Prepare = %v, log %s", err, log.String())
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(remedy.Of(err), row.try) {
				t.Errorf("Prepare = %v, try %q; want %q, %q", err, remedy.Of(err), row.want, row.try)
			}
			for options, cause := range row.fails {
				if !errors.Is(err, cause) {
					t.Errorf("%s: cause is lost", options)
				}
			}
		})
	}
}
