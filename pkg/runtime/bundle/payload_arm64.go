package bundle

import "embed"

// The whole folder is embedded rather than the two files, so that the package compiles before the first build of the payload.
//
//go:embed payload/arm64
var carried embed.FS
