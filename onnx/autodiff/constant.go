package autodiff

import (
	"math"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// integers is a constant integer (or boolean) tensor.
type integers struct {
	dims []int64
	data []int64
}

// foldLimit bounds what fold evaluates: shapes, axes, slice bounds. Anything
// larger is data, not a shape.
const foldLimit = 4096

// fold evaluates a small integer tensor if it depends on nothing but constants
// and static shapes, as exporters' Shape ▸ Gather ▸ Concat chains do. Nil means
// that it does not, or uses an operator beyond those chains.
func (t *tape) fold(name string) *integers {
	if v, done := t.folded[name]; done {
		return v
	}
	t.folded[name] = nil // a cycle would otherwise recurse without end
	var v *integers
	if w := t.inits[name]; w != nil {
		v = integersOf(w)
	} else if n := t.producer[name]; n != nil && (n.Domain == "" || n.Domain == "ai.onnx") {
		v = t.foldNode(n)
	}
	t.folded[name] = v
	return v
}

func integersOf(w *onnx.Tensor) *integers {
	count, err := w.Count()
	if err != nil || count > foldLimit || w.Check() != nil {
		return nil
	}
	if w.Type == onnx.Bool {
		out := &integers{dims: w.Dims}
		for _, b := range w.Raw {
			out.data = append(out.data, int64(b))
		}
		return out
	}
	data, err := w.Ints()
	if err != nil {
		return nil
	}
	return &integers{dims: w.Dims, data: data}
}

func (t *tape) foldNode(n *onnx.Node) *integers {
	o := &operation{tape: t, node: n}
	switch n.OpType {
	case "Constant":
		if a := o.node.Attribute("value"); a != nil && a.Tensor != nil {
			return integersOf(a.Tensor)
		}
		if a := o.node.Attribute("value_ints"); a != nil {
			return &integers{dims: []int64{int64(len(a.Ints))}, data: a.Ints}
		}
		if a := o.node.Attribute("value_int"); a != nil {
			return &integers{dims: []int64{}, data: []int64{a.Int}}
		}
		return nil
	case "Shape":
		v, ok := t.values[n.Inputs[0]]
		if !ok {
			return nil
		}
		dims := v.shape
		start, end := o.node.Int("start", 0), o.node.Int("end", math.MaxInt64)
		if start < 0 {
			start += int64(len(dims))
		}
		if end < 0 {
			end += int64(len(dims))
		}
		start, end = min(max(start, 0), int64(len(dims))), min(max(end, 0), int64(len(dims)))
		if start > end {
			start = end
		}
		return vector(dims[start:end])
	}
	var in []*integers
	for _, name := range n.Inputs {
		v := t.fold(name)
		if v == nil {
			return nil
		}
		in = append(in, v)
	}
	return foldOperator(n.OpType, o, in)
}

func vector(data []int64) *integers {
	return &integers{dims: []int64{int64(len(data))}, data: slices.Clone(data)}
}

// foldOperator evaluates what exporters compute shapes with, on vectors and scalars.
func foldOperator(opType string, o *operation, in []*integers) *integers {
	if len(in) == 0 || slices.ContainsFunc(in, func(v *integers) bool { return len(v.dims) > 1 }) {
		return nil
	}
	switch opType {
	case "Identity", "Cast":
		return in[0]
	case "Unsqueeze":
		if len(in[0].dims) == 0 {
			return vector(in[0].data)
		}
	case "Squeeze":
		if len(in[0].data) == 1 {
			return &integers{dims: []int64{}, data: in[0].data}
		}
	case "Concat":
		var data []int64
		for _, v := range in {
			data = append(data, v.data...)
		}
		return vector(data)
	case "Gather":
		out := &integers{dims: in[1].dims}
		for _, i := range in[1].data {
			if i < 0 {
				i += int64(len(in[0].data))
			}
			if i < 0 || i >= int64(len(in[0].data)) {
				return nil
			}
			out.data = append(out.data, in[0].data[i])
		}
		return out
	case "Slice":
		return foldSlice(in)
	case "Add", "Sub", "Mul", "Div":
		return foldArithmetic(opType, in)
	}
	return nil
}

func foldSlice(in []*integers) *integers {
	if len(in) < 3 || len(in[1].data) != 1 || len(in[2].data) != 1 {
		return nil
	}
	if len(in) > 4 && (len(in[4].data) != 1 || in[4].data[0] != 1) {
		return nil
	}
	n := int64(len(in[0].data))
	bound := func(i int64) int64 {
		if i < 0 {
			i += n
		}
		return min(max(i, 0), n)
	}
	start, end := bound(in[1].data[0]), bound(in[2].data[0])
	if start > end {
		return nil
	}
	return vector(in[0].data[start:end])
}

func foldArithmetic(opType string, in []*integers) *integers {
	a, b := in[0], in[1]
	n := max(len(a.data), len(b.data))
	if len(a.data) != n && len(a.data) != 1 || len(b.data) != n && len(b.data) != 1 {
		return nil
	}
	out := &integers{dims: a.dims, data: make([]int64, n)}
	if len(b.dims) > len(a.dims) || len(b.data) > len(a.data) {
		out.dims = b.dims
	}
	for i := range out.data {
		x, y := a.data[i%len(a.data)], b.data[i%len(b.data)]
		switch opType {
		case "Add":
			out.data[i] = x + y
		case "Sub":
			out.data[i] = x - y
		case "Mul":
			out.data[i] = x * y
		case "Div":
			if y == 0 {
				return nil
			}
			out.data[i] = x / y
		}
	}
	return out
}
