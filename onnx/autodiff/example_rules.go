package autodiff

import "slices"

// How operators treat the batch: each rule returns where the outputs count the
// examples, given where the inputs do, or fails if examples would meet.

// examplesElsewhere are the rules of operators without a gradient, whose
// results (masks, indices) may still depend on the example.
var examplesElsewhere = map[string]func(*operation) batchAxis{
	"Equal": examplesElementwise, "Greater": examplesElementwise, "Less": examplesElementwise,
	"GreaterOrEqual": examplesElementwise, "LessOrEqual": examplesElementwise, "And": examplesElementwise,
	"Or": examplesElementwise, "Xor": examplesElementwise, "BitShift": examplesElementwise,
	"BitwiseAnd": examplesElementwise, "BitwiseOr": examplesElementwise, "BitwiseXor": examplesElementwise, "BitwiseNot": examplesKeep,
	"Not": examplesKeep, "IsNaN": examplesKeep, "IsInf": examplesKeep, "EyeLike": examplesKeep,
	"ArgMax": examplesArgument, "ArgMin": examplesArgument, "Hardmax": examplesAxis,
}

// examplesKeep: the output has the axes of the first input, and works on each
// element alone.
func examplesKeep(o *operation) batchAxis {
	l, ok := o.layout(0)
	o.refuseMixing(!ok)
	return l
}

// examplesElementwise: the examples of all batched inputs must meet one by one.
func examplesElementwise(o *operation) batchAxis {
	var at batchAxis
	found := false
	for i, in := range o.inputs {
		l, ok := o.layout(i)
		if !ok {
			continue
		}
		l = l.moved(l.axis + o.out(0).rank() - in.rank())
		o.refuseMixing(found && l != at)
		at, found = l, true
	}
	o.refuseMixing(!found)
	return at
}

// examplesRows: the batch must be the first axis, of the first input alone.
func examplesRows(o *operation) batchAxis {
	l := examplesKeep(o)
	o.refuseMixing(l.axis != 0)
	for i := 1; i < len(o.inputs); i++ {
		_, batched := o.layout(i)
		o.refuseMixing(batched)
	}
	return l
}

// examplesPlanes: every image and channel by itself, the batch may be either.
func examplesPlanes(o *operation) batchAxis {
	l := examplesKeep(o)
	o.refuseMixing(l.axis > 1)
	return l
}

// examplesBatchNorm: the mean and variance of a batch are of all its examples.
func examplesBatchNorm(o *operation) batchAxis {
	if o.node.Int("training_mode", 0) != 0 {
		failf("batch statistics: use group or layer normalisation: %w", ErrMixesExamples)
	}
	return examplesRows(o)
}

// examplesDropout: ratio and mode are of the whole batch.
func examplesDropout(o *operation) batchAxis { return o.onlyFirst(examplesKeep(o)) }

// onlyFirst refuses a batch that reaches a parameter.
func (o *operation) onlyFirst(l batchAxis) batchAxis {
	for i := 1; i < len(o.inputs); i++ {
		_, batched := o.layout(i)
		o.refuseMixing(batched)
	}
	return l
}

// axisDefaults are the operators whose axis is not the last by default.
var axisDefaults = map[string]int64{"Split": 0, "Concat": 0, "LpNormalization": -1, "GatherElements": 0, "ScatterElements": 0}

// examplesAxis: the operator works along one axis, and every batched input has
// its batch in the same place of another.
func examplesAxis(o *operation) batchAxis {
	def, ok := axisDefaults[o.node.OpType]
	if !ok {
		def = -1
	}
	var at batchAxis
	found := false
	for i := range o.inputs {
		if l, ok := o.layout(i); ok {
			o.refuseMixing(found && l != at)
			at, found = l, true
		}
	}
	o.refuseMixing(!found || axis(o.node.Int("axis", def), o.out(0).rank()) == int64(at.axis))
	return at
}

// examplesFromAxis: normalisation over the axes from one on.
func examplesFromAxis(o *operation) batchAxis {
	l := examplesKeep(o)
	o.refuseMixing(axis(o.node.Int("axis", -1), o.in(0).rank()) <= int64(l.axis))
	return o.onlyFirst(l)
}

func examplesReduce(o *operation) batchAxis {
	l := examplesKeep(o)
	axes := o.axesOf(1, o.in(0).rank())
	if len(axes) == 0 && o.node.Int("noop_with_empty_axes", 0) != 0 {
		return l
	}
	o.refuseMixing(len(axes) == 0 || slices.Contains(axes, int64(l.axis)))
	return l.moved(l.axis - o.dropped(axes, l.axis))
}

// dropped counts the reduced axes before one, unless they keep their place.
func (o *operation) dropped(axes []int64, before int) int {
	if o.node.Int("keepdims", 1) != 0 {
		return 0
	}
	n := 0
	for _, ax := range axes {
		if int(ax) < before {
			n++
		}
	}
	return n
}

func examplesArgument(o *operation) batchAxis {
	l := examplesKeep(o)
	ax := axis(o.node.Int("axis", 0), o.in(0).rank())
	o.refuseMixing(ax == int64(l.axis))
	return l.moved(l.axis - o.dropped([]int64{ax}, l.axis))
}

