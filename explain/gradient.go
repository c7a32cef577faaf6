package explain

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// openInputSlope is what all methods along the input's gradient need.
func openInputSlope(m *onnx.Model, o Options) (*subject, *slope, error) {
	s, err := describeSubject(m, o)
	if err != nil {
		return nil, nil, err
	}
	g, err := openSlope(s, s.batch, []string{s.input}, nil)
	return s, g, err
}

func openGradient(m *onnx.Model, o Options) (Explainer, error) {
	s, g, err := openInputSlope(m, o)
	if err != nil {
		return nil, err
	}
	return &smoothGrad{subject: s, slope: g, copies: 1}, nil
}

func openSmoothGrad(m *onnx.Model, o Options) (Explainer, error) {
	s, g, err := openInputSlope(m, o)
	if err != nil {
		return nil, err
	}
	noise := or(o.Noise, 0.15)
	return &smoothGrad{subject: s, slope: g, copies: or(o.Samples, 50), noise: noise}, nil
}

// smoothGrad is the mean gradient over copies of the input with Gaussian noise,
// whose deviation is a share of the range from the input's smallest to its
// largest value (Smilkov et al. 2017); the plain gradient is that of one copy
// without. Of several channels the one of largest size counts.
type smoothGrad struct {
	*subject
	slope  *slope
	copies int
	noise  float64
}

func (e *smoothGrad) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := e.example(input, class)
	if err != nil {
		return nil, err
	}
	deviation := 0.0
	if e.noise > 0 {
		deviation = e.noise * float64(slices.Max(values)-slices.Min(values))
	}
	rng := rand.New(rand.NewPCG(e.options.Seed, 0x5300))
	sum := make([]float64, len(values))
	var plain []float32
	// The input itself runs first: its logits are reported, its gradient counts
	// only where it is the only copy.
	n := e.copies
	if e.noise > 0 {
		n++
	}
	err = e.slope.each(ctx, n, class, func(i int, row []float32) {
		copy(row, values)
		if i > 0 {
			for j := range row {
				row[j] += float32(deviation * rng.NormFloat64())
			}
		}
	}, func(i int, gradient, logits []float32) {
		if i == 0 {
			plain = slices.Clone(logits)
			if n > 1 {
				return
			}
		}
		for j, d := range gradient {
			sum[j] += float64(d) / float64(e.copies)
		}
	}, e.progress(n))
	if err != nil {
		return nil, err
	}
	m := e.blank(plain)
	m.Values = e.layout.largest(sum)
	m.Evaluations = n
	return m, nil
}

func (e *smoothGrad) Close() error { return e.slope.Close() }

func openIntegrated(m *onnx.Model, o Options) (Explainer, error) {
	s, g, err := openInputSlope(m, o)
	if err != nil {
		return nil, err
	}
	return &integrated{subject: s, slope: g, tolerance: or(o.Tolerance, 0.01), most: or(o.MaxSteps, 1024)}, nil
}

// integrated is integrated gradients (Sundararajan et al. 2017): (x - x₀) times
// the mean gradient on the straight way from the background x₀ to the input x,
// averaged over the backgrounds. The integral is the trapezoidal rule, refined
// by halving until the contributions add up to the difference of the scores
// (completeness) within the tolerance; earlier points are used again.
type integrated struct {
	*subject
	slope     *slope
	tolerance float64
	most      int
}

const fewestSteps = 16

func (e *integrated) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := e.example(input, class)
	if err != nil {
		return nil, err
	}
	from, err := e.background(input)
	if err != nil {
		return nil, err
	}
	p := &path{e: e, class: class, to: values, from: from, inner: make([]float64, len(values)), ends: make([]float64, len(values))}
	total := (e.most + 1) * len(from)
	p.tick = e.progress(total)
	if err := p.measureEnds(ctx); err != nil {
		return nil, err
	}
	result := e.blank(p.logits)
	for steps := min(fewestSteps, e.most); ; steps *= 2 {
		if err := p.refine(ctx, steps); err != nil {
			return nil, err
		}
		contributions := p.integral(steps)
		sum := 0.0
		for _, v := range contributions {
			sum += v
		}
		gap := p.output - p.reference - sum
		result.Additive = &Additive{Output: p.output, Reference: p.reference, Gap: gap, Steps: steps,
			Converged: math.Abs(gap) <= e.tolerance*math.Abs(p.output-p.reference)}
		if result.Additive.Converged || steps*2 > e.most {
			result.Values = e.layout.sum(contributions)
			result.Evaluations = p.evaluations
			if e.options.Progress != nil {
				e.options.Progress(total, total)
			}
			return result, nil
		}
	}
}

