package node

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// systemdRuns tells whether systemd is the init system of this machine.
func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// cgroupV2 tells whether this machine has the unified hierarchy only.
func cgroupV2() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// systemdCgroups tells whether pods' cgroups are made through systemd. Where it manages the unified hierarchy, two managers of one
// tree would fight; elsewhere the plain file system is simpler.
func systemdCgroups() bool { return systemdRuns() && cgroupV2() }

// hostResolvConf is the resolv.conf with the servers for names outside the cluster. Where the host's own points to a stub on
// loopback, which pods cannot reach, systemd-resolved keeps the real one elsewhere.
func (n *Node) hostResolvConf() string {
	if n.cfg.ResolvConf != "" {
		return n.cfg.ResolvConf
	}
	const host, resolved = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
	data, err := os.ReadFile(host)
	if err == nil && strings.Contains(string(data), "nameserver 127.") {
		if _, err := os.Stat(resolved); err == nil {
			return resolved
		}
	}
	return host
}

// podResolvConf is the file that pods with dnsPolicy Default get: the host's, or an empty one where the host has none, because the
// kubelet would start no pod without the file.
func (n *Node) podResolvConf() string {
	host := n.hostResolvConf()
	if _, err := os.Stat(host); err == nil {
		return host
	}
	if _, err := atomicfile.WriteIfChanged(n.paths.resolvConf, []byte("# this host has no resolv.conf\n"), 0o644); err != nil {
		n.log.Warn("cannot write an empty resolv.conf", "err", err)
	}
	return n.paths.resolvConf
}
