package onnx

import (
	"math"
	"slices"
)

// indexing are the operators that choose elements by place or by value.
var indexing = family{
	"Slice":           {1, slice},
	"Gather":          {1, gather},
	"GatherElements":  {11, gatherElements},
	"GatherND":        {11, gatherND},
	"Scatter":         {9, scatter},
	"ScatterElements": {11, scatter},
	"ScatterND":       {11, scatter},
	"OneHot":          {9, oneHot},
	"TopK":            {1, topK},
	"ArgMax":          {1, argExtreme},
	"ArgMin":          {1, argExtreme},
	"CumSum":          {11, keep},
	"NonZero":         {9, nonZero},
}

// slice has starts, ends and axes in attributes before version 10, in inputs
// since, and then steps as well.
func slice(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	if x.shape == nil {
		return nil
	}
	o.set(0, x.typ, anyShape(len(x.shape)))
	starts, givenStarts, ok1 := o.listed("starts", 10, 1)
	ends, givenEnds, ok2 := o.listed("ends", 10, 2)
	over, givenAxes, ok3 := o.listed("axes", 10, 3)
	if !givenStarts || !givenEnds {
		return mistake("no starts or ends")
	}
	if !ok3 || !ok1 && !givenAxes {
		return nil // anything may be cut
	}
	if !givenAxes {
		for i := range starts {
			over = append(over, int64(i))
		}
	}
	cut, err := axes(over, len(x.shape))
	if err != nil {
		return err
	}
	steps := make([]int64, len(cut))
	for i := range steps {
		steps[i] = 1
	}
	ok4 := true
	if o.version >= 10 && o.x(4) != nil {
		steps, ok4 = o.x(4).numbers()
	}
	shape := slices.Clone(x.shape)
	if !ok1 || !ok2 || !ok4 {
		for _, a := range cut {
			shape[a] = anyDim
		}
		o.set(0, x.typ, shape)
		return nil
	}
	if len(starts) != len(cut) || len(ends) != len(cut) || len(steps) != len(cut) {
		return mistake("starts %v, ends %v, steps %v for axes %v", starts, ends, steps, over)
	}
	first, step := make([]int64, len(shape)), make([]int64, len(shape))
	for i := range step {
		step[i] = 1
	}
	for i, a := range cut {
		if steps[i] == 0 {
			return mistake("a step of 0")
		}
		step[a] = steps[i]
		first[a], shape[a] = span(x.shape[a], starts[i], ends[i], steps[i])
	}
	o.set(0, x.typ, shape)
	if size, ok := small(shape); ok && x.data.known() {
		from, _ := x.static()
		stride, _ := strides(from)
		o.fold(x.data.pick(places(size, func(index []int) int {
			place := 0
			for i := range index {
				place += stride[i] * (int(first[i]) + index[i]*int(step[i]))
			}
			return place
		})))
	}
	return nil
}

// span returns where a cut of an axis begins and how long it is.
func span(d Dim, start, end, step int64) (int64, Dim) {
	if !d.Known() {
		if start == 0 && step == 1 && end >= math.MaxInt32 {
			return 0, d // all of it, whatever it is
		}
		return 0, anyDim
	}
	n := d.Value
	clamp := func(v, low, high int64) int64 {
		if v < 0 {
			v = max(v, math.MinInt64+n) + n
		}
		return min(max(v, low), high)
	}
	if step > 0 {
		start, end = clamp(start, 0, n), clamp(end, 0, n)
		if end <= start {
			return start, Dim{Value: 0}
		}
		return start, Dim{Value: (end-start-1)/step + 1}
	}
	start, end = clamp(start, 0, n-1), clamp(end, -1, n-1)
	if end >= start {
		return start, Dim{Value: 0}
	}
	if step == math.MinInt64 {
		return start, Dim{Value: 1}
	}
	return start, Dim{Value: (start-end-1)/-step + 1}
}

func gather(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	x, indices := o.x(0), o.x(1)
	o.set(0, x.typ, nil)
	if x.shape == nil {
		return nil
	}
	at, err := axis(o.Int("axis", 0), len(x.shape))
	if err != nil {
		return err
	}
	if indices.shape == nil {
		return nil
	}
	if len(x.shape)+len(indices.shape)-1 > MaxRank {
		return mistake("gather of %v by %v: too many dimensions", x, indices)
	}
	shape := joined(x.shape[:at], indices.shape, x.shape[at+1:])
	o.set(0, x.typ, shape)
	chosen, ok := indices.numbers()
	size, few := small(shape)
	if !ok || !few || !x.data.known() {
		return nil
	}
	from, _ := x.static()
	stride, _ := strides(from)
	across, _ := strides(mustStatic(indices.shape))
	for i, c := range chosen {
		if c < 0 {
			c += from[at]
		}
		if c < 0 || c >= from[at] {
			return mistake("gather of index %d from axis %d of %v", chosen[i], at, x)
		}
		chosen[i] = c
	}
	k := len(indices.shape)
	o.fold(x.data.pick(places(size, func(index []int) int {
		place, which := 0, 0
		for i := range at {
			place += stride[i] * index[i]
		}
		for i := range k {
			which += across[i] * index[at+i]
		}
		place += stride[at] * int(chosen[which])
		for i := at + 1; i < len(from); i++ {
			place += stride[i] * index[i+k-1]
		}
		return place
	})))
	return nil
}

