package onnx

import (
	"math"
	"slices"
)

// extents are the operators that join, cut, repeat and surround tensors.
var extents = family{
	"Concat": {4, concat},
	"Split":  {2, split},
	"Expand": {8, expand},
	"Tile":   {6, tile},
	"Pad":    {2, pad},
}

func concat(o *op) error {
	if err := o.need(len(o.in)); err != nil || len(o.in) == 0 {
		return mistake("concatenation with a missing input")
	}
	first := o.x(0)
	o.set(0, first.typ, nil)
	for _, x := range o.in {
		if x.typ != first.typ && x.typ != Undefined && first.typ != Undefined {
			return mistake("operands of types %v and %v", first.typ, x.typ)
		}
		if x.shape == nil {
			return nil
		}
	}
	at, err := axis(o.Int("axis", 0), len(first.shape))
	if err != nil {
		return err
	}
	shape := slices.Clone(first.shape)
	sum, summed := int64(0), true
	for _, x := range o.in {
		if len(x.shape) != len(shape) {
			return mistake("concatenation of %v and %v", first, x)
		}
		for i, d := range x.shape {
			if i == at {
				summed = summed && d.Known() && sum < math.MaxInt64-d.Value
				if summed {
					sum += d.Value
				}
				continue
			}
			var ok bool
			if shape[i], ok = same(shape[i], d); !ok {
				return mistake("concatenation of %v and %v along axis %d", first, x, at)
			}
		}
	}
	if shape[at] = anyDim; summed {
		shape[at] = Dim{Value: sum}
	}
	if len(o.in) == 1 {
		shape[at] = first.shape[at]
	}
	o.set(0, first.typ, shape)
	foldConcat(o, at, shape)
	return nil
}

// foldConcat joins the elements: each input is a run of blocks that take turns.
func foldConcat(o *op, at int, shape []Dim) {
	size, few := small(shape)
	if !few {
		return
	}
	blocks := 1
	for _, n := range size[:at] {
		blocks *= int(n)
	}
	var out data
	floats := 0
	for b := range blocks {
		for _, x := range o.in {
			n := x.data.len() / blocks
			part := make([]int, n)
			for i := range part {
				part[i] = b*n + i
			}
			d := x.data.pick(part)
			if count, _ := product(x.shape); !d.known() && count > 0 {
				// Not known by value: its size still keeps the others in place.
				d.ints = make([]integer, int(count)/blocks)
			}
			out.ints, out.floats = append(out.ints, d.ints...), append(out.floats, d.floats...)
			floats += len(d.floats)
		}
	}
	if floats == 0 {
		out.floats = nil
	} else if len(out.ints) > 0 {
		return
	}
	o.fold(out)
}

func split(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	for i := range o.out {
		o.set(i, x.typ, nil)
	}
	if x.shape == nil {
		return nil
	}
	at, err := axis(o.Int("axis", 0), len(x.shape))
	if err != nil {
		return err
	}
	sizes, given, known := o.listed("split", 13, 1)
	total := x.shape[at]
	switch {
	case given && known:
		if len(sizes) != len(o.out) {
			return mistake("split into %v for %d outputs", sizes, len(o.out))
		}
		sum := int64(0)
		for _, s := range sizes {
			if s < 0 || s > math.MaxInt32 {
				return mistake("split into %v", sizes)
			}
			sum += s
		}
		if total.Known() && sum != total.Value {
			return mistake("split of %v along axis %d into %v", x, at, sizes)
		}
	case !given && o.version >= 18 && o.Attribute("num_outputs") == nil:
		return mistake("neither split nor num_outputs")
	case !given && total.Known():
		n := int64(len(o.out))
		part := (total.Value + n - 1) / n // version 18: the last one may be smaller
		if o.version < 18 && total.Value%n != 0 {
			return mistake("split of %v along axis %d into %d equal parts", x, at, n)
		}
		left := total.Value
		for range n {
			sizes = append(sizes, min(part, left))
			left -= min(part, left)
		}
	}
	for i := range o.out {
		shape := slices.Clone(x.shape)
		shape[at] = anyDim
		if sizes != nil && (known || !given) {
			shape[at] = Dim{Value: sizes[i]}
		}
		o.set(i, x.typ, shape)
	}
	return foldSplit(o, at, sizes)
}

