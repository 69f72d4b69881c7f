package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/atollhq/atoll/tests/lab/internal/wiring"
)

// Site is one shop: a switch, a router and its nodes.
type Site struct {
	lab    *Lab
	number int
}

// Name is "s1", "s2", ...
func (s *Site) Name() string { return fmt.Sprintf("s%d", s.number) }

// Node returns node number, counted from 1.
func (s *Site) Node(number int) *Node { return &Node{site: s, number: number} }

// Nodes returns all nodes of the site, in order.
func (s *Site) Nodes() []*Node {
	r, err := s.lab.record()
	if err != nil {
		return nil
	}
	var nodes []*Node
	for n := range r.Options.Nodes {
		nodes = append(nodes, s.Node(n+1))
	}
	return nodes
}

func (s *Site) dir() string { return filepath.Join(s.lab.dir, s.Name()) }

// CutWAN takes the site's line down at the provider: all links stay up, nothing comes through. HealWAN undoes it, and ShapeWAN.
func (s *Site) CutWAN() error { return s.setWAN(true) }
func (s *Site) HealWAN() error {
	return errors.Join(s.ShapeWAN(Shape{}), s.setWAN(false))
}

func (s *Site) setWAN(cut bool) error {
	r, err := s.lab.record()
	if err != nil {
		return err
	}
	world, err := r.namespace("world")
	if err != nil {
		return err
	}
	if err := wiring.SetWAN(world, s.number, !cut); err != nil {
		return err
	}
	return s.lab.update(func(r *record) error {
		site := r.Sites[s.Name()]
		site.Cut = cut
		r.Sites[s.Name()] = site
		return nil
	})
}

// CutLAN makes the whole switch go silent: no node of the site reaches another, or the router. HealLAN undoes it, and ShapeLAN.
func (s *Site) CutLAN() error  { return s.eachNode((*Node).CutLAN) }
func (s *Site) HealLAN() error { return s.eachNode((*Node).HealLAN) }

// ShapeLAN is ShapeLAN of every node.
func (s *Site) ShapeLAN(shape Shape) error {
	return s.eachNode(func(n *Node) error { return n.ShapeLAN(shape) })
}

func (s *Site) eachNode(f func(*Node) error) error {
	var problems []error
	for _, n := range s.Nodes() {
		problems = append(problems, f(n))
	}
	return errors.Join(problems...)
}

// Kubeconfig writes a kubeconfig for the site's administrator that works on the host, and returns its path.
// It is made from the one that the first server wrote.
func (s *Site) Kubeconfig() (string, error) {
	source, err := s.Node(1).ReadFile(adminKubeconfig)
	if err != nil {
		return "", fmt.Errorf("read the administrator's kubeconfig of %s/n1: %w", s.Name(), err)
	}
	data, err := withServer(source, fmt.Sprintf("https://%s:6443", s.Node(1).Address()))
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir(), "kubeconfig.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", fmt.Errorf("write kubeconfig: %w", err)
	}
	return path, nil
}

// API returns a client for the site's API server on node n, which must be a server. It works whatever links are cut: connections
// are made from inside the node to itself.
func (s *Site) API(n *Node) (*API, error) {
	config, err := n.ReadFile(adminKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the administrator's kubeconfig of %s: %w", n.Name(), err)
	}
	return newAPI(config, n)
}

// anyAPI returns a client for the first server that has a kubeconfig and runs.
func (s *Site) anyAPI(ctx context.Context) (*API, error) {
	err := errors.New("no server runs")
	for _, n := range s.Nodes() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		status, statusErr := n.Status(ctx)
		cancel()
		if statusErr != nil || status.State != StateRunning || !n.server() {
			continue
		}
		var api *API
		if api, err = s.API(n); err == nil {
			return api, nil
		}
	}
	return nil, err
}

// Cuts names what is wrong with the site's line: "site-wan" when it is cut, "site-wan-shaped".
func (s *Site) Cuts() []string {
	r, err := s.lab.record()
	if err != nil {
		return nil
	}
	var cuts []string
	if r.Sites[s.Name()].Cut {
		cuts = append(cuts, "site-wan")
	}
	if r.Sites[s.Name()].Shape != (Shape{}) {
		cuts = append(cuts, "site-wan-shaped")
	}
	return cuts
}
