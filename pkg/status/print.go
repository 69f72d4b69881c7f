package status

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/atollhq/atoll/pkg/run"
)

// Print writes a report for a person: the conclusion, then problems with their remedies, then the parts.
func Print(w io.Writer, r Report) {
	word := "OK"
	if !r.Healthy {
		word = "NOT OK"
	}
	fmt.Fprintf(w, "%s: %s\n", word, r.Summary)
	fmt.Fprintf(w, "%s %s at %s, atoll %s, up %s\n", r.Role, r.Node, r.Address, r.Version, r.Now.Sub(r.Since).Round(time.Second))
	if r.Pods != nil {
		fmt.Fprintf(w, "pods on this node: %d running, %d waiting, %d failed\n", r.Pods.Running, r.Pods.Waiting, r.Pods.Failed)
		for _, name := range r.Pods.NotReady {
			fmt.Fprintf(w, "  not ready: %s\n", name)
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "\n%s: %s\n", p.Severity, p.Text)
		if p.Remedy != "" {
			fmt.Fprintf(w, "Try: %s\n", p.Remedy)
		}
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PART\tSTATE\tFOR\tRESTARTS")
	for _, c := range r.Components {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\n", c.Name, c.State, r.Now.Sub(c.Since).Round(time.Second), c.Restarts)
	}
	_ = tw.Flush()
}

// OfComponents turns the states of components into problems. A component that waits for another is a consequence, not a cause,
// and is left out; one that starts is given time.
func OfComponents(parts []run.Status, now time.Time, patience time.Duration) []Problem {
	var out []Problem
	for _, c := range parts {
		switch {
		case c.State == run.Backoff, c.State == run.Failed:
			out = append(out, Problem{Failing, fmt.Sprintf("%s does not run: %s", c.Name, c.Error), "it is started again by itself; if it goes on, see `journalctl -u atoll -e`"})
		case c.State == run.Starting && now.Sub(c.Since) > patience:
			out = append(out, Problem{Failing, fmt.Sprintf("%s is not ready after %s", c.Name, now.Sub(c.Since).Round(time.Second)), "see `journalctl -u atoll -e` for what it waits for"})
		case c.State == run.Starting:
			out = append(out, Problem{Failing, fmt.Sprintf("%s is starting", c.Name), "wait a few seconds and ask again"})
		}
	}
	return out
}
