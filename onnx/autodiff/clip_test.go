package autodiff_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// clipGolden is what testdata/clip_golden.py recorded of functorch's vmap(grad).
type clipGolden struct {
	Shape      []int64              `json:"shape"`
	Integer    bool                 `json:"integer"`
	Input      []float64            `json:"input"`
	Classes    int64                `json:"classes"`
	Target     []float64            `json:"target"`
	Views      int64                `json:"views"`
	Weights    []string             `json:"weights"`
	Norms      []float64            `json:"norms"`
	LayerNorms []float64            `json:"layer_norms"` // [records, weights]
	Bound      float64              `json:"bound"`
	Bounds     []float64            `json:"bounds"`
	Flat       map[string][]float64 `json:"flat"`
	Layers     map[string][]float64 `json:"layers"`
}

func TestClippedSumsAgreeWithFunctorch(t *testing.T) {
	for _, name := range []string{"convolutions", "views", "tokens"} {
		m, err := onnx.Load("testdata/clip_" + name + ".onnx")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile("testdata/clip_" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var want clipGolden
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		l, err := autodiff.SoftmaxCrossEntropy(m, "logits")
		if err != nil {
			t.Fatal(err)
		}
		layers := make([][]string, len(want.Weights))
		for i, w := range want.Weights {
			layers[i] = []string{w}
		}
		for _, c := range []struct {
			name   string
			groups [][]string
			bounds []float64
			norms  []float64
			sums   map[string][]float64
		}{
			{"flat", nil, []float64{want.Bound}, want.Norms, want.Flat},
			{"per layer", layers, want.Bounds, want.LayerNorms, want.Layers},
		} {
			t.Run(name+" "+c.name, func(t *testing.T) {
				n := want.Shape[0]
				clip, err := autodiff.Clip(l.Model, autodiff.ClipRequest{Loss: l.Each, Weights: want.Weights, Groups: c.groups, Batch: n, Views: want.Views})
				if err != nil {
					t.Fatal(err)
				}
				feed := map[string]engine.Tensor{
					l.Target:   numbers(onnx.Float, []int64{n, want.Classes}, want.Target),
					clip.Bound: numbers(onnx.Float, []int64{int64(len(c.bounds))}, c.bounds),
					clip.Mask:  numbers(onnx.Float, []int64{n / want.Views}, ones(int(n/want.Views))),
				}
				if want.Integer {
					tokens := make([]int64, len(want.Input))
					for i, v := range want.Input {
						tokens[i] = int64(v)
					}
					feed["x"] = engine.Int64(want.Shape, tokens)
				} else {
					feed["x"] = numbers(onnx.Float, want.Shape, want.Input)
				}
				out := run(t, open(t, clip.Model), feed)
				norms := out[clip.Norms]
				if d := apart(elements(norms), c.norms); d > 1e-4 {
					t.Errorf("norms %v differ by %.2g from functorch's %v", elements(norms), d, c.norms)
				}
				for weight, sum := range c.sums {
					if d := apart(elements(out[clip.Of[weight]]), sum); d > 1e-4 {
						t.Errorf("clipped sum of %s differs by %.2g of its largest element", weight, d)
					}
				}
			})
		}
	}
}

func ones(n int) []float64 { return slices.Repeat([]float64{1}, n) }

// reference clips and sums materialised gradients: rows [N, S] of every weight,
// views averaged, in float64.
type reference struct {
	each map[string][][]float64 // by weight: one gradient a record
}

func materialised(rows map[string][]float64, n, views int) reference {
	r := reference{map[string][][]float64{}}
	for name, g := range rows {
		size := len(g) / n
		for record := range n / views {
			mean := make([]float64, size)
			for v := range views {
				for i := range mean {
					mean[i] += g[(record*views+v)*size+i] / float64(views)
				}
			}
			r.each[name] = append(r.each[name], mean)
		}
	}
	return r
}

func (r reference) norm(record int, group []string) float64 {
	sum := 0.0
	for _, name := range group {
		for _, v := range r.each[name][record] {
			sum += v * v
		}
	}
	return math.Sqrt(sum)
}

func (r reference) sum(name string, group []string, bound float64, mask []float64) []float64 {
	out := make([]float64, len(r.each[name][0]))
	for record, g := range r.each[name] {
		factor := mask[record] * min(1, bound/r.norm(record, group))
		for i, v := range g {
			out[i] += factor * v
		}
	}
	return out
}

// network is a graph with input x and output loss [N], and its weights.
type network struct {
	input  []int64 // of one row
	tokens int64   // x holds integers below it; 0: numbers
	typ    onnx.DataType
	opset  int64
	build  func(b *onnx.Builder, x string) (y string, weights []string)
}

// clipNetworks covers every way in which a weight meets the batch.
var clipNetworks = map[string]network{
	"vectors through Gemm, either way round": {[]int64{5}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		h := b.Op("Tanh", []string{b.Op("Gemm", []string{x, drawn(b, "a", 5, 7), drawn(b, "b", 7)}, f("alpha", 0.5), f("beta", 2))})
		return b.Op("Gemm", []string{h, drawn(b, "c", 4, 7)}, i("transB", 1)), []string{"a", "b", "c"}
	}},
	"many positions through MatMul": {[]int64{3, 20}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		h := b.Op("Add", []string{b.Op("MatMul", []string{x, drawn(b, "a", 20, 9)}), drawn(b, "b", 9)})
		return b.Op("MatMul", []string{b.Op("Sigmoid", []string{h}), b.Op("Transpose", []string{drawn(b, "c", 2, 9)}, is("perm", 1, 0))}), []string{"a", "b", "c"}
	}},
	"more positions than weights": {[]int64{30, 3}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		return b.Op("Sin", []string{b.Op("MatMul", []string{x, drawn(b, "a", 3, 2)})}), []string{"a"}
	}},
	"a weight used twice": {[]int64{6}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		w := drawn(b, "a", 6, 6)
		h := b.Op("Tanh", []string{b.Op("Gemm", []string{x, w})})
		return b.Op("Gemm", []string{h, w}, i("transB", 1)), []string{"a"}
	}},
	"a weight used as it is and transposed": {[]int64{4, 12}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		w := drawn(b, "a", 12, 12)
		h := b.Op("Tanh", []string{b.Op("MatMul", []string{x, w})})
		return b.Op("MatMul", []string{h, b.Op("Transpose", []string{w}, is("perm", 1, 0))}), []string{"a"}
	}},
	"a weight reshaped and negated on its way": {[]int64{2, 10}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		w := b.Op("Neg", []string{b.Op("Reshape", []string{drawn(b, "a", 4, 5, 3), b.Ints("k", 10, 6)})})
		return b.Op("Sin", []string{b.Op("MatMul", []string{x, w})}), []string{"a"}
	}},
	"a normalised weight": {[]int64{2, 10}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		w := drawn(b, "a", 10, 6)
		norm := b.Op("ReduceL2", []string{w}, is("axes", 0), i("keepdims", 1))
		return b.Op("Sin", []string{b.Op("MatMul", []string{x, b.Op("Div", []string{w, norm})})}), []string{"a"}
	}},
	"an embedding with repeated rows": {[]int64{5}, 30, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		return b.Op("Sin", []string{b.Op("Mul", []string{b.Op("Gather", []string{drawn(b, "a", 30, 4), x}), drawn(b, "s", 4)})}), []string{"a", "s"}
	}},
	"layer normalisation and a position table": {[]int64{4, 6}, 0, onnx.Double, 17, func(b *onnx.Builder, x string) (string, []string) {
		h := b.Op("Add", []string{x, drawn(b, "p", 1, 4, 6)})
		return b.Op("Sin", []string{b.Op("LayerNormalization", []string{h, drawn(b, "s", 6), drawn(b, "b", 6)})}), []string{"p", "s", "b"}
	}},
	"convolutions with few and many positions": {[]int64{3, 9, 9}, 0, onnx.Float, 17, func(b *onnx.Builder, x string) (string, []string) {
		h := b.Op("Tanh", []string{b.Op("Conv", []string{x, drawn(b, "a", 4, 3, 3, 3), drawn(b, "b", 4)}, is("pads", 1, 1, 1, 1))})
		h = b.Op("Tanh", []string{b.Op("Conv", []string{h, drawn(b, "c", 12, 4, 5, 5)}, is("strides", 2, 2))})
		return b.Op("Conv", []string{h, drawn(b, "d", 40, 12, 2, 2)}, is("dilations", 2, 2)), []string{"a", "b", "c", "d"}
	}},
	"grouped and depthwise convolutions": {[]int64{4, 6, 6}, 0, onnx.Float, 17, func(b *onnx.Builder, x string) (string, []string) {
		h := b.Op("Tanh", []string{b.Op("Conv", []string{x, drawn(b, "a", 4, 1, 3, 3)}, i("group", 4), is("strides", 2, 2), is("pads", 1, 1, 1, 1))})
		return b.Op("Conv", []string{h, drawn(b, "c", 6, 2, 3, 3)}, i("group", 2)), []string{"a", "c"}
	}},
	"transposed convolution": {[]int64{3, 5}, 0, onnx.Float, 17, func(b *onnx.Builder, x string) (string, []string) {
		return b.Op("Sin", []string{b.Op("ConvTranspose", []string{x, drawn(b, "a", 3, 4, 3)}, is("strides", 2))}), []string{"a"}
	}},
	"a chain of layers in a volume": {[]int64{2, 3, 4, 4}, 0, onnx.Float, 17, func(b *onnx.Builder, x string) (string, []string) {
		h := b.Op("Relu", []string{b.Op("Conv", []string{x, drawn(b, "a", 8, 2, 3, 3, 3), drawn(b, "b", 8)}, is("pads", 1, 1, 1, 1, 1, 1))})
		return b.Op("Gemm", []string{b.Op("Flatten", []string{h}), drawn(b, "c", 384, 3)}), []string{"a", "b", "c"}
	}},
}

