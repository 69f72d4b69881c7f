package node

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestClockWatchEndsTheProcessOnlyForLargeJumps(t *testing.T) {
	for _, row := range []struct {
		name string
		by   time.Duration
		ends bool
	}{
		{"none", 0, false},
		{"a correction by minutes", 20 * time.Minute, false},
		{"a week", 7 * 24 * time.Hour, false},
		{"from 1970 to now", 56 * 365 * 24 * time.Hour, true},
		{"back by a year", -365 * 24 * time.Hour, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				now := func() time.Time {
					if time.Since(began) > 3*time.Minute {
						return time.Now().Add(row.by)
					}
					return time.Now()
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				err := clockWatch(now, time.Minute).Run(ctx, func() {})
				if ended := err != nil && strings.Contains(err.Error(), "clock was set"); ended != row.ends {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}
