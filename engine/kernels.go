package engine

import (
	"fmt"
	"runtime"
	"sync"
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
	// The planned block of memory comes on top of what the first run took, and
	// kernels' shapes are not known to the plan.
	if err := options.SetMemPattern(false); err != nil {
		return err
	}
	// The binding has no call for this. Its options are a struct of one
	// pointer, which TestTheKernelsAreReachedThroughTheBinding holds it to.
	return kernel.Register(*(*unsafe.Pointer)(unsafe.Pointer(options)))
}

// Moments are the numbers of one AdamW step; see AdamW.
type Moments = kernel.Moments

// AdamW takes one step on w, and on its moments m and v, along g, on all
// processors. Kernels must have returned nil.
func AdamW(s Moments, w, g, m, v []float32) {
	const worth = 1 << 15 // weights for a goroutine
	parts := min(runtime.NumCPU(), len(w)/worth+1)
	var running sync.WaitGroup
	for i := range parts {
		from, to := len(w)*i/parts, len(w)*(i+1)/parts
		take := func() { kernel.AdamW(s, w[from:to], g[from:to], m[from:to], v[from:to]) }
		if i == parts-1 {
			take()
		} else {
			running.Go(take)
		}
	}
	running.Wait()
}

// KernelTerms is how many terms graphs should ask of the kernels here
// (autodiff.Request.Kernels): 3 where there is AMX and 1 where there is AVX-512
// alone, with both of which results are as exact as float32, or 0 where there are
// no kernels.
func KernelTerms() int {
	if Kernels() != nil {
		return 0
	}
	return kernel.Terms()
}

// CheckKernels reports whether graphs that ask for so many terms run here.
func CheckKernels(terms int) error {
	switch {
	case terms == 0:
		return nil
	case terms < 0 || terms > 3:
		return fmt.Errorf("engine: kernels of %d terms: want 1, 2 or 3", terms)
	}
	if err := Kernels(); err != nil {
		return err
	}
	if terms > 1 && kernel.Terms() < 2 {
		return fmt.Errorf("engine: kernels of %d terms: %w: this processor has no AMX; 1 term needs AVX-512 alone", terms, kernel.ErrAbsent)
	}
	return nil
}