// drawn is a weight of the builder's element type, the same on every run.
func drawn(b *onnx.Builder, name string, dims ...int64) string {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	rng := rand.New(rand.NewPCG(11, uint64(len(name))<<8|uint64(name[0])))
	v := make([]float32, n)
	for k := range v {
		v[k] = float32(rng.NormFloat64()) / 2
	}
	return b.Weight(name, dims, v)
}

func (c network) loss(t *testing.T) (*onnx.Model, []string) {
	t.Helper()
	b := onnx.NewBuilder(c.opset)
	typ := c.typ
	if c.tokens > 0 {
		typ = onnx.Int64
	}
	dims := []onnx.Dim{{Value: -1, Param: "n"}}
	x := b.Input("x", typ, append(dims, onnx.Fixed(c.input...)...)...)
	y, weights := c.build(b, x)
	square := b.Op("Mul", []string{y, y})
	flat := b.Op("Flatten", []string{square})
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{flat, b.Ints("k", 1)}, Outputs: []string{"loss"}, Attributes: attrs{i("keepdims", 0)}}, 1)
	b.Output("loss", c.typ, dims...)
	m, err := b.Build()
	if err != nil && c.typ == onnx.Float {
		t.Fatal(err)
	}
	if c.typ == onnx.Double {
		m = inDouble(t, m)
	}
	return m, weights
}

