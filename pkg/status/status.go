// Package status says in plain words whether a node can do its work, and if not, why and what to do.
//
// The running node serves its Report on a Unix socket that only root may open; `atoll status` reads it. Causes come before what
// follows from them: the list of problems is in the order in which a person should look at them.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
)

// Severity of a problem.
type Severity string

// Severities. A node with a Failing problem is not healthy; a Degraded one works but needs attention; a Note is for information.
const (
	Failing  Severity = "failing"
	Degraded Severity = "degraded"
	Note     Severity = "note"
)

// Problem is one thing that a person may want to do something about.
type Problem struct {
	Severity Severity `json:"severity"`
	Text     string   `json:"text"`
	Remedy   string   `json:"remedy,omitempty"`
}

// FromError makes a problem of an error and its remedy.
func FromError(s Severity, err error) Problem {
	return Problem{Severity: s, Text: err.Error(), Remedy: remedy.Of(err)}
}

// Pods counts the pods of this node.
type Pods struct {
	Running  int      `json:"running"`
	Waiting  int      `json:"waiting"`
	Failed   int      `json:"failed"`
	NotReady []string `json:"notReady,omitempty"` // namespace/name, at most ten
}

// Report is what `atoll status -o json` prints. Its fields are a promise.
type Report struct {
	Node       string       `json:"node"`
	Role       string       `json:"role"`
	Version    string       `json:"version"`
	Address    string       `json:"address"`
	Since      time.Time    `json:"since"` // of the process
	Now        time.Time    `json:"now"`
	Healthy    bool         `json:"healthy"`
	Summary    string       `json:"summary"`
	Problems   []Problem    `json:"problems,omitempty"`
	Components []run.Status `json:"components"`
	Pods       *Pods        `json:"pods,omitempty"` // nil when the API does not answer
}

// Conclude fills Healthy and Summary from the problems.
func (r *Report) Conclude() {
	failing, degraded := 0, 0
	for _, p := range r.Problems {
		switch p.Severity {
		case Failing:
			failing++
		case Degraded:
			degraded++
		case Note:
		}
	}
	r.Healthy = failing == 0
	switch {
	case failing > 0:
		r.Summary = "this node does not work as it should"
	case degraded > 0:
		r.Summary = "this node works, but needs attention"
	default:
		r.Summary = "this node works"
	}
}

// New returns the component that serves reports on the socket; collect makes one and must return within a few seconds.
func New(socket string, collect func(context.Context) Report, log *slog.Logger) run.Component {
	return run.Func("status", func(ctx context.Context, ready func()) error {
		if err := os.MkdirAll(filepath.Dir(socket), 0o711); err != nil {
			return err
		}
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
		if err != nil {
			return fmt.Errorf("listen on status socket: %w", err)
		}
		if err := os.Chmod(socket, 0o600); err != nil {
			l.Close()
			return err
		}
		mux := http.NewServeMux()
		mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(collect(r.Context())); err != nil {
				log.Debug("status not sent", "err", err)
			}
		})
		server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
		go func() {
			<-ctx.Done()
			_ = server.Close()
		}()
		ready()
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

// ErrNotRunning means that nobody answers on the socket.
var ErrNotRunning = errors.New("atoll is not running on this machine")

// Ask returns the report of the node behind the socket. Errors: ErrNotRunning.
func Ask(ctx context.Context, socket string) (Report, error) {
	client := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://atoll/v1/status", nil)
	if err != nil {
		return Report{}, err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return Report{}, remedy.Wrap(errors.New("only root may read the status of a node"), "use `sudo atoll status`")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return Report{}, remedy.Wrap(ErrNotRunning, "start it with `systemctl start atoll`; `journalctl -u atoll -e` tells why it ended")
	case err != nil:
		return Report{}, remedy.Wrap(fmt.Errorf("ask the node for its status: %w", err), "the process may be stuck; `systemctl restart atoll` leaves pods running")
	}
	defer resp.Body.Close()
	var r Report
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&r); err != nil {
		return Report{}, fmt.Errorf("read the status: %w", err)
	}
	return r, nil
}
