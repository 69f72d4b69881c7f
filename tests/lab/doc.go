// Package lab runs real atoll sites on one machine, for people (scripts/lab) and for tests.
//
// A node is like a small virtual machine: network, mount, UTS, IPC, PID and control group namespaces of its own, a root file system
// that holds nothing but the atoll binary, and a disk folder that survives power cuts. Inside it the built binary runs real
// containerd, runc and pods. A site is a switch, a router and its nodes; sites meet in a WAN. Links can be cut and healed, nodes
// stopped, power-cut and replaced by blank ones. See internal/machine for what is inside of a node, internal/wiring for the cables.
//
// Everything about a lab is in its folder, so that any later command can go on where another was killed:
//
//	lab.json                 what was made; written before anything is made
//	s1/kubeconfig.yaml       usable from the host
//	s1/n1/node.json          how the node is run, and its PID 1
//	s1/n1/root               its disk; s1/n1/disk.img instead of root/var when it has a disk of limited size
//	s1/n1/atoll.log          output of atoll, over all power cycles; s1/n1/init.log is from PID 1
//
// On the host there is beside that: processes in control groups "atoll-lab<id>", one network interface "atoll-lab<id>", and
// /run/atoll-lab/<id>.json. Down removes exactly these: processes because they are in the control groups, the interface because it
// carries the lab's mark. No mount and no network namespace file is ever made on the host. While any lab is up, two limits of the host
// are higher (limits.go) and kernel modules that nodes need are loaded; the limits are restored, the modules stay.
//
// Power cut: Kill ends every process of a node at once. With a disk of limited size the file system is shut down first, so that what
// was not synced is lost, as in a real power cut. With a disk folder the host's page cache survives, so unsynced data is still there.
//
// Not possible: a clock of its own for a node, because the kernel has no namespace for it. Package vm has other kernels.
package lab
