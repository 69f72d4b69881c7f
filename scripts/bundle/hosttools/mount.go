package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mountRequest is one command line of mount.
type mountRequest struct {
	fsType   string
	options  mountOptions
	operands []string
	internal bool // -i: no mount.TYPE helper
}

// mount understands what the kubelet's mount library sends, and the common forms people type: new mounts, bind and rbind, remount,
// move, --make-*, and no arguments to list. It reads no fstab and sets up no loop devices.
func mount(args []string) int {
	req, err := parseMount(args)
	if err != nil {
		return complain(exitUsage, "mount", "%v", err)
	}
	if len(req.operands) == 0 {
		table, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return complain(exitFailed, "mount", "list mounts: %v", err)
		}
		if _, err := os.Stdout.Write(table); err != nil {
			return exitFailed
		}
		return 0
	}
	source, target := "none", req.operands[len(req.operands)-1]
	if len(req.operands) == 2 {
		source = req.operands[0]
	} else if req.options.flags&unix.MS_REMOUNT == 0 && len(req.options.propagation) == 0 {
		return complain(exitUsage, "mount", "%s: give a source and a target; there is no fstab here", target)
	}
	if err := req.perform(source, target); err != nil {
		return complain(exitFailed, "mount", "%s: mount %s: %v", target, source, err)
	}
	return 0
}

func parseMount(args []string) (*mountRequest, error) {
	req := &mountRequest{}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		name, value, inline := strings.Cut(arg, "=")
		take := func() error { // the value of an option, attached or the next word
			if inline {
				return nil
			}
			if len(args) == 0 {
				return fmt.Errorf("%s wants a value", name)
			}
			value, args = args[0], args[1:]
			return nil
		}
		switch {
		case arg == "--":
			req.operands = append(req.operands, args...)
			args = nil
		case !strings.HasPrefix(arg, "-") || arg == "-":
			req.operands = append(req.operands, arg)
		case strings.HasPrefix(arg, "--make-"):
			word := strings.TrimPrefix(arg, "--make-")
			if propagationOptions[word] == 0 {
				return nil, fmt.Errorf("unknown option %s", arg)
			}
			req.options.add(word)
		case arg == "--bind" || arg == "--rbind" || arg == "--move":
			req.options.add(arg[2:])
		case name == "--types" || name == "--options" || name == "--source" || name == "--target":
			if err := take(); err != nil {
				return nil, err
			}
			req.long(name, value)
		case arg == "--no-canonicalize" || arg == "--no-mtab" || arg == "--verbose":
			// The first two are how this program always works.
		case arg == "--internal-only":
			req.internal = true
		case arg == "--read-only":
			req.options.add("ro")
		case arg == "--read-write" || arg == "--rw":
			req.options.add("rw")
		case strings.HasPrefix(arg, "--"):
			return nil, fmt.Errorf("unknown option %s", arg)
		default:
			rest, err := req.short(arg[1:], args)
			if err != nil {
				return nil, err
			}
			args = rest
		}
	}
	if len(req.operands) > 2 {
		return nil, fmt.Errorf("too many operands: %s", strings.Join(req.operands, " "))
	}
	return req, nil
}

func (req *mountRequest) long(name, value string) {
	switch name {
	case "--types":
		req.fsType = value
	case "--options":
		req.options.add(value)
	case "--source":
		req.operands = append([]string{value}, req.operands...)
	case "--target":
		req.operands = append(req.operands, value)
	}
}

// short reads a cluster of one-letter options; args are the words after it. It returns the words it did not use.
func (req *mountRequest) short(cluster string, args []string) ([]string, error) {
	for i, letter := range cluster {
		switch letter {
		case 't', 'o':
			value := cluster[i+1:]
			if value == "" {
				if len(args) == 0 {
					return nil, fmt.Errorf("-%c wants a value", letter)
				}
				value, args = args[0], args[1:]
			}
			if letter == 't' {
				req.fsType = value
			} else {
				req.options.add(value)
			}
			return args, nil
		case 'B', 'R', 'M':
			req.options.add(map[rune]string{'B': "bind", 'R': "rbind", 'M': "move"}[letter])
		case 'r', 'w':
			req.options.add(map[rune]string{'r': "ro", 'w': "rw"}[letter])
		case 'i':
			req.internal = true
		case 'c', 'n', 'v', 's':
		default:
			return nil, fmt.Errorf("unknown option -%c", letter)
		}
	}
	return args, nil
}

