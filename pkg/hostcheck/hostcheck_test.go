package hostcheck_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/atollhq/atoll/pkg/hostcheck"
	"github.com/atollhq/atoll/pkg/remedy"
)

// fake is a System whose answers a test sets.
type fake struct {
	facts   hostcheck.Facts
	space   hostcheck.Space
	errs    map[string]error  // of trials, by "trial argument" or "trial"
	modules map[string]string // module to the trial that works once it is loaded
	loaded  []string
}

func (f *fake) Facts() hostcheck.Facts { return f.facts }

func (f *fake) Statfs(string) (hostcheck.Space, error) { return f.space, nil }

func (f *fake) Try(_ context.Context, what hostcheck.Trial, arg string) error {
	if what == hostcheck.TryModule {
		cured, known := f.modules[arg]
		if !known {
			return errors.New("no such module")
		}
		f.loaded = append(f.loaded, arg)
		delete(f.errs, cured)
		return nil
	}
	if err, found := f.errs[string(what)+" "+arg]; found {
		return err
	}
	return f.errs[string(what)]
}

const status = "Name:\tatoll\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n"

const mountsV2 = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /proc rw - proc proc rw
24 22 0:6 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw
`

const mountsV1 = `22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
24 22 0:6 / /sys/fs/cgroup ro - tmpfs tmpfs ro
25 24 0:7 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 24 0:8 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
27 24 0:9 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 24 0:10 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
29 24 0:11 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
`

const cgroupsV1 = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t7\t1\ncpu\t1\t7\t1\ncpuacct\t1\t7\t1\nmemory\t4\t6\t1\ndevices\t5\t6\t1\nfreezer\t6\t7\t1\n"

// good is the machine that every row of the table changes a little.
func good() (map[string]string, *fake) {
	files := map[string]string{
		"proc/self/status": status, "proc/self/mountinfo": mountsV2, "proc/sys/kernel/seccomp/actions_avail": "kill", "proc/meminfo": "MemTotal:  4000000 kB\n",
		"proc/swaps": "Filename Type\n", "proc/self/limits": "Max open files 1024 1048576 files\n", "proc/sys/fs/inotify/max_user_instances": "512\n",
		"proc/sys/fs/inotify/max_user_watches": "524288", "proc/sys/kernel/random/entropy_avail": "256", "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
		"proc/sys/net/netfilter/nf_conntrack_max": "131072", "proc/sys/net/ipv4/ip_forward": "1\n", "etc/resolv.conf": "# x\nnameserver 192.0.2.53\n",
		"proc/thread-self/net/route": "Iface Destination\neth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\n", "var/lib/file": "",
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts", "cgroup", "user"} {
		files["proc/self/ns/"+ns] = ""
	}
	now := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	return files, &fake{
		facts:   hostcheck.Facts{UID: 0, Kernel: "6.1.0-18-amd64", Now: now},
		space:   hostcheck.Space{Total: 100 << 30, Free: 50 << 30, Inodes: 1000, FreeNodes: 900},
		errs:    map[string]error{},
		modules: map[string]string{},
	}
}

func run(t *testing.T, change func(files map[string]string, system *fake, cfg *hostcheck.Config)) []hostcheck.Result {
	t.Helper()
	files, system := good()
	cfg := hostcheck.Config{
		DataDir: "/var/lib/atoll", KubeletDir: "/var/lib/kubelet", Snapshotter: "overlayfs", VXLAN: true, Built: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC),
		Ports: hostcheck.Ports(true, netip.IPv4Unspecified(), 6443), System: system,
	}
	if change != nil {
		change(files, system, &cfg)
	}
	tree := fstest.MapFS{}
	for name, text := range files {
		file := &fstest.MapFile{Data: []byte(text), Mode: 0o644}
		if target, isLink := strings.CutPrefix(text, "-> "); isLink {
			file = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
		}
		tree[name] = file
	}
	cfg.Files = tree
	return hostcheck.Run(t.Context(), cfg)
}

func TestGoodMachine(t *testing.T) {
	results := run(t, nil)
	for _, r := range results {
		if r.Level != hostcheck.OK {
			t.Errorf("%+v", r)
		}
	}
	if len(results) != 30 {
		t.Errorf("%d results", len(results))
	}
	if err := hostcheck.Required(results); err != nil {
		t.Error(err)
	}
	if worst := hostcheck.Worst(results); worst != hostcheck.OK {
		t.Errorf("worst is %s", worst)
	}
}

type machineChange func(files map[string]string, system *fake, cfg *hostcheck.Config)

func file(name, text string) machineChange {
	return func(files map[string]string, _ *fake, _ *hostcheck.Config) { files[name] = text }
}

func gone(name string) machineChange {
	return func(files map[string]string, _ *fake, _ *hostcheck.Config) { delete(files, name) }
}

func tries(what hostcheck.Trial, arg string, err error) machineChange {
	return func(_ map[string]string, system *fake, _ *hostcheck.Config) {
		system.errs[strings.TrimSpace(string(what)+" "+arg)] = err
	}
}

func also(changes ...machineChange) machineChange {
	return func(files map[string]string, system *fake, cfg *hostcheck.Config) {
		for _, c := range changes {
			c(files, system, cfg)
		}
	}
}

func config(f func(cfg *hostcheck.Config)) machineChange {
	return func(_ map[string]string, _ *fake, cfg *hostcheck.Config) { f(cfg) }
}

func system(f func(s *fake)) machineChange {
	return func(_ map[string]string, s *fake, _ *hostcheck.Config) { f(s) }
}

// listening is a line of /proc/net/tcp.
func listening(addr, inode string) string {
	return "  sl  local_address rem_address st\n   0: " + addr + " 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 " + inode + " 1\n"
}

func TestChecks(t *testing.T) {
	for _, row := range []struct {
		name   string
		change machineChange
		check  string
		level  hostcheck.Level
		detail string // part of it
		try    string // part of the remedy
		starts bool   // a node starts all the same, although it failed
	}{
		{"not root", system(func(s *fake) { s.facts.UID = 1000 }), "root", hostcheck.Fail, "user 1000", "sudo", false},
		{"trials need root", also(system(func(s *fake) { s.facts.UID = 1000 }), tries(hostcheck.TryLink, "veth", syscall.EPERM)), "veth", hostcheck.Note, "not tried", "root", false},
		{"weak container", file("proc/self/status", "CapEff:\t00000000a80425fb\nSeccomp:\t2\n"), "capabilities", hostcheck.Fail, "lacks CAP_SYS_ADMIN, CAP_NET_ADMIN", "--privileged", false},
		{"no /proc", gone("proc/self/status"), "capabilities", hostcheck.Warn, "cannot tell", "/proc", false},
		{"no CAP_SYS_RESOURCE", file("proc/self/status", "CapEff:\t000001fffeffffff\nSeccomp:\t0\n"), "oom-scores", hostcheck.Note, "CAP_SYS_RESOURCE", "", false},
		{"old kernel", system(func(s *fake) { s.facts.Kernel = "5.10.0-28-amd64" }), "kernel", hostcheck.Fail, "older than 5.13", "Debian 12", false},
		{"very old kernel", system(func(s *fake) { s.facts.Kernel = "4.18.0" }), "kernel", hostcheck.Fail, "older", "", false},
		{"kernel just new enough", system(func(s *fake) { s.facts.Kernel = "5.13.0" }), "kernel", hostcheck.OK, "5.13.0", "", false},
		{"odd kernel version", system(func(s *fake) { s.facts.Kernel = "next" }), "kernel", hostcheck.Warn, "next", "", false},
		{"no network namespaces", gone("proc/self/ns/net"), "namespaces", hostcheck.Fail, "no namespaces for net", "CONFIG_NAMESPACES", false},
		{"no user namespaces", gone("proc/self/ns/user"), "namespaces", hostcheck.Note, "user", "CONFIG_USER_NS", false},
		{"no seccomp", gone("proc/sys/kernel/seccomp/actions_avail"), "seccomp", hostcheck.Fail, "no seccomp", "CONFIG_SECCOMP_FILTER", false},
		{"AppArmor without its program", file("sys/module/apparmor/parameters/enabled", "Y\n"), "apparmor", hostcheck.Note, "without a profile", "apparmor", false},
		{"AppArmor", also(file("sys/module/apparmor/parameters/enabled", "Y\n"), file("sbin/apparmor_parser", "")), "apparmor", hostcheck.OK, "on", "", false},
		{"SELinux enforcing", file("sys/fs/selinux/enforce", "1"), "selinux", hostcheck.Warn, "enforcing", "ausearch", false},
		{"SELinux permissive", file("sys/fs/selinux/enforce", "0"), "selinux", hostcheck.OK, "permissive", "", false},

		{"v2 without memory", file("sys/fs/cgroup/cgroup.controllers", "cpuset cpu pids"), "cgroups", hostcheck.Fail, "without memory", "cgroup_enable=memory", false},
		{"v2 without cpuset", file("sys/fs/cgroup/cgroup.controllers", "cpu memory pids"), "cgroups", hostcheck.Fail, "without cpuset", "cgroup_disable", false},
		{"v2 not handed down", also(file("sys/fs/cgroup/cgroup.controllers", ""), file("sys/fs/cgroup/cgroup.type", "domain")), "cgroups", hostcheck.Fail, "cpu, cpuset, memory, pids", "--cgroupns=private", false},
		{"v2 read-only", file("proc/self/mountinfo", strings.Replace(mountsV2, "cgroup rw,", "cgroup ro,", 1)), "cgroups", hostcheck.Fail, "read-only", "--privileged", false},
		{"v1", also(file("proc/self/mountinfo", mountsV1), file("proc/cgroups", cgroupsV1)), "cgroups", hostcheck.Note, "version 1: it works", "unified", false},
		{"hybrid", also(file("proc/self/mountinfo", mountsV1+"30 24 0:12 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"), file("proc/cgroups", cgroupsV1)), "cgroups", hostcheck.Note, "version 1 with 2 beside it", "", false},
		{"v1 with memory off", also(file("proc/self/mountinfo", strings.Replace(mountsV1, "rw,memory", "rw,other", 1)), file("proc/cgroups", strings.Replace(cgroupsV1, "memory\t4\t6\t1", "memory\t0\t1\t0", 1))), "cgroups", hostcheck.Fail, "memory controller is switched off", "cmdline.txt", false},
		{"v1 to be mounted", also(file("proc/self/mountinfo", strings.Replace(mountsV1, "rw,devices", "rw,other", 1)), file("proc/cgroups", cgroupsV1)), "cgroups", hostcheck.Note, "devices will be mounted", "", false},
		{"v1 without freezer", also(file("proc/self/mountinfo", strings.Replace(mountsV1, "rw,freezer", "rw,other", 1)), file("proc/cgroups", strings.Replace(cgroupsV1, "freezer", "other", 1))), "cgroups", hostcheck.Fail, "without freezer", "", false},
		{"v1 read-only", also(file("proc/self/mountinfo", strings.Replace(mountsV1, "cpuset rw", "cpuset ro", 1)), file("proc/cgroups", cgroupsV1)), "cgroups", hostcheck.Fail, "read-only", "", false},
		{"no control groups", file("proc/self/mountinfo", "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"), "cgroups", hostcheck.Fail, "without cpu, cpuacct", "", false},

		{"little memory", file("proc/meminfo", "MemTotal: 500000 kB\n"), "memory", hostcheck.Warn, "488 MiB", "1 GiB", false},
		{"box of 1 GiB", file("proc/meminfo", "MemTotal: 985000 kB\n"), "memory", hostcheck.OK, "", "", false},
		{"swap", file("proc/swaps", "Filename Type\n/swapfile file\n"), "swap", hostcheck.Note, "on", "swapoff", false},
		{"few open files", file("proc/self/limits", "Max open files 1024 20000 files\n"), "open-files", hostcheck.Note, "20000", "LimitNOFILE", false},
		{"unlimited files", file("proc/self/limits", "Max open files unlimited unlimited files\n"), "open-files", hostcheck.OK, "unlimited", "", false},
		{"few inotify instances", file("proc/sys/fs/inotify/max_user_instances", "128"), "inotify", hostcheck.Note, "128 instances", "sysctl", false},
		{"no inotify", gone("proc/sys/fs/inotify/max_user_instances"), "inotify", hostcheck.Fail, "no inotify", "CONFIG_INOTIFY_USER", true},
		{"little entropy", file("proc/sys/kernel/random/entropy_avail", "12"), "entropy", hostcheck.Note, "12 bits", "rng", false},
		{"clock before the build", system(func(s *fake) { s.facts.Now = time.Unix(0, 0) }), "clock", hostcheck.Warn, "1970-01-01", "chrony", false},
		{"clock in the far future", system(func(s *fake) { s.facts.Now = time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC) }), "clock", hostcheck.Warn, "2050", "chrony", false},

		{"read-only disk", tries(hostcheck.TryCreate, "", syscall.EROFS), "data-folder", hostcheck.Fail, "read-only", "--data-dir", false},
		{"folder of somebody else", tries(hostcheck.TryCreate, "", syscall.EACCES), "data-folder", hostcheck.Fail, "cannot write into /var/lib: permission denied", "--data-dir", false},
		{"full disk", tries(hostcheck.TryCreate, "", syscall.ENOSPC), "data-folder", hostcheck.Fail, "full", "du -xh", true},
		{"no programs from that disk", system(func(s *fake) { s.space.NoExec = true }), "data-folder", hostcheck.Fail, "noexec", "exec", false},
		{"nearly full disk", system(func(s *fake) { s.space.Free = 4 << 30 }), "disk-space", hostcheck.Warn, "4096 MiB free of 100 GiB: below 5 %", "", false},
		{"small disk", system(func(s *fake) { s.space.Total, s.space.Free = 8<<30, 1<<30 }), "disk-space", hostcheck.Warn, "little for images", "", false},
		{"few inodes", system(func(s *fake) { s.space.FreeNodes = 10 }), "inodes", hostcheck.Warn, "10 free of 1000", "", false},
		{"no fixed inodes", system(func(s *fake) { s.space.Inodes = 0 }), "inodes", hostcheck.OK, "not limited", "", false},
		{"kernel without overlay", tries(hostcheck.TryOverlay, "", hostcheck.ErrUnknown), "overlayfs", hostcheck.Fail, "kernel does not have it", "modprobe overlay", false},
		{"disk without overlay", tries(hostcheck.TryOverlay, "", syscall.EINVAL), "overlayfs", hostcheck.Fail, "file system of /var/lib/atoll: invalid argument", "ext4", false},
		{"overlay on a full disk", tries(hostcheck.TryOverlay, "", syscall.ENOSPC), "overlayfs", hostcheck.Fail, "no space", "", true},
		{"overlay not needed", also(tries(hostcheck.TryOverlay, "", syscall.EINVAL), config(func(c *hostcheck.Config) { c.Snapshotter = "native" })), "overlayfs", hostcheck.Note, "native does not need it", "", false},
		{"private mounts", file("proc/self/mountinfo", strings.Replace(mountsV2, " shared:1", "", 1)), "mount-propagation", hostcheck.Warn, "private", "mount --make-rshared /,", false},
		{"kubelet's own private mount", file("proc/self/mountinfo", mountsV2+"30 22 0:9 / /var/lib/kubelet rw - xfs /dev/vdb rw\n"), "mount-propagation", hostcheck.Warn, "private", "/var/lib/kubelet,", false},
		{"neighbour's private mount", file("proc/self/mountinfo", mountsV2+"30 22 0:9 / /var/lib/kube rw - xfs /dev/vdb rw\n"), "mount-propagation", hostcheck.OK, "/ is shared", "", false},

		{"kernel without nftables", tries(hostcheck.TryNFTables, "", hostcheck.ErrUnknown), "nftables", hostcheck.Fail, "does not have it", "CONFIG_NF_TABLES", false},
		{"kernel with half of nftables", tries(hostcheck.TryNFTables, "", errors.New("no numgen")), "nftables", hostcheck.Fail, "no numgen", "NFT_NUMGEN", false},
		{"nftables not allowed", tries(hostcheck.TryNFTables, "", syscall.EPERM), "nftables", hostcheck.Fail, "not permitted", "--privileged", false},
		{"overlay not allowed", tries(hostcheck.TryOverlay, "", syscall.EPERM), "overlayfs", hostcheck.Fail, "not permitted", "--privileged", false},
		{"no conntrack", gone("proc/sys/net/netfilter/nf_conntrack_max"), "conntrack", hostcheck.Warn, "does not track", "modprobe nf_conntrack", false},
		{"few connections", file("proc/sys/net/netfilter/nf_conntrack_max", "4096"), "conntrack", hostcheck.Note, "4096", "sysctl", false},
		{"kernel without veth", tries(hostcheck.TryLink, "veth", hostcheck.ErrUnknown), "veth", hostcheck.Fail, "cannot make links", "CONFIG_VETH", false},
		{"veth not allowed", tries(hostcheck.TryLink, "veth", syscall.EPERM), "veth", hostcheck.Fail, "not permitted", "--privileged", false},
		{"kernel without VXLAN", tries(hostcheck.TryLink, "vxlan", hostcheck.ErrUnknown), "vxlan", hostcheck.Warn, "does not have it", "host-gw", false},
		{"VXLAN broken", tries(hostcheck.TryLink, "vxlan", syscall.EINVAL), "vxlan", hostcheck.Warn, "invalid argument", "host-gw", false},
		{"kernel without bridges", tries(hostcheck.TryLink, "bridge", hostcheck.ErrUnknown), "bridge", hostcheck.Note, "the kernel does not have it", "CONFIG_BRIDGE", false},
		{"forwarding off", file("proc/sys/net/ipv4/ip_forward", "0"), "ip-forwarding", hostcheck.OK, "off, and can", "", false},
		{"forwarding stuck", also(file("proc/sys/net/ipv4/ip_forward", "0"), tries(hostcheck.TryOpen, "/proc/sys/net/ipv4/ip_forward", syscall.EROFS)), "ip-forwarding", hostcheck.Fail, "cannot be switched on", "sysctl", false},
		{"no default route", file("proc/thread-self/net/route", "Iface\neth0 0001A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"), "default-route", hostcheck.Note, "none", "--node-ip", false},
		{"default route of IPv6 alone", also(gone("proc/thread-self/net/route"), file("proc/thread-self/net/ipv6_route",
			"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe80000000000000 00000400 00000001 00000000 00000003 eth1\n")), "default-route", hostcheck.OK, "eth1", "", false},
		{"unreachable route of IPv6", also(gone("proc/thread-self/net/route"), file("proc/thread-self/net/ipv6_route",
			"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n")), "default-route", hostcheck.Note, "none", "", false},
		{"no resolv.conf", gone("etc/resolv.conf"), "resolv-conf", hostcheck.Note, "no /etc/resolv.conf", "nameserver", false},
		{"empty resolv.conf", file("etc/resolv.conf", "search x\n"), "resolv-conf", hostcheck.Note, "names no server", "", false},
		{"stub alone", file("etc/resolv.conf", "nameserver 127.0.0.53\nnameserver ::1\n"), "resolv-conf", hostcheck.Warn, "loopback", "--resolv-conf", false},
		{"stub with what is behind it", also(file("etc/resolv.conf", "nameserver 127.0.0.53\n"), file("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n")), "resolv-conf", hostcheck.OK, "/run/systemd/resolve", "", false},
		{"ufw", file("etc/ufw/ufw.conf", "# x\nENABLED=yes\nLOGLEVEL=low\n"), "firewall", hostcheck.Warn, "ufw", "10.42.0.0/16", false},
		{"ufw off", file("etc/ufw/ufw.conf", "#ENABLED=yes\nENABLED=no\n"), "firewall", hostcheck.OK, "", "", false},
		{"firewalld", file("run/firewalld/x", ""), "firewall", hostcheck.Warn, "firewalld", "", false},

		{"port of the API in use", also(file("proc/thread-self/net/tcp", listening("0100007F:192B", "77")), file("proc/12/fd/3", "-> socket:[77]"), file("proc/12/comm", "nginx\n"), file("proc/5/fd/3", "-> socket:[78]")),
			"ports", hostcheck.Fail, "in use: 6443 (API server) by nginx (process 12)", "--https-listen-port", false},
		{"holder unknown", file("proc/thread-self/net/tcp", listening("00000000:280A", "77")), "ports", hostcheck.Fail, "10250 (kubelet)", "", false},
		{"port in use on IPv6", file("proc/thread-self/net/tcp6", listening("00000000000000000000000000000000:2808", "77")), "ports", hostcheck.Fail, "10248", "", false},
		{"port in use on a mapped address", file("proc/thread-self/net/tcp6", listening("0000000000000000FFFF00000100007F:2808", "77")), "ports", hostcheck.Fail, "10248", "", false},
		{"loopback port in use on another address", file("proc/thread-self/net/tcp", listening("0A01A8C0:2808", "77")), "ports", hostcheck.OK, "free", "", false},
		{"connection is no listener", file("proc/thread-self/net/tcp", strings.Replace(listening("0100007F:192B", "77"), " 0A ", " 01 ", 1)), "ports", hostcheck.OK, "free", "", false},
		{"garbage", file("proc/thread-self/net/tcp", listening("XX00007F:192B", "77")+listening("01:192B", "1")+listening("0100007F:", "1")), "ports", hostcheck.OK, "free", "", false},
		{"atoll runs", also(file("proc/thread-self/net/tcp", listening("0100007F:192B", "77")), file("proc/12/fd/3", "-> socket:[77]"), file("proc/12/comm", "atoll\n")), "ports", hostcheck.Note, "atoll runs already", "", false},
		{"atoll runs, and another starts", also(file("proc/thread-self/net/tcp", listening("0100007F:192B", "77")), file("proc/12/fd/3", "-> socket:[77]"), file("proc/12/comm", "atoll\n"),
			config(func(c *hostcheck.Config) { c.Starting = true })), "ports", hostcheck.Fail, "by atoll (process 12)", "", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			results := run(t, row.change)
			var got hostcheck.Result
			for _, r := range results {
				if r.Name == row.check {
					got = r
				} else if r.Level == hostcheck.Fail {
					t.Logf("also failed: %+v", r)
				}
			}
			if got.Level != row.level || !strings.Contains(got.Detail, row.detail) || !strings.Contains(got.Remedy, row.try) {
				t.Errorf("%+v, want %s with %q and a remedy with %q", got, row.level, row.detail, row.try)
			}
			if got.Level == hostcheck.Fail && got.Required == row.starts {
				t.Errorf("required is %v", got.Required)
			}
			if (got.Level == hostcheck.Fail || got.Level == hostcheck.Warn) && got.Remedy == "" {
				t.Error("no remedy")
			}
		})
	}
}

func TestModulesAreLoadedFirst(t *testing.T) {
	cures := map[string]string{"overlay": "mount overlay", "nf_tables": "nftables rules", "vxlan": "make link vxlan", "veth": "make link veth", "bridge": "make link bridge"}
	var s *fake
	results := run(t, func(_ map[string]string, system *fake, _ *hostcheck.Config) {
		s = system
		s.modules = maps.Clone(cures)
		for _, trial := range cures {
			s.errs[trial] = hostcheck.ErrUnknown
		}
	})
	if err := hostcheck.Required(results); err != nil {
		t.Errorf("not cured: %v", err)
	}
	if len(s.loaded) != len(cures) {
		t.Errorf("loaded %v", s.loaded)
	}
}

func TestRequired(t *testing.T) {
	results := run(t, also(system(func(s *fake) { s.facts.UID = 1 }), tries(hostcheck.TryCreate, "", syscall.ENOSPC), gone("proc/self/ns/net")))
	err := hostcheck.Required(results)
	if err == nil || !strings.Contains(err.Error(), "root: ") || !strings.Contains(err.Error(), "namespaces: ") || strings.Contains(err.Error(), "full") {
		t.Errorf("Required = %v", err)
	}
	if tries := remedy.All(err); len(tries) != 2 {
		t.Errorf("remedies %q", tries)
	}
	if worst := hostcheck.Worst(results); worst != hostcheck.Fail {
		t.Errorf("worst is %s", worst)
	}
}

func TestNothingAskedNothingSaid(t *testing.T) {
	files, s := good()
	tree := fstest.MapFS{}
	for name, text := range files {
		tree[name] = &fstest.MapFile{Data: []byte(text)}
	}
	for _, r := range hostcheck.Run(t.Context(), hostcheck.Config{Files: tree, System: s}) {
		switch r.Name {
		case "data-folder", "disk-space", "inodes", "overlayfs", "mount-propagation", "vxlan", "ports", "clock":
			t.Errorf("%+v", r)
		}
	}
}

func TestJSON(t *testing.T) {
	data, err := json.Marshal(hostcheck.Result{Name: "swap", Level: hostcheck.Note, Detail: "on", Remedy: "swapoff"})
	if err != nil || string(data) != `{"name":"swap","result":"note","detail":"on","remedy":"swapoff"}` {
		t.Errorf("%s, %v", data, err)
	}
}

func TestEndedContextEndsTheRun(t *testing.T) {
	_, s := good()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if results := hostcheck.Run(ctx, hostcheck.Config{Files: fstest.MapFS{}, System: s}); len(results) != 0 {
		t.Errorf("%v", results)
	}
}

func TestPorts(t *testing.T) {
	numbers := func(ports []hostcheck.Port) map[int]bool {
		out := map[int]bool{}
		for _, p := range ports {
			out[p.Number] = true
		}
		return out
	}
	server, agent := numbers(hostcheck.Ports(true, netip.IPv4Unspecified(), 7443)), numbers(hostcheck.Ports(false, netip.Addr{}, 7443))
	if !server[7443] || !server[10257] || agent[7443] || agent[10257] || !agent[10250] || !server[10250] {
		t.Errorf("server %v, agent %v", server, agent)
	}
}
