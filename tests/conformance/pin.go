//go:build pin

// Package conformance pins the upstream conformance suite of Kubernetes, as a module of its own: the suite pulls in modules that the
// product has no use for. The suite is the test binary of the package imported below, and the programs of its images are the tools of
// go.mod. This file is never compiled; it makes go.mod and go.sum cover the suite and its tests.
//
// scripts/conformance runs it all; docs/CONFORMANCE.md has the results.
package conformance

import _ "k8s.io/kubernetes/test/e2e"
