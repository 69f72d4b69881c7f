package node

import (
	"context"
	"fmt"
	"time"

	"github.com/atollhq/atoll/pkg/run"
)

// largestJump is how far the clock may be set while a server runs. kube-apiserver talks to itself with a certificate that it makes at
// its start for three years; a box that started in 1970 would lose its API when the clock is put right.
const largestJump = 30 * 24 * time.Hour

// clockWatch fails when the clock is set by more than largestJump, so that the process is started again. Pods do not notice.
// now is the wall clock; it is compared with the time that has really passed.
func clockWatch(now func() time.Time, every time.Duration) run.Component {
	return run.Func("clock", func(ctx context.Context, ready func()) error {
		ready()
		began, wall := time.Now(), now().Round(0)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if off := now().Round(0).Sub(wall) - time.Since(began); off > largestJump || off < -largestJump {
				return fmt.Errorf("the clock was set by %s: starting again with certificates for the new time", off.Round(time.Hour))
			}
		}
	})
}
