package pki_test

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/pkg/pki"
)

var (
	y1970 = time.Unix(120, 0)
	y2099 = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
)

func TestClock(t *testing.T) {
	built := today.AddDate(0, -6, 0)
	for _, row := range []struct {
		name         string
		remembered   string
		now          time.Time
		synchronised bool
		effective    time.Time
		problem      string
		saved        string // content of the file after Save
	}{
		{name: "right", now: today, effective: today, saved: "2026-10-01T12:00:00Z"},
		{name: "right, seen earlier", remembered: "2026-09-01T00:00:00Z", now: today, effective: today, saved: "2026-10-01T12:00:00Z"},
		{name: "1970", now: y1970, effective: built, problem: "this program was built on 2026-04-01", saved: "2026-04-01T12:00:00Z"},
		{name: "1970 after a normal life", remembered: "2026-09-01T00:00:00Z", now: y1970,
			effective: time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC), problem: "it has been 2026-09-01 before", saved: "2026-09-01T00:00:00Z"},
		{name: "some hours back", remembered: "2026-10-01T20:00:00Z", now: today,
			effective: today.Add(8 * time.Hour), saved: "2026-10-01T20:00:00Z"},
		{name: "a year back", remembered: "2027-10-01T12:00:00Z", now: today,
			effective: today.AddDate(1, 0, 0), problem: "it has been 2027-10-01 before", saved: "2027-10-01T12:00:00Z"},
		{name: "a year back and NTP says that is right", remembered: "2027-10-01T12:00:00Z", now: today, synchronised: true,
			effective: today, saved: "2026-10-01T12:00:00Z"},
		{name: "a year ahead cannot be told", now: today.AddDate(1, 0, 0), effective: today.AddDate(1, 0, 0), saved: "2027-10-01T12:00:00Z"},
		{name: "2099 is not remembered", remembered: "2026-09-01T00:00:00Z", now: y2099, effective: y2099,
			problem: "probably ahead: it says 2099-01-01", saved: "2026-09-01T00:00:00Z"},
		{name: "2099 in the file is not believed", remembered: "2099-01-01T00:00:00Z", now: today, effective: today, saved: "2026-10-01T12:00:00Z"},
		{name: "garbage in the file", remembered: "\x00\x00\x00\x00", now: today, effective: today, saved: "2026-10-01T12:00:00Z"},
		{name: "1970 even with NTP is before the build", now: y1970, synchronised: true, effective: built, problem: "built on", saved: "2026-04-01T12:00:00Z"},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "last")
			if row.remembered != "" {
				write(t, file, row.remembered)
			}
			c := &pki.Clock{
				Now: func() time.Time { return row.now }, Built: built, File: file,
				Synchronised: func() bool { return row.synchronised },
			}
			r := c.Read()
			if !r.Effective.Equal(row.effective) || !r.Now.Equal(row.now) {
				t.Errorf("effective %v, want %v", r.Effective, row.effective)
			}
			problem, bad := c.Problem()
			if bad != (row.problem != "") || !strings.Contains(problem.Text, row.problem) || (bad && problem.Remedy == "") {
				t.Errorf("problem %+v, want %q", problem, row.problem)
			}
			if err := c.Save(r); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(read(t, file)); got != row.saved {
				t.Errorf("remembered %q, want %q", got, row.saved)
			}
			if again := c.Read(); !again.Effective.Equal(r.Effective) {
				t.Errorf("effective %v after saving", again.Effective)
			}
		})
	}
}

func TestNothingIsRememberedWithoutAFile(t *testing.T) {
	c := fixed(today)
	if err := c.Save(c.Read()); err != nil {
		t.Error(err)
	}
}

