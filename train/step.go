package train

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// This file is the seam between learning and computing. A step turns one batch
// into its loss and the gradients of the weights, and nothing else: which
// examples are in the batch, what the optimiser does with the gradients and when
// the run ends are decided above it.

// batch is what a step is computed on. A step reads it, the trainer fills it.
type batch struct {
	inputs  []float32 // [N, example shape…]
	targets []float32 // [N, outputs]: a distribution over classes, or a probability for each label
	weights []float32 // [N]: weight of each example's loss; they sum to 1 for a mean

	perturbed []float32 // as inputs: what TRADES compares with them; nil without
}

// stepSpec says what to compute and where. The slices belong to the trainer and
// keep their place in memory for the life of the step.
type stepSpec struct {
	network *Network
	loss    Loss
	example []int64 // shape of one example
	outputs int     // width of the logits
	size    int     // examples of a batch
	parts   int     // equal parts to compute a batch in, where the network allows it
	kernels int     // Recipe.Kernels
	beta    float64 // of TRADES; 0: the loss alone

	batch     *batch      // read at every run
	weights   [][]float32 // in the order of network.Weights; read at every run
	gradients [][]float32 // of Σ weights·loss; filled by every run
	// statistics are mean and biased variance of the batch for each batch
	// normalisation, [mean, variance, mean, variance, …] in the order of
	// network.norms; filled by every run.
	statistics [][]float32
}

// step computes gradients of batches of one size.
type step interface {
	// run fills the gradients and statistics of the specification and returns
	// Σ weights·loss. A step is for one goroutine at a time.
	run(ctx context.Context) (loss float64, err error)
	close() error
}

// newStep makes the step that a run uses.
func newStep(s stepSpec) (step, error) { return newSplitStep(s) }

// splitStep splits every batch into equal parts that run side by side in
// sessions of one thread, and sums their gradients in the order of the parts:
// the result does not depend on how many processors there are. Batch
// normalisation needs the statistics of the whole batch, so a network with it
// is one part, whose session uses up to two threads.
type splitStep struct {
	spec  stepSpec
	parts []*part
}

// part computes the gradient of one part of every batch.
type part struct {
	session   engine.Session
	binding   engine.Binding
	loss      []float32   // [1]
	gradients [][]float32 // the specification's own if there is one part
}

func newSplitStep(s stepSpec) (*splitStep, error) {
	threads := 1
	switch {
	case s.kernels > 0: // they share out each operator themselves
		s.parts, threads = 1, runtime.NumCPU()
	case len(s.network.norms) > 0:
		s.parts, threads = 1, min(2, runtime.NumCPU())
	}
	g, loss, err := gradientGraph(s)
	if err != nil {
		return nil, err
	}
	t := &splitStep{spec: s}
	n := s.size / s.parts
	size, example := int64(n), int(product(s.example))
	for k := range s.parts {
		p := &part{loss: make([]float32, 1), gradients: s.gradients}
		if s.parts > 1 {
			p.gradients = zerosLike(s.gradients)
		}
		t.parts = append(t.parts, p)
		from, to := k*n, (k+1)*n
		inputs := map[string]engine.Tensor{
			loss.Target: engine.Float32([]int64{size, int64(s.outputs)}, s.batch.targets[from*s.outputs:to*s.outputs]),
			loss.Weight: engine.Float32([]int64{size}, s.batch.weights[from:to]),
		}
		images := map[string][]float32{s.network.Input: s.batch.inputs}
		if s.beta > 0 {
			images = map[string][]float32{cleanInput: s.batch.inputs, perturbedInput: s.batch.perturbed}
		}
		for name, all := range images {
			inputs[name] = engine.Float32(append([]int64{size}, s.example...), all[from*example:to*example])
		}
		outputs := map[string]engine.Tensor{loss.Total: engine.Float32([]int64{1}, p.loss)}
		for i, name := range s.network.Weights {
			shape := s.network.Model.Graph.Initializer(name).Dims
			inputs[name] = engine.Float32(shape, s.weights[i])
			outputs[g.Of[name]] = engine.Float32(shape, p.gradients[i])
		}
		for i, v := range s.statistics {
			outputs[s.network.norms[i/2].batch[i%2]] = engine.Float32([]int64{int64(len(v))}, v)
		}
		if p.session, err = engine.Open(g.Model, engine.Options{Threads: threads, Yield: s.kernels == 0}); err == nil {
			p.binding, err = p.session.Bind(inputs, outputs)
		}
		if err != nil {
			t.close()
			return nil, fmt.Errorf("train: %w", err)
		}
	}
	return t, nil
}

// gradientGraph builds the graph of one part: loss, gradients, and the
// statistics of batch normalisations.
func gradientGraph(s stepSpec) (*autodiff.Gradients, *autodiff.Loss, error) {
	m := s.network.trainingModel()
	loss, err := s.lossOf(m)
	if err != nil {
		return nil, nil, fmt.Errorf("train: %w", err)
	}
	keep := []string{loss.Total}
	for _, n := range s.network.norms {
		keep = append(keep, n.batch[:]...)
	}
	g, err := autodiff.Gradient(loss.Model, autodiff.Request{
		Loss: loss.Total, WithRespectTo: s.network.Weights, Batch: int64(s.size / s.parts), Keep: keep, WeightsAsInputs: true,
		Kernels: s.kernels,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("train: %w", err)
	}
	return g, loss, nil
}

func (s stepSpec) lossOf(m *onnx.Model) (*autodiff.Loss, error) {
	if s.beta > 0 {
		return s.loss.tradesLoss(m, s.network.Input, s.network.heads(), s.example, s.outputs, s.beta, int64(s.size/s.parts))
	}
	return s.loss.appendTo(m, s.network.heads()...)
}

func (t *splitStep) run(ctx context.Context) (float64, error) {
	if len(t.parts) == 1 {
		p := t.parts[0]
		if err := p.binding.Run(ctx); err != nil {
			return 0, err
		}
		return float64(p.loss[0]), nil
	}
	var running sync.WaitGroup
	errs := make([]error, len(t.parts))
	for k, p := range t.parts {
		running.Go(func() { errs[k] = p.binding.Run(ctx) })
	}
	running.Wait()
	loss := 0.0
	for k, p := range t.parts {
		if errs[k] != nil {
			return 0, errs[k]
		}
		loss += float64(p.loss[0])
		for i, g := range p.gradients { // always in the order of the parts
			sum := t.spec.gradients[i]
			if k == 0 {
				copy(sum, g)
				continue
			}
			for j := range g {
				sum[j] += g[j]
			}
		}
	}
	return loss, nil
}

func (t *splitStep) close() error {
	for _, p := range t.parts {
		if p.binding != nil {
			p.binding.Close()
		}
		if p.session != nil {
			p.session.Close()
		}
	}
	return nil
}

// Loss is what training lowers.
type Loss string

// The losses. CrossEntropy is for classes that exclude each other, logits
// [N, classes]; BinaryCrossEntropy for labels that do not, or for two classes
// told by one logit.
const (
	CrossEntropy       Loss = "cross-entropy"
	BinaryCrossEntropy Loss = "binary-cross-entropy"
)

func (l Loss) appendTo(m *onnx.Model, logits ...string) (*autodiff.Loss, error) {
	if l == BinaryCrossEntropy {
		return autodiff.BinaryCrossEntropy(m, logits[0], logits[1:]...)
	}
	return autodiff.SoftmaxCrossEntropy(m, logits[0], logits[1:]...)
}

func product(dims []int64) int64 {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	return n
}
