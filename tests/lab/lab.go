package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// AnyID lets Create take the first free number except 0, which is left to people.
const AnyID = -1

// Options say what to build. The zero value of a field means its default.
type Options struct {
	Dir   string `json:"dir"`   // the lab's folder
	ID    int    `json:"id"`    // 0 to 15, selects addresses and names; or AnyID
	Sites int    `json:"sites"` // default 1
	Nodes int    `json:"nodes"` // per site, default 1

	Binary     string            `json:"binary"`               // atoll; hard-linked or copied into every node
	ServerArgs []string          `json:"serverArgs,omitempty"` // more arguments of atoll server
	AgentArgs  []string          `json:"agentArgs,omitempty"`  // more arguments of atoll agent
	Env        []string          `json:"env,omitempty"`        // of atoll, beside PATH, LANG and NOTIFY_SOCKET
	Files      map[string]string `json:"files,omitempty"`      // by absolute path: put on every new disk, mode 0600
	Images     []string          `json:"images,omitempty"`     // archives that go to /var/lib/atoll/agent/images of every new disk
	Servers    int               `json:"servers,omitempty"`    // nodes per site that run atoll server; default 1, the others run atoll agent

	// DiskMB, when set, gives every node an ext4 file system of that size on /var, instead of a folder.
	DiskMB int `json:"diskMB,omitempty"`
	// RestartAfter starts an atoll that ended by itself again after so long, as the installed service does. 0: it stays ended.
	RestartAfter time.Duration `json:"restartAfter,omitempty"`

	// Command is the lab's own command, which runs inside of the lab.
	Command string `json:"command"`
	// Bound ties the lab to this process: it is removed when the process ends, however it ends.
	Bound bool `json:"bound,omitempty"`
	// Log gets one line per step; nil: silent.
	Log io.Writer `json:"-"`
}

func (o *Options) complete() error {
	if os.Geteuid() != 0 {
		return remedy.Wrap(errors.New("the lab needs root: it makes namespaces, mounts and control groups"), "run it with sudo")
	}
	if o.Sites == 0 {
		o.Sites = 1
	}
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Servers == 0 {
		o.Servers = 1
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	var problems []error
	if o.Sites < 0 || o.Sites > wiring.MaxSites {
		problems = append(problems, fmt.Errorf("%d sites: must be 1 to %d", o.Sites, wiring.MaxSites))
	}
	if o.Nodes < 0 || o.Nodes > wiring.MaxNodes {
		problems = append(problems, fmt.Errorf("%d nodes: must be 1 to %d", o.Nodes, wiring.MaxNodes))
	}
	if o.ID < AnyID || o.ID >= wiring.MaxLabs {
		problems = append(problems, fmt.Errorf("lab number %d: must be 0 to %d", o.ID, wiring.MaxLabs-1))
	}
	for _, path := range []*string{&o.Dir, &o.Binary, &o.Command} {
		abs, err := filepath.Abs(*path)
		if *path == "" || err != nil {
			problems = append(problems, errors.New("folder, binary and command must be given"))
			continue
		}
		*path = abs
	}
	if _, err := os.Stat(o.Binary); err != nil {
		problems = append(problems, remedy.Wrap(fmt.Errorf("find the binary to run: %w", err), "run make build, or name one with --binary"))
	}
	return errors.Join(problems...)
}

// Lab is a set of sites. Its methods may be called from several goroutines.
type Lab struct {
	dir   string
	log   io.Writer
	began time.Time
	guard *os.File // held open; its closing tells the guard process that we are gone
}

// Create builds sites, switches and nodes. All nodes are powered off. When it fails, what was made is removed.
func Create(ctx context.Context, o Options) (*Lab, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	l := &Lab{dir: o.Dir, log: o.Log, began: time.Now()}
	if err := keepFiles(); err != nil {
		return nil, err
	}
	if err := removeAbandoned(ctx, o.Log); err != nil {
		return nil, err
	}
	if _, err := os.Stat(l.file()); err == nil {
		return nil, remedy.Wrap(fmt.Errorf("a lab is up already in %s", o.Dir), "remove it first with scripts/lab --dir %s down", o.Dir)
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make lab folder: %w", err)
	}
	r, err := newRecord(o)
	if err != nil {
		return nil, err
	}
	if err := l.build(ctx, r); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func newRecord(o Options) (*record, error) {
	uid := make([]byte, 8)
	token := make([]byte, 16)
	_, _ = rand.Read(uid) // never fails
	_, _ = rand.Read(token)
	r := &record{
		Version: recordVersion, UID: hex.EncodeToString(uid), ID: o.ID, Boot: bootID(), Options: o,
		Token: hex.EncodeToString(token), Holders: map[string]process{}, Sites: map[string]siteRecord{},
	}
	var owner *process
	if o.Bound {
		self, err := identify(os.Getpid())
		if err != nil {
			return nil, err
		}
		owner = &self
	}
	return r, register(r, owner)
}

// build makes everything that r plans. r is on disk before each step.
func (l *Lab) build(ctx context.Context, r *record) error {
	if err := writeJSON(l.file(), r); err != nil {
		return err
	}
	if r.Options.Bound {
		if err := l.startGuard(r); err != nil {
			return err
		}
	}
	loadModules(ctx)
	if err := r.Tree.Create(); err != nil {
		return err
	}
	tools, err := l.installTools(ctx)
	if err != nil {
		return err
	}
	if tools != "" {
		l.step("%s", tools)
	}
	l.step("network %s, visible on the host as %s", r.plan().Range(), r.plan().HostInterface())
	if err := l.buildNetwork(r); err != nil {
		return err
	}
	for s := range r.Options.Sites {
		for n := range r.Options.Nodes {
			if err := l.Site(s + 1).Node(n + 1).create(*r); err != nil {
				return err
			}
		}
	}
	r.Built = true
	return writeJSON(l.file(), r)
}

func (l *Lab) buildNetwork(r *record) error {
	world, err := l.hold(r, "world")
	if err != nil {
		return err
	}
	if err := wiring.BuildWorld(r.plan(), world, r.alias()); err != nil {
		return err
	}
	for s := range r.Options.Sites {
		site := l.Site(s + 1)
		router, err := l.hold(r, site.Name())
		if err != nil {
			return err
		}
		if err := wiring.BuildSite(r.plan(), world, router, s+1); err != nil {
			return err
		}
	}
	return nil
}

// Open finds the lab that was made in dir.
func Open(dir string, log io.Writer) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = io.Discard
	}
	l := &Lab{dir: dir, log: log, began: time.Now()}
	r, err := l.record()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, remedy.Wrap(fmt.Errorf("no lab is up in %s", dir), "make one with scripts/lab up")
	}
	if err != nil {
		return nil, err
	}
	if !r.Built {
		return nil, remedy.Wrap(fmt.Errorf("the lab in %s was not finished: the command that made it ended early", dir),
			"remove it with scripts/lab --dir %s down", dir)
	}
	if r.Boot != bootID() {
		return nil, remedy.Wrap(fmt.Errorf("the lab in %s ended with a reboot of this machine", dir),
			"remove what is left with scripts/lab --dir %s down", dir)
	}
	return l, nil
}

