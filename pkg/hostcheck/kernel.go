package hostcheck

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// oldestKernel is what kube-proxy's nftables mode insists on.
var oldestKernel = [2]int{5, 13}

func checkKernel(_ context.Context, m *machine) finding {
	var v [2]int
	if n, _ := fmt.Sscanf(m.facts.Kernel, "%d.%d", &v[0], &v[1]); n != 2 {
		return warn("check that it is 5.13 or later", "cannot read the version %q", m.facts.Kernel)
	}
	if v[0] < oldestKernel[0] || v[0] == oldestKernel[0] && v[1] < oldestKernel[1] {
		return fail("upgrade the system: Debian 12, Ubuntu 22.04, RHEL 9 and later have a newer kernel",
			"%s is older than %d.%d, which Services need", m.facts.Kernel, oldestKernel[0], oldestKernel[1])
	}
	return ok("%s", m.facts.Kernel)
}

func checkNamespaces(_ context.Context, m *machine) finding {
	lacks := func(names ...string) (out []string) {
		for _, n := range names {
			if !m.exists("/proc/self/ns/" + n) {
				out = append(out, n)
			}
		}
		return out
	}
	if l := lacks("mnt", "net", "pid", "ipc", "uts"); len(l) > 0 {
		return fail("boot a kernel with CONFIG_NAMESPACES and all below it", "the kernel has no namespaces for %s", strings.Join(l, ", "))
	}
	if l := lacks("cgroup", "user"); len(l) > 0 {
		return note("boot a kernel with CONFIG_CGROUPS and CONFIG_USER_NS", "the kernel has no namespaces for %s: pods that ask for one do not start", strings.Join(l, ", "))
	}
	return ok("all there")
}

// minMemory is a machine of 1 GiB less what its kernel and firmware keep.
const minMemory = 900 << 10 // KiB

func checkMemory(_ context.Context, m *machine) finding {
	text, _ := m.field("/proc/meminfo", "MemTotal")
	var kib int64
	if _, err := fmt.Sscanf(text, "%d kB", &kib); err != nil {
		return warn("mount /proc", "cannot read /proc/meminfo")
	}
	if kib < minMemory {
		return warn("give it 1 GiB; an agent runs with less than a server", "%d MiB, and a server alone needs about 400", kib>>10)
	}
	return ok("%d MiB", kib>>10)
}

func checkSwap(_ context.Context, m *machine) finding {
	text, err := m.read("/proc/swaps")
	if lines := strings.Count(text, "\n"); err == nil && lines > 0 {
		return note("swapoff -a, and remove it from /etc/fstab, where answers must be quick", "on: pods do not use it, but a node that swaps is slow")
	}
	return ok("off")
}

// minOpenFiles is what a node with a hundred pods needs with room to spare.
const minOpenFiles = 65536

func checkOpenFiles(_ context.Context, m *machine) finding {
	text, err := m.read("/proc/self/limits")
	if err != nil {
		return finding{}
	}
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, "Max open files")
		if !found {
			continue
		}
		var soft, hard string
		if _, err := fmt.Sscan(rest, &soft, &hard); err != nil {
			return finding{}
		}
		var n int64
		if _, err := fmt.Sscan(hard, &n); err == nil && n < minOpenFiles {
			return note("set LimitNOFILE=1048576 in the unit", "at most %d for a process, and containers inherit that", n)
		}
		return ok("at most %s for a process", hard)
	}
	return finding{}
}

func checkInotify(_ context.Context, m *machine) finding {
	const instances, watches = "/proc/sys/fs/inotify/max_user_instances", "/proc/sys/fs/inotify/max_user_watches"
	i, err := m.number(instances)
	if err != nil {
		return fail("boot a kernel with CONFIG_INOTIFY_USER", "the kernel has no inotify, which the kubelet needs")
	}
	w, _ := m.number(watches)
	if i < 256 || w < 65536 {
		return note("sysctl -w fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=524288, and put it into /etc/sysctl.d",
			"%d instances and %d watches for all containers of one user: `too many open files` in a pod may mean these", i, w)
	}
	return ok("%d instances, %d watches", i, w)
}

func checkEntropy(_ context.Context, m *machine) finding {
	n, err := m.number("/proc/sys/kernel/random/entropy_avail")
	if err == nil && n < 128 {
		return note("install rng-tools or haveged, or give a virtual machine a virtio-rng device", "%d bits: making keys may wait", n)
	}
	return ok("enough")
}

// farFuture is how long after it was built a program is hardly still in use.
const farFuture = 15 * 365 * 24 * time.Hour

func checkClock(_ context.Context, m *machine) finding {
	const set = "set it with `date -s`, then keep it right with chrony or systemd-timesyncd"
	now := m.facts.Now
	switch {
	case m.Built.IsZero():
		return finding{}
	case now.Before(m.Built):
		return warn(set, "it is %s by this machine's clock, but atoll was built on %s: certificates look as if they were not valid yet", now.UTC().Format(time.DateOnly), m.Built.UTC().Format(time.DateOnly))
	case now.After(m.Built.Add(farFuture)):
		return warn(set, "it is %s by this machine's clock, long after atoll was built: certificates look as if they had expired", now.UTC().Format(time.DateOnly))
	}
	return ok("plausible")
}
