package onnx

import (
	"math"
	"slices"
)

// layouts are the operators that give the same elements another shape or order.
var layouts = family{
	"Reshape":      {5, reshape},
	"Flatten":      {1, flatten},
	"Transpose":    {1, transpose},
	"Squeeze":      {1, squeeze},
	"Unsqueeze":    {1, unsqueeze},
	"DepthToSpace": {1, depthToSpace},
	"SpaceToDepth": {1, spaceToDepth},
	"Trilu":        {14, keep},
}

// reshape keeps the elements by value: their order does not change.
func reshape(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	x, want := o.x(0), o.x(1)
	o.set(0, x.typ, nil)
	if want.data.ints == nil {
		if want.rank() == 1 && want.shape[0].Known() && want.shape[0].Value <= MaxRank {
			o.set(0, x.typ, anyShape(int(want.shape[0].Value)))
		}
		return nil
	}
	if len(want.data.ints) > MaxRank {
		return mistake("reshape to %d dimensions", len(want.data.ints))
	}
	shape := make([]Dim, len(want.data.ints))
	open := -1
	for i, n := range want.data.ints {
		switch {
		case n == exactly(0) && o.Int("allowzero", 0) == 0:
			shape[i] = anyDim
			if x.shape != nil {
				if i >= len(x.shape) {
					return mistake("reshape of %v: dimension %d is to be kept, but there is none", x, i)
				}
				shape[i] = x.shape[i]
			}
		case n == exactly(-1):
			if open >= 0 {
				return mistake("reshape with -1 at %d and at %d", open, i)
			}
			open, shape[i] = i, anyDim
		case n.known && n.value < 0:
			return mistake("reshape to a dimension of %d", n.value)
		default:
			shape[i] = n.dim()
		}
	}
	have, ok := product(x.shape)
	if x.shape == nil {
		ok = false
	}
	if open >= 0 {
		rest := slices.Delete(slices.Clone(shape), open, open+1)
		d, err := divide(x.shape, rest)
		if err != nil {
			return mistake("reshape of %v to %v: %v", x, shape, err)
		}
		shape[open] = d
	} else if n, fixed := product(shape); ok && fixed && n != have {
		return mistake("reshape of %v, %d elements, to %v, %d elements", x, have, shape, n)
	}
	o.set(0, x.typ, shape)
	o.fold(x.data)
	return nil
}

// divide returns the one dimension that is missing from part so that it has as
// many elements as whole. Named dimensions cancel each other.
func divide(whole, part []Dim) (Dim, error) {
	if whole == nil {
		return anyDim, nil
	}
	left := slices.Clone(whole)
	for _, d := range part {
		if d.Param == "" {
			continue
		}
		i := slices.Index(left, d)
		if i < 0 {
			return anyDim, nil
		}
		left = slices.Delete(left, i, i+1)
	}
	part = slices.DeleteFunc(slices.Clone(part), func(d Dim) bool { return d.Param != "" })
	below, ok := product(part)
	if !ok {
		return anyDim, nil
	}
	var named []Dim
	known := slices.DeleteFunc(left, func(d Dim) bool {
		if !d.Known() {
			named = append(named, d)
		}
		return !d.Known()
	})
	above, ok := product(known)
	switch {
	case !ok:
		return anyDim, nil
	case len(named) == 1 && above == below && above != 0:
		return named[0], nil
	case len(named) > 0:
		return anyDim, nil
	case below == 0 && above == 0:
		return anyDim, nil
	case below == 0 || above%below != 0:
		return anyDim, mistake("%d elements do not divide by %d", above, below)
	}
	return Dim{Value: above / below}, nil
}

func flatten(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, anyShape(2))
	if x.shape == nil {
		return nil
	}
	at := o.Int("axis", 1)
	if at < 0 {
		at += int64(len(x.shape))
	}
	if at < 0 || at > int64(len(x.shape)) {
		return mistake("axis %d of %v", at, x)
	}
	rows, err := divide(x.shape[:at], nil)
	if err != nil {
		return err
	}
	columns, err := divide(x.shape[at:], nil)
	if err != nil {
		return err
	}
	o.set(0, x.typ, []Dim{rows, columns})
	o.fold(x.data)
	return nil
}

