package storage

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Disk is what the package asks the kernel.
type Disk interface {
	// Free returns the bytes that a process may still write at path.
	Free(path string) (int64, error)
	// Mounts lists what is mounted, in the order of mounting.
	Mounts() ([]Mount, error)
}

// Mount is one line of the mount table.
type Mount struct {
	Device string // major:minor
	Root   string // what of that device is mounted
	Point  string // where
}

type osDisk struct{}

func (osDisk) Free(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil //nolint:gosec // a disk has less than 2^63 bytes
}

func (osDisk) Mounts() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // an overlay mount lists all its layers
	for lines.Scan() {
		m, err := parseMount(lines.Text())
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, lines.Err()
}

// parseMount reads a line of mountinfo: id, parent, major:minor, root, mount point, ... (proc(5)).
func parseMount(line string) (Mount, error) {
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return Mount{}, fmt.Errorf("mount table has the line %q", line)
	}
	// Blanks and backslashes in names are octal.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
	return Mount{Device: fields[2], Root: unescape(fields[3]), Point: unescape(fields[4])}, nil
}
