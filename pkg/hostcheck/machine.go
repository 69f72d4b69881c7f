package hostcheck

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// System is what the checks ask a machine for besides its files.
type System interface {
	Facts() Facts
	Statfs(path string) (Space, error)
	// Try does something that only works where the machine allows it, and leaves nothing behind.
	Try(ctx context.Context, what Trial, arg string) error
}

// Facts are told by the kernel without failing.
type Facts struct {
	UID    int
	Kernel string // as `uname -r` prints it
	Now    time.Time
}

// Space describes a file system.
type Space struct {
	Total, Free       uint64 // bytes; Free is what is left for everybody
	Inodes, FreeNodes uint64 // 0 where there is no fixed number
	NoExec            bool
}

// Trial is something to try.
type Trial string

// The trials, with what their argument is.
const (
	TryModule   Trial = "load module"    // name
	TryLink     Trial = "make link"      // kind: veth, vxlan, bridge
	TryNFTables Trial = "nftables rules" // nft program, or ""
	TryOverlay  Trial = "mount overlay"  // folder to do it in
	TryCreate   Trial = "create file"    // folder
	TryOpen     Trial = "open to write"  // existing file; nothing is written
	trialLimit        = 10 * time.Second // for one trial: a hung mount must not hang the start
)

// machine is a Config with the defaults filled in, and readers for the forms that files of /proc have.
type machine struct {
	Config
	facts Facts
}

func newMachine(cfg Config) *machine {
	if cfg.Files == nil {
		cfg.Files = os.DirFS("/")
	}
	if cfg.System == nil {
		cfg.System = local{}
	}
	return &machine{Config: cfg, facts: cfg.System.Facts()}
}

func (m *machine) try(ctx context.Context, what Trial, arg string) error {
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	return m.System.Try(ctx, what, arg)
}

// tryWith is try, but loads modules and tries again when the first attempt fails.
func (m *machine) tryWith(ctx context.Context, modules []string, what Trial, arg string) error {
	err := m.try(ctx, what, arg)
	if err == nil {
		return nil
	}
	loaded := false
	for _, name := range modules {
		loaded = m.try(ctx, TryModule, name) == nil || loaded
	}
	if !loaded {
		return err
	}
	return m.try(ctx, what, arg)
}

// read returns the content of a file without the space around it. name is absolute.
func (m *machine) read(name string) (string, error) {
	data, err := fs.ReadFile(m.Files, strings.TrimPrefix(name, "/"))
	return strings.TrimSpace(string(data)), err
}

func (m *machine) exists(name string) bool {
	_, err := fs.Stat(m.Files, strings.TrimPrefix(name, "/"))
	return err == nil
}

// number reads a file that holds one.
func (m *machine) number(name string) (int64, error) {
	text, err := m.read(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

// field returns what follows "key:" in a file such as /proc/self/status.
func (m *machine) field(name, key string) (string, bool) {
	text, _ := m.read(name)
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

func (m *machine) mounts() ([]*mountinfo.Info, error) {
	f, err := m.Files.Open("proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}

// existing returns the nearest folder at or above path that is there.
func (m *machine) existing(dir string) string {
	for dir != "/" && dir != "." && !m.exists(dir) {
		dir = path.Dir(dir)
	}
	return dir
}

// missing tells whether an error means that the kernel does not know what it was asked for.
func missing(err error) bool { return errors.Is(err, errUnknown) }
