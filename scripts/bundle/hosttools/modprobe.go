package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// modulesCompressed is MODULE_INIT_COMPRESSED_FILE: the kernel unpacks the module itself (Linux 5.17 and later, if so configured).
const modulesCompressed = 4

// modprobe loads modules with what they depend on, by modules.dep of the running kernel. Already loaded and built-in are success.
// Aliases, blacklists and /etc/modprobe.d are not read: the callers name modules by their own names.
func modprobe(args []string) int {
	quiet, all, names := false, false, []string(nil)
	for _, arg := range args {
		switch {
		case arg == "-q" || arg == "--quiet":
			quiet = true
		case arg == "-a" || arg == "--all":
			all = true
		case arg == "-b" || arg == "-v" || arg == "-s" || arg == "--use-blacklist" || arg == "--" || arg == "-qb" || arg == "-bq":
		case strings.HasPrefix(arg, "-"):
			return complain(exitUsage, "modprobe", "unknown option %s", arg)
		default:
			names = append(names, arg)
		}
	}
	if len(names) == 0 {
		return complain(exitUsage, "modprobe", "name a module")
	}
	params := ""
	if !all { // modprobe NAME PARAMETER...
		params, names = strings.Join(names[1:], " "), names[:1]
	}
	code := 0
	for _, name := range names {
		if err := loadModule(name, params); err != nil {
			code = exitUsage
			if !quiet {
				complain(code, "modprobe", "%s: %v", name, err)
			}
		}
	}
	return code
}

func loadModule(name, params string) error {
	name = strings.ReplaceAll(name, "-", "_")
	if _, err := os.Stat(filepath.Join("/sys/module", name)); err == nil {
		return nil // loaded, or built in and with parameters
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	root := filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:]))
	if _, found, err := findModule(filepath.Join(root, "modules.builtin"), name); err == nil && found {
		return nil
	}
	line, found, err := findModule(filepath.Join(root, "modules.dep"), name)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("module not found in %s", root)
	}
	own, needs, _ := strings.Cut(line, ":")
	// modules.dep names the nearest dependency first, so the last must go in first.
	files := append([]string{own}, strings.Fields(needs)...)
	for i := len(files) - 1; i >= 0; i-- {
		p := ""
		if i == 0 {
			p = params
		}
		if err := insertModule(filepath.Join(root, files[i]), p); err != nil {
			return fmt.Errorf("load %s: %w", files[i], err)
		}
	}
	return nil
}

// findModule returns the line of an index of module files that starts with the file of the named module.
func findModule(index, name string) (line string, found bool, err error) {
	f, err := os.Open(index)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		file, _, _ := strings.Cut(lines.Text(), ":")
		base, _, _ := strings.Cut(filepath.Base(file), ".ko")
		if strings.ReplaceAll(base, "-", "_") == name {
			return lines.Text(), true, nil
		}
	}
	return "", false, lines.Err()
}

func insertModule(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = modulesCompressed
	}
	err = unix.FinitModule(int(f.Fd()), params, flags)
	if errors.Is(err, syscall.EEXIST) {
		return nil
	}
	return err
}
