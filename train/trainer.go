package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// trainer holds the sessions and buffers of a run.
type trainer struct {
	config  Config
	state   state
	decay   []bool      // which weights decay
	sum     [][]float32 // gradient of the whole batch
	parts   []*part
	forward engine.Session // logits of any batch, weights given
}

// part computes the gradient of one part of every batch.
type part struct {
	session   engine.Session
	binding   engine.Binding
	images    []float32 // [part, C, H, W]
	other     []float32 // one image, for mixup
	target    []float32 // [part, classes]
	weight    []float32 // [part]
	loss      []float32 // [1]
	gradients [][]float32
}

func newTrainer(c Config) (*trainer, error) {
	t := &trainer{config: c}
	t.state.History = History{Recipe: c.Recipe, Images: c.Train.Len(), Validation: c.Validation.Len()}
	shapes := make([][]int64, len(c.Network.Weights))
	for i, name := range c.Network.Weights {
		w := c.Network.Model.Graph.Initializer(name)
		if w == nil {
			return nil, fmt.Errorf("train: the network has no weight %q", name)
		}
		values, err := onnx.Values[float32](w)
		if err != nil {
			return nil, fmt.Errorf("train: reading weight %q: %w", name, err)
		}
		shapes[i] = w.Dims
		t.state.Weights = append(t.state.Weights, values)
		t.decay = append(t.decay, decays(w.Dims))
		t.state.History.Weights += len(values)
	}
	t.sum = zerosLike(t.state.Weights)
	t.state.Average = &Average{Decay: c.Average}
	switch c.Optimizer {
	case "sgd":
		t.state.Optimizer = &SGD{Momentum: c.Momentum, Nesterov: true, Decay: c.Decay}
	default:
		t.state.Optimizer = &AdamW{Decay: c.Decay}
	}
	if err := t.open(shapes); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
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

// open builds the gradient graph of one part of a batch and binds its buffers,
// and opens the forward graph for evaluation.
func (t *trainer) open(shapes [][]int64) error {
	c, n := t.config, t.config.Network
	loss, err := autodiff.SoftmaxCrossEntropy(n.Model, n.Logits)
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	size := int64(c.Batch / c.Parts)
	g, err := autodiff.Gradient(loss.Model, autodiff.Request{
		Loss: loss.Total, WithRespectTo: n.Weights, Batch: size, Keep: []string{loss.Total}, WeightsAsInputs: true,
	})
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	pixels := c.Train.Channels * c.Train.Rows * c.Train.Columns
	image := []int64{size, int64(c.Train.Channels), int64(c.Train.Rows), int64(c.Train.Columns)}
	for range c.Parts {
		p := &part{
			images: make([]float32, int(size)*pixels), other: make([]float32, pixels),
			target: make([]float32, int(size)*c.Train.Classes), weight: make([]float32, size),
			loss: make([]float32, 1), gradients: zerosLike(t.state.Weights),
		}
		t.parts = append(t.parts, p)
		inputs := map[string]engine.Tensor{
			n.Input:     engine.Float32(image, p.images),
			loss.Target: engine.Float32([]int64{size, int64(c.Train.Classes)}, p.target),
			loss.Weight: engine.Float32([]int64{size}, p.weight),
		}
		outputs := map[string]engine.Tensor{loss.Total: engine.Float32([]int64{1}, p.loss)}
		for i, name := range n.Weights {
			inputs[name] = engine.Float32(shapes[i], t.state.Weights[i])
			outputs[g.Of[name]] = engine.Float32(shapes[i], p.gradients[i])
		}
		if p.session, err = engine.Open(g.Model, engine.Options{Threads: 1}); err != nil {
			return fmt.Errorf("train: %w", err)
		}
		if p.binding, err = p.session.Bind(inputs, outputs); err != nil {
			return fmt.Errorf("train: %w", err)
		}
	}
	if t.forward, err = engine.Open(weightsAsInputs(n), engine.Options{}); err != nil {
		return fmt.Errorf("train: %w", err)
	}
	return nil
}

func (t *trainer) close() {
	for _, p := range t.parts {
		if p.binding != nil {
			p.binding.Close()
		}
		if p.session != nil {
			p.session.Close()
		}
	}
	if t.forward != nil {
		t.forward.Close()
	}
}

// gradients leaves the gradient of the batch's mean loss in t.sum and returns
// that loss. at are the images' positions, partner[i] the image that mixup mixes
// image i with.
func (t *trainer) gradients(ctx context.Context, epoch int, at, partner []int, rng *rand.Rand) (float64, error) {
	c := t.config
	mix := 1.0
	if c.Mixup > 0 {
		mix = beta(rng, c.Mixup)
	}
	total := 0.0 // Σ class weights of the batch
	for _, i := range at {
		total += t.classWeight(c.Train.Labels[i])
	}
	size := len(at) / len(t.parts)
	var running sync.WaitGroup
	errs := make([]error, len(t.parts))
	for k, p := range t.parts {
		running.Go(func() {
			for j := range size {
				b := k*size + j
				t.example(p, j, epoch, at[b], at[partner[b]], mix, total)
			}
			errs[k] = p.binding.Run(ctx)
		})
	}
	running.Wait()
	loss := 0.0
	for k, p := range t.parts {
		if errs[k] != nil {
			return 0, errs[k]
		}
		loss += float64(p.loss[0])
		for i, g := range p.gradients { // always in the order of the parts
			sum := t.sum[i]
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

func (t *trainer) classWeight(label int) float64 {
	if t.config.ClassWeights == nil {
		return 1
	}
	return t.config.ClassWeights[label]
}

// example fills place j of a part. Its random numbers depend on the seed, the
// epoch and the image only, not on who computes it.
func (t *trainer) example(p *part, j, epoch, at, other int, mix, total float64) {
	s, c := t.config.Train, t.config
	pixels := len(p.other)
	image := p.images[j*pixels : (j+1)*pixels]
	t.augmented(image, epoch, at)
	target := p.target[j*s.Classes : (j+1)*s.Classes]
	for k := range target {
		target[k] = float32(c.Smoothing / float64(s.Classes))
	}
	keep := 1 - c.Smoothing
	target[s.Labels[at]] += float32(keep * mix)
	if mix < 1 {
		t.augmented(p.other, epoch, other)
		m := float32(mix)
		for i, v := range p.other {
			image[i] = m*image[i] + (1-m)*v
		}
		target[s.Labels[other]] += float32(keep * (1 - mix))
	}
	p.weight[j] = float32(t.classWeight(s.Labels[at]) / total)
}

func (t *trainer) augmented(dst []float32, epoch, at int) {
	s, a := t.config.Train, t.config.Augmentation
	if a == (Augmentation{}) {
		plain(dst, s.Image(at))
		return
	}
	rng := rand.New(rand.NewPCG(t.config.Seed^0x9e3779b97f4a7c15, uint64(epoch)<<32|uint64(at)))
	a.Apply(dst, s.Image(at), s.Channels, s.Rows, s.Columns, rng)
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

// evaluationBatch keeps the activations of one evaluation run in cache.
const evaluationBatch = 64

// evaluate returns the validation images' logits under the given weights.
func (t *trainer) evaluate(ctx context.Context, weights [][]float32) ([][]float64, error) {
	n := t.config.Network
	given := map[string]engine.Tensor{}
	for i, name := range n.Weights {
		given[name] = engine.Float32(n.Model.Graph.Initializer(name).Dims, weights[i])
	}
	return logits(ctx, t.forward, n.Input, n.Logits, t.config.Validation, given)
}

// logits runs a set through a session in batches.
func logits(ctx context.Context, session engine.Session, input, output string, s *Set, given map[string]engine.Tensor) ([][]float64, error) {
	pixels := s.Channels * s.Rows * s.Columns
	var all [][]float64
	for from := 0; from < s.Len(); from += evaluationBatch {
		n := min(evaluationBatch, s.Len()-from)
		images := make([]float32, n*pixels)
		plain(images, s.Pixels[from*pixels:(from+n)*pixels])
		feed := map[string]engine.Tensor{input: engine.Float32([]int64{int64(n), int64(s.Channels), int64(s.Rows), int64(s.Columns)}, images)}
		for name, w := range given {
			feed[name] = w
		}
		out, err := session.Run(ctx, feed, output)
		if err != nil {
			return nil, err
		}
		values, err := engine.Values[float32](out[output])
		if err != nil {
			return nil, err
		}
		classes := len(values) / n
		for i := range n {
			row := make([]float64, classes)
			for k := range row {
				row[k] = float64(values[i*classes+k])
			}
			all = append(all, row)
		}
	}
	return all, nil
}

// Logits runs every image of a set through a model whose input takes pixel
// values in 0..1 and returns the named output, [N][classes].
func Logits(ctx context.Context, m *onnx.Model, input, output string, s *Set) ([][]float64, error) {
	session, err := engine.Open(m, engine.Options{})
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	defer session.Close()
	return logits(ctx, session, input, output, s, nil)
}

// weightsAsInputs is the network's graph with the trained weights to be given
// at each run.
func weightsAsInputs(n *Network) *onnx.Model {
	trained := map[string]bool{}
	for _, name := range n.Weights {
		trained[name] = true
	}
	graph := *n.Model.Graph
	graph.Initializers = nil
	graph.Inputs = append([]onnx.Value{}, graph.Inputs...)
	for _, w := range n.Model.Graph.Initializers {
		if trained[w.Name] {
			graph.Inputs = append(graph.Inputs, onnx.Value{Name: w.Name, Type: w.Type, Shape: onnx.Fixed(w.Dims...)})
		} else {
			graph.Initializers = append(graph.Initializers, w)
		}
	}
	m := *n.Model
	m.Graph = &graph
	return &m
}

// withWeights is the network's model with other values for the trained weights.
func withWeights(n *Network, weights [][]float32) (*onnx.Model, error) {
	m := n.Model.Clone()
	for i, name := range n.Weights {
		w := m.Graph.Initializer(name)
		*w = *onnx.NewTensor(name, w.Dims, weights[i])
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	return m, nil
}
