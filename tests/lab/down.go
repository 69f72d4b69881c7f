package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// downTimeout bounds the wait for the kernel to drop a lab's processes.
const downTimeout = time.Minute

// Down removes the lab: processes, networks, control groups and disks. It may be called again after any failure.
func (l *Lab) Down(ctx context.Context) error {
	r, err := l.record()
	if err != nil {
		return fmt.Errorf("remove lab: %w", err)
	}
	return removeLab(ctx, entry{UID: r.UID, ID: r.ID, Dir: l.dir, Boot: r.Boot, Tree: r.Tree})
}

// Remove removes the lab in dir, whatever state it is in, and reports whether there was one.
func Remove(ctx context.Context, dir string) (bool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	l := &Lab{dir: dir, log: io.Discard}
	switch _, err := l.record(); {
	case err == nil:
		return true, l.Down(ctx)
	case !errors.Is(err, fs.ErrNotExist):
		return true, remedy.Wrap(fmt.Errorf("remove lab: %w", err), "look at %s by hand", l.file())
	}
	// The folder may have been deleted, or the command may have been killed before it wrote lab.json.
	found := false
	var list []entry
	err = withRegistry(func() (err error) { // this also tidies up after a command that was killed in there
		list, err = entries()
		return err
	})
	if err != nil {
		return false, err
	}
	var problems []error
	for _, e := range list {
		if e.Dir == dir {
			found = true
			problems = append(problems, removeLab(ctx, e))
		}
	}
	return found, errors.Join(problems...)
}

// removeAbandoned removes labs whose owner has died and labs from before a reboot of the host.
func removeAbandoned(ctx context.Context, log io.Writer) error {
	list, err := entries()
	if err != nil {
		return err
	}
	for _, e := range list {
		if !e.abandoned() {
			continue
		}
		fmt.Fprintf(log, "removing lab %d in %s, which nobody owns any more\n", e.ID, e.Dir)
		if err := removeLab(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// removeLab ends everything in the lab's control groups and deletes the lab's own files. lab.json and the registry's entry go last, so
// that an interrupted removal can be done again.
//
// Two may remove one lab at the same time, and a new lab may take its number at once. So the lab is locked, and what goes by its number
// is touched only while the number is its own.
func removeLab(ctx context.Context, e entry) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	busy, err := lockInRegistry(fmt.Sprintf("%d.busy", e.ID))
	if err != nil {
		return fmt.Errorf("remove lab: %w", err)
	}
	defer func() {
		_ = os.Remove(busy.Name())
		_ = busy.Close()
		_ = os.Remove(registry) // it was the last; otherwise it is not empty
	}()
	now, taken, err := registered(e.ID)
	if err != nil {
		return fmt.Errorf("remove lab: %w", err)
	}
	if !taken || now.UID == e.UID {
		if err := e.Tree.Empty(ctx, ""); err != nil {
			return fmt.Errorf("remove lab: %w", err)
		}
		r := record{UID: e.UID, ID: e.ID}
		if err := wiring.RemoveHostInterface(r.plan(), r.alias()); err != nil {
			return fmt.Errorf("remove lab: %w", err)
		}
	}
	if err := removeFiles(e); err != nil {
		return fmt.Errorf("remove lab: %w", err)
	}
	return unregister(e)
}

func removeFiles(e entry) error {
	var r record
	path := filepath.Join(e.Dir, "lab.json")
	err := readJSON(path, &r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || r.UID != e.UID {
		return err // another lab lives there now
	}
	at, err := mountBelow(e.Dir)
	if err != nil {
		return err
	}
	if at != "" {
		return remedy.Wrap(fmt.Errorf("something is mounted at %s", at), "unmount it: it is not the lab's, and deleting would go through it")
	}
	for s := range r.Options.Sites {
		if err := os.RemoveAll(filepath.Join(e.Dir, fmt.Sprintf("s%d", s+1))); err != nil {
			return err
		}
	}
	temps, _ := filepath.Glob(filepath.Join(e.Dir, ".lab.json.tmp-*")) // of a command that was killed; the pattern is valid
	for _, path := range append(temps, filepath.Join(e.Dir, "tools"), filepath.Join(e.Dir, "lock"), path) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	_ = os.Remove(e.Dir) // stays when somebody else keeps files there
	return nil
}

// mountBelow returns a mount point of the host inside of dir, or "". Deleting through one would delete somebody else's files.
func mountBelow(dir string) (string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return f[4], nil
		}
	}
	return "", lines.Err()
}
