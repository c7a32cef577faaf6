package onnx

import "math"

// constants are the operators whose result depends on no element, or that ask
// for a shape.
var constants = family{
	"Constant":          {1, constant},
	"ConstantOfShape":   {9, constantOfShape},
	"Shape":             {1, shapeOf},
	"Size":              {1, sizeOf},
	"Range":             {11, rangeOf},
	"EyeLike":           {9, likeFirst},
	"RandomNormalLike":  {1, likeFirst},
	"RandomUniformLike": {1, likeFirst},
	"Bernoulli":         {15, likeFirst},
	"RandomNormal":      {1, random},
	"RandomUniform":     {1, random},
}

func constant(o *op) error {
	var t *Tensor
	for i := range o.Attributes {
		a := &o.Attributes[i]
		switch a.Name {
		case "value":
			t = a.Tensor
		case "value_float":
			t = NewTensor("", nil, []float32{a.Float})
		case "value_int":
			t = NewTensor("", nil, []int64{a.Int})
		case "value_floats":
			t = NewTensor("", []int64{int64(len(a.Floats))}, a.Floats)
		case "value_ints":
			t = NewTensor("", []int64{int64(len(a.Ints))}, a.Ints)
		case "value_string":
			o.set(0, String, []Dim{})
			return nil
		case "value_strings":
			o.set(0, String, Fixed(int64(len(a.Strings))))
			return nil
		}
	}
	if t == nil {
		return mistake("a constant without a value")
	}
	f, err := constantFact(t)
	if err != nil {
		return err
	}
	o.set(0, f.typ, f.shape)
	o.fold(f.data)
	return nil
}

func constantOfShape(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	value := o.Tensor("value")
	if value == nil {
		value = NewTensor("", []int64{1}, []float32{0})
	}
	f, err := constantFact(value)
	if err != nil {
		return err
	}
	o.set(0, f.typ, nil)
	want := o.x(0)
	if want.data.ints == nil {
		if want.rank() == 1 && want.shape[0].Known() && want.shape[0].Value <= MaxRank {
			o.set(0, f.typ, anyShape(int(want.shape[0].Value)))
		}
		return nil
	}
	if len(want.data.ints) > MaxRank {
		return mistake("a constant of %d dimensions", len(want.data.ints))
	}
	shape := make([]Dim, len(want.data.ints))
	for i, n := range want.data.ints {
		if n.known && n.value < 0 {
			return mistake("a constant with a dimension of %d", n.value)
		}
		shape[i] = n.dim()
	}
	o.set(0, f.typ, shape)
	if size, ok := small(shape); ok && f.data.len() == 1 {
		o.fold(f.data.pick(places(size, func([]int) int { return 0 })))
	}
	return nil
}

// shapeOf is where shapes become elements; start and end cut it since version 15.
func shapeOf(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, Int64, anyShape(1))
	if x.shape == nil {
		return nil
	}
	rank := int64(len(x.shape))
	cut := func(name string, def int64) int64 {
		v := o.Int(name, def)
		if v < 0 {
			v += rank
		}
		return min(max(v, 0), rank)
	}
	from, to := cut("start", 0), cut("end", rank)
	part := x.shape[from:max(from, to)]
	elements := make([]integer, len(part))
	for i, d := range part {
		elements[i] = d.element()
	}
	o.set(0, Int64, Fixed(int64(len(part))))
	o.fold(data{ints: elements})
	return nil
}

func sizeOf(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	o.set(0, Int64, []Dim{})
	if n, ok := product(o.x(0).shape); ok && o.x(0).shape != nil {
		o.fold(data{ints: constantInts([]int64{n})})
	}
	return nil
}

func rangeOf(o *op) error {
	if err := o.need(3); err != nil {
		return err
	}
	o.set(0, o.x(0).typ, anyShape(1))
	start, ok1 := o.x(0).number()
	limit, ok2 := o.x(1).number()
	delta, ok3 := o.x(2).number()
	switch {
	case ok1 && ok2 && ok3:
		if delta == 0 {
			return mistake("a range with steps of 0")
		}
		if !moderate(start, limit, delta) {
			return nil
		}
		n := max((limit-start+delta-bit(delta > 0)+bit(delta < 0))/delta, 0)
		o.set(0, o.x(0).typ, Fixed(n))
		if n <= maxFolded {
			list := make([]int64, n)
			for i := range list {
				list[i] = start + int64(i)*delta
			}
			o.fold(data{ints: constantInts(list)})
		}
	case ok1 && ok3 && start == 0 && delta == 1 && len(o.x(1).data.ints) == 1:
		o.set(0, o.x(0).typ, []Dim{o.x(1).data.ints[0].dim()})
	case len(o.x(0).data.floats) == 1 && len(o.x(1).data.floats) == 1 && len(o.x(2).data.floats) == 1:
		n := math.Ceil((o.x(1).data.floats[0] - o.x(0).data.floats[0]) / o.x(2).data.floats[0])
		if n = max(n, 0); n <= math.MaxInt32 {
			o.set(0, o.x(0).typ, Fixed(int64(n)))
		}
	}
	return nil
}

// moderate reports whether sums and differences of the numbers cannot overflow.
func moderate(list ...int64) bool {
	for _, v := range list {
		if v < math.MinInt32 || v > math.MaxInt32 {
			return false
		}
	}
	return true
}

func likeFirst(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	typ := DataType(o.Int("dtype", 0))
	if typ == Undefined {
		typ = o.x(0).typ
	}
	o.set(0, typ, o.x(0).shape)
	return nil
}

func random(o *op) error {
	dims := o.Ints("shape")
	for _, d := range dims {
		if d < 0 {
			return mistake("shape %v", dims)
		}
	}
	o.set(0, DataType(o.Int("dtype", int64(Float))), Fixed(dims...))
	return nil
}
