package privacy

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/train"
)

// Surrogate is a model that is fitted to another's answers. It is for one goroutine
// at a time.
type Surrogate struct {
	network *train.Network
	session engine.Session
	of      []string
	dims    [][]int64
	weights [][]float32
	shape   []int64
	classes int
	batch   int
}

// NewSurrogate makes ready to fit a network, in batches of that size. It does not
// change the network.
func NewSurrogate(n *train.Network, batch int) (*Surrogate, error) {
	s, err := newSurrogate(n, batch)
	if err != nil {
		return nil, fmt.Errorf("privacy: a surrogate: %w", err)
	}
	return s, nil
}

func newSurrogate(n *train.Network, batch int) (*Surrogate, error) {
	if batch < 1 || batch > 1<<16 {
		return nil, fmt.Errorf("batches of %d: %w", batch, ErrAsk)
	}
	m, shape, classes, err := withLoss(n.Model, n.Input, n.Logits)
	if err != nil {
		return nil, err
	}
	s := &Surrogate{network: n, shape: shape, classes: classes, batch: batch}
	for _, name := range n.Weights {
		w := m.Graph.Initializer(name)
		if w == nil {
			return nil, fmt.Errorf("weight %q: %w: the network has none of that name", name, ErrAsk)
		}
		values, err := onnx.Values[float32](w)
		if err != nil {
			return nil, err
		}
		s.dims, s.weights = append(s.dims, w.Dims), append(s.weights, slices.Clone(values))
	}
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: lossName, WithRespectTo: n.Weights, Batch: int64(batch), WeightsAsInputs: true, Keep: []string{lossName}})
	if err != nil {
		return nil, err
	}
	for _, name := range n.Weights {
		s.of = append(s.of, g.Of[name])
	}
	s.session, err = engine.Open(g.Model, engine.Options{Threads: 1})
	return s, err
}

// FitOptions say how a surrogate is fitted.
type FitOptions struct {
	Steps int     // of one batch each
	Rate  float64 // peak; it falls along a cosine [2e-3]
	Decay float64 // of weights [0.01]
	Seed  uint64
}

// Fit fits it to distributions over the classes, soft[N, classes], of examples
// [N, shape of one], by cross-entropy and AdamW. It goes on from the weights that
// it has.
func (s *Surrogate) Fit(ctx context.Context, examples, soft []float32, o FitOptions) error {
	size := 1
	for _, d := range s.shape {
		size *= int(d)
	}
	n := len(examples) / size
	if n == 0 || len(examples) != n*size || len(soft) != n*s.classes || o.Steps < 1 {
		return fmt.Errorf("privacy: fitting a surrogate to %d numbers and %d answers of %d classes in %d steps: %w: want examples of %v", len(examples), len(soft), s.classes, o.Steps, ErrAsk, s.shape)
	}
	if o.Rate == 0 {
		o.Rate = 2e-3
	}
	if o.Decay == 0 {
		o.Decay = 0.01
	}
	rng := rand.New(rand.NewPCG(o.Seed, 0x5e1f))
	optimizer := &train.AdamW{Decay: o.Decay}
	decay := make([]bool, len(s.dims))
	for i, d := range s.dims {
		wide := 0
		for _, v := range d {
			if v > 1 {
				wide++
			}
		}
		decay[i] = wide > 1
	}
	gradients := make([][]float32, len(s.of))
	var order []int
	x, y := make([]float32, s.batch*size), make([]float32, s.batch*s.classes)
	for step := range o.Steps {
		for b := range s.batch {
			if len(order) == 0 {
				order = rng.Perm(n)
			}
			i := order[0]
			order = order[1:]
			copy(x[b*size:(b+1)*size], examples[i*size:(i+1)*size])
			copy(y[b*s.classes:(b+1)*s.classes], soft[i*s.classes:(i+1)*s.classes])
		}
		inputs := map[string]engine.Tensor{
			s.network.Input: engine.Float32(append([]int64{int64(s.batch)}, s.shape...), x),
			targetsName:     engine.Float32([]int64{int64(s.batch), int64(s.classes)}, y),
		}
		for i, name := range s.network.Weights {
			inputs[name] = engine.Float32(s.dims[i], s.weights[i])
		}
		out, err := s.session.Run(ctx, inputs, append([]string{lossName}, s.of...)...)
		if err != nil {
			return fmt.Errorf("privacy: fitting a surrogate: %w", err)
		}
		loss, err := engine.Values[float32](out[lossName])
		if err != nil {
			return fmt.Errorf("privacy: fitting a surrogate: %w", err)
		}
		if v := float64(loss[0]); math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("privacy: fitting a surrogate: %w", train.ErrDiverged)
		}
		for i, name := range s.of {
			if gradients[i], err = engine.Values[float32](out[name]); err != nil {
				return fmt.Errorf("privacy: fitting a surrogate: %w", err)
			}
		}
		optimizer.Step(train.CosineRate(o.Rate, step, o.Steps/20, o.Steps), s.weights, gradients, decay)
	}
	return nil
}

