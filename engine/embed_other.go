//go:build !(linux && amd64) && !(linux && arm64) && !(darwin && arm64)

package engine

import "embed"

// ONNX Runtime publishes no library for this platform in the package we embed.
var packed embed.FS
