package formation

import (
	"net/netip"
	"sync"
	"time"
)

const (
	failuresAtOnce = 10              // before an address has to wait
	failureEvery   = 6 * time.Second // then, on average
	maxLimited     = 4096            // addresses remembered
)

// limiter slows down those who guess. Only failures count, so that a hundred boxes behind one address may join at once.
type limiter struct {
	now func() time.Time // monotonic: a clock that is set neither frees nor locks out anybody

	mu      sync.Mutex
	clearAt map[netip.Prefix]time.Time // when all failures of an address are forgotten
}

func newLimiter() *limiter { return &limiter{now: time.Now, clearAt: map[netip.Prefix]time.Time{}} }

// allow tells whether an address may try.
func (l *limiter) allow(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clearAt[network(from)].Sub(l.now()) < failuresAtOnce*failureEvery
}

// fail counts a failure.
func (l *limiter) fail(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, key := l.now(), network(from)
	if _, known := l.clearAt[key]; !known && len(l.clearAt) >= maxLimited {
		l.forget(now)
	}
	at := l.clearAt[key]
	if at.Before(now) {
		at = now
	}
	l.clearAt[key] = at.Add(failureEvery)
}

// forget makes room: all that are over, or else any one.
func (l *limiter) forget(now time.Time) {
	for key, at := range l.clearAt {
		if at.Before(now) {
			delete(l.clearAt, key)
		}
	}
	for key := range l.clearAt {
		if len(l.clearAt) < maxLimited {
			return
		}
		delete(l.clearAt, key)
	}
}

// network is what one attacker has: an IPv4 address, or the /64 of an IPv6 address.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero Prefix for an invalid address
	return p
}
