package autodiff

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie/onnx"
)

// value is a tensor of the graph being written. Shapes are always static here:
// a rule must know every size to lower itself to slices and reshapes.
type value struct {
	name  string
	typ   onnx.DataType
	shape []int64
}

func (v value) rank() int    { return len(v.shape) }
func (v value) size() int64  { return product(v.shape) }
func (v value) none() bool   { return v.name == "" }
func (v value) float() bool  { return isFloat(v.typ) }
func (v value) like() string { return fmt.Sprintf("%s%v", v.name, v.shape) }

func isFloat(t onnx.DataType) bool {
	return t == onnx.Float || t == onnx.Double || t == onnx.Float16 || t == onnx.Bfloat16
}

func product(dims []int64) int64 {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	return n
}

// failure carries an error out of a rule; Gradient recovers it. Rules are
// straight-line algebra, and an error return on every operator would drown it.
type failure struct{ err error }

func failf(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

// mostParts is how many times a rule may repeat itself for one node: over the
// taps of a kernel, the steps of a sequence, the examples of a batch.
const mostParts = 1 << 14

// bounded refuses a node whose gradient would be a graph without end.
func bounded(what string, n int64) {
	if n > mostParts {
		failf("%d %s, more than %d: %w", n, what, mostParts, ErrNotDifferentiable)
	}
}

// emitter appends ordinary ONNX operators to a graph, keeping each result's
// type and shape. It emits nothing newer than the model's own opset.
type emitter struct {
	nodes     []*onnx.Node
	constants []*onnx.Tensor
	opset     int64
	used      map[string]bool         // every tensor and node name of the graph
	values    map[string]value        // every tensor of the model and of what was emitted
	inits     map[string]*onnx.Tensor // initializers by name
	cache     map[string]value        // constants by content, and repeated pure operations
	counter   int
	fused     bool             // some node needs com.microsoft
	repeated  map[string]value // results of Expand: what was repeated
	kernels   bool             // some node needs the engine\'s own operators
}

// fresh returns an unused name that hints at what it names.
func (e *emitter) fresh(hint string) string {
	for {
		e.counter++
		name := fmt.Sprintf("d/%s_%d", hint, e.counter)
		if !e.used[name] {
			e.used[name] = true
			return name
		}
	}
}

// op appends one node with one output of the given type and shape. The same
// operator on the same inputs with the same attributes is emitted once.
func (e *emitter) op(opType string, typ onnx.DataType, shape []int64, inputs []value, attrs ...onnx.Attribute) value {
	return e.opIn("", opType, typ, shape, inputs, attrs...)
}

func (e *emitter) opIn(domain, opType string, typ onnx.DataType, shape []int64, inputs []value, attrs ...onnx.Attribute) value {
	names := make([]string, len(inputs))
	for i, in := range inputs {
		names[i] = in.name
	}
	key := fmt.Sprintf("op|%s|%s|%q|%v", domain, opType, names, attrs)
	if v, ok := e.cache[key]; ok {
		return v
	}
	out := value{name: e.fresh(opType), typ: typ, shape: slices.Clone(shape)}
	e.nodes = append(e.nodes, &onnx.Node{
		Name: out.name, OpType: opType, Domain: domain,
		Inputs: names, Outputs: []string{out.name}, Attributes: attrs,
	})
	if domain == fusedDomain {
		e.fused = true
	}
	e.cache[key] = out
	e.values[out.name] = out
	return out
}

const fusedDomain = "com.microsoft"

// constant stores raw little-endian bytes as an initializer, once per content.
func (e *emitter) constant(typ onnx.DataType, dims []int64, raw []byte) value {
	key := fmt.Sprintf("k|%d|%v|%s", typ, dims, raw)
	if v, ok := e.cache[key]; ok {
		return v
	}
	v := value{name: e.fresh("k"), typ: typ, shape: slices.Clone(dims)}
	w := &onnx.Tensor{Name: v.name, Type: typ, Dims: slices.Clone(dims), Raw: raw}
	e.constants = append(e.constants, w)
	e.cache[key], e.values[v.name], e.inits[v.name] = v, v, w
	return v
}

// ints is a one-dimensional int64 constant: axes, shapes, slice bounds.
func (e *emitter) ints(v ...int64) value {
	raw := make([]byte, 0, 8*len(v))
	for _, x := range v {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(x))
	}
	return e.constant(onnx.Int64, []int64{int64(len(v))}, raw)
}

