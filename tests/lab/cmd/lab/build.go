package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/images"
	"github.com/atollhq/atoll/tests/lab"
)

func buildCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "up", Usage: "build a lab and start it; returns when all nodes are Ready", Action: up,
			Flags: []cli.Flag{
				&cli.IntFlag{Name: "sites", Value: 1, Usage: "number of sites"},
				&cli.IntFlag{Name: "nodes", Value: 1, Usage: "nodes per site"},
				&cli.IntFlag{Name: "servers", Value: 1, Usage: "nodes per site that are servers; the others are agents"},
				&cli.StringFlag{Name: "binary", Value: filepath.Join(home(), "bin", "atoll"), Usage: "the atoll to run"},
				&cli.StringSliceFlag{Name: "server-arg", Usage: "one more argument of atoll server (repeat)"},
				&cli.StringSliceFlag{Name: "agent-arg", Usage: "one more argument of atoll agent (repeat)"},
				&cli.StringSliceFlag{Name: "env", Usage: "NAME=VALUE in atoll's environment (repeat)"},
				&cli.StringSliceFlag{Name: "image", Usage: "one more image archive to preload (repeat)"},
				&cli.BoolFlag{Name: "no-images", Usage: "do not build and preload the test images"},
				&cli.IntFlag{Name: "disk", Usage: "give every node a disk of so many MB; default: a folder, as large as the host's disk"},
				&cli.DurationFlag{Name: "restart-after", Usage: "start an atoll that ends by itself again after so long; default: leave it"},
				&cli.IntFlag{Name: "id", Usage: "number of the lab, 0 to 15; selects its addresses, 10.<77+id>.0.0/16"},
				&cli.BoolFlag{Name: "no-start", Usage: "leave all nodes off"},
				&cli.DurationFlag{Name: "timeout", Value: 5 * time.Minute, Usage: "give up waiting for Ready after so long"},
			},
		},
		{Name: "down", Usage: "remove the lab and everything in it", Action: down},
		{
			Name: "status", Usage: "show all nodes", Action: status,
			Flags: []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "table or json"}},
		},
		{Name: "kubeconfig", Usage: "print the path of a kubeconfig for a site that works on the host", ArgsUsage: "SITE", Action: kubeconfig},
	}
}

func up(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("up wants no argument %q", c.Args().First())
	}
	o := lab.Options{
		Dir: c.String("dir"), ID: c.Int("id"), Sites: c.Int("sites"), Nodes: c.Int("nodes"), Servers: c.Int("servers"),
		Binary: c.String("binary"), ServerArgs: c.StringSlice("server-arg"), AgentArgs: c.StringSlice("agent-arg"),
		Env: c.StringSlice("env"), DiskMB: c.Int("disk"), RestartAfter: c.Duration("restart-after"), Log: os.Stderr,
	}
	var err error
	if o.Command, err = os.Executable(); err != nil {
		return err
	}
	if o.Images, err = archives(c); err != nil {
		return err
	}
	l, err := lab.Create(c.Context, o)
	if err != nil {
		return err
	}
	if c.Bool("no-start") {
		return nil
	}
	ctx, cancel := withTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	if err := l.Up(ctx); err != nil {
		return remedy.Wrap(err, "the lab is still up: look with scripts/lab status and scripts/lab logs, remove it with scripts/lab down")
	}
	return nil
}

// withTimeout is context.WithTimeout with a cause for people; 0 means no limit.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("not done in %s", d))
}

// archives are the images for every node's disk: ours, built now, and those named.
func archives(c *cli.Context) ([]string, error) {
	var list []string
	for _, path := range c.StringSlice("image") {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(abs); err != nil {
			return nil, fmt.Errorf("find image archive: %w", err)
		}
		list = append(list, abs)
	}
	if c.Bool("no-images") {
		return list, nil
	}
	built, err := images.Build(c.Context, home(), filepath.Join(home(), "out", "images"))
	return append(list, built...), err
}

func down(c *cli.Context) error {
	found, err := lab.Remove(c.Context, c.String("dir"))
	if err == nil && !found {
		fmt.Fprintf(os.Stderr, "no lab is up in %s\n", c.String("dir"))
	}
	return err
}

func open(c *cli.Context) (*lab.Lab, error) { return lab.Open(c.String("dir"), os.Stderr) }

// row is a node in the answer of status.
type row struct {
	Site    string   `json:"site"`
	Node    string   `json:"node"`
	Role    string   `json:"role"`
	State   string   `json:"state"`
	Exit    int      `json:"exit"`
	Address string   `json:"address"`
	PID     int      `json:"pid,omitempty"`
	Ready   bool     `json:"ready"`
	Why     string   `json:"why,omitempty"` // not ready
	Cut     []string `json:"cut,omitempty"`
}

func status(c *cli.Context) error {
	l, err := open(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, 15*time.Second)
	defer cancel()
	var rows []row
	for _, s := range l.Sites() {
		for _, n := range s.Nodes() {
			r, err := look(ctx, s, n)
			if err != nil {
				return err
			}
			rows = append(rows, r)
		}
	}
	if c.String("output") == "json" {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SITE\tNODE\tROLE\tSTATE\tADDRESS\tPID\tREADY\tCUT")
	for _, r := range rows {
		state, ready, pid := r.State, "no", "-"
		if r.State == lab.StateExited {
			state = fmt.Sprintf("%s(%d)", r.State, r.Exit)
		}
		if r.Ready {
			ready = "yes"
		}
		if r.PID != 0 {
			pid = fmt.Sprint(r.PID)
		}
		cut := strings.Join(r.Cut, ",")
		if cut == "" {
			cut = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Site, r.Node, r.Role, state, r.Address, pid, ready, cut)
	}
	return w.Flush()
}

func look(ctx context.Context, s *lab.Site, n *lab.Node) (row, error) {
	st, err := n.Status(ctx)
	if err != nil {
		return row{}, err
	}
	config, err := n.Configured()
	if err != nil {
		return row{}, err
	}
	r := row{
		Site: s.Name(), Node: n.Hostname(), Role: config.Role, State: st.State, Exit: st.Exit,
		Address: n.Address().String(), PID: st.PID,
		Cut: slices.Concat(n.Cuts(), s.Cuts()),
	}
	if st.State == lab.StateOff {
		return r, nil
	}
	if err := n.Ready(ctx); err != nil {
		r.Why = err.Error()
		return r, nil
	}
	r.Ready = true
	return r, nil
}

func kubeconfig(c *cli.Context) error {
	l, err := open(c)
	if err != nil {
		return err
	}
	site, node, err := l.Find(c.Args().First())
	if err == nil && node != nil {
		err = errors.New("name a site, like s1")
	}
	if err != nil {
		return err
	}
	path, err := site.Kubeconfig()
	if err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}