// path holds Σ (x - x₀)·∇ over the points visited so far, apart for the ends,
// which weigh half.
type path struct {
	e                 *integrated
	class             int
	to                []float32
	from              [][]float32
	inner, ends       []float64
	done              int // steps of the finest grid so far
	output, reference float64
	logits            []float32
	evaluations       int
	tick              func(int)
}

// visit runs the gradient at the parts 0..1 of every way.
func (p *path) visit(ctx context.Context, parts []float64, into []float64, each func(i int, logits []float32)) error {
	n := len(parts) * len(p.from)
	p.evaluations += n
	return p.e.slope.each(ctx, n, p.class, func(i int, row []float32) {
		start, t := p.from[i/len(parts)], parts[i%len(parts)]
		for j, x := range p.to {
			row[j] = float32(float64(start[j]) + t*(float64(x)-float64(start[j])))
		}
	}, func(i int, gradient, logits []float32) {
		start := p.from[i/len(parts)]
		for j, d := range gradient {
			into[j] += float64(d) * (float64(p.to[j]) - float64(start[j])) / float64(len(p.from))
		}
		if each != nil {
			each(i, logits)
		}
	}, p.tick)
}

func (p *path) measureEnds(ctx context.Context) error {
	return p.visit(ctx, []float64{0, 1}, p.ends, func(i int, logits []float32) {
		score := scoreOf(p.e.score, logits, p.class)
		if i%2 == 0 {
			p.reference += score / float64(len(p.from))
			return
		}
		p.output, p.logits = score, slices.Clone(logits)
	})
}

// refine adds the points of a grid of that many steps which the last, half as
// fine, did not have.
func (p *path) refine(ctx context.Context, steps int) error {
	var parts []float64
	for k := 1; k < steps; k++ {
		if p.done == 0 || k%2 == 1 {
			parts = append(parts, float64(k)/float64(steps))
		}
	}
	p.done = steps
	if len(parts) == 0 {
		return nil
	}
	return p.visit(ctx, parts, p.inner, nil)
}

func (p *path) integral(steps int) []float64 {
	out := make([]float64, len(p.inner))
	for j := range out {
		out[j] = (p.inner[j] + p.ends[j]/2) / float64(steps)
	}
	return out
}

func (e *integrated) Close() error { return e.slope.Close() }

func openGradientSHAP(m *onnx.Model, o Options) (Explainer, error) {
	s, g, err := openInputSlope(m, o)
	if err != nil {
		return nil, err
	}
	return &gradientSHAP{subject: s, slope: g, points: or(o.Samples, 200)}, nil
}

// gradientSHAP is expected gradients (Erion et al. 2021): the mean of
// (x - x₀)·∇ at a random point between the input and a random background x₀. It
// approaches the average of integrated gradients over the backgrounds; the gap
// says how near it came. Backgrounds are used in turn and points are spread
// over strata of the way, which keeps the mean and lowers the variance.
type gradientSHAP struct {
	*subject
	slope  *slope
	points int
}

func (e *gradientSHAP) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := e.example(input, class)
	if err != nil {
		return nil, err
	}
	from, err := e.background(input)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(e.options.Seed, 0x65A9))
	rounds := (e.points + len(from) - 1) / len(from) // each background once a round
	n := rounds * len(from)
	strata := make([][]int, len(from))
	for b := range strata {
		strata[b] = rng.Perm(rounds)
	}
	total := n + len(from) + 1
	tick := e.progress(total)
	sum := make([]float64, len(values))
	err = e.slope.each(ctx, n, class, func(i int, row []float32) {
		b := i % len(from)
		t := (float64(strata[b][i/len(from)]) + rng.Float64()) / float64(rounds)
		for j, x := range values {
			row[j] = float32(float64(from[b][j]) + t*(float64(x)-float64(from[b][j])))
		}
	}, func(i int, gradient, _ []float32) {
		for j, d := range gradient {
			sum[j] += float64(d) * (float64(values[j]) - float64(from[i%len(from)][j])) / float64(n)
		}
	}, tick)
	if err != nil {
		return nil, err
	}
	additive := &Additive{}
	m := e.blank(nil)
	err = e.slope.each(ctx, len(from)+1, class, func(i int, row []float32) {
		if i == 0 {
			copy(row, values)
		} else {
			copy(row, from[i-1])
		}
	}, func(i int, _, logits []float32) {
		score := scoreOf(e.score, logits, class)
		if i == 0 {
			additive.Output, m.Logits = score, slices.Clone(logits)
		} else {
			additive.Reference += score / float64(len(from))
		}
	}, tick)
	if err != nil {
		return nil, err
	}
	additive.Gap = additive.Output - additive.Reference
	for _, v := range sum {
		additive.Gap -= v
	}
	m.Values, m.Additive, m.Evaluations = e.layout.sum(sum), additive, total
	return m, nil
}

func (e *gradientSHAP) Close() error { return e.slope.Close() }
