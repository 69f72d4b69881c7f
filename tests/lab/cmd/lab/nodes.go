package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/lab"
)

// nodeCommand makes a command of an action on one node, or on several one after the other.
func nodeCommand(name, usage string, action func(context.Context, *lab.Node) error) *cli.Command {
	return &cli.Command{Name: name, Usage: usage, ArgsUsage: "SITE/NODE ...", Action: func(c *cli.Context) error {
		nodes, err := findNodes(c)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if err := action(c.Context, n); err != nil {
				return err
			}
		}
		return nil
	}}
}

func findNodes(c *cli.Context) ([]*lab.Node, error) {
	l, err := open(c)
	if err != nil {
		return nil, err
	}
	if !c.Args().Present() {
		return nil, remedy.Wrap(errors.New("no node was named"), "name one, like s1/n1")
	}
	var nodes []*lab.Node
	for _, name := range c.Args().Slice() {
		if strings.HasPrefix(name, "-") {
			return nil, fmt.Errorf("option %s: options come before the names of nodes", name)
		}
		_, n, err := l.Find(name)
		if err != nil {
			return nil, err
		}
		if n == nil {
			return nil, remedy.Wrap(fmt.Errorf("%s is a site", name), "name a node, like %s/n1", name)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func nodeCommands() []*cli.Command {
	start := nodeCommand("start", "start atoll; powers the node on if it is off", func(ctx context.Context, n *lab.Node) error { return n.Start(ctx) })
	start.Flags = []cli.Flag{&cli.StringFlag{Name: "binary", Usage: "run this atoll from now on, as after an upgrade"}}
	start.Before = func(c *cli.Context) error {
		if !c.IsSet("binary") {
			return nil
		}
		nodes, err := findNodes(c)
		for _, n := range nodes {
			err = errors.Join(err, n.SetBinary(c.String("binary")))
		}
		return err
	}
	return []*cli.Command{
		{
			Name: "exec", Usage: "run a program on a node, with busybox in PATH", ArgsUsage: "SITE/NODE -- COMMAND [ARG ...]",
			SkipFlagParsing: true, Action: execute,
		},
		start,
		nodeCommand("stop", "stop atoll (SIGTERM, 30 s); pods run on", func(ctx context.Context, n *lab.Node) error { return n.Stop(ctx) }),
		nodeCommand("restart", "stop and start atoll", func(ctx context.Context, n *lab.Node) error { return n.Restart(ctx) }),
		{Name: "kill", Usage: "power off: end every process of the nodes at once, containers too", ArgsUsage: "SITE/NODE ...", Action: kill},
		nodeCommand("blank", "power off, and give the node a new empty disk", func(ctx context.Context, n *lab.Node) error { return n.Blank(ctx) }),
		linkCommand("cut", "make a link go silent; the interfaces stay up", true),
		linkCommand("heal", "undo cut and shape", false),
		shapeCommand(),
		{
			Name: "logs", Usage: "print atoll's output", ArgsUsage: "SITE/NODE", Action: logs,
			Flags: []cli.Flag{&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "wait for more"}},
		},
	}
}

func execute(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) < 2 {
		return errors.New("usage: lab exec SITE/NODE -- COMMAND [ARG ...]")
	}
	l, err := open(c)
	if err != nil {
		return err
	}
	_, n, err := l.Find(args[0])
	if err == nil && n == nil {
		err = errors.New("name a node, like s1/n1")
	}
	if err != nil {
		return err
	}
	argv := args[1:]
	if argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return errors.New("no command was given")
	}
	var env []string
	if term := os.Getenv("TERM"); term != "" {
		env = []string{"TERM=" + term}
	}
	code, err := n.Attach(c.Context, argv, env, os.Stdin, os.Stdout, os.Stderr)
	if err != nil && code == 0 {
		return err
	}
	if err != nil { // 126 or 127: it could not be started
		remedy.Fprint(os.Stderr, err)
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

func kill(c *cli.Context) error {
	nodes, err := findNodes(c)
	if err != nil {
		return err
	}
	l, err := open(c)
	if err != nil {
		return err
	}
	return l.Kill(c.Context, nodes...)
}

func linkCommand(name, usage string, cut bool) *cli.Command {
	return &cli.Command{Name: name, Usage: usage, ArgsUsage: "lan|wan SITE[/NODE]", Action: func(c *cli.Context) error {
		l, err := open(c)
		if err != nil {
			return err
		}
		if c.NArg() != 2 {
			return fmt.Errorf("usage: lab %s lan|wan SITE[/NODE]", name)
		}
		site, node, err := l.Find(c.Args().Get(1))
		if err != nil {
			return err
		}
		return setLink(site, node, c.Args().First(), cut)
	}}
}

func shapeCommand() *cli.Command {
	return &cli.Command{
		Name: "shape", Usage: "make a link slow or lossy; undo with heal", ArgsUsage: "lan SITE[/NODE] | wan SITE",
		Description: "Options come before the names. Example: scripts/lab shape --delay 80ms --loss 1 --rate 2000 wan s1",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "delay", Usage: "one way"},
			&cli.DurationFlag{Name: "jitter", Usage: "up to so much more delay"},
			&cli.Float64Flag{Name: "loss", Usage: "percent of frames"},
			&cli.Int64Flag{Name: "rate", Usage: "kbit/s"},
			&cli.StringFlag{Name: "direction", Value: "both", Usage: "to or from the node or site, or both"},
		},
		Action: shape,
	}
}

