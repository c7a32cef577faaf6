package onnx_test

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// random draws small graphs of one operator each, legal ones mostly, for the
// comparisons with other implementations.
type random struct {
	*rand.Rand
	b     *onnx.Builder
	opset int64
}

func (r *random) between(low, high int) int64 { return int64(low + r.IntN(high-low+1)) }

func (r *random) coin() bool { return r.IntN(2) == 0 }

func (r *random) dims(rank, low, high int) []int64 {
	dims := make([]int64, rank)
	for i := range dims {
		dims[i] = r.between(low, high)
	}
	return dims
}

// input adds an input of the given shape.
func (r *random) input(typ onnx.DataType, dims []int64) string {
	return r.b.Input(r.b.Fresh("x")+"_in", typ, onnx.Fixed(dims...)...)
}

// floats adds a constant of floats with arbitrary elements.
func (r *random) floats(dims ...int64) string {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = 1 + r.Float32()
	}
	return r.b.Weight(r.b.Fresh("w")+"_w", dims, values)
}

func (r *random) scalar(v int64) string {
	return r.b.Constant(onnx.NewTensor(r.b.Fresh("n")+"_n", nil, []int64{v}))
}

// axis returns an axis of a tensor with that rank, counted from either end.
func (r *random) axis(rank int) int64 {
	a := r.between(0, rank-1)
	if r.coin() {
		a -= int64(rank)
	}
	return a
}

// some returns different axes.
func (r *random) some(rank int) []int64 {
	axes := []int64{}
	for _, a := range r.Perm(rank)[:r.between(1, rank)] {
		axes = append(axes, int64(a))
	}
	return axes
}

// stretchable returns two shapes that broadcast against each other.
func (r *random) stretchable() ([]int64, []int64) {
	full := r.dims(r.IntN(4), 1, 4)
	cut := func() []int64 {
		part := slices.Clone(full[r.IntN(len(full)+1):])
		for i := range part {
			if r.IntN(3) == 0 {
				part[i] = 1
			}
		}
		return part
	}
	return cut(), cut()
}

// window draws the attributes of a sliding window over n axes.
func (r *random) window(n int, dilated bool) []onnx.Attribute {
	if r.IntN(6) == 0 {
		// ONNX Runtime takes these without dilations and with strides no longer
		// than the window only.
		return []onnx.Attribute{onnx.TextAttribute("auto_pad", []string{"SAME_UPPER", "SAME_LOWER"}[r.IntN(2)]),
			onnx.IntsAttribute("strides", r.dims(n, 1, 2)...)}
	}
	var list []onnx.Attribute
	if r.coin() {
		list = append(list, onnx.IntsAttribute("strides", r.dims(n, 1, 3)...))
	}
	if dilated && r.coin() {
		list = append(list, onnx.IntsAttribute("dilations", r.dims(n, 1, 2)...))
	}
	switch r.IntN(4) {
	case 0:
		list = append(list, onnx.TextAttribute("auto_pad", "VALID"))
	case 1, 2:
		list = append(list, onnx.IntsAttribute("pads", r.dims(2*n, 0, 1)...))
	}
	return list
}

func (r *random) op(name string, inputs []string, attributes ...onnx.Attribute) []string {
	return []string{r.b.Op(name, inputs, attributes...)}
}

func (r *random) ops(name string, outputs int, inputs []string, attributes ...onnx.Attribute) []string {
	return r.b.Node(&onnx.Node{OpType: name, Inputs: inputs, Attributes: attributes}, outputs)
}

// microsoft adds a node of ONNX Runtime's own domain.
func (r *random) microsoft(name string, inputs []string, attributes ...onnx.Attribute) []string {
	r.b.Import("com.microsoft", 1)
	return r.b.Node(&onnx.Node{OpType: name, Domain: "com.microsoft", Inputs: inputs, Attributes: attributes}, 1)
}

// reduction draws a reduction whose axes are an input since the version given.
func (r *random) reduction(name string, since int64) []string {
	dims := r.dims(int(r.between(1, 4)), 1, 4)
	inputs := []string{r.input(onnx.Float, dims)}
	attributes := []onnx.Attribute{onnx.IntAttribute("keepdims", int64(r.IntN(2)))}
	if r.IntN(4) > 0 {
		if axes := r.some(len(dims)); r.opset >= since {
			inputs = append(inputs, r.b.Ints("axes", axes...))
		} else {
			attributes = append(attributes, onnx.IntsAttribute("axes", axes...))
		}
	}
	return r.op(name, inputs, attributes...)
}

