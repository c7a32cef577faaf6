package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// trainer holds the sessions and buffers of a run.
type trainer struct {
	config   Config
	network  *Network // the configuration's, with its batch normalisations
	loss     Loss
	outputs  int // width of the logits
	copies   int // how often an image fills the network's input: 3 for grey in colour
	state    state
	decay    []bool // which weights decay
	batch    batch
	gradient [][]float32 // of the batch's mean loss
	measured [][]float32 // statistics of the batch
	step     step
	private  *private       // takes step's place in a private run
	hardened *hardened      // perturbs the batches; nil without hardening
	forward  engine.Session // logits of any batch, variables given
}

func newTrainer(c Config) (*trainer, error) {
	t := &trainer{config: c}
	t.state.History = History{Recipe: c.Recipe, Images: c.Train.Len(), Validation: c.Validation.Len()}
	if c.Private != nil {
		t.state.History.Withheld = withheld
	}
	if err := t.fit(); err != nil {
		return nil, err
	}
	if err := t.take(); err != nil {
		return nil, err
	}
	t.gradient, t.measured = zerosLike(t.state.Weights), zerosLike(t.state.Statistics)
	t.state.Average = &Average{Decay: c.Average}
	switch c.Optimizer {
	case "sgd":
		t.state.Optimizer = &SGD{Momentum: c.Momentum, Nesterov: true, Decay: c.Decay}
	default:
		t.state.Optimizer = &AdamW{Decay: c.Decay, Kernels: c.Kernels > 0}
	}
	example := t.example()
	t.batch = batch{
		inputs:  make([]float32, c.Batch*int(product(example))),
		targets: make([]float32, c.Batch*t.outputs),
		weights: make([]float32, c.Batch),
	}
	if c.Hardening.trades() > 0 {
		t.batch.perturbed = make([]float32, len(t.batch.inputs))
	}
	var err error
	if c.Private != nil {
		t.private, err = newPrivate(t)
	} else {
		t.step, err = newStep(stepSpec{
			network: t.network, loss: t.loss, example: example, outputs: t.outputs, size: c.Batch, parts: c.Parts, kernels: c.Kernels, beta: c.Hardening.trades(),
			batch: &t.batch, weights: t.state.Weights, gradients: t.gradient, statistics: t.measured,
		})
	}
	if err == nil && c.Hardening != nil {
		t.hardened, err = newHardened(t)
	}
	if err != nil {
		t.close()
		return nil, err
	}
	if t.forward, err = engine.Open(t.network.variablesAsInputs(), engine.Options{Outputs: []string{t.network.Logits}}); err != nil {
		t.close()
		return nil, fmt.Errorf("train: %w", err)
	}
	return t, nil
}

// take copies the values of the network's variables into the state.
func (t *trainer) take() error {
	g := t.network.Model.Graph
	for i, name := range t.network.variables() {
		w := g.Initializer(name)
		if w == nil {
			return fmt.Errorf("train: the network has no weight %q", name)
		}
		values, err := onnx.Values[float32](w)
		if err != nil {
			return fmt.Errorf("train: reading weight %q: %w", name, err)
		}
		for j, v := range values {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return fmt.Errorf("train: element %d of weight %q is %v; the model file is damaged or was trained until it diverged: start from another", j, name, v)
			}
		}
		if i >= len(t.network.Weights) {
			t.state.Statistics = append(t.state.Statistics, values)
			continue
		}
		t.state.Weights = append(t.state.Weights, values)
		t.decay = append(t.decay, decays(w.Dims))
		t.state.History.Weights += len(values)
	}
	return nil
}