// foldSplit follows by value lists only.
func foldSplit(o *op, at int, sizes []int64) error {
	x := o.x(0)
	if len(x.shape) != 1 || at != 0 || !x.data.known() || sizes == nil {
		return nil
	}
	begin := 0
	for i := range o.out {
		part := make([]int, sizes[i])
		for j := range part {
			part[j] = begin + j
		}
		begin += len(part)
		o.out[i].data = x.data.pick(part)
	}
	return nil
}

func expand(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	x, want := o.x(0), o.x(1)
	o.set(0, x.typ, nil)
	if want.data.ints == nil || x.shape == nil {
		if want.rank() == 1 && want.shape[0].Known() && want.shape[0].Value <= MaxRank && x.shape != nil {
			o.set(0, x.typ, anyShape(max(len(x.shape), int(want.shape[0].Value))))
		}
		return nil
	}
	if len(want.data.ints) > MaxRank {
		return mistake("expansion to %d dimensions", len(want.data.ints))
	}
	to := make([]Dim, len(want.data.ints))
	for i, n := range want.data.ints {
		if n.known && n.value < 0 {
			return mistake("expansion to a dimension of %d", n.value)
		}
		to[i] = n.dim()
	}
	shape, err := broadcast(x.shape, to)
	if err != nil {
		return err
	}
	o.set(0, x.typ, shape)
	if size, ok := small(shape); ok && x.data.len() == 1 {
		o.fold(x.data.pick(places(size, func([]int) int { return 0 })))
	}
	return nil
}

func tile(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	if x.shape == nil {
		return nil
	}
	repeats := o.x(1).data.ints
	if repeats == nil {
		o.set(0, x.typ, anyShape(len(x.shape)))
		return nil
	}
	if len(repeats) != len(x.shape) {
		return mistake("%d repeats for %v", len(repeats), x)
	}
	shape := slices.Clone(x.shape)
	for i, n := range repeats {
		switch {
		case n.known && n.value < 0:
			return mistake("%d repeats", n.value)
		case n.known && n.value == 1:
		case shape[i] == Dim{Value: 1}:
			shape[i] = n.dim()
		case n.known && shape[i].Known() && n.value <= math.MaxInt32 && shape[i].Value <= math.MaxInt32:
			shape[i] = Dim{Value: shape[i].Value * n.value}
		default:
			shape[i] = anyDim
		}
	}
	o.set(0, x.typ, shape)
	return nil
}

// pad has its amounts in an attribute before version 11, in input 1 since, for
// the axes in input 3 since version 18.
func pad(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	if x.shape == nil {
		return nil
	}
	o.set(0, x.typ, anyShape(len(x.shape)))
	amounts, given, known := o.listed("pads", 11, 1)
	if !given {
		return mistake("no pads")
	}
	over := make([]int, len(x.shape))
	for i := range over {
		over[i] = i
	}
	if list, given, axesKnown := o.listed("axes", 18, 3); given && o.version >= 18 {
		if !axesKnown {
			return nil
		}
		var err error
		if over, err = axes(list, len(x.shape)); err != nil {
			return err
		}
	}
	if !known {
		return nil
	}
	if len(amounts) != 2*len(over) {
		return mistake("pads %v for %v", amounts, x)
	}
	shape := slices.Clone(x.shape)
	for i, a := range over {
		begin, end := amounts[i], amounts[len(over)+i]
		if !moderate(begin, end) {
			return mistake("pads %v", amounts)
		}
		switch {
		case begin+end == 0:
		case !shape[a].Known():
			shape[a] = anyDim
		case shape[a].Value+begin+end < 0:
			return mistake("pads %v leave nothing of %v", amounts, x)
		default:
			shape[a] = Dim{Value: shape[a].Value + begin + end}
		}
	}
	o.set(0, x.typ, shape)
	return nil
}
