package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// process names a process for good: numbers are used again, a number with its start time is not.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

// identify looks a running process up.
func identify(pid int) (process, error) {
	start, state, err := readStat(pid)
	if err != nil {
		return process{}, err
	}
	if state == "Z" {
		return process{}, fmt.Errorf("process %d has ended", pid)
	}
	return process{PID: pid, Start: start}, nil
}

// alive tells whether the process still runs. A zombie does not.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	now, err := identify(p.PID)
	return err == nil && now == p
}

func readStat(pid int) (start uint64, state string, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", err
	}
	// The second field is the program's name in brackets and may hold anything; count from its end.
	_, rest, ok := strings.Cut(string(data[strings.LastIndexByte(string(data), ')'):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, "", fmt.Errorf("cannot read state of process %d", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0], err
}

// bootID changes with every boot of the host.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
