package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/atollhq/atoll/tests/conformance/images"
)

// registryPort is where this program serves the images while tests run. It is fixed because the nodes' settings name it.
const registryPort = "5000"

// offerPulls serves the images to the nodes of the lab and tells the nodes to look there first: a test wants to see a pull.
// A node that does not know yet is restarted. The returned function ends the service.
func (c *cluster) offerPulls(ctx context.Context, home string, o options, archive string) (stop func(), err error) {
	host, err := c.hostAddress(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the host's address in the lab: %w", err)
	}
	registry, err := images.OpenRegistry(archive)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(host, registryPort)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve images: %w", err), registry.Close())
	}
	server := &http.Server{Handler: registry, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	stop = func() {
		_ = server.Close()
		<-done
		_ = registry.Close()
	}
	for _, node := range c.names {
		if err := tell(ctx, home, o, o.site+"/"+node, fmt.Sprintf("mirrors:\n  registry.k8s.io:\n    endpoint: [\"http://%s\"]\n", address)); err != nil {
			stop()
			return nil, err
		}
	}
	return stop, nil
}

// hostAddress is the address that the cluster's nodes know this machine by.
func (c *cluster) hostAddress(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, c.kubectl, "--kubeconfig", c.kubeconfig, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}").Output()
	if err != nil {
		return "", err
	}
	server, err := url.Parse(strings.TrimSpace(string(out)))
	if err != nil {
		return "", err
	}
	// Nothing is sent: the kernel looks up the route.
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", server.Host)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

// tell writes the settings for registries to a node and restarts it when they are new.
func tell(ctx context.Context, home string, o options, node, settings string) error {
	const file = "/etc/atoll/registries.yaml"
	run := func(script string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, filepath.Join(home, "scripts/lab"), "--dir", o.dir, "exec", node, "--", "sh", "-c", script)
		return cmd.Output()
	}
	old, err := run("cat " + file + " 2>/dev/null || true")
	if err != nil {
		return fmt.Errorf("read %s of %s: %w", file, node, err)
	}
	if bytes.Equal(bytes.TrimSpace(old), bytes.TrimSpace([]byte(settings))) {
		return nil
	}
	if _, err := run(fmt.Sprintf("mkdir -p /etc/atoll && printf %%s '%s' >%s", settings, file)); err != nil {
		return fmt.Errorf("write %s of %s: %w", file, node, err)
	}
	step("lab: restart %s, which now pulls from here", node)
	return lab(ctx, home, o, "restart", node)
}
