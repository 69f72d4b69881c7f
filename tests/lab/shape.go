package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/tests/lab/internal/wire"
	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// Quality is what one direction of a link is like. The zero value is perfect.
type Quality = wire.Quality

// Shape makes a link slow, lossy or one-way (Loss 1 in one direction). The zero value is a perfect link again.
//
// A process passes the frames on, because kernels often have no netem; it manages some hundred Mbit/s. Frames that the kernel cannot
// describe to a process, segments inside of VXLAN, are lost.
type Shape struct {
	To   Quality `json:"to,omitzero"`   // towards the node or site
	From Quality `json:"from,omitzero"` // from it
}

// ShapeLAN changes the node's link to its switch. Lost with HealLAN, kept over power cycles.
func (n *Node) ShapeLAN(shape Shape) error {
	if err := errors.Join(shape.To.Check(), shape.From.Check()); err != nil {
		return err
	}
	return n.update(func(r *nodeRecord) error {
		if shape == r.Shape && (shape == Shape{} || r.Wire.alive()) {
			return nil
		}
		lab, err := n.site.lab.record()
		if err != nil {
			return err
		}
		router, err := lab.namespace(n.site.Name())
		if err != nil {
			return err
		}
		r.Wire.stop()
		r.Shape, r.Wire = shape, process{}
		if shape == (Shape{}) {
			if err := wiring.Unsplice(router, wiring.PortName(n.number), "lan"); err != nil {
				return err
			}
		} else if r.Init.alive() {
			if r.Wire, err = n.startWire(lab, shape); err != nil {
				return err
			}
		}
		return n.applyCuts(*r) // the bridge has another port now
	})
}

func (n *Node) startWire(lab record, shape Shape) (process, error) {
	router, err := lab.namespace(n.site.Name())
	if err != nil {
		return process{}, err
	}
	return startWire(lab, router, wiring.PortName(n.number), "lan", shape)
}

// ShapeWAN changes the site's line. Lost with HealWAN.
func (s *Site) ShapeWAN(shape Shape) error {
	if err := errors.Join(shape.To.Check(), shape.From.Check()); err != nil {
		return err
	}
	return s.lab.update(func(r *record) error {
		site := r.Sites[s.Name()]
		if shape == site.Shape && (shape == Shape{} || site.Wire.alive()) {
			return nil
		}
		world, err := r.namespace("world")
		if err != nil {
			return err
		}
		port := wiring.LineName(s.number)
		site.Wire.stop()
		site.Shape, site.Wire = shape, process{}
		if shape == (Shape{}) {
			err = wiring.Unsplice(world, port, "wan")
		} else {
			site.Wire, err = startWire(*r, world, port, "wan", shape)
		}
		if err != nil {
			return err
		}
		r.Sites[s.Name()] = site
		return wiring.SetWAN(world, s.number, !site.Cut)
	})
}

// startWire puts a wire between a port and its bridge. The process is in the lab's control groups, so nothing is lost when we die
// before it is on record: a wire that nobody knows of ends when its interfaces are removed.
func startWire(lab record, ns wiring.Namespace, port, bridge string, shape Shape) (process, error) {
	near, far, err := wiring.Splice(ns, port, bridge)
	if err != nil {
		return process{}, err
	}
	text, err := json.Marshal(shape)
	if err != nil {
		return process{}, err
	}
	h := helper{args: []string{"wire", near, far, string(text)}, in: ns}
	p, err := h.start(lab, func(process) error { return nil })
	if err != nil {
		return process{}, errors.Join(fmt.Errorf("start wire: %w", err), wiring.Unsplice(ns, port, bridge))
	}
	return p, nil
}

// stop ends a helper process.
func (p process) stop() {
	if p.alive() {
		_ = unix.Kill(p.PID, unix.SIGKILL)
	}
}

// Wire is the body of the process that connects two interfaces. near is the end towards the node or site.
func Wire(ctx context.Context, in io.Reader, out io.WriteCloser, near, far, shape string) error {
	if _, err := bufio.NewReader(in).ReadString('\n'); err != nil {
		return errors.New("the command that starts the wire ended")
	}
	var s Shape
	if err := json.Unmarshal([]byte(shape), &s); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "ok"); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return wire.Run(ctx, near, far, s.From, s.To)
}
