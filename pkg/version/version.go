// Package version says which atoll this is and what it is made of.
//
// scripts/build stamps Version and Commit from git through the linker; a plain `go build` leaves the values below.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Set by the linker, never by code.
var (
	// Version is what `git describe` says, such as v0.3.0 or v0.3.0-12-gabc1234.
	Version = "v0.0.0-dev"
	// Commit is the full hash, with -dirty appended when files had been changed.
	Commit = "unknown"
)

// GoVersion returns the version of Go that atoll was built with.
func GoVersion() string { return runtime.Version() }

// String returns one line for people: "atoll v0.3.0 (commit abc1234, go1.26.8, linux/amd64)".
func String() string {
	commit := Commit
	if len(commit) == len("da39a3ee5e6b4b0d3255bfef95601890afd80709") {
		commit = commit[:12]
	}
	return fmt.Sprintf("atoll %s (commit %s, %s, %s/%s)", Version, commit, GoVersion(), runtime.GOOS, runtime.GOARCH)
}

// Of returns the version of a linked Go module, such as k8s.io/kubernetes, or "" when it is not linked.
func Of(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path != module {
			continue
		}
		if dep.Replace != nil {
			return dep.Replace.Version
		}
		return dep.Version
	}
	return ""
}
