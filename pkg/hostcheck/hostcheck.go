// Package hostcheck tells whether a machine can run a node, and what to do where it cannot.
//
// Most checks read files of /proc and /sys. What only trying can tell (does this kernel mount an overlay, take nftables rules, make a
// VXLAN link) is tried, in a network namespace or a temporary folder that is thrown away, so that nothing of the machine changes.
// A kernel module that is missing is loaded first, which is what the node would do.
//
// Checks never stop each other: all are run, and each ends in a Result. Those without which a node cannot start are marked Required.
package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Level is how a check ended.
type Level string

// The levels, from good to bad.
const (
	OK   Level = "ok"
	Note Level = "note" // worth knowing; nothing needs to be done
	Warn Level = "warn" // something will not work, or not well
	Fail Level = "fail" // the node does not start, or runs no pods
)

// Result is the end of one check.
type Result struct {
	Name     string `json:"name"` // stable, such as "overlayfs"
	Level    Level  `json:"result"`
	Detail   string `json:"detail"`
	Remedy   string `json:"remedy,omitempty"`
	Required bool   `json:"required,omitempty"` // a node does not start while this fails
}

// Config says what for the machine is checked. Zero fields leave out what they are for.
type Config struct {
	DataDir     string // need not exist yet
	KubeletDir  string
	Snapshotter string // with "native" no overlay is needed
	VXLAN       bool   // pod traffic between nodes goes through VXLAN
	ResolvConf  string // the file that pods inherit; /etc/resolv.conf when empty
	Ports       []Port
	Built       time.Time // of this program: no clock is right that is before it
	NFT         string    // the nft program; looked up in PATH when empty
	Starting    bool      // a node starts now: ports that atoll itself holds are in its way

	Files  fs.FS  // the machine's files, rooted at /; the real ones when nil
	System System // the real one when nil
}

// Port is a TCP port that a node listens on.
type Port struct {
	Number int
	Addr   netip.Addr // the unspecified one stands for all addresses
	For    string     // "API server"
}

// Ports are those of a server or an agent.
func Ports(server bool, bind netip.Addr, https int) []Port {
	loopback, any4 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv4Unspecified()
	ports := []Port{
		{10250, any4, "kubelet"}, {10248, loopback, "kubelet's health"}, {10249, loopback, "kube-proxy's metrics"}, {10256, loopback, "kube-proxy's health"},
	}
	if server {
		ports = append([]Port{{https, bind, "API server"}}, ports...)
		ports = append(ports, Port{10257, loopback, "controller manager"}, Port{10259, loopback, "scheduler"})
	}
	return ports
}

// finding is what a check says about the machine.
type finding struct {
	level  Level
	detail string
	try    string // remedy
	minor  bool   // the check is required, but this does not keep a node from starting
}

func ok(format string, args ...any) finding {
	return finding{level: OK, detail: fmt.Sprintf(format, args...)}
}

func note(try, format string, args ...any) finding {
	return finding{level: Note, detail: fmt.Sprintf(format, args...), try: try}
}

func warn(try, format string, args ...any) finding {
	return finding{level: Warn, detail: fmt.Sprintf(format, args...), try: try}
}

func fail(try, format string, args ...any) finding {
	return finding{level: Fail, detail: fmt.Sprintf(format, args...), try: try}
}

// check is one line of the report.
type check struct {
	name string
	kind kind
	run  func(ctx context.Context, m *machine) finding
}

// kind says how a check is treated.
type kind uint8

const (
	advice   kind = 0         // a node starts whatever it finds
	required kind = 1 << iota // a node does not start when it fails
	asRoot                    // nobody else can tell
)

// checks lists them in the order of the report: what everything else needs comes first.
func checks() []check {
	return []check{
		{"root", required, checkRoot},
		{"capabilities", required, checkCapabilities},
		{"kernel", required, checkKernel},
		{"namespaces", required, checkNamespaces},
		{"seccomp", required, checkSeccomp},
		{"apparmor", advice, checkAppArmor},
		{"selinux", advice, checkSELinux},
		{"cgroups", required, checkCgroups},

		{"memory", advice, checkMemory},
		{"swap", advice, checkSwap},
		{"oom-scores", advice, checkOOMScores},
		{"open-files", advice, checkOpenFiles},
		{"inotify", advice, checkInotify},
		{"entropy", advice, checkEntropy},
		{"clock", advice, checkClock},

		{"data-folder", required | asRoot, checkDataFolder},
		{"disk-space", advice, checkSpace},
		{"inodes", advice, checkInodes},
		{"overlayfs", required | asRoot, checkOverlay},
		{"mount-propagation", advice, checkPropagation},

		{"nftables", required | asRoot, checkNFTables},
		{"conntrack", advice, checkConntrack},
		{"veth", required | asRoot, checkVeth},
		{"vxlan", asRoot, checkVXLAN},
		{"bridge", asRoot, checkBridge},
		{"ip-forwarding", required | asRoot, checkForwarding},
		{"default-route", advice, checkDefaultRoute},
		{"resolv-conf", advice, checkResolvConf},
		{"firewall", advice, checkFirewall},
		{"ports", required, checkPorts},
	}
}

// Run makes all checks. When ctx ends it returns those that were done.
func Run(ctx context.Context, cfg Config) []Result {
	m := newMachine(cfg)
	var out []Result
	for _, c := range checks() {
		if ctx.Err() != nil {
			break
		}
		f := note("run it as root", "not tried: needs root")
		if c.kind&asRoot == 0 || m.facts.UID == 0 {
			f = c.run(ctx, m)
		}
		if f.level == "" { // not asked for
			continue
		}
		out = append(out, Result{Name: c.name, Level: f.level, Detail: f.detail, Remedy: f.try, Required: c.kind&required != 0 && !f.minor})
	}
	return out
}

// Required returns an error with everything that keeps a node from starting, or nil.
func Required(results []Result) error {
	var errs []error
	for _, r := range results {
		if r.Required && r.Level == Fail {
			errs = append(errs, remedy.Wrap(fmt.Errorf("%s: %s", r.Name, r.Detail), "%s", r.Remedy))
		}
	}
	return errors.Join(errs...)
}

// Worst returns the worst level among results.
func Worst(results []Result) Level {
	worst, rank := OK, map[Level]int{OK: 0, Note: 1, Warn: 2, Fail: 3}
	for _, r := range results {
		if rank[r.Level] > rank[worst] {
			worst = r.Level
		}
	}
	return worst
}
