package lab_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/tests/lab"
)

// roundTrip returns the fastest of some pings: what the link costs, without what a busy machine adds.
func roundTrip(t *testing.T, from, to *lab.Node) time.Duration {
	t.Helper()
	out := run(t, from, "ping", "-c", "4", "-i", "0.2", "-W", "2", to.Address().String())
	_, numbers, ok := strings.Cut(out, "min/avg/max = ")
	ms, err := strconv.ParseFloat(strings.Split(numbers, "/")[0], 64)
	if !ok || err != nil {
		t.Fatalf("ping says %q", out)
	}
	return time.Duration(ms * float64(time.Millisecond))
}

func TestShapedLinks(t *testing.T) {
	l := newLab(t, lab.Options{Sites: 2, Nodes: 2})
	ctx := mustUp(t, l)
	s1 := l.Site(1)
	n1, n2, far := s1.Node(1), s1.Node(2), l.Site(2).Node(1)
	slow := lab.Shape{To: lab.Quality{Delay: 40 * time.Millisecond}, From: lab.Quality{Delay: 20 * time.Millisecond}}

	t.Run("lan", func(t *testing.T) {
		must(t, n2.ShapeLAN(slow))
		if d := roundTrip(t, n1, n2); d < 60*time.Millisecond {
			t.Errorf("round trip takes %s, want at least 60ms", d)
		}
		if d := roundTrip(t, n1, far); d > 40*time.Millisecond {
			t.Errorf("another link is slow too: %s", d)
		}
		if got := n2.Cuts(); !slices.Contains(got, "lan-shaped") {
			t.Errorf("status shows %v", got)
		}
	})
	t.Run("much data comes through unharmed, at the link's rate", func(t *testing.T) {
		must(t, n2.ShapeLAN(lab.Shape{To: lab.Quality{Delay: 10 * time.Millisecond, BitsPerSecond: 40_000_000}}))
		sum := run(t, n1, "sh", "-c", "mkdir /tmp/www; dd if=/dev/urandom of=/tmp/www/data bs=1M count=8 2>/dev/null; sha256sum < /tmp/www/data")
		run(t, n1, "httpd", "-p", "8000", "-h", "/tmp/www")
		began := time.Now()
		got := run(t, n2, "sh", "-c", "wget -qO - http://"+n1.Address().String()+":8000/data | sha256sum")
		if took := time.Since(began); took < 1400*time.Millisecond { // 64 Mbit, less what the router buffers
			t.Errorf("8 MiB took %s at 40 Mbit/s", took)
		}
		if got != sum {
			t.Errorf("sum %q, want %q", got, sum)
		}
		must(t, n2.ShapeLAN(slow))
	})
	t.Run("kept over a power cycle, and cut on top of it", func(t *testing.T) {
		must(t, n2.Kill(ctx))
		must(t, n2.Start(ctx))
		if d := roundTrip(t, n1, n2); d < 60*time.Millisecond {
			t.Errorf("round trip takes %s after a power cycle", d)
		}
		must(t, n2.CutLAN())
		if _, err := n1.Exec(ctx, "ping", "-c", "1", "-W", "1", n2.Address().String()); err == nil {
			t.Error("a shaped link cannot be cut")
		}
	})
	t.Run("healed", func(t *testing.T) {
		must(t, n2.HealLAN())
		var d time.Duration
		for range 5 { // a host that asked in vain for a neighbour asks once a second
			if d = roundTrip(t, n1, n2); d < 40*time.Millisecond {
				return
			}
		}
		t.Errorf("round trip takes %s", d)
	})
	t.Run("one way", func(t *testing.T) {
		must(t, n2.ShapeLAN(lab.Shape{From: lab.Quality{Loss: 1}}))
		before := received(t, n2)
		if _, err := n1.Exec(ctx, "ping", "-c", "3", "-i", "0.2", "-W", "1", n2.Address().String()); err == nil {
			t.Error("answers come back")
		}
		if after := received(t, n2); after < before+3 {
			t.Errorf("requests did not arrive: %d frames before, %d after", before, after)
		}
		must(t, n2.HealLAN())
	})
	t.Run("wan", func(t *testing.T) {
		must(t, s1.ShapeWAN(slow))
		if d := roundTrip(t, n1, far); d < 60*time.Millisecond {
			t.Errorf("round trip takes %s, want at least 60ms", d)
		}
		if d := roundTrip(t, n1, n2); d > 40*time.Millisecond {
			t.Errorf("the LAN is slow too: %s", d)
		}
		must(t, s1.ShapeWAN(lab.Shape{To: lab.Quality{Delay: 100 * time.Millisecond}})) // changed, not added
		if d := roundTrip(t, n1, far); d < 100*time.Millisecond || d > 140*time.Millisecond {
			t.Errorf("round trip takes %s, want 100ms", d)
		}
		must(t, s1.HealWAN())
		if d := roundTrip(t, n1, far); d > 40*time.Millisecond {
			t.Errorf("round trip takes %s after healing", d)
		}
	})
	t.Run("nonsense", func(t *testing.T) {
		if n1.ShapeLAN(lab.Shape{To: lab.Quality{Loss: 2}}) == nil {
			t.Error("was accepted")
		}
	})
}

// received counts frames that have arrived at the node.
func received(t *testing.T, n *lab.Node) int {
	t.Helper()
	count, err := strconv.Atoi(strings.TrimSpace(run(t, n, "cat", "/sys/class/net/eth0/statistics/rx_packets")))
	must(t, err)
	return count
}
