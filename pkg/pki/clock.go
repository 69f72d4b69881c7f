package pki

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

const (
	behindTolerance = 24 * time.Hour
	// A clock that is this far after the build is taken for wrong, and not remembered: otherwise one boot in 2099 would make every
	// later one look as if it were in the past.
	aheadTolerance = 10 * 365 * 24 * time.Hour
)

// Clock is the clock of this machine together with what is known about the time that must have passed.
type Clock struct {
	Now          func() time.Time // time.Now when nil
	Built        time.Time        // when this program was built; zero when not known
	File         string           // remembers the latest time seen; nothing is remembered when empty
	Synchronised func() bool      // whether something keeps the clock right; the kernel is asked when nil
}

// NewClock returns the clock for a node with this data folder.
func NewClock(dataDir string, built time.Time) *Clock {
	return &Clock{Built: built, File: PathsIn(dataDir).LastKnownTime}
}

// Reading is the clock at one instant.
type Reading struct {
	Now       time.Time // what the clock says
	Floor     time.Time // it cannot be earlier than this; zero when nothing is known
	Effective time.Time // the later of both: what validity counts from
	Built     time.Time
	file      string
}

// Read returns the time and what is known about it. A clock that something keeps right (NTP) is believed over the remembered time,
// which heals a memory from a day when the clock was ahead.
func (c *Clock) Read() Reading {
	r := Reading{Now: c.now(), Built: c.Built, Floor: c.Built, file: c.File}
	if known := c.remembered(); known.After(r.Floor) && !r.ahead(known) && !(r.Now.Before(known) && c.synchronised()) {
		r.Floor = known
	}
	r.Effective = r.Now
	if r.Floor.After(r.Now) {
		r.Effective = r.Floor
	}
	return r
}

func (c *Clock) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// Save remembers the time, unless it is beyond belief. A damaged file is replaced.
func (c *Clock) Save(r Reading) error {
	if c.File == "" || r.ahead(r.Now) {
		return nil
	}
	// A remembered time that is later was not believed by Read, and is replaced like an earlier one.
	if c.remembered().Equal(r.Effective.Truncate(time.Second)) {
		return nil
	}
	if err := makeDir(filepath.Dir(c.File)); err != nil {
		return err
	}
	return atomicfile.Write(c.File, []byte(r.Effective.UTC().Format(time.RFC3339)+"\n"), 0o600)
}

// Problem tells what is wrong with the clock.
func (c *Clock) Problem() (Problem, bool) {
	problems := c.Read().problems()
	if len(problems) == 0 {
		return Problem{}, false
	}
	return problems[0], true
}

func (r Reading) problems() []Problem {
	const set = "set the clock with `date -s` or let an NTP service do it"
	switch {
	case r.Now.Before(r.Floor.Add(-behindTolerance)) && r.Floor.Equal(r.Built):
		return []Problem{{
			Text:   fmt.Sprintf("the clock is behind: it says %s, but this program was built on %s", day(r.Now), day(r.Floor)),
			Remedy: set,
		}}
	case r.Now.Before(r.Floor.Add(-behindTolerance)):
		return []Problem{{
			Text:   fmt.Sprintf("the clock is behind: it says %s, but on this machine it has been %s before", day(r.Now), day(r.Floor)),
			Remedy: set + "; if it is right now and was ahead then, remove " + r.file,
		}}
	case r.ahead(r.Now):
		return []Problem{{
			Text:   fmt.Sprintf("the clock is probably ahead: it says %s, and this program was built on %s", day(r.Now), day(r.Built)),
			Remedy: set + "; if it is right, install a newer version",
		}}
	}
	return nil
}

func (r Reading) ahead(t time.Time) bool {
	return !r.Built.IsZero() && t.After(r.Built.Add(aheadTolerance))
}

func (c *Clock) remembered() time.Time {
	if c.File == "" {
		return time.Time{}
	}
	data, err := readBounded(c.File)
	if err != nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil {
		return time.Time{} // a memory that cannot be read is no memory; the next Save replaces it
	}
	return t
}

func (c *Clock) synchronised() bool {
	if c.Synchronised != nil {
		return c.Synchronised()
	}
	const unsynchronised = 0x40 // STA_UNSYNC in linux/timex.h
	var t syscall.Timex         // with no mode set, the call only reads
	state, err := syscall.Adjtimex(&t)
	return err == nil && state >= 0 && t.Status&unsynchronised == 0
}