// TestWrongClock starts a node at one time and goes on at others. At each step the certificates that are on disk after the start must be
// valid by the clock of that moment, and, until the next renewal tick, by the clock of the next.
func TestWrongClock(t *testing.T) {
	built := today.AddDate(0, -6, 0)
	for _, row := range []struct {
		name  string
		times []time.Time
		stays bool // the leaves need not be issued again when the clock is put right
	}{
		{name: "made in 1970, put right", times: []time.Time{y1970, today}, stays: true},
		{name: "made in 2099, put right", times: []time.Time{y2099, today}},
		{name: "made a year back, put right", times: []time.Time{today.AddDate(-1, 0, 0), today}, stays: true},
		{name: "made a year ahead, put right", times: []time.Time{today.AddDate(1, 0, 0), today}, stays: true},
		{name: "forth and back", times: []time.Time{today, y1970, today, today.AddDate(8, 0, 0), today, y1970}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			clock := pki.NewClock(dir, built)
			for i, now := range row.times {
				clock.Now = func() time.Time { return now }
				set, err := pki.Ensure(dir, subject(), clock, quiet)
				if err != nil {
					t.Fatal(err)
				}
				verify(t, set.Paths, now, now.AddDate(0, 0, 100))
				if i > 0 && row.stays && len(set.Issued) > 0 {
					t.Errorf("issued again: %v", set.Issued)
				}
				if i+1 < len(row.times) && row.stays {
					verify(t, set.Paths, row.times[i+1])
				}
			}
			for _, ca := range []string{pki.PathsIn(dir).ServerCA.Cert, pki.PathsIn(dir).ClientCA.Cert} {
				for _, cert := range pki.Check(dir, today) {
					if cert.File == ca && cert.NotAfter.Before(today.AddDate(9, 0, 0)) {
						t.Errorf("%s ends on %v", ca, cert.NotAfter)
					}
				}
			}
		})
	}
}

// TestClockPastTheEndOfTheAuthority: in 2099 nothing that a site of 2026 has is valid. The start must say so, not fail, and leave everything
// in a state that is right again when the clock is.
func TestClockPastTheEndOfTheAuthority(t *testing.T) {
	dir := t.TempDir()
	first := ensure(t, dir, today)
	set := ensure(t, dir, y2099)
	if len(set.Problems) == 0 || !strings.Contains(set.Problems[0].Remedy, "clock") {
		t.Errorf("problems %v", set.Problems)
	}
	set = ensure(t, dir, today)
	if len(set.Problems) != 0 || set.CAHash != first.CAHash {
		t.Errorf("problems %v, hash %s then %s", set.Problems, first.CAHash, set.CAHash)
	}
	verify(t, set.Paths, today, today.AddDate(0, 0, 100))
}

func TestYearLongRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		clock := &pki.Clock{}
		p := firstStart(t, dir, clock)
		ctx, cancel := context.WithCancel(t.Context())
		renewals := 0
		keeper := pki.NewRenewer(dir, subject, func(set pki.Set) {
			if len(set.Issued) > 0 {
				renewals++
			}
		}, clock, quiet)
		done := make(chan error)
		go func() { done <- keeper.Run(ctx, func() {}) }()

		first := leaf(t, p.Admin)
		for range 370 {
			time.Sleep(24 * time.Hour)
			verify(t, p, time.Now())
			if t.Failed() {
				break
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if renewals != 1 || leaf(t, p.Admin).SerialNumber.Cmp(first.SerialNumber) == 0 {
			t.Errorf("%d renewals in 370 days, want 1", renewals)
		}
		if problem, bad := keeper.Problem(); bad {
			t.Errorf("%+v", problem)
		}
		if infos, _ := filepath.Glob(filepath.Join(p.ServerTLS, ".*tmp*")); len(infos) > 0 {
			t.Errorf("temporary files left: %v", infos)
		}
	})
}

func firstStart(t *testing.T, dir string, clock *pki.Clock) pki.Paths {
	t.Helper()
	set, err := pki.Ensure(dir, subject(), clock, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return set.Paths
}

// TestReadersSeeWholePairs reads the files as fast as it can while they are issued again and again with new keys.
func TestReadersSeeWholePairs(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, today).Paths
	var stop atomic.Bool
	reads := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			// One read of the file, as it is on disk at an instant.
			data, err := os.ReadFile(p.Admin)
			if err != nil || strings.Count(string(data), "-----BEGIN") != 2 || strings.Count(string(data), "-----END") != 2 {
				t.Errorf("read %d: %d bytes, %v", n, len(data), err)
				break
			}
		}
		reads <- n
	}()
	for range 20 {
		if err := pki.Rotate(dir); err != nil {
			t.Error(err)
		}
		ensure(t, dir, today)
	}
	stop.Store(true)
	if n := <-reads; n < 20 {
		t.Errorf("only %d reads", n)
	}
}