// floats is a constant of a floating-point type.
func (e *emitter) floats(typ onnx.DataType, dims []int64, v ...float64) value {
	var raw []byte
	for _, x := range v {
		switch typ {
		case onnx.Float:
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(x)))
		case onnx.Double:
			raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(x))
		default:
			failf("constants of element type %d are not supported; convert the model to float", typ)
		}
	}
	return e.constant(typ, dims, raw)
}

// scalar is a constant without dimensions: it broadcasts and keeps ranks.
func (e *emitter) scalar(typ onnx.DataType, v float64) value {
	return e.floats(typ, []int64{}, v)
}

// full is a constant tensor with every element equal, built by Expand so that
// the file does not grow with its size.
func (e *emitter) full(typ onnx.DataType, shape []int64, v float64) value {
	return e.expand(e.scalar(typ, v), shape)
}

// broadcast returns the shape of an elementwise operator (ONNX multidirectional
// broadcasting, docs/Broadcasting.md).
func broadcast(a, b []int64) []int64 {
	n := max(len(a), len(b))
	out := make([]int64, n)
	for i := range n {
		x, y := int64(1), int64(1)
		if j := i - (n - len(a)); j >= 0 {
			x = a[j]
		}
		if j := i - (n - len(b)); j >= 0 {
			y = b[j]
		}
		switch {
		case x == y, y == 1:
			out[i] = x
		case x == 1:
			out[i] = y
		default:
			failf("shapes %v and %v do not broadcast", a, b)
		}
	}
	return out
}

func (e *emitter) binary(opType string, a, b value) value {
	return e.op(opType, a.typ, broadcast(a.shape, b.shape), []value{a, b})
}

func (e *emitter) add(a, b value) value { return e.binary("Add", a, b) }
func (e *emitter) sub(a, b value) value { return e.binary("Sub", a, b) }
func (e *emitter) mul(a, b value) value { return e.binary("Mul", a, b) }
func (e *emitter) div(a, b value) value { return e.binary("Div", a, b) }

func (e *emitter) scale(a value, f float64) value {
	if f == 1 {
		return a
	}
	return e.mul(a, e.scalar(a.typ, f))
}

func (e *emitter) shift(a value, f float64) value { return e.add(a, e.scalar(a.typ, f)) }

// compare emits Equal, Greater, Less, GreaterOrEqual or LessOrEqual.
func (e *emitter) compare(opType string, a, b value) value {
	return e.op(opType, onnx.Bool, broadcast(a.shape, b.shape), []value{a, b})
}

func (e *emitter) unary(opType string, a value) value {
	return e.op(opType, a.typ, a.shape, []value{a})
}

func (e *emitter) cast(a value, typ onnx.DataType) value {
	if a.typ == typ {
		return a
	}
	return e.op("Cast", typ, a.shape, []value{a}, onnx.IntAttribute("to", int64(typ)))
}

func (e *emitter) where(cond, a, b value) value {
	shape := broadcast(cond.shape, broadcast(a.shape, b.shape))
	return e.op("Where", a.typ, shape, []value{cond, a, b})
}

func (e *emitter) reshape(a value, shape ...int64) value {
	if slices.Equal(a.shape, shape) {
		return a
	}
	if product(shape) != a.size() {
		failf("cannot reshape %s to %v", a.like(), shape)
	}
	if slices.Contains(shape, 0) {
		failf("tensor %s is empty", a.like())
	}
	return e.op("Reshape", a.typ, shape, []value{a, e.ints(shape...)})
}

