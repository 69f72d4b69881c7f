package cni

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// podCIDR returns the IPv4 pod range of a node object.
func podCIDR(object any) (netip.Prefix, bool) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return netip.Prefix{}, false
	}
	for _, text := range append([]string{node.Spec.PodCIDR}, node.Spec.PodCIDRs...) {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
