// Package manifests holds the objects that every site has from the start. Package deploy applies them.
//
// A file is a part that --disable may name: coredns.yaml is coredns. %{NAME}% is replaced by a value of the site.
package manifests

import "embed"

// Files are the manifests by file name.
//
//go:embed *.yaml
var Files embed.FS
