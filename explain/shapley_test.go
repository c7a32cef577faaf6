package explain_test

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
)

// perceptron is tanh(x·A + a)·B + b, with its weights at hand to compute by.
type perceptron struct {
	features, hidden, classes int
	A, a, B, b                []float32
}

func newPerceptron(features, hidden, classes int, rng *rand.Rand) *perceptron {
	return &perceptron{features, hidden, classes, normals(features*hidden, rng), normals(hidden, rng), normals(hidden*classes, rng), normals(classes, rng)}
}

func (p *perceptron) model(t testing.TB) *onnx.Model {
	t.Helper()
	g := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "N"}
	x := g.Input("x", onnx.Float, n, onnx.Dim{Value: int64(p.features)})
	h := g.Op("Tanh", []string{g.Op("Gemm", []string{x, g.Weight("A", []int64{int64(p.features), int64(p.hidden)}, p.A), g.Weight("a", []int64{int64(p.hidden)}, p.a)})})
	z := g.Op("Gemm", []string{h, g.Weight("B", []int64{int64(p.hidden), int64(p.classes)}, p.B), g.Weight("b", []int64{int64(p.classes)}, p.b)})
	g.Output(z, onnx.Float, n, onnx.Dim{Value: int64(p.classes)})
	m, err := g.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// at computes a logit in float64, beside the engine.
func (p *perceptron) at(x []float64, class int) float64 {
	z := float64(p.b[class])
	for h := range p.hidden {
		sum := float64(p.a[h])
		for i, v := range x {
			sum += v * float64(p.A[i*p.hidden+h])
		}
		z += math.Tanh(sum) * float64(p.B[h*p.classes+class])
	}
	return z
}

// exactShapley enumerates all coalitions (Shapley 1953): the mean marginal worth
// over all orders in which the features can arrive.
func exactShapley(x []float32, background [][]float32, f func([]float64) float64) []float64 {
	m := len(x)
	worth := make([]float64, 1<<m)
	mixed := make([]float64, m)
	for s := range worth {
		for _, b := range background {
			for i := range m {
				mixed[i] = float64(b[i])
				if s>>i&1 == 1 {
					mixed[i] = float64(x[i])
				}
			}
			worth[s] += f(mixed) / float64(len(background))
		}
	}
	factorial := func(n int) float64 { return math.Gamma(float64(n) + 1) }
	out := make([]float64, m)
	for s := range worth {
		size := bits.OnesCount(uint(s))
		for i := range m {
			if s>>i&1 == 0 {
				out[i] += factorial(size) * factorial(m-size-1) / factorial(m) * (worth[s|1<<i] - worth[s])
			}
		}
	}
	return out
}

func background(n, features int, rng *rand.Rand) ([][]float32, explain.Background) {
	var rows [][]float32
	var tensors []engine.Tensor
	for range n {
		row := normals(features, rng)
		rows = append(rows, row)
		tensors = append(tensors, engine.Float32([]int64{1, int64(features)}, row))
	}
	return rows, explain.References(tensors...)
}

func TestKernelSHAPWithAllCoalitionsGivesTheExactShapleyValues(t *testing.T) {
	for _, features := range []int{1, 2, 3, 4, 7, 10} {
		t.Run(fmt.Sprint(features), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(features), 4))
			p := newPerceptron(features, 6, 2, rng)
			x := normals(features, rng)
			rows, from := background(5, features, rng)
			want := exactShapley(x, rows, func(v []float64) float64 { return p.at(v, 1) })
			got := explained(t, explain.KernelSHAP, p.model(t), explain.Options{Background: from}, engine.Float32([]int64{1, int64(features)}, x), 1)
			near(t, "Shapley value", got.Values, want, 2e-5)
			if got.Evaluations != 5*(1<<features)+1 && features > 1 {
				t.Errorf("%d evaluations, want every coalition with every background and the input", got.Evaluations)
			}
		})
	}
}

func TestSampledKernelSHAPApproachesTheExactValuesAndStaysLocallyAccurate(t *testing.T) {
	const features = 10
	rng := rand.New(rand.NewPCG(3, 4))
	p := newPerceptron(features, 6, 2, rng)
	x := normals(features, rng)
	rows, from := background(5, features, rng)
	want := exactShapley(x, rows, func(v []float64) float64 { return p.at(v, 0) })
	worst := func(samples int) float64 {
		most := 0.0
		for seed := range uint64(5) {
			got := explained(t, explain.KernelSHAP, p.model(t), explain.Options{Background: from, Samples: samples, Seed: seed}, engine.Float32([]int64{1, features}, x), 0)
			sum := 0.0
			for i, v := range got.Values {
				sum += float64(v)
				most = math.Max(most, math.Abs(float64(v)-want[i]))
			}
			if a := got.Additive; math.Abs(a.Gap) > 1e-9 || math.Abs(sum-(a.Output-a.Reference)) > 1e-5 {
				t.Errorf("%d samples: contributions add up to %v, the difference is %v", samples, sum, a.Output-a.Reference)
			}
		}
		return most
	}
	few, many := worst(60), worst(700)
	t.Logf("largest error of 5 seeds: %.3g with 60 coalitions, %.3g with 700 of 1022", few, many)
	if many > 0.05 || many > few {
		t.Errorf("the largest error is %v with 700 coalitions and %v with 60", many, few)
	}
}