// joined returns the shapes one after the other: unlike slices.Concat never
// nil, which would be an unknown rank.
func joined(shapes ...[]Dim) []Dim {
	return append([]Dim{}, slices.Concat(shapes...)...)
}

// mustStatic is for shapes of tensors whose elements are known.
func mustStatic(shape []Dim) []int64 {
	dims, _ := Value{Shape: shape}.Static()
	return dims
}

func gatherElements(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	x, indices := o.x(0), o.x(1)
	o.set(0, x.typ, indices.shape)
	if x.shape == nil || indices.shape == nil {
		return nil
	}
	if len(x.shape) != len(indices.shape) {
		return mistake("gather of %v by %v: want the same rank", x, indices)
	}
	_, err := axis(o.Int("axis", 0), len(x.shape))
	return err
}

func gatherND(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	x, indices := o.x(0), o.x(1)
	o.set(0, x.typ, nil)
	if x.shape == nil || len(indices.shape) == 0 {
		return nil
	}
	last := indices.shape[len(indices.shape)-1]
	if !last.Known() {
		return nil
	}
	batch := o.Int("batch_dims", 0)
	if batch < 0 || batch > int64(len(x.shape)) || last.Value > int64(len(x.shape))-batch {
		return mistake("gather of %v by %v with %d batch dimensions", x, indices, batch)
	}
	o.set(0, x.typ, joined(indices.shape[:len(indices.shape)-1], x.shape[batch+last.Value:]))
	return nil
}

func scatter(o *op) error {
	if err := o.need(3); err != nil {
		return err
	}
	x, updates := o.x(0), o.x(2)
	if x.typ != updates.typ && x.typ != Undefined && updates.typ != Undefined {
		return mistake("updates of type %v for %v", updates.typ, x.typ)
	}
	o.set(0, x.typ, x.shape)
	if o.OpType == "ScatterND" || x.shape == nil {
		return nil
	}
	if r := o.x(1).rank(); r >= 0 && r != len(x.shape) {
		return mistake("scatter into %v by %v: want the same rank", x, o.x(1))
	}
	_, err := axis(o.Int("axis", 0), len(x.shape))
	return err
}

func oneHot(o *op) error {
	if err := o.need(3); err != nil {
		return err
	}
	indices := o.x(0)
	typ := o.x(2).typ
	o.set(0, typ, nil)
	if indices.shape == nil {
		return nil
	}
	at, err := axis(o.Int("axis", -1), len(indices.shape)+1)
	if err != nil {
		return err
	}
	depth := anyDim
	if n, ok := o.x(1).number(); ok {
		depth = exactly(n).dim()
	}
	o.set(0, typ, slices.Insert(slices.Clone(indices.shape), at, depth))
	return nil
}

// topK has k in an attribute before version 10.
func topK(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	o.set(1, Int64, nil)
	if x.shape == nil {
		return nil
	}
	at, err := axis(o.Int("axis", -1), len(x.shape))
	if err != nil {
		return err
	}
	k, ok := o.Int("k", 0), true
	if o.version >= 10 {
		if err := o.need(2); err != nil {
			return err
		}
		k, ok = o.x(1).number()
	}
	shape := slices.Clone(x.shape)
	shape[at] = anyDim
	if ok {
		if k < 0 || x.shape[at].Known() && k > x.shape[at].Value {
			return mistake("the largest %d of axis %d of %v", k, at, x)
		}
		shape[at] = Dim{Value: k}
	}
	o.set(0, x.typ, shape)
	o.set(1, Int64, shape)
	return nil
}

func argExtreme(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, Int64, nil)
	if x.shape == nil {
		return nil
	}
	at, err := axis(o.Int("axis", 0), len(x.shape))
	if err != nil {
		return err
	}
	o.set(0, Int64, reduced(x.shape, []int{at}, o.Int("keepdims", 1) != 0))
	return nil
}

func nonZero(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	rank := anyDim
	if r := o.x(0).rank(); r >= 0 {
		rank = Dim{Value: int64(r)}
	}
	o.set(0, Int64, []Dim{rank, anyDim})
	return nil
}
