// Command hosttools stands in for the few host programs that a node needs, on machines that have nothing but a kernel.
//
// It acts by the name it is started with:
//
//	nft       starts the carried nft with the carried libraries and loader, whatever C library the host has
//	mount     the calls that the kubelet and an administrator make; see mount.go
//	umount    likewise
//	modprobe  loads a module and what it depends on; see modprobe.go
//
// Exit codes follow the originals: 1 for wrong use, 32 when mount or umount fails.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
)

// Exit codes of mount(8) and umount(8).
const (
	exitUsage  = 1
	exitFailed = 32
)

func main() {
	// Every tool here is gone after a few system calls; collecting garbage would only cost time.
	debug.SetGCPercent(-1)
	name := filepath.Base(os.Args[0])
	run, known := map[string]func([]string) int{"nft": nft, "mount": mount, "umount": umount, "modprobe": modprobe}[name]
	if !known {
		fmt.Fprintf(os.Stderr, "%s: start this program as nft, mount, umount or modprobe\n", name)
		os.Exit(exitUsage)
	}
	os.Exit(run(os.Args[1:]))
}

// complain prints a message in the manner of the tool and returns code.
func complain(code int, tool, format string, args ...any) int {
	fmt.Fprintf(os.Stderr, tool+": "+format+"\n", args...)
	return code
}