func (e *emitter) transpose(a value, perm ...int64) value {
	identity := true
	shape := make([]int64, len(perm))
	for i, p := range perm {
		shape[i] = a.shape[p]
		identity = identity && int64(i) == p
	}
	if identity {
		return a
	}
	return e.op("Transpose", a.typ, shape, []value{a}, onnx.IntsAttribute("perm", perm...))
}

// swapLast exchanges the last two axes.
func (e *emitter) swapLast(a value) value {
	perm := iota64(a.rank())
	n := a.rank()
	perm[n-1], perm[n-2] = perm[n-2], perm[n-1]
	return e.transpose(a, perm...)
}

func (e *emitter) expand(a value, shape []int64) value {
	if slices.Equal(a.shape, shape) {
		return a
	}
	out := e.op("Expand", a.typ, shape, []value{a, e.ints(shape...)})
	if e.repeated == nil {
		e.repeated = map[string]value{}
	}
	e.repeated[out.name] = a
	return out
}

func (e *emitter) concat(axis int, parts ...value) value {
	if len(parts) == 1 {
		return parts[0]
	}
	shape := slices.Clone(parts[0].shape)
	shape[axis] = 0
	for _, p := range parts {
		shape[axis] += p.shape[axis]
	}
	return e.op("Concat", parts[0].typ, shape, parts, onnx.IntAttribute("axis", int64(axis)))
}

// slice takes [start, end) with a positive step along each listed axis.
func (e *emitter) slice(a value, axes, starts, ends, steps []int64) value {
	shape := slices.Clone(a.shape)
	whole := true
	for i, ax := range axes {
		shape[ax] = (ends[i] - starts[i] + steps[i] - 1) / steps[i]
		whole = whole && starts[i] == 0 && ends[i] == a.shape[ax] && steps[i] == 1
	}
	if whole {
		return a
	}
	return e.op("Slice", a.typ, shape, []value{a, e.ints(starts...), e.ints(ends...), e.ints(axes...), e.ints(steps...)})
}

// flip reverses the listed axes.
func (e *emitter) flip(a value, axes ...int64) value {
	var moving []int64
	for _, ax := range axes {
		if a.shape[ax] > 1 {
			moving = append(moving, ax)
		}
	}
	if len(moving) == 0 {
		return a
	}
	n := len(moving)
	return e.op("Slice", a.typ, a.shape, []value{
		a, e.ints(repeat(-1, n)...), e.ints(repeat(math.MinInt64+1, n)...), e.ints(moving...), e.ints(repeat(-1, n)...),
	})
}

// pad adds fill before and after each axis; negative amounts crop.
func (e *emitter) pad(a value, before, after []int64, fill float64) value {
	shape := slices.Clone(a.shape)
	crop, grow := false, false
	for i := range shape {
		shape[i] += before[i] + after[i]
		crop = crop || before[i] < 0 || after[i] < 0
		grow = grow || before[i] > 0 || after[i] > 0
	}
	if crop { // Slice first: cheaper, and not every runtime pads by negative amounts
		axes, starts, ends, steps := iota64(a.rank()), make([]int64, a.rank()), slices.Clone(a.shape), repeat(1, a.rank())
		before, after = slices.Clone(before), slices.Clone(after)
		for i := range axes {
			starts[i] = max(0, -before[i])
			ends[i] -= max(0, -after[i])
			before[i], after[i] = max(0, before[i]), max(0, after[i])
			if ends[i] <= starts[i] {
				failf("padding %s by %v and %v leaves nothing", a.like(), before, after)
			}
		}
		a = e.slice(a, axes, starts, ends, steps)
	}
	if !grow {
		return a
	}
	inputs := []value{a, e.ints(append(slices.Clone(before), after...)...)}
	if fill != 0 {
		inputs = append(inputs, e.scalar(a.typ, fill))
	}
	return e.op("Pad", a.typ, shape, inputs)
}

