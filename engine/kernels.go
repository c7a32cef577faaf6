package engine

import (
	"fmt"
	"unsafe"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/vigie/vigie/engine/kernel"
	"github.com/vigie/vigie/onnx"
)

// Kernels reports whether sessions of this process can run the operators of
// package kernel: nil, or an error that wraps kernel.ErrAbsent and says why not.
func Kernels() error {
	if err := start(); err != nil {
		return err
	}
	return kernel.Prepare("")
}

// addKernels registers the kernels with the options of a session for m, if m
// uses them.
func addKernels(m *onnx.Model, options *ort.SessionOptions) error {
	if m.Opsets[kernel.Domain] == 0 {
		return nil
	}
	if err := kernel.Prepare(""); err != nil {
		return fmt.Errorf("the graph has operators of this engine's own: %w", err)
	}
	// The binding has no call for this. Its options are a struct of one
	// pointer, which TestTheKernelsAreReachedThroughTheBinding holds it to.
	return kernel.Register(*(*unsafe.Pointer)(unsafe.Pointer(options)))
}