// inDouble makes a model's float weights double.
func inDouble(t *testing.T, m *onnx.Model) *onnx.Model {
	t.Helper()
	for _, w := range m.Graph.Initializers {
		if w.Type != onnx.Float {
			continue
		}
		v, err := w.Floats()
		if err != nil {
			t.Fatal(err)
		}
		*w = *onnx.NewTensor(w.Name, w.Dims, v)
	}
	return m
}

func (c network) feed(n int) map[string]engine.Tensor {
	rng := rand.New(rand.NewPCG(4, uint64(n)))
	shape := append([]int64{int64(n)}, c.input...)
	size := n
	for _, d := range c.input {
		size *= int(d)
	}
	if c.tokens > 0 {
		v := make([]int64, size)
		for k := range v {
			v[k] = rng.Int64N(c.tokens)/7*7 - c.tokens*int64(k%2) // negative ones count from the end
		}
		return map[string]engine.Tensor{"x": engine.Int64(shape, v)}
	}
	v := make([]float64, size)
	for k := range v {
		v[k] = rng.NormFloat64() * float64(1+k*n/size) // rows of different size
	}
	return map[string]engine.Tensor{"x": numbers(c.typ, shape, v)}
}

func TestClippedSumsAreThoseOfMaterialisedGradients(t *testing.T) {
	const n = 6
	for name, c := range clipNetworks {
		m, weights := c.loss(t)
		tolerance := 1e-4
		if c.typ == onnx.Double {
			tolerance = 1e-9
		}
		all, err := autodiff.Gradient(m, autodiff.Request{Loss: "loss", WithRespectTo: weights, PerExample: true, Batch: n})
		if err != nil {
			t.Fatal(err)
		}
		out := run(t, open(t, all.Model), c.feed(n))
		rows := map[string][]float64{}
		for _, w := range weights {
			rows[w] = elements(out[all.Of[w]])
		}
		for _, views := range []int{1, 2, 3} {
			want := materialised(rows, n, views)
			layers := make([][]string, len(weights))
			for k, w := range weights {
				layers[k] = []string{w}
			}
			for _, groups := range [][][]string{nil, layers} {
				t.Run(fmt.Sprintf("%s, %d views, %d groups", name, views, len(groups)), func(t *testing.T) {
					clip, err := autodiff.Clip(m, autodiff.ClipRequest{Loss: "loss", Weights: weights, Groups: groups, Batch: n, Views: int64(views)})
					if err != nil {
						t.Fatal(err)
					}
					if groups == nil {
						groups = [][]string{weights}
					}
					mask := ones(n / views)
					mask[1] = 0
					bounds := make([]float64, len(groups))
					for k, g := range groups { // so that some are clipped and some are not
						bounds[k] = 0.8 * (want.norm(0, g) + want.norm(n/views-1, g)) / 2
					}
					feed := c.feed(n)
					feed[clip.Bound] = numbers(c.typ, []int64{int64(len(bounds))}, bounds)
					feed[clip.Mask] = numbers(c.typ, []int64{int64(n / views)}, mask)
					out := run(t, open(t, clip.Model), feed)
					for k, g := range groups {
						for r := range n / views {
							got, norm := elements(out[clip.Norms])[r*len(groups)+k], want.norm(r, g)
							if math.Abs(got-norm) > tolerance*norm {
								t.Errorf("norm of record %d over %v is %.9g, want %.9g", r, g, got, norm)
							}
						}
						for _, w := range g {
							if d := apart(elements(out[clip.Of[w]]), want.sum(w, g, bounds[k], mask)); d > tolerance {
								t.Errorf("sum of %s differs by %.2g of its largest element", w, d)
							}
						}
					}
				})
			}
		}
	}
}

