package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/lab/internal/cgroup"
	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// recordVersion is raised when lab.json, node.json or the registry change in a way that old commands cannot read.
const recordVersion = 1

// record is lab.json.
type record struct {
	Version int         `json:"version"`
	UID     string      `json:"uid"` // marks this lab's things on the host
	ID      int         `json:"id"`  // selects names and address range
	Boot    string      `json:"boot"`
	Built   bool        `json:"built"` // false: the command that made it did not get to the end
	Tree    cgroup.Tree `json:"tree"`

	Options Options               `json:"options"`
	Token   string                `json:"token"`
	Holders map[string]process    `json:"holders"` // of network namespaces: "world", "s1", ...
	Sites   map[string]siteRecord `json:"sites"`
}

type siteRecord struct {
	Cut   bool    `json:"cut,omitempty"` // the line
	Shape Shape   `json:"shape,omitzero"`
	Wire  process `json:"wire,omitzero"` // makes Shape true
}

// nodeRecord is node.json.
type nodeRecord struct {
	Version int     `json:"version"`
	Config  Config  `json:"config"`
	Init    process `json:"init"`             // PID 1, as the host sees it
	CutLAN  bool    `json:"cutLAN,omitempty"` // applied again at every power-on
	CutWAN  bool    `json:"cutWAN,omitempty"`
	Shape   Shape   `json:"shape,omitzero"` // of the LAN port; applied again at every power-on
	Wire    process `json:"wire,omitzero"`  // makes Shape true
}

func (r record) plan() wiring.Plan { return wiring.Plan{Lab: r.ID} }

// alias is the mark on the host's interface.
func (r record) alias() string { return "atoll lab " + r.UID }

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// locked calls f while it holds the lock file at path. The kernel drops the lock when the process dies.
func locked(path string, f func() error) error {
	file, err := lock(path)
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	defer file.Close()
	return f()
}

// lock waits for the lock file at path. The file may be removed by whoever holds it, so the lock counts only if the file is still there.
func lock(path string) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			_ = file.Close()
			return nil, err
		}
		held, heldErr := file.Stat()
		there, thereErr := os.Stat(path)
		if heldErr == nil && thereErr == nil && os.SameFile(held, there) {
			return file, nil
		}
		_ = file.Close()
	}
}

// registry is where labs of one host find each other. It lies on a file system that a reboot empties, like the labs' processes.
const registry = "/run/atoll-lab"

// entry is a lab in the registry. It is enough to remove a lab whose folder is gone.
type entry struct {
	UID   string      `json:"uid"`
	ID    int         `json:"id"`
	Dir   string      `json:"dir"`
	Boot  string      `json:"boot"`
	Tree  cgroup.Tree `json:"tree"`
	Owner *process    `json:"owner,omitempty"` // the lab ends with this process; nil: it stays until Down
	Since time.Time   `json:"since"`
}

func entryPath(id int) string { return filepath.Join(registry, fmt.Sprintf("%d.json", id)) }

// abandoned tells whether nobody will come back for the lab.
func (e entry) abandoned() bool {
	return e.Boot != bootID() || e.Owner != nil && !e.Owner.alive()
}

// entries lists the labs on this host. The registry must be locked, or the list may be out of date at once.
func entries() ([]entry, error) {
	var list []entry
	for id := range wiring.MaxLabs {
		var e entry
		err := readJSON(entryPath(id), &e)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list labs of this host: %w", err)
		}
		list = append(list, e)
	}
	return list, nil
}

// lockInRegistry takes a lock file in the registry's folder, which the last lab removes.
func lockInRegistry(name string) (*os.File, error) {
	for {
		if err := os.MkdirAll(registry, 0o700); err != nil {
			return nil, fmt.Errorf("make %s: %w", registry, err)
		}
		file, err := lock(filepath.Join(registry, name))
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) { // the folder was removed in between
			return nil, fmt.Errorf("lock %s of %s: %w", name, registry, err)
		}
	}
}

// withRegistry calls f while no other lab is made or removed. The folder goes with the last lab.
func withRegistry(f func() error) error {
	file, err := lockInRegistry("lock")
	if err != nil {
		return err
	}
	defer file.Close()
	temps, _ := filepath.Glob(filepath.Join(registry, ".*.tmp-*")) // the pattern is valid
	for _, t := range temps {
		_ = os.Remove(t) // of a command that was killed: files here are written under the lock only
	}
	err = f()
	left, listErr := entries()
	if listErr != nil || len(left) > 0 {
		return errors.Join(err, listErr)
	}
	err = errors.Join(err, restoreLimits())
	_ = os.Remove(file.Name())
	_ = os.Remove(registry) // stays when something unknown lies in it
	return err
}

// register finds a number for the lab, checks that its names and addresses are free, and claims it. r.ID is the wanted number, or
// AnyID. It fills in r.ID and r.Tree.
func register(r *record, owner *process) error {
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	return withRegistry(func() error {
		taken, err := entries()
		if err != nil {
			return err
		}
		first, last := r.ID, r.ID
		if r.ID == AnyID {
			first, last = 1, wiring.MaxLabs-1 // 0 is for people
		}
		var problems []error
		for id := first; id <= last; id++ {
			tree, err := tryID(id, taken, hierarchies)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			if err := raiseLimits(); err != nil {
				return err
			}
			r.ID, r.Tree = id, tree
			return writeJSON(entryPath(id), entry{
				UID: r.UID, ID: id, Dir: r.Options.Dir, Boot: r.Boot, Tree: tree, Owner: owner, Since: time.Now().Round(time.Second),
			})
		}
		return errors.Join(problems...)
	})
}

func tryID(id int, taken []entry, hierarchies []cgroup.Hierarchy) (cgroup.Tree, error) {
	for _, e := range taken {
		if e.ID == id {
			return cgroup.Tree{}, remedy.Wrap(fmt.Errorf("lab %d is up already, in %s", id, e.Dir),
				"choose another number with --id, or remove that lab with scripts/lab --dir %s down", e.Dir)
		}
	}
	if err := wiring.CheckFree(wiring.Plan{Lab: id}); err != nil {
		return cgroup.Tree{}, remedy.Wrap(err, "choose another address range with --id 1 to %d", wiring.MaxLabs-1)
	}
	tree := cgroup.Plan(hierarchies, fmt.Sprintf("%s%d", cgroup.Prefix, id))
	if dir := tree.Exists(); dir != "" {
		return cgroup.Tree{}, remedy.Wrap(fmt.Errorf("control group %s exists, and no lab is known that made it", dir),
			"look at %s/cgroup.procs, remove the folder with rmdir, or choose another number with --id", dir)
	}
	return tree, nil
}

// registered returns the lab that has number id now; ok is false when there is none.
func registered(id int) (e entry, ok bool, err error) {
	err = readJSON(entryPath(id), &e)
	if errors.Is(err, fs.ErrNotExist) {
		return entry{}, false, nil
	}
	return e, err == nil, err
}

// unregister forgets the lab, when the entry is still its own.
func unregister(e entry) error {
	return withRegistry(func() error {
		now, ok, err := registered(e.ID)
		if err != nil || !ok || now.UID != e.UID {
			return err
		}
		return os.Remove(entryPath(e.ID))
	})
}
