package hostcheck

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

func checkRoot(_ context.Context, m *machine) finding {
	if m.facts.UID != 0 {
		return fail("run it with sudo, or as the service that the installer makes", "runs as user %d; a node needs the rights of root", m.facts.UID)
	}
	return ok("runs as root")
}

// Bits of the capabilities that matter, from linux/capability.h.
const (
	capNetAdmin    = 12
	capSysChroot   = 18
	capSysAdmin    = 21
	capSysResource = 24
	capMknod       = 27
)

func (m *machine) capabilities() (uint64, error) {
	text, found := m.field("/proc/self/status", "CapEff")
	if !found {
		return 0, fmt.Errorf("no CapEff in /proc/self/status")
	}
	return strconv.ParseUint(text, 16, 64)
}

func checkCapabilities(_ context.Context, m *machine) finding {
	have, err := m.capabilities()
	if err != nil {
		return warn("mount /proc", "cannot tell which capabilities this process has: %v", err)
	}
	var lacks []string
	for _, c := range []struct {
		bit  int
		name string
	}{{capSysAdmin, "CAP_SYS_ADMIN"}, {capNetAdmin, "CAP_NET_ADMIN"}, {capSysChroot, "CAP_SYS_CHROOT"}, {capMknod, "CAP_MKNOD"}} {
		if have&(1<<c.bit) == 0 {
			lacks = append(lacks, c.name)
		}
	}
	if len(lacks) > 0 {
		return fail("in a container, start it with --privileged; in a unit, remove CapabilityBoundingSet", "lacks %s", strings.Join(lacks, ", "))
	}
	return ok("has those that containers and networks need")
}

func checkOOMScores(_ context.Context, m *machine) finding {
	have, err := m.capabilities()
	if err == nil && have&(1<<capSysResource) == 0 {
		return note("give it CAP_SYS_RESOURCE, if you can", "no CAP_SYS_RESOURCE: when memory runs out, the kernel does not spare the containers that Kubernetes marks as important")
	}
	return ok("can be lowered for important containers")
}

func checkSeccomp(_ context.Context, m *machine) finding {
	if _, found := m.field("/proc/self/status", "Seccomp"); !found || !m.exists("/proc/sys/kernel/seccomp/actions_avail") {
		return fail("boot a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no seccomp filters, and every container gets one")
	}
	return ok("available")
}

func checkAppArmor(_ context.Context, m *machine) finding {
	enabled, _ := m.read("/sys/module/apparmor/parameters/enabled")
	switch {
	case !strings.HasPrefix(enabled, "Y"):
		return ok("off")
	case !m.exists("/sbin/apparmor_parser"):
		return note("apt-get install apparmor", "on, but without /sbin/apparmor_parser: containers run without a profile")
	}
	return ok("on: containers run under a profile")
}

func checkSELinux(_ context.Context, m *machine) finding {
	mode, err := m.read("/sys/fs/selinux/enforce")
	switch {
	case err != nil:
		return ok("off")
	case mode == "1":
		return warn("look for denials with `ausearch -m avc` when a pod cannot read its files; `setenforce 0` shows whether it is that",
			"enforcing: atoll gives containers no labels, and the policy of the machine may deny them their volumes")
	}
	return ok("permissive")
}