// fit checks network and data against each other: input, width of the logits,
// and the loss that goes with them.
func (t *trainer) fit() error {
	c := t.config
	for _, name := range c.Network.Weights {
		if c.Network.Model.Graph.Initializer(name) == nil {
			return fmt.Errorf("train: the network has no weight %q", name)
		}
	}
	var err error
	if t.copies, err = Fits(c.Network.Model, c.Network.Input, c.Train.Example()); err != nil {
		return err
	}
	shaped, err := c.Network.shaped(t.example(), int64(c.Batch))
	if err != nil {
		return err
	}
	rows := int64(c.Batch)
	if c.Hardening.trades() > 0 { // clean and perturbed together
		rows *= 2
	}
	if t.network, err = shaped.withNorms(rows); err != nil {
		return err
	}
	shapes, err := onnx.InferShapes(shaped.Model, batchOf(shaped.Model, shaped.Input, int64(c.Batch)))
	if err != nil {
		return fmt.Errorf("train: inferring shapes: %w", err)
	}
	z, ok := shapes[c.Network.Logits]
	if !ok || len(z.Shape) != 2 || !z.Shape[1].Known() {
		return fmt.Errorf("train: output %q is %v; want logits float[N, classes]: name another output, or give the network a new head", c.Network.Logits, z)
	}
	t.outputs = int(z.Shape[1].Value)
	t.loss = CrossEntropy
	if c.Train.Multi() || t.outputs == 1 {
		t.loss = BinaryCrossEntropy
	}
	if t.outputs != c.Train.Classes && !(t.outputs == 1 && c.Train.Classes == 2 && !c.Train.Multi()) {
		return fmt.Errorf("train: the network has %d outputs and set %q has %d classes; give the network a new head (vigie train --head auto)", t.outputs, c.Train.Name, c.Train.Classes)
	}
	return nil
}

// Fits says how often an example of that shape fills the input of a model: once,
// or three times for a grey image where the model wants colour. Other sizes are an
// error that says what is wanted.
func Fits(m *onnx.Model, input string, example []int64) (copies int, err error) {
	at := slices.IndexFunc(m.Graph.Inputs, func(v onnx.Value) bool { return v.Name == input })
	if at < 0 {
		return 0, fmt.Errorf("train: the network has no input %q", input)
	}
	in := m.Graph.Inputs[at]
	wrong := fmt.Errorf("train: examples of shape %v do not fit the input %v; bring the data to that size, or build the network for theirs", example, in)
	if in.Type != onnx.Float || len(in.Shape) != len(example)+1 {
		return 0, wrong
	}
	copies = 1
	for i, d := range in.Shape[1:] {
		switch {
		case d.Value < 0 || d.Value == example[i]:
		case i == 0 && len(example) == 3 && example[0] == 1 && d.Value == 3:
			copies = int(d.Value)
		default:
			return 0, wrong
		}
	}
	return copies, nil
}

// example is the shape of one example as the network takes it.
func (t *trainer) example() []int64 {
	shape := slices.Clone(t.config.Train.Example())
	shape[0] *= int64(t.copies)
	return shape
}

// decays says whether a weight is a matrix or kernel: it has more than one
// dimension that is not 1. Gains and biases keep their freedom.
func decays(dims []int64) bool {
	wide := 0
	for _, d := range dims {
		if d > 1 {
			wide++
		}
	}
	return wide > 1
}

func (t *trainer) close() {
	if t.step != nil {
		t.step.close()
	}
	if t.private != nil {
		t.private.close()
	}
	t.hardened.close()
	if t.forward != nil {
		t.forward.Close()
	}
}

// variables are the values of the network's variables, in place.
func (t *trainer) variables() [][]float32 {
	return slices.Concat(t.state.Weights, t.state.Statistics)
}

// gradients leaves the gradient of the batch's mean loss in t.gradient and
// returns that loss: of an ensemble the gradient of the members' sum, and their
// mean. at are the examples' positions, partner[i] the one that
// mixup mixes example i with.
func (t *trainer) gradients(ctx context.Context, epoch int, at, partner []int, rng *rand.Rand) (float64, error) {
	c := t.config
	if t.private != nil {
		return 0, t.private.gradients(ctx, t)
	}
	mix := 1.0
	if c.Mixup > 0 {
		mix = beta(rng, c.Mixup)
	}
	total := 0.0 // Σ class weights of the batch
	for _, i := range at {
		total += t.classWeight(i)
	}
	workers := min(runtime.GOMAXPROCS(0), len(at))
	var filling sync.WaitGroup
	for k := range workers {
		filling.Go(func() {
			other := make([]float32, len(t.batch.inputs)/len(t.batch.weights))
			for b := k * len(at) / workers; b < (k+1)*len(at)/workers; b++ {
				t.fill(b, other, epoch, at[b], at[partner[b]], mix, total)
			}
		})
	}
	filling.Wait()
	loss, err := t.losses(ctx, epoch, at)
	if err != nil {
		return 0, err
	}
	t.track()
	return loss / float64(len(t.network.heads())), nil
}

