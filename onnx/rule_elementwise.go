package onnx

import "math"

// elementwise are the operators that work on each element by itself.
var elementwise = merged(
	each1(keep, 1, "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh",
		"Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish",
		"Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
		"Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "BitwiseNot"),
	each1(truth, 1, "Not", "IsNaN", "IsInf"),
	each1(arithmetic, 7, "Add", "Sub", "Mul", "Div", "Pow", "Mod", "PRelu", "BitShift",
		"BitwiseAnd", "BitwiseOr", "BitwiseXor"),
	each1(compare, 7, "And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
	each1(variadic, 8, "Sum", "Mean", "Max", "Min"),
	family{
		"Cast":     {6, cast},
		"CastLike": {15, castLike},
		"Where":    {9, where},
		"Dropout":  {7, dropout},
	},
)

// each1 gives several operators one rule.
func each1(rule func(*op) error, from int64, names ...string) family {
	f := family{}
	for _, name := range names {
		f[name] = operator{from, rule}
	}
	return f
}

func merged(families ...family) family {
	all := family{}
	for _, f := range families {
		for name, row := range f {
			all[name] = row
		}
	}
	return all
}

// keep is the rule of operators whose result is like their first input.
func keep(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, x.shape)
	switch f := single[o.OpType]; {
	case o.OpType == "Identity":
		o.fold(x.data)
	case f.ints != nil && x.data.ints != nil:
		ints := make([]integer, len(x.data.ints))
		for i, n := range x.data.ints {
			if n.known {
				ints[i] = exactly(f.ints(n.value))
			}
		}
		o.fold(data{ints: ints})
	case f.floats != nil && x.data.floats != nil:
		floats := make([]float64, len(x.data.floats))
		for i, v := range x.data.floats {
			floats[i] = round(x.typ, f.floats(v))
		}
		o.fold(data{floats: floats})
	}
	return nil
}

// single are the functions that exporters use on the way to a shape.
var single = map[string]struct {
	ints   func(int64) int64
	floats func(float64) float64
}{
	"Abs":   {func(v int64) int64 { return max(v, -v) }, math.Abs},
	"Neg":   {func(v int64) int64 { return -v }, func(v float64) float64 { return -v }},
	"Floor": {nil, math.Floor},
	"Ceil":  {nil, math.Ceil},
	"Round": {nil, math.RoundToEven},
	"Sqrt":  {nil, math.Sqrt},
}

// round returns v as the element type can hold it: a size computed in single
// precision must come out as it will when the graph runs.
func round(typ DataType, v float64) float64 {
	if typ == Float {
		return float64(float32(v))
	}
	return v
}

// truth is the rule of operators that answer yes or no of each element.
func truth(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	o.set(0, Bool, o.x(0).shape)
	if x := o.x(0); o.OpType == "Not" && x.data.ints != nil {
		ints := make([]integer, len(x.data.ints))
		for i, n := range x.data.ints {
			ints[i] = integer{known: n.known, value: 1 - n.value}
		}
		o.fold(data{ints: ints})
	}
	return nil
}

// arithmetic is the rule of two operands that are broadcast against each other.
func arithmetic(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	a, b := o.x(0), o.x(1)
	if a.typ != b.typ && a.typ != Undefined && b.typ != Undefined && o.OpType != "Pow" {
		return mistake("operands of types %v and %v", a.typ, b.typ)
	}
	shape, err := broadcast(a.shape, b.shape)
	if err != nil {
		return err
	}
	o.set(0, a.typ, shape)
	foldPair(o, a, b, shape)
	return nil
}

// compare is the rule of two operands that give a truth value.
func compare(o *op) error {
	if err := arithmetic(o); err != nil {
		return err
	}
	o.set(0, Bool, o.out[0].shape)
	return nil
}

// pairwise are the functions of two numbers that exporters use on the way to a
// shape. Integer division truncates, as in ONNX for int64.
var pairwise = map[string]struct {
	ints   func(a, b int64) (int64, bool)
	floats func(a, b float64) float64
}{
	"Add":            {func(a, b int64) (int64, bool) { return a + b, true }, func(a, b float64) float64 { return a + b }},
	"Sub":            {func(a, b int64) (int64, bool) { return a - b, true }, func(a, b float64) float64 { return a - b }},
	"Mul":            {func(a, b int64) (int64, bool) { return a * b, true }, func(a, b float64) float64 { return a * b }},
	"Div":            {quotient, func(a, b float64) float64 { return a / b }},
	"Mod":            {modulo, nil},
	"Max":            {func(a, b int64) (int64, bool) { return max(a, b), true }, math.Max},
	"Min":            {func(a, b int64) (int64, bool) { return min(a, b), true }, math.Min},
	"Pow":            {nil, math.Pow},
	"And":            {func(a, b int64) (int64, bool) { return a & b, true }, nil},
	"Or":             {func(a, b int64) (int64, bool) { return a | b, true }, nil},
	"Equal":          {func(a, b int64) (int64, bool) { return bit(a == b), true }, nil},
	"Greater":        {func(a, b int64) (int64, bool) { return bit(a > b), true }, nil},
	"Less":           {func(a, b int64) (int64, bool) { return bit(a < b), true }, nil},
	"GreaterOrEqual": {func(a, b int64) (int64, bool) { return bit(a >= b), true }, nil},
	"LessOrEqual":    {func(a, b int64) (int64, bool) { return bit(a <= b), true }, nil},
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func quotient(a, b int64) (int64, bool) {
	if b == 0 || a == math.MinInt64 && b == -1 {
		return 0, false
	}
	return a / b, true
}

// modulo has the sign of the divisor (ONNX Mod with fmod=0).
func modulo(a, b int64) (int64, bool) {
	if b == 0 || a == math.MinInt64 && b == -1 {
		return 0, false
	}
	r := a % b
	if r != 0 && (r < 0) != (b < 0) {
		r += b
	}
	return r, true
}

func foldPair(o *op, a, b *fact, shape []Dim) {
	f, ok := pairwise[o.OpType]
	size, few := small(shape)
	if !ok || !few || !a.data.known() || !b.data.known() || o.OpType == "Mod" && o.Int("fmod", 0) != 0 {
		return
	}
	at := func(x *fact) data {
		from, _ := x.static()
		step, _ := strides(from)
		return x.data.pick(places(size, func(index []int) int {
			place := 0
			for i := range from {
				if from[i] > 1 {
					place += step[i] * index[i+len(size)-len(from)]
				}
			}
			return place
		}))
	}
	x, y := at(a), at(b)
	switch {
	case f.ints != nil && x.ints != nil && y.ints != nil:
		out := make([]integer, len(x.ints))
		for i := range out {
			out[i] = combine(o.OpType, x.ints[i], y.ints[i], f.ints)
		}
		o.fold(data{ints: out})
	case f.floats != nil && x.floats != nil && y.floats != nil:
		out := make([]float64, len(x.floats))
		for i := range out {
			out[i] = round(a.typ, f.floats(x.floats[i], y.floats[i]))
		}
		o.fold(data{floats: out})
	}
}

// combine applies f to two elements. A named size times or over one, or plus
// or minus zero, is still that size.
func combine(name string, a, b integer, f func(a, b int64) (int64, bool)) integer {
	if a.known && b.known {
		v, ok := f(a.value, b.value)
		return integer{known: ok, value: v}
	}
	neutral := func(n integer) bool {
		switch name {
		case "Mul", "Div":
			return n == exactly(1)
		case "Add", "Sub":
			return n == exactly(0)
		}
		return false
	}
	switch {
	case a.param != "" && neutral(b):
		return a
	case b.param != "" && neutral(a) && (name == "Mul" || name == "Add"):
		return b
	case name == "Equal" && (a.param != "" && b.known && b.value < 0 || b.param != "" && a.known && a.value < 0):
		return exactly(0) // a size is never negative: exporters compare with -1
	}
	return integer{}
}

func variadic(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	shapes := make([][]Dim, len(o.in))
	for i := range o.in {
		if err := o.need(i + 1); err != nil {
			return err
		}
		if t := o.x(i).typ; t != o.x(0).typ && t != Undefined && o.x(0).typ != Undefined {
			return mistake("operands of types %v and %v", o.x(0).typ, t)
		}
		shapes[i] = o.x(i).shape
	}
	shape, err := broadcast(shapes...)
	if err != nil {
		return err
	}
	o.set(0, o.x(0).typ, shape)
	if len(o.in) == 2 {
		foldPair(o, o.x(0), o.x(1), shape)
	}
	return nil
}

func cast(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	to := DataType(o.Int("to", 0))
	if _, ok := types[to]; !ok {
		return mistake("cast to %v", to)
	}
	castTo(o, to)
	return nil
}

func castLike(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	castTo(o, o.x(1).typ)
	return nil
}

func castTo(o *op, to DataType) {
	x := o.x(0)
	o.set(0, to, x.shape)
	switch {
	case to == Float || to == Double:
		if x.data.floats != nil {
			out := make([]float64, len(x.data.floats))
			for i, v := range x.data.floats {
				out[i] = round(to, v)
			}
			o.fold(data{floats: out})
		} else if ints, ok := x.numbers(); ok {
			out := make([]float64, len(ints))
			for i, v := range ints {
				out[i] = round(to, float64(v))
			}
			o.fold(data{floats: out})
		}
	case to == Int64 || to == Int32:
		if x.data.ints != nil {
			o.fold(x.data)
			return
		}
		out := make([]integer, len(x.data.floats))
		for i, v := range x.data.floats {
			if math.Abs(v) < 1<<53 {
				out[i] = exactly(int64(v))
			}
		}
		if len(out) > 0 {
			o.fold(data{ints: out})
		}
	case to == Bool && x.data.ints != nil:
		out := make([]integer, len(x.data.ints))
		for i, n := range x.data.ints {
			if n.known {
				out[i] = exactly(bit(n.value != 0))
			}
		}
		o.fold(data{ints: out})
	}
}

func where(o *op) error {
	if err := o.need(3); err != nil {
		return err
	}
	c, a, b := o.x(0), o.x(1), o.x(2)
	if c.typ != Bool && c.typ != Undefined {
		return mistake("condition of type %v", c.typ)
	}
	if a.typ != b.typ && a.typ != Undefined && b.typ != Undefined {
		return mistake("operands of types %v and %v", a.typ, b.typ)
	}
	shape, err := broadcast(c.shape, a.shape, b.shape)
	if err != nil {
		return err
	}
	o.set(0, a.typ, shape)
	// By value only where no operand is stretched: exporters' shapes.
	n := c.data.len()
	if c.data.ints == nil || a.data.ints == nil || b.data.ints == nil || a.data.len() != n || b.data.len() != n {
		return nil
	}
	out := make([]integer, n)
	for i, yes := range c.data.ints {
		switch {
		case yes == exactly(1):
			out[i] = a.data.ints[i]
		case yes == exactly(0):
			out[i] = b.data.ints[i]
		}
	}
	o.fold(data{ints: out})
	return nil
}

func dropout(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	o.set(0, o.x(0).typ, o.x(0).shape)
	mask := Bool
	if o.version < 10 {
		mask = o.x(0).typ // a mask of floats before version 10
	}
	o.set(1, mask, o.x(0).shape)
	return nil
}