// Model is the network with the weights that it has now.
func (s *Surrogate) Model() (*onnx.Model, error) {
	m := s.network.Model.Clone()
	for i, name := range s.network.Weights {
		w := m.Graph.Initializer(name)
		*w = *onnx.NewTensor(name, w.Dims, slices.Clone(s.weights[i]))
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("privacy: a surrogate: %w", err)
	}
	return m, nil
}

// Close frees the session.
func (s *Surrogate) Close() error { return s.session.Close() }

// Transferable are images that are to fool another model than the source: each
// climbs the source's log-odds against its label as far as eps allows in L∞, by
// signs of the gradient with momentum (Dong et al. 2018, MI-FGSM), and does not stop
// where the source is fooled, because what just fools it seldom fools another.
// pixels[N, Shape…] within the target's range.
func Transferable(ctx context.Context, source attack.Target, pixels []float32, labels []int, eps float64, steps int) ([]float32, error) {
	d := source.Describe()
	n, size := len(labels), d.Size()
	if len(pixels) != n*size || !(eps > 0) || steps < 1 {
		return nil, fmt.Errorf("privacy: images to transfer: %d pixels and %d labels within %v in %d steps: %w", len(pixels), n, eps, steps, ErrAsk)
	}
	objective := &attack.Objective{Weights: make([]float32, n*d.Classes), LogSumExp: make([]float32, n), Without: labels}
	for i, c := range labels {
		if c < 0 || c >= d.Classes {
			return nil, fmt.Errorf("privacy: images to transfer: label %d of %d classes: %w", c, d.Classes, ErrAsk)
		}
		objective.Weights[i*d.Classes+c], objective.LogSumExp[i] = -1, 1
	}
	x, momentum := slices.Clone(pixels), make([]float64, len(pixels))
	rate := 2 * eps / float64(steps)
	for range steps {
		a, err := source.Ask(ctx, x, objective)
		if err != nil {
			return nil, fmt.Errorf("privacy: images to transfer: %w", err)
		}
		for i := range n {
			norm := 0.0
			for _, g := range a.Gradient[i*size : (i+1)*size] {
				norm += math.Abs(float64(g))
			}
			for j := i * size; j < (i+1)*size; j++ {
				momentum[j] += float64(a.Gradient[j]) * float64(size) / max(norm, 1e-30)
				step := rate
				switch {
				case momentum[j] < 0:
					step = -rate
				case momentum[j] == 0:
					step = 0
				}
				v := max(float64(pixels[j])-eps, min(float64(pixels[j])+eps, float64(x[j])+step))
				x[j] = float32(max(d.Low, min(d.High, v)))
			}
		}
	}
	return x, nil
}

// Softmax are the probabilities of logits [N][classes].
func Softmax(logits [][]float64) [][]float64 {
	out := make([][]float64, len(logits))
	for i, z := range logits {
		total := logSum(z)
		for _, v := range z {
			out[i] = append(out[i], math.Exp(v-total))
		}
	}
	return out
}

// Answers are the most probable classes.
func Answers(scores [][]float64) []int {
	out := make([]int, len(scores))
	for i, z := range scores {
		out[i] = slices.Index(z, slices.Max(z))
	}
	return out
}

// Agreement is the share of answers that are equal, with Clopper and Pearson's
// interval.
func Agreement(a, b []int) train.Interval {
	equal := 0
	for i := range a {
		if a[i] == b[i] {
			equal++
		}
	}
	return ClopperPearson(equal, len(a))
}

// MostUncertain are the positions of the n examples whose two most probable classes
// are closest, of those that are not taken (margin sampling); equal ones in their
// order.
func MostUncertain(probabilities [][]float64, taken map[int]bool, n int) []int {
	var open []int
	margin := make([]float64, len(probabilities))
	for i, p := range probabilities {
		sorted := slices.Sorted(slices.Values(p))
		if margin[i] = 1; len(sorted) > 1 {
			margin[i] = sorted[len(sorted)-1] - sorted[len(sorted)-2]
		}
		if !taken[i] {
			open = append(open, i)
		}
	}
	slices.SortStableFunc(open, func(a, b int) int {
		switch {
		case margin[a] < margin[b]:
			return -1
		case margin[a] > margin[b]:
			return 1
		}
		return 0
	})
	return open[:min(n, len(open))]
}
