package hostcheck

import (
	"context"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// cgroupDir is where everybody expects control groups.
const cgroupDir = "/sys/fs/cgroup"

func checkCgroups(_ context.Context, m *machine) finding {
	mounts, err := m.mounts()
	if err != nil {
		return fail("mount -t proc proc /proc", "cannot read the mounts: %v", err)
	}
	i := slices.IndexFunc(mounts, func(i *mountinfo.Info) bool { return i.Mountpoint == cgroupDir && i.FSType == "cgroup2" })
	if i >= 0 {
		return m.checkV2(mounts[i])
	}
	return m.checkV1(mounts)
}

// enableMemory is for systems that boot with the memory controller off, as Raspberry Pi OS does.
const enableMemory = "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line (/boot/firmware/cmdline.txt on a Raspberry Pi) and reboot"

func (m *machine) checkV2(at *mountinfo.Info) finding {
	text, err := m.read(cgroupDir + "/cgroup.controllers")
	if err != nil {
		return fail("mount -t cgroup2 cgroup2 "+cgroupDir, "cannot read the controllers: %v", err)
	}
	have := strings.Fields(text)
	lacks := without([]string{"cpu", "cpuset", "memory", "pids"}, have)
	contained := m.exists(cgroupDir + "/cgroup.type") // the true root has no such file
	switch {
	case slices.Contains(strings.Split(at.Options, ","), "ro"):
		return fail("start the container with --privileged and --cgroupns=private", "%s is read-only", cgroupDir)
	case len(lacks) > 0 && contained:
		return fail("start the container with --privileged and --cgroupns=private, on a host that hands the controllers down", "version 2, but without %s", strings.Join(lacks, ", "))
	case slices.Contains(lacks, "memory"):
		return fail(enableMemory, "version 2, but without %s", strings.Join(lacks, ", "))
	case len(lacks) > 0:
		return fail("boot a kernel with them, and without cgroup_disable= on its command line", "version 2, but without %s", strings.Join(lacks, ", "))
	}
	return ok("version 2 with %s", strings.Join(have, ", "))
}

func (m *machine) checkV1(mounts []*mountinfo.Info) finding {
	var mounted []string
	hybrid, readOnly := false, false
	for _, i := range mounts {
		switch i.FSType {
		case "cgroup":
			mounted = append(mounted, strings.Split(i.VFSOptions, ",")...)
			readOnly = readOnly || slices.Contains(strings.Split(i.Options, ","), "ro")
		case "cgroup2":
			hybrid = true
		}
	}
	enabled, known := m.v1Controllers()
	needed := []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer"}
	lacks := without(without(needed, mounted), enabled)
	absent := without(without(needed, mounted), lacks) // the node mounts those
	switch {
	case slices.Contains(lacks, "memory") && slices.Contains(known, "memory"):
		return fail(enableMemory, "version 1, and the memory controller is switched off")
	case len(lacks) > 0:
		return fail("boot a kernel with them, and without cgroup_disable= on its command line", "version 1, but without %s", strings.Join(lacks, ", "))
	case readOnly:
		return fail("start the container with --privileged", "%s is read-only", cgroupDir)
	}
	kind := "version 1"
	if hybrid {
		kind = "version 1 with 2 beside it"
	}
	if len(absent) > 0 {
		kind += "; " + strings.Join(absent, ", ") + " will be mounted"
	}
	return note("boot with systemd.unified_cgroup_hierarchy=1, or upgrade the system", "%s: it works, but Kubernetes and containerd will drop it by 2029", kind)
}

// v1Controllers reads /proc/cgroups: those that can be used, and all that the kernel has.
func (m *machine) v1Controllers() (enabled, known []string) {
	text, _ := m.read("/proc/cgroups")
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 4 || strings.HasPrefix(line, "#") {
			continue
		}
		known = append(known, f[0])
		if f[3] == "1" {
			enabled = append(enabled, f[0])
		}
	}
	return enabled, known
}

// without returns the words that are not in have, in their order.
func without(words, have []string) []string {
	return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return slices.Contains(have, w) })
}
