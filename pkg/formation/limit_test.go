package formation_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/atollhq/atoll/pkg/formation"
)

func TestLimiter(t *testing.T) {
	now := time.Now()
	l := formation.NewLimiter(func() time.Time { return now })
	guesser, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range formation.FailuresAtOnce {
		if !l.Allow(guesser) {
			t.Fatalf("not allowed after %d failures", i)
		}
		l.Fail(guesser)
	}
	if l.Allow(guesser) {
		t.Error("allowed after too many failures")
	}
	if !l.Allow(other) {
		t.Error("another address pays for it")
	}
	if l.Allow(netip.MustParseAddr("::ffff:192.0.2.1")) {
		t.Error("the same address in another form is allowed")
	}
	now = now.Add(formation.FailureEvery)
	if !l.Allow(guesser) {
		t.Error("not allowed after a pause")
	}
	l.Fail(guesser)
	if l.Allow(guesser) {
		t.Error("one pause has bought more than one attempt")
	}
	now = now.Add(time.Hour)
	if !l.Allow(guesser) {
		t.Error("failures are never forgotten")
	}
}

func TestLimiterTakesAnIPv6NetworkForOne(t *testing.T) {
	now := time.Now()
	l := formation.NewLimiter(func() time.Time { return now })
	for range formation.FailuresAtOnce {
		l.Fail(netip.MustParseAddr("2001:db8::1"))
	}
	if l.Allow(netip.MustParseAddr("2001:db8::2")) || !l.Allow(netip.MustParseAddr("2001:db8:0:1::2")) {
		t.Error("not limited by /64")
	}
}

func TestLimiterIsBounded(t *testing.T) {
	now := time.Now()
	l := formation.NewLimiter(func() time.Time { return now })
	for i := range 3 * formation.MaxLimited {
		l.Fail(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		if l.Len() > formation.MaxLimited {
			t.Fatalf("%d addresses remembered", l.Len())
		}
	}
	l.Fail(netip.Addr{}) // no address at all must not crash
}