// The noise is measured by the bound, so nothing may be longer than it, even by
// rounding: every record alone, at bounds over many magnitudes.
func TestNoClippedGradientIsLongerThanItsBound(t *testing.T) {
	for name, c := range clipNetworks {
		if c.typ != onnx.Float {
			continue
		}
		t.Run(name, func(t *testing.T) {
			const n = 4
			m, weights := c.loss(t)
			clip, err := autodiff.Clip(m, autodiff.ClipRequest{Loss: "loss", Weights: weights, Batch: n})
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, clip.Model)
			feed := c.feed(n)
			for record := range n {
				mask := make([]float64, n)
				mask[record] = 1
				feed[clip.Mask] = numbers(onnx.Float, []int64{n}, mask)
				for _, bound := range []float64{1e-6, 1e-3, 1, 5} {
					feed[clip.Bound] = numbers(onnx.Float, []int64{1}, []float64{bound})
					out := run(t, s, feed)
					sum := 0.0
					for _, w := range weights {
						for _, v := range elements(out[clip.Of[w]]) {
							sum += v * v
						}
					}
					if math.Sqrt(sum) > float64(float32(bound)) {
						t.Errorf("record %d is %.9g long after clipping to %g", record, math.Sqrt(sum), bound)
					}
				}
			}
		})
	}
}

// Norms against central differences of each row's own loss.
func TestNormsAgreeWithFiniteDifferences(t *testing.T) {
	const n, h = 3, 1e-5
	c := clipNetworks["vectors through Gemm, either way round"]
	m, weights := c.loss(t)
	clip, err := autodiff.Clip(m, autodiff.ClipRequest{Loss: "loss", Weights: weights, Batch: n})
	if err != nil {
		t.Fatal(err)
	}
	squares := make([]float64, n)
	for _, name := range weights {
		values, err := m.Graph.Initializer(name).Floats()
		if err != nil {
			t.Fatal(err)
		}
		for k := range values {
			at := func(step float64) []float64 {
				moved := m.Clone()
				w := moved.Graph.Initializer(name)
				v := slices.Clone(values)
				v[k] += step
				*w = *onnx.NewTensor(name, w.Dims, v)
				return elements(run(t, open(t, moved), c.feed(n))["loss"])
			}
			up, down := at(h), at(-h)
			for r := range n {
				slope := (up[r] - down[r]) / (2 * h)
				squares[r] += slope * slope
			}
		}
	}
	feed := c.feed(n)
	feed[clip.Bound] = numbers(c.typ, []int64{1}, ones(1))
	feed[clip.Mask] = numbers(c.typ, []int64{n}, ones(n))
	got := elements(run(t, open(t, clip.Model), feed)[clip.Norms])
	for r := range n {
		if want := math.Sqrt(squares[r]); math.Abs(got[r]-want) > 1e-6*want {
			t.Errorf("norm of row %d is %.9g, differences give %.9g", r, got[r], want)
		}
	}
}

