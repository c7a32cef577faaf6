package explain

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

func openKernelSHAP(m *onnx.Model, o Options) (Explainer, error) {
	s, err := openSubject(m, o)
	if err != nil {
		return nil, err
	}
	return &kernelSHAP{s, or(o.Samples, 2048)}, nil
}

// kernelSHAP estimates Shapley values by weighted least squares over coalitions
// of pieces (Lundberg and Lee 2017, theorem 2), with the sum held to the
// difference of the scores, so that local accuracy is exact. The worth of a
// coalition is the mean score over the backgrounds in place of the missing
// pieces. Sizes of coalitions are taken from the outermost, which weigh most:
// as long as the budget holds all of a size are used, the rest is drawn by the
// kernel's weight in pairs of complements. Where the budget holds all 2^M, the
// values are exact.
type kernelSHAP struct {
	*subject
	samples int
}

func (e *kernelSHAP) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	p, err := e.cut(ctx, input, class)
	if err != nil {
		return nil, err
	}
	if p.count > 1 && e.samples < 2*p.count {
		return nil, fmt.Errorf("%d coalitions of %d pieces: %w: want at least %d", e.samples, p.count, ErrInput, 2*p.count)
	}
	rng := rand.New(rand.NewPCG(e.options.Seed, 0x5A49))
	coalitions, weights := drawCoalitions(p.count, e.samples, rng)
	nobody, everybody := make([]bool, p.count), make([]bool, p.count)
	for i := range everybody {
		everybody[i] = true
	}
	all := append([][]bool{nobody, everybody}, coalitions...)
	n := len(all) * len(p.from)
	worth, err := e.worth(ctx, p, all, class, e.progress(n))
	if err != nil {
		return nil, err
	}
	reference, output := worth[0], worth[1]
	contributions, err := shapley(coalitions, weights, worth[2:], reference, output, p.count)
	if err != nil {
		return nil, err
	}
	m := e.spread(p, contributions)
	m.Additive = &Additive{Output: output, Reference: reference, Gap: output - reference}
	for _, v := range contributions {
		m.Additive.Gap -= v
	}
	m.Evaluations = n + 1
	return m, nil
}

// drawCoalitions returns about budget coalitions with weights by which their sums
// follow the Shapley kernel.
func drawCoalitions(m, budget int, rng *rand.Rand) ([][]bool, []float64) {
	if m < 2 {
		return nil, nil
	}
	var out [][]bool
	var weights []float64
	// Kernel weight of all coalitions of size k together: (M-1)/(k(M-k)).
	mass := func(k int) float64 { return float64(m-1) / (float64(k) * float64(m-k)) }
	add := func(there []bool, weight float64) {
		complement := make([]bool, m)
		for i, v := range there {
			complement[i] = !v
		}
		out = append(out, append([]bool(nil), there...), complement)
		weights = append(weights, weight, weight)
	}
	k := 1
	for ; k <= m/2; k++ {
		count := binomial(m, k)
		if 2*k == m {
			count /= 2 // the complements are of the same size
		}
		if count*2 > float64(budget-len(out)) {
			break
		}
		weight := mass(k) / binomial(m, k)
		eachCombination(m, k, func(there []bool) {
			if 2*k < m || there[0] {
				add(there, weight)
			}
		})
	}
	if k > m/2 {
		return out, weights
	}
	// The sizes k to m-k are left: pairs are drawn by the mass of their size.
	left, total := budget-len(out), 0.0
	var sizes []float64
	for s := k; s <= m/2; s++ {
		w := mass(s)
		if 2*s < m {
			w *= 2
		}
		sizes = append(sizes, w)
		total += w
	}
	pairs := max(1, left/2)
	for range pairs {
		at := rng.Float64() * total
		size := k
		for i, w := range sizes {
			if size = k + i; at < w {
				break
			}
			at -= w
		}
		there := make([]bool, m)
		for _, i := range rng.Perm(m)[:size] {
			there[i] = true
		}
		add(there, total/float64(2*pairs))
	}
	return out, weights
}

func binomial(n, k int) float64 {
	out := 1.0
	for i := range k {
		out *= float64(n-i) / float64(i+1)
	}
	return math.Round(out)
}

// eachCombination visits all choices of k out of m.
func eachCombination(m, k int, visit func([]bool)) {
	there := make([]bool, m)
	var choose func(from, left int)
	choose = func(from, left int) {
		if left == 0 {
			visit(there)
			return
		}
		for i := from; i <= m-left; i++ {
			there[i] = true
			choose(i+1, left-1)
			there[i] = false
		}
	}
	choose(0, k)
}

// shapley solves min Σ w (v(S) - v(∅) - Σ_{i∈S} φ_i)² subject to
// Σφ = v(all) - v(∅), by putting the last φ in terms of the others.
func shapley(coalitions [][]bool, weights, worth []float64, reference, output float64, m int) ([]float64, error) {
	total := output - reference
	if m == 1 {
		return []float64{total}, nil
	}
	rows := make([][]float64, len(coalitions))
	target := make([]float64, len(coalitions))
	for c, there := range coalitions {
		last := 0.0
		if there[m-1] {
			last = 1
		}
		rows[c] = make([]float64, m-1)
		for i := range m - 1 {
			rows[c][i] = -last
			if there[i] {
				rows[c][i]++
			}
		}
		target[c] = worth[c] - reference - last*total
	}
	solved, err := leastSquares(rows, target, weights, 0)
	if err != nil {
		return nil, fmt.Errorf("the coalitions do not tell %d pieces apart; raise Options.Samples: %w", m, err)
	}
	rest := total
	for _, v := range solved {
		rest -= v
	}
	return append(solved, rest), nil
}
