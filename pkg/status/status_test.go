package status_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
	"github.com/atollhq/atoll/pkg/status"
)

func TestAskGetsWhatTheNodeReports(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	want := status.Report{Node: "n1", Problems: []status.Problem{{Severity: status.Failing, Text: "the disk is full", Remedy: "free some space"}}}
	want.Conclude()
	c := status.New(socket, func(context.Context) status.Report { return want }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- c.Run(ctx, func() { close(ready) }) }()
	<-ready

	got, err := status.Ask(t.Context(), socket)
	if err != nil || got.Node != "n1" || got.Healthy || len(got.Problems) != 1 {
		t.Errorf("Ask = %+v, %v", got, err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may open the socket: %v, %v", info.Mode(), err)
	}
	var page strings.Builder
	status.Print(&page, got)
	for _, part := range []string{"NOT OK", "the disk is full", "Try: free some space"} {
		if !strings.Contains(page.String(), part) {
			t.Errorf("the page lacks %q:\n%s", part, page.String())
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestAskSaysThatNobodyIsThere(t *testing.T) {
	_, err := status.Ask(t.Context(), filepath.Join(t.TempDir(), "none"))
	if !errors.Is(err, status.ErrNotRunning) || remedy.Of(err) == "" {
		t.Errorf("Ask = %v, remedy %q", err, remedy.Of(err))
	}
}

func TestConclusion(t *testing.T) {
	for _, row := range []struct {
		name     string
		severity []status.Severity
		healthy  bool
	}{
		{"nothing", nil, true},
		{"a note", []status.Severity{status.Note}, true},
		{"degraded", []status.Severity{status.Degraded, status.Note}, true},
		{"failing", []status.Severity{status.Note, status.Failing}, false},
	} {
		var r status.Report
		for _, s := range row.severity {
			r.Problems = append(r.Problems, status.Problem{Severity: s})
		}
		if r.Conclude(); r.Healthy != row.healthy {
			t.Errorf("%s: healthy = %v", row.name, r.Healthy)
		}
	}
}

func TestOnlyCausesAreReported(t *testing.T) {
	now := time.Now()
	parts := []run.Status{
		{Name: "datastore", State: run.Backoff, Error: "disk full", Since: now},
		{Name: "kube-apiserver", State: run.Waiting, Since: now},
		{Name: "dns", State: run.Ready, Since: now},
	}
	got := status.OfComponents(parts, now, time.Minute)
	if len(got) != 1 || !strings.Contains(got[0].Text, "datastore") {
		t.Errorf("problems = %+v", got)
	}
}
