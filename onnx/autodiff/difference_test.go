package autodiff_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// A claim holds one operator, with attributes and shapes, against central
// differences. The loss is Σ y·r with fixed random r, so that every output
// element matters and none is special.
//
// Claims run in double wherever the runtime has a double kernel. Those that say
// single use operators that are linear in each input (convolutions, averages),
// where a central difference has no truncation error whatever the step: a step
// of 1/2 leaves float32 rounding alone, about 1e-6 of the loss.
type claim struct {
	name   string
	opset  int64
	single bool
	smooth bool // single, but not linear: a smaller step and a wider tolerance
	inputs []operand
	build  func(b *onnx.Builder, in []string) string
}

type operand struct {
	dims     []int64
	lo, hi   float64 // uniform range of the values
	values   []float64
	constant bool // not differentiated
	ints     []int64
}

func tensor(dims ...int64) operand             { return operand{dims: dims, lo: -1, hi: 1} }
func positive(dims ...int64) operand           { return operand{dims: dims, lo: 0.5, hi: 2} }
func given(v []float64, dims ...int64) operand { return operand{dims: dims, values: v} }
func index(v []int64, dims ...int64) operand   { return operand{dims: dims, ints: v, constant: true} }
func (o operand) fixed() operand               { o.constant = true; return o }
func (o operand) count() int {
	n := 1
	for _, d := range o.dims {
		n *= int(d)
	}
	return n
}

// op builds one node on all inputs.
func op(opType string, attrs ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string { return b.Op(opType, in, attrs...) }
}

// with appends constant integer inputs (axes, shapes) to the operands.
func with(opType string, attrs []onnx.Attribute, constants ...[]int64) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		for _, c := range constants {
			if c == nil {
				in = append(in, "")
			} else {
				in = append(in, b.Ints("k", c...))
			}
		}
		return b.Op(opType, in, attrs...)
	}
}

func (c claim) element() onnx.DataType {
	if c.single || c.smooth {
		return onnx.Float
	}
	return onnx.Double
}

func numbers(typ onnx.DataType, dims []int64, v []float64) engine.Tensor {
	if typ == onnx.Double {
		return engine.Float64(dims, slices.Clone(v))
	}
	single := make([]float32, len(v))
	for i := range v {
		single[i] = float32(v[i])
	}
	return engine.Float32(dims, single)
}

func elements(t engine.Tensor) []float64 {
	switch d := t.Data.(type) {
	case []float64:
		return d
	case []float32:
		out := make([]float64, len(d))
		for i := range d {
			out[i] = float64(d[i])
		}
		return out
	}
	panic(fmt.Sprintf("unexpected %T", t.Data))
}

