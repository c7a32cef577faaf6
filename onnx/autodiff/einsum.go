package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// einsum reads the node's equation.
func (o *operation) einsum() *onnx.Einsum {
	ranks := make([]int, len(o.inputs))
	for i, in := range o.inputs {
		ranks[i] = in.rank()
	}
	e, err := onnx.ParseEinsum(o.node.Text("equation", ""), ranks)
	if err != nil {
		failf("%w", err)
	}
	return e
}

// einsumRule: the gradient of an operand is again an Einsum, of dy and the
// other operands, over the indices that the operand lacks. An index of the
// operand alone was summed: its gradient is the same along it.
func einsumRule(o *operation) {
	e := o.einsum()
	sizes := map[int]int64{}
	for i, term := range e.Terms {
		for j, index := range term {
			sizes[index] = max(sizes[index], o.in(i).shape[j])
		}
	}
	example, perExample := o.einsumExample(e)
	for i, term := range e.Terms {
		if !o.wants(i) {
			continue
		}
		in := o.in(i)
		others, operands := [][]int{e.Result}, []value{o.dy()}
		for j, other := range e.Terms {
			if j != i {
				others, operands = append(others, other), append(operands, o.in(j))
			}
		}
		reached := slices.Concat(others...)
		var result []int
		lead := perExample && o.perExample(in)
		if lead {
			result = append(result, example)
		}
		placed := repeat(1, in.rank()) // the shape with what is missing as 1
		for j, index := range term {
			if slices.Contains(term[:j], index) {
				failf("index %q twice in one term, a diagonal: %w", rune(index), ErrNotDifferentiable)
			}
			if slices.Contains(reached, index) && in.shape[j] == sizes[index] {
				result = append(result, index)
				placed[j] = in.shape[j]
			}
		}
		g := o.einsumOf(others, result, operands, sizes)
		if lead {
			placed = append([]int64{o.n}, placed...)
		}
		o.give(i, o.expand(o.reshape(g, placed...), o.expects(in)))
	}
}

// einsumExample is the index that counts the examples.
func (o *operation) einsumExample(e *onnx.Einsum) (int, bool) {
	l, ok := o.layouts[o.out(0).name]
	if !ok || o.parts != nil {
		return 0, false
	}
	if l.before*l.after != 1 {
		failf("the batch shares an index with another axis: %w", ErrMixesExamples)
	}
	return e.Result[l.axis], true
}

// einsumOf emits the product of the operands with these indices.
func (o *operation) einsumOf(terms [][]int, result []int, operands []value, sizes map[int]int64) value {
	letters := map[int]byte{}
	next := byte('a')
	write := func(indices []int) (text []byte) {
		for _, index := range indices {
			if letters[index] == 0 {
				letters[index] = next
				if next++; next == 'z'+1 {
					next = 'A'
				}
			}
			text = append(text, letters[index])
		}
		return text
	}
	var equation []byte
	for i, term := range terms {
		if i > 0 {
			equation = append(equation, ',')
		}
		equation = append(equation, write(term)...)
	}
	equation = append(append(equation, "->"...), write(result)...)
	shape := []int64{}
	for _, index := range result {
		shape = append(shape, sizes[index])
	}
	return o.op("Einsum", operands[0].typ, shape, operands, onnx.TextAttribute("equation", string(equation)))
}

// examplesEinsum: the examples are an index of the result, the same in every
// operand that has them.
func examplesEinsum(o *operation) batchAxis {
	e := o.einsum()
	var at batchAxis
	found := false
	for i, term := range e.Terms {
		l, ok := o.layout(i)
		if !ok {
			continue
		}
		place := slices.Index(e.Result, term[l.axis])
		o.refuseMixing(place < 0)
		l = l.moved(place)
		o.refuseMixing(found && l != at)
		at, found = l, true
	}
	o.refuseMixing(!found)
	return at
}