func transpose(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	order := o.Ints("perm")
	o.set(0, x.typ, nil)
	if x.shape == nil {
		if order != nil && len(order) <= MaxRank {
			o.set(0, x.typ, anyShape(len(order)))
		}
		return nil
	}
	rank := len(x.shape)
	if order == nil {
		for i := range rank {
			order = append(order, int64(rank-1-i))
		}
	}
	if len(order) != rank {
		return mistake("perm %v for %v", order, x)
	}
	moved, err := axes(order, rank)
	if err != nil {
		return err
	}
	shape := picked(x.shape, moved)
	o.set(0, x.typ, shape)
	if size, ok := small(shape); ok && x.data.known() {
		from, _ := x.static()
		step, _ := strides(from)
		o.fold(x.data.pick(places(size, func(index []int) int {
			place := 0
			for i, a := range moved {
				place += step[a] * index[i]
			}
			return place
		})))
	}
	return nil
}

// listed returns the axes that Squeeze, Unsqueeze and reductions take from an
// attribute before the given version and from an input since. given is false
// if there are none, known if they are there but not known.
func (o *op) listed(name string, since int64, input int) (list []int64, given, known bool) {
	if o.version < since {
		list = o.Ints(name)
		return list, list != nil, true
	}
	x := o.x(input)
	if x == nil {
		return nil, false, true
	}
	list, known = x.numbers()
	return list, true, known
}

func squeeze(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	list, given, known := o.listed("axes", 13, 1)
	if x.shape == nil || !known {
		return nil
	}
	drop, err := axes(list, len(x.shape))
	if err != nil {
		return err
	}
	shape := []Dim{}
	for i, d := range x.shape {
		switch {
		case !given && !d.Known():
			return nil // whether it goes is known only when the graph runs
		case !given && d.Value == 1:
		case slices.Contains(drop, i):
			if d.Known() && d.Value != 1 {
				return mistake("squeeze of axis %d of %v", i, x)
			}
		default:
			shape = append(shape, d)
		}
	}
	o.set(0, x.typ, shape)
	o.fold(x.data)
	return nil
}

func unsqueeze(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	list, given, known := o.listed("axes", 13, 1)
	if !given {
		return mistake("unsqueeze without axes")
	}
	if x.shape == nil || !known {
		return nil
	}
	if len(x.shape)+len(list) > MaxRank {
		return mistake("unsqueeze to %d dimensions", len(x.shape)+len(list))
	}
	add, err := axes(list, len(x.shape)+len(list))
	if err != nil {
		return err
	}
	shape := slices.Clone(x.shape)
	slices.Sort(add)
	for _, a := range add {
		shape = slices.Insert(shape, a, Dim{Value: 1})
	}
	o.set(0, x.typ, shape)
	o.fold(x.data)
	return nil
}

func depthToSpace(o *op) error { return blocks(o, true) }
func spaceToDepth(o *op) error { return blocks(o, false) }

func blocks(o *op, deep bool) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	b := o.Int("blocksize", 0)
	if b < 1 || b > math.MaxInt16 {
		return mistake("blocksize %d", b)
	}
	o.set(0, x.typ, anyShape(4))
	if x.shape == nil {
		return nil
	}
	if len(x.shape) != 4 {
		return mistake("input %v: want 4 dimensions", x)
	}
	grow := func(d Dim, by int64) (Dim, error) {
		switch {
		case !d.Known() || d.Value > math.MaxInt32:
			return anyDim, nil
		case by > 0:
			return Dim{Value: d.Value * by}, nil
		case d.Value%-by != 0:
			return anyDim, mistake("%v does not divide by %d", x, -by)
		}
		return Dim{Value: d.Value / -by}, nil
	}
	by := [4]int64{1, b * b, -b, -b}
	if deep {
		by = [4]int64{1, -b * b, b, b}
	}
	shape := slices.Clone(x.shape)
	for i := 1; i < 4; i++ {
		var err error
		if shape[i], err = grow(x.shape[i], by[i]); err != nil {
			return err
		}
	}
	o.set(0, x.typ, shape)
	return nil
}
