package onnx

import "errors"

// What a graph may be at most. A file that asks for more is refused before
// memory is set aside for it.
const (
	MaxBytes = 1<<31 - 1 // of a file: protobuf's own bound
	MaxItems = 1 << 21   // nodes, their inputs and outputs, attributes, values and tensors together
	MaxDepth = 16        // of graphs within graphs
	MaxRank  = 32        // dimensions of a tensor

	// MaxElements of a tensor that shape inference accepts, 2⁴⁰: far beyond what
	// any machine holds, and far below what overflows.
	MaxElements = 1 << 40
)

// ErrCorrupt says that the bytes are not an ONNX model.
var ErrCorrupt = errors.New("not a well-formed ONNX model")

// ErrUnsupported says that the model is legal ONNX of a kind that this package
// refuses to take part in; the message names the feature.
var ErrUnsupported = errors.New("unsupported ONNX feature")

// ErrLimit says that the model is larger than the limits of this package.
var ErrLimit = errors.New("the ONNX model is too large")
