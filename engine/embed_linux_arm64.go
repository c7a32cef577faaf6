package engine

import "embed"

// The pattern matches the committed digest even where the library itself has
// not been packed yet, so a build without it compiles and says what to run.
//
//go:embed runtime/libonnxruntime-linux-arm64.*
var packed embed.FS