func shape(c *cli.Context) error {
	if c.NArg() != 2 {
		return errors.New("usage: lab shape [OPTIONS] lan SITE[/NODE] | wan SITE")
	}
	q := lab.Quality{
		Delay: c.Duration("delay"), Jitter: c.Duration("jitter"), Loss: c.Float64("loss") / 100, BitsPerSecond: 1000 * c.Int64("rate"),
	}
	var s lab.Shape
	switch c.String("direction") {
	case "both":
		s = lab.Shape{To: q, From: q}
	case "to":
		s.To = q
	case "from":
		s.From = q
	default:
		return fmt.Errorf("--direction %s: say to, from or both", c.String("direction"))
	}
	l, err := open(c)
	if err != nil {
		return err
	}
	site, node, err := l.Find(c.Args().Get(1))
	if err != nil {
		return err
	}
	switch kind := c.Args().First(); {
	case kind == "lan" && node != nil:
		return node.ShapeLAN(s)
	case kind == "lan":
		return site.ShapeLAN(s)
	case kind == "wan" && node == nil:
		return site.ShapeWAN(s)
	}
	return errors.New("a shape is for the lan of a site or node, or for the wan of a site")
}

// links is what a site and a node have in common.
type links interface {
	CutLAN() error
	HealLAN() error
	CutWAN() error
	HealWAN() error
}

func setLink(site *lab.Site, node *lab.Node, kind string, cut bool) error {
	var of links = site
	if node != nil {
		of = node
	}
	switch {
	case kind == "lan" && cut:
		return of.CutLAN()
	case kind == "lan":
		return of.HealLAN()
	case kind == "wan" && cut:
		return of.CutWAN()
	case kind == "wan":
		return of.HealWAN()
	}
	return remedy.Wrap(fmt.Errorf("unknown link %q", kind), "say lan or wan")
}

func logs(c *cli.Context) error {
	nodes, err := findNodes(c)
	if err != nil {
		return err
	}
	if len(nodes) != 1 {
		return errors.New("name one node")
	}
	if c.Bool("follow") {
		cmd := exec.CommandContext(c.Context, "tail", "-n", "+1", "-F", nodes[0].LogFile())
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd.Run()
	}
	f, err := os.Open(nodes[0].LogFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil // never started
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}
