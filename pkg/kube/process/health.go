package process

import (
	"context"
	"net/http"
	"time"
)

// AwaitHealthy calls ready once url, a plain HTTP health endpoint on loopback, answers 200. It gives up only when ctx ends.
func AwaitHealthy(ctx context.Context, url string, ready func()) {
	client := http.Client{Timeout: time.Second}
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				ready()
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}