// TestRenewalIsSafeForTwoReads: Kubernetes reads certificate and key one after the other. Over a renewal the two halves must still fit.
func TestRenewalIsSafeForTwoReads(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, today).Paths
	before := read(t, p.Admin)
	ensure(t, dir, today.AddDate(0, 0, 300))
	after := read(t, p.Admin)
	_, oldKey, _ := strings.Cut(before, "-----BEGIN EC")
	_, newKey, _ := strings.Cut(after, "-----BEGIN EC")
	if oldKey != newKey || before == after {
		t.Error("renewal changed the key, or nothing")
	}
}

func TestKeeperActsWithinAMinute(t *testing.T) {
	for _, row := range []struct {
		name string
		do   func(t *testing.T, dir string, offset *atomic.Int64, s *atomic.Pointer[pki.Subject])
		want int // leaves issued
	}{
		{"nothing", func(*testing.T, string, *atomic.Int64, *atomic.Pointer[pki.Subject]) {}, 0},
		{"clock jumps a year", func(_ *testing.T, _ string, offset *atomic.Int64, _ *atomic.Pointer[pki.Subject]) {
			offset.Add(int64(365 * 24 * time.Hour))
		}, 14},
		{"clock jumps back", func(_ *testing.T, _ string, offset *atomic.Int64, _ *atomic.Pointer[pki.Subject]) {
			offset.Add(-int64(20 * 365 * 24 * time.Hour))
		}, 14},
		{"rotation asked for", func(t *testing.T, dir string, _ *atomic.Int64, _ *atomic.Pointer[pki.Subject]) {
			if err := pki.Rotate(dir); err != nil {
				t.Error(err)
			}
		}, 14},
		{"address changes", func(_ *testing.T, _ string, _ *atomic.Int64, s *atomic.Pointer[pki.Subject]) {
			moved := *s.Load()
			moved.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
			s.Store(&moved)
		}, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var offset atomic.Int64
				clock := &pki.Clock{Now: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }}
				p := firstStart(t, dir, clock)
				var s atomic.Pointer[pki.Subject]
				first := subject()
				s.Store(&first)
				issued := 0
				keeper := pki.NewRenewer(dir, func() pki.Subject { return *s.Load() }, func(set pki.Set) { issued += len(set.Issued) }, clock, quiet)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- keeper.Run(ctx, func() {}) }()
				time.Sleep(5*time.Minute + time.Second)
				row.do(t, dir, &offset, &s)
				time.Sleep(time.Minute)
				synctest.Wait()
				if issued != row.want {
					t.Errorf("%d leaves issued, want %d", issued, row.want)
				}
				verify(t, p, clock.Read().Now)
				time.Sleep(3 * time.Minute)
				if issued != row.want {
					t.Errorf("%d leaves issued after a while, want %d", issued, row.want)
				}
				cancel()
				<-done
			})
		})
	}
}

// TestProblemsGoAway: a node that started with a wrong clock stops complaining when the clock is right.
func TestProblemsGoAway(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		built := time.Now().AddDate(0, -6, 0)
		var offset atomic.Int64
		offset.Store(-int64(20 * 365 * 24 * time.Hour))
		clock := pki.NewClock(dir, built)
		clock.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		set, err := pki.Ensure(dir, subject(), clock, quiet)
		if err != nil || len(set.Problems) != 1 {
			t.Fatalf("problems %v, %v", set.Problems, err)
		}
		problems := set.Problems
		keeper := pki.NewRenewer(dir, subject, func(set pki.Set) { problems = set.Problems }, clock, quiet)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- keeper.Run(ctx, func() {}) }()
		time.Sleep(90 * time.Second)
		offset.Store(0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(problems) != 0 {
			t.Errorf("problems %v", problems)
		}
		if got, err := time.Parse(time.RFC3339, strings.TrimSpace(read(t, clock.File))); err != nil || time.Since(got) > 2*time.Minute {
			t.Errorf("remembered %v, %v", got, err)
		}
		cancel()
		<-done
	})
}

