package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/train"
)

// private is the state of a DP-SGD loop: flat clipping to norm 1, noise of
// deviation 1 from crypto/rand, AdamW on their sum over the batch size. The
// batch is split over the processors, unless kernels share out each operator.
type private struct {
	runner
	weights, mean [][]float32
	sum           [][]float64
	decay         []bool
	parts         []engine.Binding
	sums          [][][]float32 // clipped sums by part and weight
	optimiser     train.AdamW
	noise         *dp.Gaussian
	batch         int
}

func (w work) openPrivate(n *train.Network) (contender, error) {
	p := &private{runner: runner{title: w.system()}, optimiser: train.AdamW{Decay: 0.01, Kernels: w.kernels > 0}, noise: dp.NewGaussian(), batch: w.batch}
	if err := p.open(w, n); err != nil {
		p.close()
		return nil, err
	}
	p.step = p.update
	return p, nil
}

func (p *private) open(w work, n *train.Network) error {
	parts, options := runtime.NumCPU(), engine.Options{Threads: 1}
	if w.kernels > 0 {
		parts, options = 1, engine.Options{Threads: runtime.NumCPU()}
	}
	size := w.batch / parts
	if size*parts != w.batch {
		return fmt.Errorf("%d examples do not divide over %d processors", w.batch, parts)
	}
	loss, err := autodiff.SoftmaxCrossEntropy(n.Model, n.Logits)
	if err != nil {
		return err
	}
	g, err := autodiff.Clip(loss.Model, autodiff.ClipRequest{Loss: loss.Each, Weights: n.Weights, Batch: int64(size), Keep: []string{loss.Each}, WeightsAsInputs: true, Kernels: w.kernels})
	if err != nil {
		return err
	}
	for _, name := range n.Weights {
		w := n.Model.Graph.Initializer(name)
		values, err := onnx.Values[float32](w)
		if err != nil {
			return err
		}
		p.weights, p.decay = append(p.weights, values), append(p.decay, len(w.Dims) > 1)
		p.sum, p.mean = append(p.sum, make([]float64, len(values))), append(p.mean, make([]float32, len(values)))
	}
	for range parts {
		x, y := w.examples(size)
		mask := make([]float32, size)
		for i := range mask {
			mask[i] = 1
		}
		inputs := map[string]engine.Tensor{
			n.Input: x, loss.Target: y,
			g.Bound: engine.Float32([]int64{1}, []float32{1}), g.Mask: engine.Float32([]int64{int64(size)}, mask),
		}
		outputs := map[string]engine.Tensor{}
		for _, out := range g.Model.Graph.Outputs {
			var shape []int64
			for _, d := range out.Shape {
				shape = append(shape, d.Value)
			}
			if outputs[out.Name], err = engine.Zeros(out.Type, shape...); err != nil {
				return err
			}
		}
		var sums [][]float32
		for i, name := range n.Weights {
			inputs[name] = engine.Float32(n.Model.Graph.Initializer(name).Dims, p.weights[i])
			sum, err := engine.Values[float32](outputs[g.Of[name]])
			if err != nil {
				return err
			}
			sums = append(sums, sum)
		}
		binding, err := p.bind(g.Model, options, inputs, outputs)
		if err != nil {
			return err
		}
		p.parts, p.sums = append(p.parts, binding), append(p.sums, sums)
	}
	return nil
}

// update takes one step.
func (p *private) update(ctx context.Context) error {
	errs := make([]error, len(p.parts))
	var running sync.WaitGroup
	for k, part := range p.parts {
		running.Go(func() { errs[k] = part.Run(ctx) })
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	for i, sum := range p.sum {
		clear(sum)
		for _, part := range p.sums {
			dp.Accumulate(sum, part[i])
		}
		if err := p.noise.Perturb(p.mean[i], sum, 1, 1/float64(p.batch)); err != nil {
			return err
		}
	}
	p.optimiser.Step(rate, p.weights, p.mean, p.decay)
	return nil
}