// The axioms, on random models: contributions add up (completeness), a feature
// that the model does not read gets nothing (dummy), two that it treats alike
// and that have the same values get the same (symmetry).
func TestContributionsObeyTheAxioms(t *testing.T) {
	methods := []explain.Method{explain.IntegratedGradients, explain.GradientSHAP, explain.KernelSHAP}
	requireRuntime(t)
	rapid.Check(t, func(r *rapid.T) {
		features := rapid.IntRange(3, 8).Draw(r, "features")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 1))
		p := newPerceptron(features, 5, 2, rng)
		x := normals(features, rng)
		rows, from := background(rapid.IntRange(1, 4).Draw(r, "backgrounds"), features, rng)
		// Feature 0 is a dummy; 1 and 2 are alike.
		for h := range p.hidden {
			p.A[h] = 0
			p.A[2*p.hidden+h] = p.A[p.hidden+h]
		}
		x[2] = x[1]
		for _, row := range rows {
			row[2] = row[1]
		}
		m := p.model(t)
		for _, method := range methods {
			e, err := explain.New(method, m, explain.Options{Background: from, Tolerance: 1e-3, Samples: 400})
			if err != nil {
				r.Fatal(err)
			}
			got, err := e.Explain(t.Context(), engine.Float32([]int64{1, int64(features)}, x), 1)
			e.Close()
			if err != nil {
				r.Fatal(err)
			}
			if math.Abs(float64(got.Values[0])) > 1e-6 {
				r.Errorf("%s gives %v to a feature that the model does not read", method, got.Values[0])
			}
			if math.Abs(float64(got.Values[1]-got.Values[2])) > 1e-5 {
				r.Errorf("%s gives %v and %v to features that are alike", method, got.Values[1], got.Values[2])
			}
			sum := got.Additive.Gap
			for _, v := range got.Values {
				sum += float64(v)
			}
			if difference := got.Additive.Output - got.Additive.Reference; math.Abs(sum-difference) > 1e-5*math.Max(1, math.Abs(difference)) {
				r.Errorf("%s: contributions and gap add up to %v, the difference is %v", method, sum, difference)
			}
			wide := make([]float64, features)
			for i, v := range x {
				wide[i] = float64(v)
			}
			if want := p.at(wide, 1); math.Abs(got.Additive.Output-want) > 1e-4 {
				r.Errorf("%s explains a score of %v, the model's is %v", method, got.Additive.Output, want)
			}
			if method == explain.IntegratedGradients && math.Abs(got.Additive.Gap) > 1e-3*math.Abs(got.Additive.Output-got.Additive.Reference) && got.Additive.Converged {
				r.Errorf("integrated gradients call a gap of %v converged", got.Additive.Gap)
			}
		}
	})
}

// requireRuntime skips where there is no engine.
func requireRuntime(t *testing.T) {
	t.Helper()
	explained(t, explain.Gradient, linear(t, 1, 2, []float32{1, 2}, []float32{0, 0}), explain.Options{}, engine.Float32([]int64{1, 1}, []float32{1}), 0)
}

// relu(x) has the smoothed gradient P(x+ε > 0) = Φ(x/σ).
func TestSmoothGradIsTheExpectedGradientUnderNoise(t *testing.T) {
	g := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "N"}
	x := g.Input("x", onnx.Float, n, onnx.Dim{Value: 5})
	sum := g.Op("ReduceSum", []string{g.Op("Relu", []string{x}), g.Ints("axis", 1)}, onnx.IntAttribute("keepdims", 1))
	g.Output(sum, onnx.Float, n, onnx.Dim{Value: 1})
	m := built(t, g)
	values := []float32{-1, -0.2, 0.1, 0.4, 1}
	const noise, samples = 0.25, 20000
	deviation := noise * 2.0 // the values span 2
	want := make([]float64, len(values))
	for i, v := range values {
		want[i] = 0.5 * math.Erfc(-float64(v)/deviation/math.Sqrt2)
	}
	got := explained(t, explain.SmoothGrad, m, explain.Options{Noise: noise, Samples: samples, Seed: 2}, engine.Float32([]int64{1, 5}, values), 0)
	near(t, "smoothgrad", got.Values, want, 5*0.5/math.Sqrt(samples))
	again := explained(t, explain.SmoothGrad, m, explain.Options{Noise: noise, Samples: samples, Seed: 2}, engine.Float32([]int64{1, 5}, values), 0)
	other := explained(t, explain.SmoothGrad, m, explain.Options{Noise: noise, Samples: samples, Seed: 3}, engine.Float32([]int64{1, 5}, values), 0)
	same, different := true, false
	for i := range values {
		same = same && got.Values[i] == again.Values[i]
		different = different || got.Values[i] != other.Values[i]
	}
	if !same || !different {
		t.Errorf("the same seed gives the same map: %v; another seed another: %v", same, different)
	}
}
