package main

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/train"
)

const rate = 1e-4

// set is a batch of images of noise, with labels that alternate.
func (w work) set() *train.Set {
	s := &train.Set{Name: "noise", Channels: int(w.input[0]), Rows: int(w.input[1]), Columns: int(w.input[2]), Classes: classes}
	s.Pixels = make([]uint8, w.batch*s.Channels*s.Rows*s.Columns)
	rng := rand.New(rand.NewPCG(2, 0))
	for i := range s.Pixels {
		s.Pixels[i] = uint8(rng.Uint32())
	}
	for i := range w.batch {
		s.Labels = append(s.Labels, i%classes)
	}
	return s
}

// openTraining takes the steps of package train, all that belongs to one:
// filling the batch, gradients, running statistics and the update.
func (w work) openTraining(n *train.Network) (contender, error) {
	set := w.set()
	stepper, err := train.NewStepper(train.Config{
		Network: n, Train: set, Validation: set,
		Recipe: train.Recipe{Epochs: 1, Batch: w.batch, Parts: runtime.NumCPU(), Decay: 0.01, Seed: 1, Kernels: kernels()},
	})
	if err != nil {
		return nil, err
	}
	at := make([]int, w.batch)
	for i := range at {
		at[i] = i
	}
	return &runner{title: w.system(), free: []func() error{stepper.Close}, step: func(ctx context.Context) error {
		_, err := stepper.Step(ctx, at, rate)
		return err
	}}, nil
}

// kernels is what our side trains with: the engine's own operators where this
// machine has them, unless the environment turns them off (VIGIE_KERNELS=off).
func kernels() int {
	if n, err := strconv.Atoi(os.Getenv("BENCH_TERMS")); err == nil {
		return n
	}
	return engine.KernelTerms()
}