// Up powers every node on, starts atoll on it, and waits until all are Ready.
func (l *Lab) Up(ctx context.Context) error {
	// A site's first server must answer before others can join. Sites do not know each other.
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range l.Sites() {
		g.Go(func() error {
			nodes := s.Nodes()
			if err := nodes[0].Start(ctx); err != nil {
				return err
			}
			l.step("%s started", nodes[0].Name())
			if err := nodes[0].WaitReady(ctx); err != nil {
				return err
			}
			l.step("%s is Ready", nodes[0].Name())
			more, ctx := errgroup.WithContext(ctx)
			for _, n := range nodes[1:] {
				more.Go(func() error {
					if err := n.Start(ctx); err != nil {
						return err
					}
					if err := n.WaitReady(ctx); err != nil {
						return err
					}
					l.step("%s is Ready", n.Name())
					return nil
				})
			}
			return more.Wait()
		})
	}
	return g.Wait()
}

// Kill cuts the power of several nodes at the same instant.
func (l *Lab) Kill(ctx context.Context, nodes ...*Node) error {
	for _, n := range nodes {
		if err := n.cutPower(); err != nil {
			return err
		}
	}
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error { return n.settleOff(ctx) })
	}
	return g.Wait()
}

// Sites returns all sites, in order.
func (l *Lab) Sites() []*Site {
	r, err := l.record()
	if err != nil {
		return nil
	}
	var sites []*Site
	for s := range r.Options.Sites {
		sites = append(sites, l.Site(s+1))
	}
	return sites
}

// Site returns site number, counted from 1.
func (l *Lab) Site(number int) *Site { return &Site{lab: l, number: number} }

// Find looks up "s1" or "s1/n2"; node is nil for a site.
func (l *Lab) Find(name string) (site *Site, node *Node, err error) {
	r, err := l.record()
	if err != nil {
		return nil, nil, err
	}
	s, n, err := ParseName(name)
	if err == nil && (s > r.Options.Sites || n > r.Options.Nodes) {
		err = fmt.Errorf("no %s in this lab", name)
	}
	if err != nil {
		return nil, nil, remedy.Wrap(err, "names go from s1/n1 to s%d/n%d", r.Options.Sites, r.Options.Nodes)
	}
	site = l.Site(s)
	if n > 0 {
		node = site.Node(n)
	}
	return site, node, nil
}

// ParseName splits "s1" or "s1/n2" into numbers; node is 0 for a site.
func ParseName(name string) (site, node int, err error) {
	left, right, both := strings.Cut(name, "/")
	site, ok := parseNumber(left, "s")
	if both && ok {
		node, ok = parseNumber(right, "n")
	}
	if !ok {
		return 0, 0, fmt.Errorf("%q is neither a site like s1 nor a node like s1/n1", name)
	}
	return site, node, nil
}

func parseNumber(text, letter string) (int, bool) {
	digits, ok := strings.CutPrefix(text, letter)
	n := 0
	for _, d := range digits {
		if d < '0' || d > '9' || n > 99 {
			return 0, false
		}
		n = 10*n + int(d-'0')
	}
	return n, ok && n > 0 && digits[0] != '0'
}

// Dir is the lab's folder.
func (l *Lab) Dir() string { return l.dir }

func (l *Lab) file() string { return filepath.Join(l.dir, "lab.json") }

func (l *Lab) record() (record, error) {
	var r record
	err := readJSON(l.file(), &r)
	return r, err
}

// update changes lab.json.
func (l *Lab) update(f func(*record) error) error {
	return locked(filepath.Join(l.dir, "lock"), func() error {
		r, err := l.record()
		if err != nil {
			return err
		}
		if err := f(&r); err != nil {
			return err
		}
		return writeJSON(l.file(), r)
	})
}

// step tells people what has been done, with the time since the command began.
func (l *Lab) step(format string, args ...any) {
	fmt.Fprintf(l.log, "%6.1fs  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}
