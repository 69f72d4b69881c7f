package bundle

import "embed"

// The whole folder is embedded rather than the two files, so that the package compiles before the first build of the payload.
//
//go:embed payload/amd64
var carried embed.FS
