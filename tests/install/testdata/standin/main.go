// Command standin plays the part of the atoll program for the tests of the installer.
//
// A packed one carries another program behind its own bytes, followed by that program's length in 8 bytes.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

var (
	version = "none" // set by the linker
	mode    = ""     // packed, broken, bad-unpack
)

func main() {
	arg := ""
	if len(os.Args) > 1 {
		arg = os.Args[1]
	}
	switch {
	case arg == "--unpack-to" && mode == "packed":
		check(unpack(os.Args[2]))
	case arg == "--unpack-to" && mode == "bad-unpack":
		check(fmt.Errorf("carried data is damaged"))
	case arg == "version" && mode == "broken":
		check(fmt.Errorf("illegal instruction"))
	case arg == "version":
		fmt.Printf("atoll %s (stand-in)\n  and what it carries\n", version)
	case arg == "containerd", arg == "sleep", arg == "-namespace":
		time.Sleep(time.Hour)
	default:
		fmt.Fprintln(os.Stderr, "unknown argument", arg)
		os.Exit(2)
	}
}

func unpack(path string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		self, err = os.ReadFile(os.Args[0]) // no /proc in a bare root
	}
	if err != nil {
		return err
	}
	size := int(binary.LittleEndian.Uint64(self[len(self)-8:]))
	return os.WriteFile(path, self[len(self)-8-size:len(self)-8], 0o755)
}

func check(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\nTry:   something else\n", err)
		os.Exit(1)
	}
}