// open starts a one-thread session or skips where this build has no runtime.
func open(t testing.TB, m *onnx.Model) engine.Session {
	t.Helper()
	s, err := engine.Open(m, engine.Options{Threads: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func run(t testing.TB, s engine.Session, in map[string]engine.Tensor) map[string]engine.Tensor {
	t.Helper()
	out, err := s.Run(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// model builds the claim's graph with output "loss" and gives values to its inputs.
func (c claim) model(t testing.TB) (m *onnx.Model, feed map[string]engine.Tensor, wrt []string) {
	t.Helper()
	opset := c.opset
	if opset == 0 {
		opset = 17
	}
	typ := c.element()
	rng := rand.New(rand.NewPCG(7, uint64(len(c.name))))
	b := onnx.NewBuilder(opset)
	feed = map[string]engine.Tensor{}
	var names []string
	for i, o := range c.inputs {
		name := fmt.Sprintf("x%d", i)
		names = append(names, name)
		if o.ints != nil {
			b.Input(name, onnx.Int64, onnx.Fixed(o.dims...)...)
			feed[name] = engine.Int64(o.dims, o.ints)
			continue
		}
		v := slices.Clone(o.values)
		for len(v) < o.count() {
			v = append(v, o.lo+(o.hi-o.lo)*rng.Float64())
		}
		b.Input(name, typ, onnx.Fixed(o.dims...)...)
		feed[name] = numbers(typ, o.dims, v)
		if !o.constant {
			wrt = append(wrt, name)
		}
	}
	y := c.build(b, names)
	b.Output(y, typ)
	probe, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	probe.Graph.Outputs[0].Shape = nil // not known yet
	shapes, err := onnx.InferShapes(probe, nil)
	if err != nil {
		t.Fatal(err)
	}
	dims, ok := shapes[y].Static()
	if !ok {
		t.Fatalf("shape of the output is not known: %v", shapes[y])
	}
	r := make([]float64, operand{dims: dims}.count())
	for i := range r {
		r[i] = rng.NormFloat64()
	}
	probe.Graph.Outputs = nil
	b = onnx.Extend(probe)
	b.Input("r", typ, onnx.Fixed(dims...)...)
	feed["r"] = numbers(typ, dims, r)
	b.Output(b.Node(&onnx.Node{OpType: "Mul", Inputs: []string{y, "r"}, Outputs: []string{"loss"}}, 1)[0], typ, onnx.Fixed(dims...)...)
	m, err = b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m, feed, wrt
}

func (c claim) check(t *testing.T) {
	m, feed, wrt := c.model(t)
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: "loss", WithRespectTo: wrt})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Model.Check(); err != nil {
		t.Fatalf("gradient graph: %v", err)
	}
	session := open(t, g.Model)
	used := map[string]engine.Tensor{}
	for _, in := range session.Inputs() {
		used[in.Name] = feed[in.Name]
	}
	gradients := run(t, session, used)
	forward := open(t, m)
	loss := func() float64 {
		sum := 0.0
		for _, v := range elements(run(t, forward, feed)["loss"]) {
			sum += v
		}
		return sum
	}
	step, tolerance := 1e-5, 2e-7
	switch {
	case c.smooth:
		step, tolerance = 1e-2, 3e-3
	case c.single:
		step, tolerance = 0.5, 2e-5
	}
	typ := c.element()
	for _, name := range wrt {
		x := feed[name]
		values := slices.Clone(elements(x))
		got := elements(gradients[g.Of[name]])
		if len(got) != len(values) {
			t.Fatalf("gradient of %s has %d elements, want %d", name, len(got), len(values))
		}
		scale := 1.0
		for _, v := range got {
			scale = math.Max(scale, math.Abs(v))
		}
		for _, i := range sample(len(values), 40) {
			moved := func(h float64) float64 {
				v := slices.Clone(values)
				v[i] += h
				feed[name] = numbers(typ, x.Shape, v)
				return loss()
			}
			want := (moved(step) - moved(-step)) / (2 * step)
			feed[name] = x
			if d := math.Abs(got[i] - want); !(d <= tolerance*scale) {
				t.Errorf("∂loss/∂%s[%d] = %.9g, central difference %.9g", name, i, got[i], want)
			}
		}
	}
}

// sample picks at most k of n positions, always the first and last.
func sample(n, k int) []int {
	if n <= k {
		out := make([]int, n)
		for i := range out {
			out[i] = i
		}
		return out
	}
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	out := []int{0, n - 1}
	for len(out) < k {
		out = append(out, rng.IntN(n))
	}
	return out
}

func TestEveryGradientEqualsItsCentralDifference(t *testing.T) {
	for _, family := range claims {
		for _, c := range family {
			t.Run(c.name, c.check)
		}
	}
}

// claimed returns which claims differentiate each operator of the table.
func claimed(t *testing.T) map[string][]string {
	t.Helper()
	names := map[string][]string{}
	for _, family := range claims {
		for _, c := range family {
			b := onnx.NewBuilder(17)
			var inputs []string
			for i, o := range c.inputs {
				inputs = append(inputs, b.Input(fmt.Sprintf("x%d", i), onnx.Float, onnx.Fixed(o.dims...)...))
			}
			b.Output(c.build(b, inputs), onnx.Float)
			m, err := b.Build()
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			seen := map[string]bool{}
			for _, n := range m.Graph.Nodes {
				key := n.OpType
				if n.Domain != "" {
					key = n.Domain + "." + key
				}
				if !seen[key] {
					names[key] = append(names[key], c.name)
				}
				seen[key] = true
			}
		}
	}
	return names
}

// Every operator in the table that is differentiated has a claim: a new rule or
// lowering cannot come without one.
func TestEveryRuleHasAClaim(t *testing.T) {
	names := claimed(t)
	for _, o := range autodiff.Operators() {
		if (o.Gradient == "rule" || o.Gradient == "lowered") && len(names[o.Name]) == 0 {
			t.Errorf("no claim tests the gradient of %s", o.Name)
		}
	}
}