// What makes DP-SGD affordable: wide layers never hold a gradient per record.
func TestAWideLayersGradientsPerRecordAreNeverMade(t *testing.T) {
	const n, width = 32, 500
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: width})
	h := b.Op("Relu", []string{b.Op("Gemm", []string{x, drawn(b, "a", width, width)})})
	h = b.Op("MatMul", []string{h, drawn(b, "c", width, width)})
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{h, b.Ints("k", 1)}, Outputs: []string{"loss"}, Attributes: attrs{i("keepdims", 0)}}, 1)
	b.Output("loss", onnx.Float, onnx.Dim{Value: -1, Param: "n"})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	clip, err := autodiff.Clip(m, autodiff.ClipRequest{Loss: "loss", Weights: []string{"a", "c"}, Batch: n})
	if err != nil {
		t.Fatal(err)
	}
	shapes, err := onnx.InferShapes(clip.Model, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		t.Fatal(err)
	}
	for name, v := range shapes {
		size := int64(1)
		dims, _ := v.Static()
		for _, d := range dims {
			size *= d
		}
		if size > width*width {
			t.Errorf("%s has shape %v: larger than one weight", name, dims)
		}
	}
}

func TestAClippingRequestThatMakesNoSenseIsRefused(t *testing.T) {
	c := clipNetworks["vectors through Gemm, either way round"]
	m, weights := c.loss(t)
	good := autodiff.ClipRequest{Loss: "loss", Weights: weights, Batch: 6}
	for name, spoil := range map[string]func(r *autodiff.ClipRequest){
		"name the weights":              func(r *autodiff.ClipRequest) { r.Weights = nil },
		"is not a weight":               func(r *autodiff.ClipRequest) { r.Weights = append(slices.Clone(weights), "x") },
		"named twice":                   func(r *autodiff.ClipRequest) { r.Weights = append(slices.Clone(weights), weights[0]) },
		"in no clipping group":          func(r *autodiff.ClipRequest) { r.Groups = [][]string{weights[:1]} },
		"twice in the clipping groups":  func(r *autodiff.ClipRequest) { r.Groups = [][]string{weights, weights[:1]} },
		"is empty":                      func(r *autodiff.ClipRequest) { r.Groups = [][]string{weights, {}} },
		"not among the weights":         func(r *autodiff.ClipRequest) { r.Groups = [][]string{weights, {"other"}} },
		"does not divide into records":  func(r *autodiff.ClipRequest) { r.Views = 4 },
		"no tensor \"nothing\"":         func(r *autodiff.ClipRequest) { r.Loss = "nothing" },
		"with a known shape":            func(r *autodiff.ClipRequest) { r.Keep = []string{"nothing"} },
		"dimension 0 of input \"x\" is": func(r *autodiff.ClipRequest) { r.Batch = 0 },
	} {
		r := good
		spoil(&r)
		if _, err := autodiff.Clip(m, r); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want an error about %q, got %v", name, err)
		}
	}
}

func TestClippingRefusesBatchStatistics(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 2}, onnx.Dim{Value: 3})
	vector := func(name string) string { return drawn(b, name, 2) }
	y := b.Node(&onnx.Node{OpType: "BatchNormalization", Inputs: []string{x, vector("s"), vector("b"), vector("m"), vector("v")}, Attributes: attrs{i("training_mode", 1)}}, 3)[0]
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{y, b.Ints("k", 1, 2)}, Outputs: []string{"loss"}, Attributes: attrs{i("keepdims", 0)}}, 1)
	b.Output("loss", onnx.Float, onnx.Dim{Value: -1, Param: "n"})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	_, err = autodiff.Clip(m, autodiff.ClipRequest{Loss: "loss", Weights: []string{"s", "b"}, Batch: 4})
	if !errors.Is(err, autodiff.ErrMixesExamples) || !strings.Contains(err.Error(), "BatchNormalization") {
		t.Errorf("error is %v", err)
	}
}
