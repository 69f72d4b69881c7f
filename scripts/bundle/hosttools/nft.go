package main

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// nft replaces this process by the carried nft. The loader is called by its path, because the path that is written inside the nft
// binary belongs to the host, which may have another C library or none.
func nft(args []string) int {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		// Without /proc the name we were started with is the best that is known.
		if self, err = filepath.Abs(os.Args[0]); err != nil {
			return complain(exitUsage, "nft", "find the folder of this program: %v", err)
		}
	}
	lib := filepath.Join(filepath.Dir(filepath.Dir(self)), "lib", "nft")
	loader := map[string]string{"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}[runtime.GOARCH]
	command := append([]string{loader, "--library-path", lib, "--argv0", "nft", filepath.Join(lib, "nft")}, args...)
	err = syscall.Exec(filepath.Join(lib, loader), command, os.Environ())
	return complain(exitUsage, "nft", "start %s: %v", filepath.Join(lib, loader), err)
}
