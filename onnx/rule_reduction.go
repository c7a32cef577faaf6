package onnx

import "slices"

// reductions have their axes in an attribute at first and in an input since
// the version named here: 13 for ReduceSum, 18 for the others.
var reductions = merged(
	each1(func(o *op) error { return reduce(o, 13) }, 1, "ReduceSum"),
	each1(func(o *op) error { return reduce(o, 18) }, 1, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
		"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare"),
)

func reduce(o *op, since int64) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	if x.shape == nil {
		return nil
	}
	keep := o.Int("keepdims", 1) != 0
	list, given, known := o.listed("axes", since, 1)
	if !known {
		if keep {
			o.set(0, x.typ, anyShape(len(x.shape)))
		}
		return nil
	}
	if !given || len(list) == 0 {
		if o.Int("noop_with_empty_axes", 0) != 0 {
			o.set(0, x.typ, x.shape)
			return nil
		}
		list = nil
		for i := range x.shape {
			list = append(list, int64(i))
		}
	}
	over, err := axes(list, len(x.shape))
	if err != nil {
		return err
	}
	o.set(0, x.typ, reduced(x.shape, over, keep))
	if o.OpType == "ReduceProd" && len(over) == len(x.shape) {
		foldProduct(o, x)
	}
	return nil
}

// foldProduct follows the number of elements that some exporters compute.
func foldProduct(o *op, x *fact) {
	if x.data.ints == nil {
		return
	}
	all := exactly(1)
	for _, n := range x.data.ints {
		all = combine("Mul", all, n, pairwise["Mul"].ints)
	}
	o.fold(data{ints: []integer{all}})
}

// reduced returns the shape without the given axes, or with ones for them.
func reduced(shape []Dim, over []int, keep bool) []Dim {
	out := []Dim{}
	for i, d := range shape {
		switch {
		case !slices.Contains(over, i):
			out = append(out, d)
		case keep:
			out = append(out, Dim{Value: 1})
		}
	}
	return out
}