// reduce emits ReduceSum, ReduceMean, … over the axes, in the form that the
// opset wants: axes are an input of ReduceSum from 13 and of the others from 18.
func (e *emitter) reduce(opType string, a value, axes []int64, keep bool) value {
	if len(axes) == 0 {
		return a
	}
	var shape []int64
	for i, d := range a.shape {
		switch {
		case !slices.Contains(axes, int64(i)):
			shape = append(shape, d)
		case keep:
			shape = append(shape, 1)
		}
	}
	if shape == nil {
		shape = []int64{}
	}
	keepdims := int64(0)
	if keep {
		keepdims = 1
	}
	if e.opset >= 18 || opType == "ReduceSum" && e.opset >= 13 {
		return e.op(opType, a.typ, shape, []value{a, e.ints(axes...)}, onnx.IntAttribute("keepdims", keepdims))
	}
	return e.op(opType, a.typ, shape, []value{a}, onnx.IntsAttribute("axes", axes...), onnx.IntAttribute("keepdims", keepdims))
}

func (e *emitter) sum(a value, axes []int64, keep bool) value {
	return e.reduce("ReduceSum", a, axes, keep)
}

func (e *emitter) mean(a value, axes []int64, keep bool) value {
	return e.reduce("ReduceMean", a, axes, keep)
}

// matmul multiplies the last two axes (numpy rules for the others), each side
// optionally transposed. Gemm and com.microsoft FusedMatMul transpose while
// packing, which costs nothing; FusedMatMul exists for float only.
func (e *emitter) matmul(a, b value, transA, transB bool) value {
	m, n := a.shape[a.rank()-2], b.shape[b.rank()-1]
	if transA {
		m = a.shape[a.rank()-1]
	}
	if transB {
		n = b.shape[b.rank()-2]
	}
	shape := append(broadcast(a.shape[:a.rank()-2], b.shape[:b.rank()-2]), m, n)
	switch {
	case !transA && !transB:
		return e.op("MatMul", a.typ, shape, []value{a, b})
	case a.rank() == 2 && b.rank() == 2:
		return e.op("Gemm", a.typ, shape, []value{a, b}, onnx.IntAttribute("transA", bit(transA)), onnx.IntAttribute("transB", bit(transB)))
	case a.typ == onnx.Float:
		return e.opIn(fusedDomain, "FusedMatMul", a.typ, shape, []value{a, b}, onnx.IntAttribute("transA", bit(transA)), onnx.IntAttribute("transB", bit(transB)))
	}
	if transA {
		a = e.swapLast(a)
	}
	if transB {
		b = e.swapLast(b)
	}
	return e.op("MatMul", a.typ, shape, []value{a, b})
}

// total adds any number of equally shaped values.
func (e *emitter) total(parts []value) value {
	switch len(parts) {
	case 1:
		return parts[0]
	}
	// What was only repeated to its shape can be added without.
	var whole, repeated []value
	for _, p := range parts {
		if from, ok := e.repeated[p.name]; ok {
			repeated = append(repeated, from)
		} else {
			whole = append(whole, p)
		}
	}
	if len(whole) == 0 {
		whole, repeated = parts, nil
	}
	sum := whole[0]
	switch len(whole) {
	case 1:
	case 2:
		sum = e.add(whole[0], whole[1])
	default:
		sum = e.op("Sum", sum.typ, sum.shape, whole)
	}
	for _, r := range repeated {
		sum = e.add(sum, r)
	}
	return sum
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func iota64(n int) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(i)
	}
	return out
}

func repeat(v int64, n int) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = v
	}
	return out
}

// describe writes an operator for an error message.
func describe(n *onnx.Node) string {
	op := n.OpType
	if n.Domain != "" && n.Domain != "ai.onnx" {
		op = n.Domain + "." + op
	}
	name := n.Name
	if name == "" {
		name = strings.Join(n.Outputs, ",")
	}
	return fmt.Sprintf("node %q (%s)", name, op)
}