func TestKeeperSaysWhatFails(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		clock := &pki.Clock{}
		p := firstStart(t, dir, clock)
		var logged strings.Builder
		keeper := pki.NewRenewer(dir, subject, nil, clock, slog.New(slog.NewTextHandler(&logged, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- keeper.Run(ctx, func() {}) }()
		good := read(t, p.ServerCA.Cert)
		halve(t, p.ServerCA.Cert)
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		problem, bad := keeper.Problem()
		if !bad || !strings.Contains(problem.Text, "server-ca") || problem.Remedy == "" {
			t.Errorf("problem %+v", problem)
		}
		if n := strings.Count(logged.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings about one failure:\n%s", n, logged.String())
		}
		write(t, p.ServerCA.Cert, good)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if problem, bad := keeper.Problem(); bad {
			t.Errorf("problem after the repair: %+v", problem)
		}
		cancel()
		<-done
	})
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, today).Paths
	halve(t, p.Scheduler)
	remove(t, p.CoreDNS)
	find := func(now time.Time, file string) pki.Info {
		for _, info := range pki.Check(dir, now) {
			if info.File == file {
				return info
			}
		}
		t.Fatalf("%s is not listed", file)
		return pki.Info{}
	}
	for _, row := range []struct {
		name  string
		file  string
		days  int
		state string
		left  int
	}{
		{"new", p.Admin, 0, pki.StateOK, 365},
		{"soon", p.Admin, 250, pki.StateDue, 115},
		{"over", p.Admin, 366, pki.StateExpired, -1},
		{"long over", p.Admin, 375, pki.StateExpired, -10},
		{"before 1970", p.Admin, -57 * 366, pki.StateNotYet, 365 + 57*366},
		{"damaged", p.Scheduler, 0, pki.StateDamaged, 0},
		{"missing", p.CoreDNS, 0, pki.StateMissing, 0},
		{"authority", p.ServerCA.Cert, 0, pki.StateOK, 3650},
		{"authority in its last year", p.ServerCA.Cert, 3400, pki.StateDue, 250},
	} {
		now := today.Add(time.Duration(row.days) * 24 * time.Hour)
		if row.days > 365 && row.days < 3000 {
			now = now.Add(-12 * time.Hour)
		}
		info := find(now, row.file)
		if info.State != row.state || info.Days != row.left {
			t.Errorf("%s: state %q with %d days, want %q with %d", row.name, info.State, info.Days, row.state, row.left)
		}
		if row.state == pki.StateDamaged && info.Error == "" {
			t.Error("damage without a reason")
		}
	}
	if n := len(pki.Check(dir, today)); n != 14+4 {
		t.Errorf("%d certificates listed", n)
	}
	if n := len(pki.Check(t.TempDir(), today)); n != 4+2 { // an agent that has not joined
		t.Errorf("%d certificates listed for an agent", n)
	}
	if info := find(today, p.Admin); !strings.Contains(info.Subject, "system:admin") || !strings.HasPrefix(info.Issuer, "atoll-client-ca@") || info.SHA256 == "" {
		t.Errorf("%+v", info)
	}
}

// Nothing here may depend on certificates that start at their issue.
func TestCertificatesAreValidFrom1970(t *testing.T) {
	p := ensure(t, t.TempDir(), today).Paths
	for _, cert := range []*x509.Certificate{leaf(t, p.APIServer), leaf(t, p.KubeletClient)} {
		if !cert.NotBefore.Equal(time.Unix(0, 0)) {
			t.Errorf("valid from %v", cert.NotBefore)
		}
	}
}
