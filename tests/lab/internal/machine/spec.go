// Package machine is the inside of a node: what a box's firmware, kernel and init system do before and around atoll.
//
// A node is a process tree in namespaces of its own (network, mount, UTS, IPC, PID, control group). Boot puts a process into the
// node's control groups and starts Init, as PID 1, in new namespaces. Init waits for its Spec, builds the node's file system from
// nothing but the kernel's and the node's folder, pivots into it, sets up the network interface that it was given, starts atoll, and
// then only reaps and answers the control socket (package ctl). It never restarts atoll unless the Spec says so, and stopping atoll
// leaves what atoll started alone, as systemd does with KillMode=process.
//
// SIGKILL of PID 1 from outside is the power cut: the kernel ends every process of the node at once and drops its mounts and
// network. A Spec that never comes (the host's command died) makes Init exit, so no half-made node stays behind.
package machine

import "time"

// Files that Boot and Init inherit, in this order from descriptor 3 on.
const (
	fdSpec   = 3 + iota // read end: the Spec as JSON, then end of file
	fdReady             // write end: one Ready as JSON
	fdSocket            // listening control socket
	fdLog               // atoll's output is appended here
	fdOwnLog            // Init's own log
)

// Spec is everything that Init needs to know.
type Spec struct {
	Name     string `json:"name"`     // "s1/n1", for messages
	Hostname string `json:"hostname"` // "n1"
	Root     string `json:"root"`     // the node's persistent root folder on the host
	DataDisk string `json:"dataDisk"` // image file with an ext4 file system that is mounted on /var; empty: /var is part of Root
	ReadOnly bool   `json:"readOnly"` // /var is mounted read-only
	Tools    string `json:"tools"`    // folder that appears as /lab/bin
	Delegate bool   `json:"delegate"` // the host has control groups v2 only: move processes out of the node's root group

	Interface string `json:"interface"` // already in the node's network namespace
	Address   string `json:"address"`   // with prefix length
	Gateway   string `json:"gateway"`   // empty: no default route

	Service ServiceSpec `json:"service"`
}

// ServiceSpec says how atoll is started.
type ServiceSpec struct {
	Argv  []string `json:"argv"` // empty: the node comes up without atoll
	Env   []string `json:"env"`
	Start bool     `json:"start"` // start it at power-on
	// RestartAfter starts it again that long after it ended by itself; 0 leaves it ended, so that tests see failures.
	RestartAfter time.Duration `json:"restartAfter"`
}

// Ready is what Init reports once: the node is up, or why not.
type Ready struct {
	Error string `json:"error,omitempty"`
}

const (
	// servicePath is what systemd gives to services. The node's folders there hold nothing but atoll.
	servicePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// toolsPath adds the lab's tools, for people and tests.
	toolsPath = "PATH=/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	notifySocket = "/run/lab/notify.sock"
)
