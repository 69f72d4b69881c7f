//go:build tools

// Package programs pins what scripts/bench-node builds to measure against. It is a module of its own, so that none of it gets into atoll.
package programs

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
