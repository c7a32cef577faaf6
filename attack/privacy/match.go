package privacy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// MatchOptions say how images are searched whose gradient is the observed one.
type MatchOptions struct {
	Steps    int     // [300]
	Restarts int     // [1]
	Rate     float64 // of a step, in units of the pixel range [0.05]
	TV       float64 // weight of the total variation [1e-3]
	Rows     int     // of an image [channels, rows, columns], for the total variation; 0: none
	Columns  int
	Low      float64
	High     float64 // [1]
	Seed     uint64
	Progress func(done float64)
}

// Matched are the images that an optimisation found.
type Matched struct {
	Images   [][]float32
	Mismatch float64 // 1 less the cosine of their gradient and the observed one
}

// Match searches images whose gradient points where the observed one does
// (Geiping et al. 2020, Inverting Gradients): Adam on the signs of the gradient of
// 1 - cos plus total variation, within the pixel range, from noise. labels are
// known, as usual: they can be read off the last layer's gradient. The gradient of
// the gradient is exact: autodiff is applied twice.
func Match(ctx context.Context, l *Leak, observed [][]float32, labels []int, o MatchOptions) (*Matched, error) {
	m, err := match(ctx, l, observed, labels, o)
	if err != nil {
		return nil, fmt.Errorf("privacy: matching gradients: %w", err)
	}
	return m, nil
}

func match(ctx context.Context, l *Leak, observed [][]float32, labels []int, o MatchOptions) (*Matched, error) {
	if o.Steps == 0 {
		o.Steps = 300
	}
	o.Restarts = max(1, o.Restarts)
	if o.Rate == 0 {
		o.Rate = 0.05
	}
	if o.TV == 0 {
		o.TV = 1e-3
	}
	if o.High == 0 && o.Low == 0 {
		o.High = 1
	}
	if o.Progress == nil {
		o.Progress = func(float64) {}
	}
	if o.Steps < 0 || o.Steps > 1<<20 || o.Restarts > 1<<12 || !(o.Rate > 0) || !(o.TV >= 0) || !(o.Low < o.High) {
		return nil, fmt.Errorf("%d steps, %d restarts, rate %v, total variation %v, pixels %v to %v: %w", o.Steps, o.Restarts, o.Rate, o.TV, o.Low, o.High, ErrAsk)
	}
	s, err := l.matching(observed)
	if err != nil {
		return nil, err
	}
	defer s.session.Close()
	targets, err := l.targets(labels)
	if err != nil {
		return nil, err
	}
	if len(labels) != l.options.Batch {
		return nil, fmt.Errorf("%d labels for batches of %d: %w", len(labels), l.options.Batch, ErrAsk)
	}
	s.inputs[targetsName] = engine.Float32([]int64{int64(l.options.Batch), int64(l.classes)}, targets)
	size := 1
	for _, d := range l.shape {
		size *= int(d)
	}
	var best *Matched
	for restart := range o.Restarts {
		rng := rand.New(rand.NewPCG(o.Seed, uint64(restart)+0x9a7c4))
		x := make([]float32, l.options.Batch*size)
		for i := range x {
			x[i] = float32(o.Low + (o.High-o.Low)*(0.5+0.1*rng.NormFloat64()))
		}
		clip(x, o.Low, o.High)
		first, second := make([]float64, len(x)), make([]float64, len(x))
		kept, least := append([]float32{}, x...), math.Inf(1)
		for step := range o.Steps {
			value, gradient, err := s.run(ctx, x)
			if err != nil {
				return nil, err
			}
			if value < least {
				least = value
				copy(kept, x)
			}
			slope := make([]float64, len(x))
			for i, v := range gradient {
				slope[i] = float64(v)
			}
			if o.Rows > 0 {
				addVariation(slope, x, o.Rows, o.Columns, o.TV)
			}
			rate := o.Rate * (o.High - o.Low)
			for _, at := range []float64{3. / 8, 5. / 8, 7. / 8} { // as in the paper's code
				if float64(step) >= at*float64(o.Steps) {
					rate /= 10
				}
			}
			n := float64(step + 1)
			for i, g := range slope {
				sign := 0.0
				if g > 0 {
					sign = 1
				} else if g < 0 {
					sign = -1
				}
				first[i] = 0.9*first[i] + 0.1*sign
				second[i] = 0.999*second[i] + 0.001*sign*sign
				x[i] -= float32(rate * (first[i] / (1 - math.Pow(0.9, n))) / (math.Sqrt(second[i]/(1-math.Pow(0.999, n))) + 1e-8))
			}
			clip(x, o.Low, o.High)
			o.Progress((float64(restart) + float64(step+1)/float64(o.Steps)) / float64(o.Restarts))
		}
		value, _, err := s.run(ctx, x)
		if err != nil {
			return nil, err
		}
		if value < least {
			least = value
			copy(kept, x)
		}
		if best == nil || least < best.Mismatch {
			best = &Matched{Mismatch: least}
			for i := range l.options.Batch {
				best.Images = append(best.Images, kept[i*size:(i+1)*size])
			}
		}
	}
	return best, nil
}

func clip(x []float32, low, high float64) {
	for i, v := range x {
		x[i] = float32(max(low, min(high, float64(v))))
	}
}