// track folds the batch's statistics into the running ones. The variance that
// is kept is the unbiased one, as PyTorch keeps it: the graph returns the biased
// one, which the step itself divides by.
func (t *trainer) track() {
	for i, running := range t.state.Statistics {
		n := t.network.norms[i/2]
		keep, correct := float32(n.momentum), float32(1)
		if i%2 == 1 && n.count > 1 {
			correct = float32(float64(n.count) / float64(n.count-1))
		}
		for j, v := range t.measured[i] {
			running[j] = keep*running[j] + (1-keep)*correct*v
		}
	}
}

func (t *trainer) classWeight(at int) float64 {
	if t.config.ClassWeights == nil {
		return 1
	}
	return t.config.ClassWeights[t.config.Train.Labels[at]]
}

// fill writes place b of the batch. Its random numbers depend on the seed, the
// epoch and the example only, not on who computes it. other is room for one
// example.
func (t *trainer) fill(b int, other []float32, epoch, at, with int, mix, total float64) {
	image := t.batch.inputs[b*len(other) : (b+1)*len(other)]
	t.augmented(image, epoch, at)
	target := t.batch.targets[b*t.outputs : (b+1)*t.outputs]
	clear(target)
	t.label(target, at, mix)
	if mix < 1 {
		t.augmented(other, epoch, with)
		m := float32(mix)
		for i, v := range other {
			image[i] = m*image[i] + (1-m)*v
		}
		t.label(target, with, 1-mix)
	}
	weight := t.classWeight(at) / total
	if t.loss == BinaryCrossEntropy { // the mean over the labels
		weight /= float64(t.outputs)
	}
	t.batch.weights[b] = float32(weight)
}

// label adds an example's smoothed labels, times share, to target.
func (t *trainer) label(target []float32, at int, share float64) {
	s, smoothing := t.config.Train, t.config.Smoothing
	if t.loss == CrossEntropy {
		spread := smoothing / float64(s.Classes)
		for k := range target {
			target[k] += float32(spread * share)
		}
		target[s.Labels[at]] += float32((1 - smoothing) * share)
		return
	}
	for k := range target {
		class := k
		if !s.Multi() { // one logit, of class 1
			class = 1
		}
		p := smoothing / 2
		if s.Has(at, class) {
			p += 1 - smoothing
		}
		target[k] += float32(p * share)
	}
}

func (t *trainer) augmented(dst []float32, epoch, at int) {
	s, a := t.config.Train, t.config.Augmentation
	if a == (Augmentation{}) {
		s.Fill(dst, at)
		return
	}
	t.augmentedBy(dst, at, rand.New(rand.NewPCG(t.config.Seed^0x9e3779b97f4a7c15, uint64(epoch)<<32|uint64(at))))
}

// augmentedBy writes an example's image, augmented as rng draws.
func (t *trainer) augmentedBy(dst []float32, at int, rng *rand.Rand) {
	s, a := t.config.Train, t.config.Augmentation
	n := s.Channels * s.Rows * s.Columns
	if s.Pixels != nil {
		a.Apply(dst[:n], s.Image(at), s.Channels, s.Rows, s.Columns, rng)
	} else {
		a.ApplyFloats(dst[:n], s.values(at), s.Channels, s.Rows, s.Columns, rng)
	}
	repeat(dst, n)
}

// beta draws from Beta(a, a) for a ≤ 1 by Jöhnk's method.
func beta(rng *rand.Rand, a float64) float64 {
	for {
		u, v := math.Pow(rng.Float64(), 1/a), math.Pow(rng.Float64(), 1/a)
		if sum := u + v; sum <= 1 && sum > 0 {
			return u / sum
		}
	}
}
