package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx/autodiff"
)

// gradients charges the ledger, draws a batch, and leaves the noisy mean of the
// clipped gradients in t.gradient: (Σ clipped + noise) / expected batch. The
// training loss is not released, because nothing was paid for it.
func (p *private) gradients(ctx context.Context, t *trainer) error {
	if p.state == nil {
		return errors.New("a private run draws its own batches: use Run")
	}
	at := p.ledger.Steps() - p.state.Before // numbers the views' augmentations
	if p.left() <= 0 {
		return ErrBudget
	}
	multiplier, err := p.multiplier()
	if err != nil {
		return err
	}
	if err := p.ledger.Charge(dp.Run{Sigma: p.state.Sigma, Rate: p.rate, Steps: 1}); err != nil {
		return err
	}
	drawn, err := p.sampler.Draw(p.records, p.rate)
	if err != nil {
		return err
	}
	within, err := p.step.run(ctx, t, drawn, at, p.state.Clip.Norm)
	if err != nil {
		return err
	}
	expected := p.rate * float64(p.records)
	for i, sum := range p.step.sums {
		if err := p.noise.Perturb(t.gradient[i], sum, multiplier*p.state.Clip.Norm, 1/expected); err != nil {
			return err
		}
		for _, v := range t.gradient[i] {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return ErrDiverged
			}
		}
	}
	return p.state.Clip.Move(p.noise, within, len(drawn), expected)
}

// clippedStep sums clipped gradients of any number of images in microbatches of
// one size; places that are left over are masked out. Memory is that of a
// microbatch for each part, whatever the batch.
type clippedStep struct {
	views, images int // of a microbatch
	groups        int
	parts         []*clippedPart
	sums          [][]float64 // by weight
}

type clippedPart struct {
	session   engine.Session
	binding   engine.Binding
	inputs    []float32 // [images·views, example shape…]
	targets   []float32
	bound     []float32 // [groups]
	mask      []float32 // [images]
	norms     []float32 // [images, groups]
	gradients [][]float32
	sums      [][]float64
}

func newClippedStep(t *trainer, spec *Privacy) (*clippedStep, error) {
	n := t.network
	loss, err := t.loss.appendTo(n.Model, n.heads()...)
	if err != nil {
		return nil, err
	}
	s := &clippedStep{views: spec.Views, images: spec.Micro / spec.Views, groups: 1}
	var groups [][]string
	if spec.Clipping == ClipLayer {
		s.groups = len(n.Weights)
		for _, name := range n.Weights {
			groups = append(groups, []string{name})
		}
	}
	rows := s.images * s.views
	clip, err := autodiff.Clip(loss.Model, autodiff.ClipRequest{
		Loss: loss.Each, Weights: n.Weights, Groups: groups, Batch: int64(rows), Views: int64(s.views), WeightsAsInputs: true, Kernels: t.config.Kernels,
	})
	if err != nil {
		return nil, err
	}
	example := t.example()
	parts, options := t.config.Parts, engine.Options{Threads: 1}
	if t.config.Kernels > 0 { // they share out each operator themselves
		parts, options = 1, engine.Options{Threads: runtime.NumCPU()}
	}
	for range parts {
		p := &clippedPart{
			inputs: make([]float32, rows*int(product(example))), targets: make([]float32, rows*t.outputs),
			bound: make([]float32, s.groups), mask: make([]float32, s.images), norms: make([]float32, s.images*s.groups),
			gradients: zerosLike(t.state.Weights),
		}
		s.parts = append(s.parts, p)
		inputs := map[string]engine.Tensor{
			n.Input:     engine.Float32(append([]int64{int64(rows)}, example...), p.inputs),
			loss.Target: engine.Float32([]int64{int64(rows), int64(t.outputs)}, p.targets),
			clip.Bound:  engine.Float32([]int64{int64(s.groups)}, p.bound),
			clip.Mask:   engine.Float32([]int64{int64(s.images)}, p.mask),
		}
		outputs := map[string]engine.Tensor{clip.Norms: engine.Float32([]int64{int64(s.images), int64(s.groups)}, p.norms)}
		for i, name := range n.Weights {
			shape := n.Model.Graph.Initializer(name).Dims
			inputs[name] = engine.Float32(shape, t.state.Weights[i])
			outputs[clip.Of[name]] = engine.Float32(shape, p.gradients[i])
			p.sums = append(p.sums, make([]float64, len(t.state.Weights[i])))
		}
		if p.session, err = engine.Open(clip.Model, options); err == nil {
			p.binding, err = p.session.Bind(inputs, outputs)
		}
		if err != nil {
			s.close()
			return nil, err
		}
	}
	s.sums = s.parts[0].sums
	return s, nil
}

func (s *clippedStep) close() {
	for _, p := range s.parts {
		if p.binding != nil {
			p.binding.Close()
		}
		if p.session != nil {
			p.session.Close()
		}
	}
}

// run leaves the clipped sums of the images at the given positions in s.sums and
// says how many were no longer than norm. Microbatch j is part j mod parts', so
// that the sum does not depend on who is faster.
func (s *clippedStep) run(ctx context.Context, t *trainer, drawn []int, at int, norm float64) (within int, err error) {
	bound := float32(norm / math.Sqrt(float64(s.groups)))
	if float64(bound) > norm/math.Sqrt(float64(s.groups)) { // to the nearest is not below
		bound = math.Nextafter32(bound, 0)
	}
	var running sync.WaitGroup
	counts, errs := make([]int, len(s.parts)), make([]error, len(s.parts))
	for k, p := range s.parts {
		running.Go(func() {
			for i := range p.bound {
				p.bound[i] = bound
			}
			for _, sum := range p.sums {
				clear(sum)
			}
			for from := k * s.images; from < len(drawn) && errs[k] == nil; from += len(s.parts) * s.images {
				counts[k], errs[k] = s.add(ctx, t, p, drawn[from:min(len(drawn), from+s.images)], at, counts[k])
			}
		})
	}
	running.Wait()
	for k, p := range s.parts {
		if errs[k] != nil {
			return 0, fmt.Errorf("clipped gradients: %w", errs[k])
		}
		within += counts[k]
		for i, sum := range p.sums {
			if k == 0 {
				continue
			}
			for j, v := range sum {
				s.sums[i][j] += v
			}
		}
	}
	return within, nil
}

// add computes one microbatch and adds it to the part's sums.
func (s *clippedStep) add(ctx context.Context, t *trainer, p *clippedPart, images []int, at, within int) (int, error) {
	if err := ctx.Err(); err != nil {
		return within, err
	}
	pixels := len(p.inputs) / (s.images * s.views)
	for i := range s.images {
		p.mask[i] = 0
		if i >= len(images) { // what is left there from before counts nothing
			continue
		}
		p.mask[i] = 1
		for v := range s.views {
			row := i*s.views + v
			t.augmented(p.inputs[row*pixels:(row+1)*pixels], at*s.views+v, images[i])
			target := p.targets[row*t.outputs : (row+1)*t.outputs]
			clear(target)
			t.label(target, images[i], 1)
		}
	}
	if err := p.binding.Run(ctx); err != nil {
		return within, err
	}
	for i := range images {
		if s.groups == 1 && p.norms[i] <= p.bound[0] {
			within++
		}
	}
	for i, g := range p.gradients {
		dp.Accumulate(p.sums[i], g)
	}
	return within, nil
}
