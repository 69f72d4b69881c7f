package run_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/pkg/run"
)

type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(s string) { j.mu.Lock(); j.lines = append(j.lines, s); j.mu.Unlock() }
func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// part becomes ready after the given time and writes its start and stop into the journal.
func part(j *journal, name string, after time.Duration) run.Component {
	return run.Func(name, func(ctx context.Context, ready func()) error {
		j.add("start " + name)
		time.Sleep(after)
		ready()
		<-ctx.Done()
		j.add("stop " + name)
		return nil
	})
}

func TestStartsInOrderOfNeedAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		var g run.Group
		a := g.Add(part(&j, "a", 3*time.Second))
		b := g.Add(part(&j, "b", time.Second), run.Needs(a))
		g.Add(part(&j, "c", 0), run.Needs(a, b))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		time.Sleep(10 * time.Second)
		for _, s := range g.Status() {
			if s.State != run.Ready {
				t.Errorf("%s is %s", s.Name, s.State)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		want := []string{"start a", "start b", "start c", "stop c", "stop b", "stop a"}
		if got := j.all(); !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
	})
}

func TestFailureEndsTheGroup(t *testing.T) {
	for _, row := range []struct {
		name string
		fail func() error
		want string
	}{
		{"error", func() error { return errors.New("broken") }, "bad: broken"},
		{"nil before it was asked", func() error { return nil }, "bad: " + run.ErrStoppedEarly.Error()},
		{"panic", func() error { panic("boom") }, "bad: panic: boom"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				var g run.Group
				g.Add(part(&j, "good", 0))
				g.Add(run.Func("bad", func(context.Context, func()) error { return row.fail() }))
				err := g.Run(t.Context())
				if err == nil || !strings.HasPrefix(err.Error(), row.want) {
					t.Errorf("Run = %v, want %s", err, row.want)
				}
				if got := j.all(); !slices.Contains(got, "stop good") {
					t.Errorf("the other component was not stopped: %v", got)
				}
			})
		})
	}
}

func TestRestartableIsStartedAgainWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := run.Group{Pause: time.Second}
		began := time.Now()
		var starts []time.Duration
		g.Add(run.Func("flaky", func(ctx context.Context, ready func()) error {
			starts = append(starts, time.Since(began))
			if len(starts) < 4 {
				return errors.New("not yet")
			}
			ready()
			<-ctx.Done()
			return nil
		}), run.Restartable())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
		want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}
		if !slices.Equal(starts, want) {
			t.Errorf("starts at %v, want %v", starts, want)
		}
		if s := g.Status()[0]; s.Restarts != 3 {
			t.Errorf("restarts = %d, want 3", s.Restarts)
		}
	})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := run.Group{StopWithin: 2 * time.Second}
		release := make(chan struct{})
		stuck := func(ctx context.Context, ready func()) error { ready(); <-release; return nil }
		g.Add(run.Func("stuck", stuck))
		g.Add(run.Func("lingering", stuck), run.Lingers())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v, want 1 s of work and 2 s of waiting for one component", took)
		}
		close(release)
	})
}