// drawing is how to draw a graph of one operator; from is the first operator
// set to draw it for.
type drawing struct {
	from int64
	draw func(r *random) []string
}

func unaryDrawing(name string, from int64) drawing {
	return drawing{from: from, draw: func(r *random) []string {
		return r.op(name, []string{r.input(onnx.Float, r.dims(r.IntN(4), 0, 4))})
	}}
}

func binaryDrawing(name string, typ onnx.DataType, from int64) drawing {
	return drawing{from: from, draw: func(r *random) []string {
		a, b := r.stretchable()
		return r.op(name, []string{r.input(typ, a), r.input(typ, b)})
	}}
}

// drawings has at least one entry for each operator named in the table of
// shapes that ONNX Runtime runs on a processor.
func drawings() map[string]drawing {
	all := map[string]drawing{}
	for _, name := range []string{"Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "Identity",
		"LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
		"Softsign", "Sqrt", "Tanh", "ThresholdedRelu", "IsNaN", "IsInf", "Clip", "Celu", "Acos", "Acosh", "Asin", "Asinh",
		"Atan", "Atanh", "Cosh", "Sinh", "Tan", "Shrink"} {
		all[name] = unaryDrawing(name, 13)
	}
	all["HardSwish"], all["Mish"], all["Gelu"] = unaryDrawing("HardSwish", 14), unaryDrawing("Mish", 18), unaryDrawing("Gelu", 20)
	for _, name := range []string{"Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min", "Equal", "Greater", "Less"} {
		all[name] = binaryDrawing(name, onnx.Float, 11)
	}
	all["GreaterOrEqual"], all["LessOrEqual"] = binaryDrawing("GreaterOrEqual", onnx.Float, 12), binaryDrawing("LessOrEqual", onnx.Float, 12)
	all["Mod"] = drawing{from: 11, draw: func(r *random) []string {
		a, b := r.stretchable()
		return r.op("Mod", []string{r.input(onnx.Float, a), r.floats(b...)}, onnx.IntAttribute("fmod", 1))
	}}
	for _, name := range []string{"And", "Or", "Xor"} {
		all[name] = binaryDrawing(name, onnx.Bool, 11)
	}
	for _, name := range []string{"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"} {
		all[name] = drawing{from: 11, draw: func(r *random) []string { return r.reduction(name, 18) }}
	}
	all["ReduceSum"] = drawing{from: 11, draw: func(r *random) []string { return r.reduction("ReduceSum", 13) }}
	for _, name := range []string{"BitwiseAnd", "BitwiseOr", "BitwiseXor"} {
		all[name] = binaryDrawing(name, onnx.Int32, 18)
	}
	for _, name := range []string{"Gelu", "FastGelu", "QuickGelu"} {
		all["com.microsoft."+name] = drawing{from: 18, draw: func(r *random) []string {
			return r.microsoft(name, []string{r.input(onnx.Float, r.dims(3, 1, 4))})
		}}
	}
	for _, list := range []map[string]drawing{networkDrawings, layoutDrawings, indexDrawings, recurrentDrawings, fusedDrawings} {
		for name, d := range list {
			all[name] = d
		}
	}
	return all
}

// drawn is one graph.
type drawn struct {
	name  string
	model *onnx.Model
}

// draw returns n graphs of each operator for each operator set.
func draw(seed uint64, n int, opsets ...int64) ([]drawn, error) {
	all := drawings()
	var out []drawn
	for _, opset := range opsets {
		for _, name := range slices.Sorted(keys(all)) {
			d := all[name]
			if opset < d.from {
				continue
			}
			for i := range n {
				r := &random{rand.New(rand.NewPCG(seed, uint64(i))), onnx.NewBuilder(opset), opset}
				for _, output := range d.draw(r) {
					r.b.Output(output, onnx.Float)
				}
				m, err := r.b.Build()
				if err != nil {
					return nil, fmt.Errorf("drawing %s: %w", name, err)
				}
				out = append(out, drawn{fmt.Sprintf("%s-%d-%d", name, opset, i), m})
			}
		}
	}
	return out, nil
}

func keys(m map[string]drawing) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