// perform makes the mount(2) calls of one request in the order that the kernel needs.
func (req *mountRequest) perform(source, target string) error {
	flags, data := req.options.flags, strings.Join(req.options.data, ",")
	onlyPropagation := len(req.options.propagation) > 0 && len(req.operands) == 1 && flags&unix.MS_REMOUNT == 0
	switch {
	case onlyPropagation:
	case flags&(unix.MS_REMOUNT|unix.MS_MOVE) != 0:
		if err := unix.Mount(source, target, req.fsType, flags, data); err != nil {
			return err
		}
	case flags&unix.MS_BIND != 0:
		if err := unix.Mount(source, target, "", flags&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
			return err
		}
		// The kernel ignores ro and the like in the call that binds: they take a second one.
		if own := flags & perMount; own != 0 {
			if err := unix.Mount("none", target, "", unix.MS_REMOUNT|unix.MS_BIND|own, ""); err != nil {
				_ = unix.Unmount(target, unix.MNT_DETACH)
				return err
			}
		}
	default:
		if err := req.fresh(source, target, data); err != nil {
			return err
		}
	}
	for _, p := range req.options.propagation {
		if err := unix.Mount("none", target, "", p, ""); err != nil {
			return fmt.Errorf("change propagation: %w", err)
		}
	}
	return nil
}

// fresh mounts a file system of a named type, by its helper when the host has one (NFS and CIFS need theirs), or of the first type
// of the kernel that fits.
func (req *mountRequest) fresh(source, target, data string) error {
	if req.fsType != "" && req.fsType != "auto" {
		if helper := mountHelper(req.fsType); helper != "" && !req.internal {
			args := []string{source, target}
			if len(req.options.words) > 0 {
				args = append(args, "-o", strings.Join(req.options.words, ","))
			}
			cmd := exec.Command(helper, args...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			return cmd.Run()
		}
		return unix.Mount(source, target, req.fsType, req.options.flags, data)
	}
	types, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("no type given, and %w", err)
	}
	for line := range strings.Lines(string(types)) {
		if strings.HasPrefix(line, "nodev") {
			continue
		}
		err = unix.Mount(source, target, strings.TrimSpace(line), req.options.flags, data)
		if !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
	return fmt.Errorf("wrong fs type, bad option or bad superblock on %s: %w", source, syscall.EINVAL)
}

func mountHelper(fsType string) string {
	for _, dir := range []string{"/sbin", "/usr/sbin", "/bin", "/usr/bin"} {
		path := filepath.Join(dir, "mount."+fsType)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// umount takes [-f] [-l] [-R] and any number of targets.
func umount(args []string) int {
	flags, recursive, targets := 0, false, []string(nil)
	for i, arg := range args {
		switch {
		case arg == "--":
			targets = append(targets, args[i+1:]...)
		case arg == "--force":
			flags |= unix.MNT_FORCE
		case arg == "--lazy":
			flags |= unix.MNT_DETACH
		case arg == "--recursive":
			recursive = true
		case arg == "--no-canonicalize" || arg == "--no-mtab" || arg == "--internal-only":
		case strings.HasPrefix(arg, "--"):
			return complain(exitUsage, "umount", "unknown option %s", arg)
		case strings.HasPrefix(arg, "-"):
			for _, letter := range arg[1:] {
				switch letter {
				case 'f':
					flags |= unix.MNT_FORCE
				case 'l':
					flags |= unix.MNT_DETACH
				case 'R':
					recursive = true
				case 'c', 'n', 'i', 'v':
				default:
					return complain(exitUsage, "umount", "unknown option -%c", letter)
				}
			}
		default:
			targets = append(targets, arg)
		}
		if arg == "--" {
			break
		}
	}
	if len(targets) == 0 {
		return complain(exitUsage, "umount", "give the mount point")
	}
	code := 0
	for _, target := range targets {
		if err := unmountAll(target, flags, recursive); err != nil {
			code = complain(exitFailed, "umount", "%s: %v", target, err)
		}
	}
	return code
}

// errNotMounted has the words of umount(8), which the kubelet looks for.
var errNotMounted = errors.New("not mounted")

func unmountAll(target string, flags int, recursive bool) error {
	points := []string{target}
	if recursive {
		below, err := mountsBelow(target)
		if err != nil {
			return err
		}
		points = append(below, target)
	}
	for _, point := range points {
		switch err := unix.Unmount(point, flags); {
		case errors.Is(err, syscall.EINVAL):
			return errNotMounted
		case err != nil:
			return err
		}
	}
	return nil
}

// mountsBelow lists what is mounted inside target, the latest first, which is the order to take them off in.
func mountsBelow(target string) ([]string, error) {
	target, err := filepath.Abs(target)
	if err != nil {
		return nil, err
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var below []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			if point := unescape.Replace(fields[1]); strings.HasPrefix(point, target+"/") {
				below = append([]string{point}, below...)
			}
		}
	}
	return below, nil
}
