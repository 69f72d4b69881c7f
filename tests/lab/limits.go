package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The kernel counts some things per user, over all nodes of all labs: a node takes about 30 inotify instances, Debian allows 128.
// These limits are raised while any lab is up, and the host's values come back with the end of the last one.
var wantedLimits = map[string]int{
	"/proc/sys/fs/inotify/max_user_instances": 8192,
	"/proc/sys/fs/inotify/max_user_watches":   524288,
}

// savedLimits holds the host's own values, by file. It lies in the registry.
var savedLimits = filepath.Join(registry, "limits.json")

// raiseLimits must be called with the registry locked. The host's values are on disk before they are changed.
func raiseLimits() error {
	saved := map[string]int{}
	if err := readJSON(savedLimits, &saved); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for file, wanted := range wantedLimits {
		now, err := readLimit(file)
		if err != nil {
			return err
		}
		if now >= wanted {
			continue
		}
		if _, ok := saved[file]; !ok {
			saved[file] = now
		}
		if err := writeJSON(savedLimits, saved); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(strconv.Itoa(wanted)), 0); err != nil {
			return fmt.Errorf("raise limit: %w", err)
		}
	}
	return nil
}

// restoreLimits must be called with the registry locked, when no lab is left. A value that somebody else changed meanwhile stays.
func restoreLimits() error {
	saved := map[string]int{}
	err := readJSON(savedLimits, &saved)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for file, before := range saved {
		now, err := readLimit(file)
		if err != nil {
			return err
		}
		if now != wantedLimits[file] {
			continue
		}
		if err := os.WriteFile(file, []byte(strconv.Itoa(before)), 0); err != nil {
			return fmt.Errorf("restore limit: %w", err)
		}
	}
	return os.Remove(savedLimits)
}

func readLimit(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read limit: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
