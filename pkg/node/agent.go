package node

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/atollhq/atoll/pkg/formation"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
)

// RunAgent runs a node without control plane until ctx ends or a part fails that cannot be started again.
func (n *Node) RunAgent(ctx context.Context) error {
	began := time.Now()
	if err := n.prepare(ctx); err != nil {
		return err
	}
	if err := <-n.machine; err != nil {
		return err
	}
	secret, err := n.cfg.JoinToken()
	if err != nil {
		return err
	}
	var token pki.Token
	if !secret.IsEmpty() {
		if token, err = pki.ParseToken(secret.Reveal()); err != nil {
			return err
		}
	}
	agent := formation.NewAgent(formation.AgentConfig{
		DataDir: n.cfg.DataDir, Server: n.cfg.Server, Token: token, NodeName: n.cfg.NodeName, Clock: n.clock,
		Addresses: func() []netip.Addr { return append([]netip.Addr{n.addr}, n.cfg.NodeExternalIP...) },
	}, n.log)
	n.troubles = append(n.troubles, asTrouble(agent.Problem), asTrouble(n.clock.Problem))

	n.group.Log = n.log
	n.group.Add(n.statusPage(began))
	// The rest can only be made when the cluster's facts are known, so this part runs a group of its own.
	n.group.Add(run.Func("member", func(ctx context.Context, ready func()) error {
		cluster, err := agent.Join(ctx)
		if err != nil {
			return err
		}
		ready()
		return n.runMember(ctx, agent, cluster, began)
	}), run.StopWithin(12*time.Second))
	return n.group.Run(ctx)
}

// runMember runs the parts of an agent that has joined.
func (n *Node) runMember(ctx context.Context, agent *formation.Agent, cluster formation.Cluster, began time.Time) error {
	if err := n.adopt(cluster); err != nil {
		return err
	}
	members := run.Group{Log: n.log}
	n.mu.Lock()
	n.member = &members
	n.mu.Unlock()
	members.Add(agent.Keeper(), run.Restartable())
	joined := members.Add(run.Func("site", func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		return nil
	}))
	unpacked, loader := n.addRuntime(&members)
	n.addWorkload(&members, unpacked, loader, joined, joined)
	members.Add(n.sharedInformers(), run.Needs(joined))
	members.Add(n.readiness(began), run.Needs(joined))
	return members.Run(ctx)
}

// adopt takes over what the site decides for all its nodes.
func (n *Node) adopt(c formation.Cluster) error {
	if len(c.ClusterCIDRs) == 0 || len(c.ServiceCIDRs) == 0 || len(c.ClusterDNS) == 0 {
		return remedy.Wrap(fmt.Errorf("the server's answer lacks the address ranges of the cluster"), "bring server and agent to the same version of atoll")
	}
	n.cfg.ClusterCIDR, n.cfg.ServiceCIDR, n.cfg.ClusterDNS = c.ClusterCIDRs[0], c.ServiceCIDRs[0], c.ClusterDNS[0]
	n.cfg.ClusterDomain, n.cfg.FlannelBackend = c.Domain, c.FlannelBackend
	server := n.cfg.Server
	if len(c.APIServers) > 0 {
		server = c.APIServers[0]
	}
	if err := pki.WriteNodeKubeconfigs(n.cfg.DataDir, server); err != nil {
		return err
	}
	return n.connectNode()
}
