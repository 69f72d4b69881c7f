package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/atollhq/atoll/tests/conformance/images"
)

// cluster is what the tests run on.
type cluster struct {
	kubeconfig, kubectl string
	version             string   // of the kubelets
	names               []string // of the nodes
}

// findCluster returns the cluster that the options name; it builds the lab when that is not up.
func findCluster(ctx context.Context, home string, o options, archive string) (*cluster, error) {
	c := &cluster{kubeconfig: o.kubeconfig, kubectl: filepath.Join(home, "out/conformance-bin/kubectl")}
	// The binary is kubectl when called by that name.
	if err := os.Remove(c.kubectl); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.Symlink(o.binary, c.kubectl); err != nil {
		return nil, err
	}
	if c.kubeconfig != "" {
		return c, nil
	}
	if _, err := os.Stat(filepath.Join(o.dir, "lab.json")); errors.Is(err, os.ErrNotExist) {
		step("lab: up in %s", o.dir)
		if err := lab(ctx, home, o, "up", "--id", fmt.Sprint(o.id), "--nodes", fmt.Sprint(o.nodes), "--binary", o.binary, "--no-images", "--image", archive); err != nil {
			return nil, err
		}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(home, "scripts/lab"), "--dir", o.dir, "kubeconfig", o.site).Output()
	if err != nil {
		return nil, fmt.Errorf("scripts/lab kubeconfig %s: %w", o.site, err)
	}
	c.kubeconfig = strings.TrimSpace(string(out))
	return c, nil
}

// check waits until every node is Ready and has all images. A test whose image is missing would wait for it for 15 minutes.
func (c *cluster) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	said := ""
	for {
		problem := c.look(ctx)
		if problem == nil {
			return nil
		}
		if text := problem.Error(); text != said {
			step("waiting: %s", text)
			said = text
		}
		select {
		case <-ctx.Done():
			return problem
		case <-time.After(2 * time.Second):
		}
	}
}

func (c *cluster) look(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, c.kubectl, "--kubeconfig", c.kubeconfig, "get", "nodes", "-o", "json").Output()
	if err != nil {
		return fmt.Errorf("get nodes: %w", err)
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
				Images     []struct{ Names []string }
				NodeInfo   struct{ KubeletVersion string }
			}
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return fmt.Errorf("read nodes: %w", err)
	}
	if len(list.Items) == 0 {
		return errors.New("the cluster has no node")
	}
	c.names = nil
	for _, n := range list.Items {
		c.names = append(c.names, n.Metadata.Name)
		c.version = n.Status.NodeInfo.KubeletVersion
		ready := false
		for _, condition := range n.Status.Conditions {
			ready = ready || condition.Type == "Ready" && condition.Status == "True"
		}
		if !ready {
			return fmt.Errorf("node %s is not Ready", n.Metadata.Name)
		}
		var present []string
		for _, image := range n.Status.Images {
			present = append(present, image.Names...)
		}
		if missing := images.Missing(present); len(missing) > 0 {
			return fmt.Errorf("node %s lacks images: %s", n.Metadata.Name, strings.Join(missing, ", "))
		}
	}
	return nil
}
