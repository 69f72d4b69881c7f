package wire

import (
	"testing"
	"time"
)

// The decisions about frames are not exported; this is the one test inside of the package.

func TestLineKeepsOrderAndRate(t *testing.T) {
	l := newLine(Quality{Delay: 100 * time.Millisecond, Jitter: 50 * time.Millisecond, BitsPerSecond: 8_000_000})
	start := time.Now()
	last := start
	for i := range 1000 { // 1000 frames of 1000 bytes, offered within a second: the line needs 1 s for them
		now := start.Add(time.Duration(i) * time.Millisecond)
		due, ok := l.admit(now, 1000)
		if !ok {
			t.Fatalf("frame %d was lost", i)
		}
		if due.Before(last) {
			t.Fatalf("frame %d overtakes", i)
		}
		if late := due.Sub(now); late < 100*time.Millisecond || late > 160*time.Millisecond {
			t.Fatalf("frame %d takes %s", i, late)
		}
		last = due
	}
}

func TestLineDropsWhatItCannotHold(t *testing.T) {
	l := newLine(Quality{BitsPerSecond: 8_000_000})
	now := time.Now()
	passed := 0
	for range 5000 { // 5 MB at once
		if _, ok := l.admit(now, 1000); ok {
			passed++
		}
	}
	if want := queueBytes / 1000; passed < want || passed > want+2 {
		t.Errorf("%d frames passed, want about %d", passed, want)
	}
	if _, ok := l.admit(now.Add(time.Second), 1000); !ok {
		t.Error("still full a second later")
	}
}

func TestLineLoses(t *testing.T) {
	for _, loss := range []float64{0, 0.25, 1} {
		l := newLine(Quality{Loss: loss})
		const frames = 20000
		lost := 0
		for range frames {
			if _, ok := l.admit(time.Now(), 100); !ok {
				lost++
			}
		}
		if got := float64(lost) / frames; got < loss-0.03 || got > loss+0.03 {
			t.Errorf("loss %.2f, want %.2f", got, loss)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, q := range []Quality{{Delay: -1}, {Jitter: -1}, {Loss: -0.1}, {Loss: 1.1}, {BitsPerSecond: -1}} {
		if q.Check() == nil {
			t.Errorf("%+v was accepted", q)
		}
	}
	if err := (Quality{Delay: time.Second, Loss: 1}).Check(); err != nil {
		t.Error(err)
	}
}
