package pki

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

const (
	lookEvery   = time.Minute    // for a clock that jumped, a wish for new keys, a changed address
	ensureEvery = 12 * time.Hour // small against RenewBefore
	retryAfter  = 5 * time.Minute
	jump        = time.Minute // between wall clock and elapsed time
)

// Keeper is a component that calls a function often enough that certificates never end while the process runs: every 12 hours, at
// once after the clock has jumped, after Rotate, and when Changed says so.
type Keeper struct {
	DataDir string
	Clock   *Clock
	Log     *slog.Logger
	Ensure  func(context.Context) error
	Changed func() bool // may be nil

	mu  sync.Mutex
	err error
}

// Name implements run.Component.
func (k *Keeper) Name() string { return "certificates" }

// Run implements run.Component. It is ready at once: the first certificates are made before anything starts.
func (k *Keeper) Run(ctx context.Context, ready func()) error {
	ready()
	marker := PathsIn(k.DataDir).RotateMarker
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	began, wall := time.Now(), k.wallClock()
	next := ensureEvery
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		elapsed := time.Since(began)
		off := k.wallClock().Sub(wall) - elapsed
		jumped := off > jump || off < -jump
		if jumped {
			k.Log.Info("the clock was set", "by", off.Round(time.Second))
			wall = wall.Add(off)
		}
		if !jumped && elapsed < next && !exists(marker) && (k.Changed == nil || !k.Changed()) {
			continue
		}
		err := k.Ensure(ctx)
		k.note(err)
		next = elapsed + ensureEvery
		if err != nil {
			next = elapsed + retryAfter
		}
		if err := k.Clock.Save(k.Clock.Read()); err != nil {
			k.Log.Debug("the time is not remembered", "err", err)
		}
	}
}

// Problem tells why certificates are not being renewed, for the status page.
func (k *Keeper) Problem() (Problem, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		return Problem{}, false
	}
	return Problem{Text: fmt.Sprintf("certificates are not being renewed: %v", k.err), Remedy: remedy.Of(k.err)}, true
}

// note keeps the outcome and logs it when it is news.
func (k *Keeper) note(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && (k.err == nil || k.err.Error() != err.Error()) {
		k.Log.Warn("certificates are not renewed, trying again", "err", err)
	}
	k.err = err
}

// wallClock is the time without the monotonic reading, which would hide a jump.
func (k *Keeper) wallClock() time.Time { return k.Clock.now().Round(0) }

// NewRenewer returns the Keeper of a server. subject is asked each minute, so that a changed address gets into the certificates;
// after (may be nil) is called with each result, whether or not something was issued: for whoever embeds certificates elsewhere, and
// because problems also go away.
func NewRenewer(dataDir string, subject func() Subject, after func(Set), clock *Clock, log *slog.Logger) *Keeper {
	last := subject()
	return &Keeper{
		DataDir: dataDir, Clock: clock, Log: log,
		Changed: func() bool { return !reflect.DeepEqual(last, subject()) },
		Ensure: func(context.Context) error {
			wanted := subject()
			set, err := Ensure(dataDir, wanted, clock, log)
			if err != nil {
				return err
			}
			last = wanted
			if after != nil {
				after(set)
			}
			return nil
		},
	}
}

// Rotate asks for new keys and certificates for every leaf under dataDir. A running process makes them within a minute, otherwise
// the next start does. Authorities stay. It works the same on servers and agents.
func Rotate(dataDir string) error {
	marker := PathsIn(dataDir).RotateMarker
	if _, err := os.Stat(filepath.Dir(marker)); errors.Is(err, os.ErrNotExist) {
		return remedy.Wrap(fmt.Errorf("no certificates in %s", dataDir), "name the data folder of this node with --data-dir")
	}
	if err := atomicfile.Write(marker, nil, 0o600); err != nil {
		return fmt.Errorf("ask for new keys: %w", err)
	}
	return nil
}