// matching is the graph of 1 - cos(gradient, observed) and its own gradient by the
// images.
type matching struct {
	session engine.Session
	inputs  map[string]engine.Tensor
	input   string
	shape   []int64
	of      string
}

func (l *Leak) matching(observed [][]float32) (*matching, error) {
	if len(observed) != len(l.dims) {
		return nil, fmt.Errorf("%d gradients of %d weights: %w", len(observed), len(l.dims), ErrAsk)
	}
	g, err := autodiff.Gradient(l.loss, autodiff.Request{Loss: lossName, WithRespectTo: l.options.Weights, Batch: int64(l.options.Batch)})
	if err != nil {
		return nil, err
	}
	m := g.Model
	b := onnx.Extend(m)
	s := &matching{inputs: map[string]engine.Tensor{}, input: l.options.Input, shape: append([]int64{int64(l.options.Batch)}, l.shape...)}
	sum := func(v string) string {
		return b.Op("ReduceSum", []string{v}, onnx.IntAttribute("keepdims", 0))
	}
	add := func(to *string, v string) {
		if *to == "" {
			*to = v
		} else {
			*to = b.Op("Add", []string{*to, v})
		}
	}
	var along, square string
	norm := 0.0
	for i, name := range l.options.Weights {
		n := int64(1)
		for _, d := range l.dims[i] {
			n *= d
		}
		if int64(len(observed[i])) != n {
			return nil, fmt.Errorf("the observed gradient of %s has %d numbers: %w: want %v", name, len(observed[i]), ErrAsk, l.dims[i])
		}
		for _, v := range observed[i] {
			norm += float64(v) * float64(v)
		}
		t := b.Input(fmt.Sprintf("%s%d", observedName, i), onnx.Float, onnx.Fixed(l.dims[i]...)...)
		s.inputs[t] = engine.Float32(l.dims[i], observed[i])
		add(&along, sum(b.Op("Mul", []string{g.Of[name], t})))
		add(&square, sum(b.Op("Mul", []string{g.Of[name], g.Of[name]})))
	}
	if !(norm > 0) || math.IsInf(norm, 0) {
		return nil, fmt.Errorf("the observed gradient has a norm of %v: %w: it says nothing", math.Sqrt(norm), ErrAsk)
	}
	inverse := b.Input(inverseName, onnx.Float)
	s.inputs[inverse] = engine.Float32([]int64{}, []float32{float32(1 / math.Sqrt(norm))})
	tiny := b.Weight("privacy/tiny", []int64{}, []float32{1e-30})
	one := b.Weight("privacy/one", []int64{}, []float32{1})
	length := b.Op("Sqrt", []string{b.Op("Add", []string{square, tiny})})
	cosine := b.Op("Div", []string{b.Op("Mul", []string{along, inverse}), length})
	b.Node(&onnx.Node{OpType: "Sub", Inputs: []string{one, cosine}, Outputs: []string{mismatchName}}, 1)
	b.Output(mismatchName, onnx.Float)
	if _, err := b.Build(); err != nil {
		return nil, err
	}
	twice, err := autodiff.Gradient(m, autodiff.Request{Loss: mismatchName, WithRespectTo: []string{l.options.Input}, Keep: []string{mismatchName}})
	if err != nil {
		return nil, fmt.Errorf("the gradient of the gradient: %w", err)
	}
	s.of = twice.Of[l.options.Input]
	s.session, err = engine.Open(twice.Model, engine.Options{Threads: 1})
	return s, err
}

func (s *matching) run(ctx context.Context, x []float32) (float64, []float32, error) {
	s.inputs[s.input] = engine.Float32(s.shape, x)
	given := map[string]engine.Tensor{}
	for _, in := range s.session.Inputs() {
		given[in.Name] = s.inputs[in.Name]
	}
	out, err := s.session.Run(ctx, given, mismatchName, s.of)
	if err != nil {
		return 0, nil, err
	}
	value, err1 := engine.Values[float32](out[mismatchName])
	gradient, err2 := engine.Values[float32](out[s.of])
	if err := errors.Join(err1, err2); err != nil {
		return 0, nil, err
	}
	for _, v := range gradient {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return 0, nil, fmt.Errorf("the gradient of the gradient is %v: %w", v, ErrAsk)
		}
	}
	return float64(value[0]), gradient, nil
}

// addVariation adds weight times the slope of the total variation, smoothed where
// neighbours are equal, as a mean over the pixels: x[any number of planes, rows,
// columns].
func addVariation(slope []float64, x []float32, rows, columns int, weight float64) {
	const smooth = 1e-3
	weight /= float64(len(x))
	plane := rows * columns
	for from := 0; from+plane <= len(x); from += plane {
		for y := range rows {
			for c := range columns {
				i := from + y*columns + c
				for _, j := range [2]int{i + 1, i + columns} {
					if j == i+1 && c+1 == columns || j == i+columns && y+1 == rows {
						continue
					}
					d := float64(x[j]) - float64(x[i])
					g := weight * d / math.Sqrt(d*d+smooth*smooth)
					slope[j] += g
					slope[i] -= g
				}
			}
		}
	}
}
