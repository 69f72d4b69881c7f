package node

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	discoveryapply "k8s.io/client-go/applyconfigurations/discovery/v1"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/run"
)

const fieldManager = "atoll"

// publishDNS adds this node to the Service kube-dns. The slice belongs to the node object, so that it goes when the node does.
func publishDNS(ctx context.Context, client kubernetes.Interface, nodeName string, addr netip.Addr) error {
	node, err := client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the node object: %w", err)
	}
	port := func(name string, protocol corev1.Protocol) *discoveryapply.EndpointPortApplyConfiguration {
		return discoveryapply.EndpointPort().WithName(name).WithPort(53).WithProtocol(protocol)
	}
	slice := discoveryapply.EndpointSlice("kube-dns-"+nodeName, metav1.NamespaceSystem).
		WithLabels(map[string]string{discoveryv1.LabelServiceName: "kube-dns", discoveryv1.LabelManagedBy: "atoll"}).
		WithOwnerReferences(metaapply.OwnerReference().WithAPIVersion("v1").WithKind("Node").WithName(nodeName).WithUID(node.UID)).
		WithAddressType(discoveryv1.AddressTypeIPv4).
		WithEndpoints(discoveryapply.Endpoint().WithAddresses(addr.String()).WithNodeName(nodeName).
			WithConditions(discoveryapply.EndpointConditions().WithReady(true))).
		WithPorts(port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP))
	_, err = client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).Apply(ctx, slice, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// readiness waits until the node object says Ready, tells the init system, and marks a server as one.
func (n *Node) readiness(began time.Time) run.Component {
	return run.Func("node", func(ctx context.Context, ready func()) error {
		patience := time.AfterFunc(startPatience, n.kubeLog.Settle)
		n.awaitReady(ctx)
		patience.Reset(5 * time.Second)
		if ctx.Err() != nil {
			return nil
		}
		n.log.Info("node is ready", "node", n.cfg.NodeName, "address", n.addr, "after", time.Since(began).Round(time.Millisecond))
		ready()
		// Only now does the init system call the service started. Without one this does nothing.
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			n.log.Warn("cannot tell the init system that the node is ready", "err", err)
		}
		if n.cfg.Role == config.Server {
			n.markServer(ctx)
		}
		<-ctx.Done()
		return nil
	})
}

func (n *Node) awaitReady(ctx context.Context) {
	for ctx.Err() == nil {
		node, err := n.asKubelet.CoreV1().Nodes().Get(ctx, n.cfg.NodeName, metav1.GetOptions{ResourceVersion: "0"})
		if err == nil && nodeReady(node) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func nodeReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// markServer sets the role label; the kubelet may not set it itself. It tries until it succeeds.
func (n *Node) markServer(ctx context.Context) {
	const label = "node-role.kubernetes.io/control-plane"
	patch := []byte(`{"metadata":{"labels":{"` + label + `":"true"}}}`)
	for ctx.Err() == nil {
		_, err := n.asController.CoreV1().Nodes().Patch(ctx, n.cfg.NodeName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		if err == nil {
			return
		}
		n.log.Debug("cannot label the node yet", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}
