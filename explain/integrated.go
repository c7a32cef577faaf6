package explain

import (
	"context"
	"math"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

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