// examplesReshape: in row-major order the examples are apart by the product of
// what lies inside; the axis of the output that holds this place is theirs.
func examplesReshape(o *operation) batchAxis {
	l := examplesKeep(o)
	x, y := o.in(0), o.out(0)
	outside := product(x.shape[:l.axis]) * l.before
	passed := int64(1) // elements of the axes before
	for ax, d := range y.shape {
		if outside%passed == 0 && d%(outside/passed*o.n) == 0 && d > 0 {
			before := outside / passed
			return batchAxis{ax, before, d / (before * o.n)}
		}
		passed *= d
	}
	failf("reshapes %v to %v across the batch axis: %w", x.shape, y.shape, ErrMixesExamples)
	return batchAxis{}
}

func examplesTranspose(o *operation) batchAxis {
	l := examplesKeep(o)
	perm := o.intsAttr("perm", nil)
	if perm == nil {
		return l.moved(o.in(0).rank() - 1 - l.axis)
	}
	return l.moved(slices.IndexFunc(perm, func(p int64) bool { return axis(p, o.in(0).rank()) == int64(l.axis) }))
}

func examplesSlice(o *operation) batchAxis {
	l := examplesKeep(o)
	axes := iota64(len(o.constant64(1)))
	if o.has(3) {
		axes = o.constant64(3)
	}
	for i, a := range axes {
		if axis(a, o.in(0).rank()) == int64(l.axis) { // taking all of it in order is harmless
			o.refuseMixing(o.has(4) && o.constant64(4)[i] != 1)
		}
	}
	return l
}

// examplesPad: every axis but the batch.
func examplesPad(o *operation) batchAxis {
	l := examplesKeep(o)
	pads := o.constant64(1)
	axes := iota64(o.in(0).rank())
	if o.has(3) {
		axes = o.constant64(3)
	}
	for i, a := range axes {
		o.refuseMixing(axis(a, o.in(0).rank()) == int64(l.axis) && (pads[i] != 0 || pads[len(axes)+i] != 0))
	}
	return l
}

func examplesExpand(o *operation) batchAxis {
	l := examplesKeep(o)
	return l.moved(l.axis + o.out(0).rank() - o.in(0).rank())
}

func examplesTile(o *operation) batchAxis {
	l := examplesKeep(o)
	l.before *= o.constant64(1)[l.axis]
	return l
}

// examplesGather: indices of the example into a table, or fixed indices into
// data of the example.
func examplesGather(o *operation) batchAxis {
	l, data := o.layout(0)
	indices, looked := o.layout(1)
	ax := int(axis(o.node.Int("axis", 0), o.in(0).rank()))
	switch {
	case data && looked:
		o.refuseMixing(true)
	case looked:
		return indices.moved(indices.axis + ax)
	case ax == l.axis:
		o.refuseMixing(true)
	case ax < l.axis:
		return l.moved(l.axis + o.in(1).rank() - 1)
	}
	return l
}

// examplesGatherND: batch_dims pair data and indices example by example.
func examplesGatherND(o *operation) batchAxis {
	l, data := o.layout(0)
	indices, looked := o.layout(1)
	paired := l.axis < int(o.node.Int("batch_dims", 0))
	o.refuseMixing(!data || !paired || looked && l != indices)
	return l
}

func examplesOneHot(o *operation) batchAxis {
	l := examplesKeep(o)
	if int(axis(o.node.Int("axis", -1), o.out(0).rank())) <= l.axis {
		l.axis++
	}
	return o.onlyFirst(l)
}

func examplesTopK(o *operation) batchAxis {
	return o.onlyFirst(examplesAxis(o))
}

func examplesCumSum(o *operation) batchAxis {
	l := examplesKeep(o)
	o.refuseMixing(axis(o.constant64(1)[0], o.in(0).rank()) == int64(l.axis))
	return l
}

// examplesTrilu: the triangle is of the last two axes.
func examplesTrilu(o *operation) batchAxis {
	l := examplesKeep(o)
	o.refuseMixing(l.axis >= o.in(0).rank()-2)
	return l
}

// examplesResize: the batch must keep its size.
func examplesResize(o *operation) batchAxis {
	l := examplesKeep(o)
	o.refuseMixing(o.in(0).shape[l.axis] != o.out(0).shape[l.axis])
	return o.onlyFirst(l)
}

// examplesMatMul: the batch may be a leading axis of either operand, the rows
// of the left or the columns of the right one, never what is summed over.
func examplesMatMul(o *operation) batchAxis {
	a, b, y := o.in(0), o.in(1), o.out(0)
	la, left := o.layout(0)
	lb, right := o.layout(1)
	o.refuseMixing(left && la.axis == a.rank()-1 || right && lb.axis == max(b.rank()-2, 0))
	if left {
		rows := y.rank() // of the output as if no vector had been dropped
		if b.rank() == 1 {
			rows++
		}
		la = la.moved(la.axis + rows - a.rank())
	}
	if right {
		columns := y.rank()
		if a.rank() == 1 {
			columns++
		}
		lb = lb.moved(lb.axis + columns - b.rank())
		if a.rank() == 1 && lb.axis == columns-1 {
			lb.axis--
		}
	}
	o.refuseMixing(left && right && la != lb)
	if left {
		return la
	}
	return lb
}

func examplesGemm(o *operation) batchAxis {
	l, left := o.layout(0)
	_, right := o.layout(1)
	o.refuseMixing(!left || right || l.axis != 0 || o.node.Int("transA", 0) != 0)
	if c, ok := o.layout(2); ok {
		o.refuseMixing(o.in(2).rank() != 2 || c != l)
	}
	return l
}
