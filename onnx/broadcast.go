package onnx

import "slices"

// broadcast returns the shape of an element-wise operation over the given
// shapes (docs/Broadcasting.md), nil if a rank is unknown.
func broadcast(shapes ...[]Dim) ([]Dim, error) {
	rank := 0
	for _, s := range shapes {
		if s == nil {
			return nil, nil
		}
		rank = max(rank, len(s))
	}
	out := make([]Dim, rank)
	for i := range out {
		out[i] = Dim{Value: 1}
		for _, s := range shapes {
			j := i - (rank - len(s))
			if j < 0 {
				continue
			}
			d, ok := stretch(out[i], s[j])
			if !ok {
				return nil, mistake("shapes %v do not broadcast: %v against %v", shapes, out[i], s[j])
			}
			out[i] = d
		}
	}
	return out, nil
}

// stretch returns the dimension that two broadcast to.
func stretch(a, b Dim) (Dim, bool) {
	switch {
	case a.Known() && a.Value == 1:
		return b, true
	case b.Known() && b.Value == 1:
		return a, true
	case a.Known() && b.Known():
		return a, a.Value == b.Value
	case a.Known(): // b can only be 1 or the same
		return a, true
	case b.Known():
		return b, true
	case a == b:
		return a, true
	}
	return anyDim, true
}

// same returns the dimension that two which must be equal have.
func same(a, b Dim) (Dim, bool) {
	switch {
	case a.Known() && b.Known():
		return a, a.Value == b.Value
	case a.Known():
		return a, true
	case b.Known():
		return b, true
	case a.Param == "":
		return b, true
	}
	return a, true
}

// axis returns an axis counted from the front, given one that may count from
// the back.
func axis(a int64, rank int) (int, error) {
	if a < -int64(rank) || a >= int64(rank) {
		return 0, mistake("axis %d of a tensor with %d dimensions", a, rank)
	}
	if a < 0 {
		a += int64(rank)
	}
	return int(a), nil
}

// axes is axis for a list without repetition.
func axes(list []int64, rank int) ([]int, error) {
	out := make([]int, len(list))
	for i, a := range list {
		j, err := axis(a, rank)
		if err != nil {
			return nil, err
		}
		if slices.Contains(out[:i], j) {
			return nil, mistake("axis %d is given twice", a)
		}
		out[i] = j
	}
	return out, nil
}

// anyShape returns a shape of which only the rank is known.
func anyShape(rank int) []Dim {
	out := make([]Dim, rank)
	for i := range out {
		out[i] = anyDim
	}
	return out
}

// strides returns the distance between neighbours along each axis, and the
// number of elements, of a static shape small enough to be followed by value.
func strides(shape []int64) ([]int, int) {
	out := make([]int, len(shape))
	n := 1
	for i := len(shape) - 1; i >= 0; i-- {
		out[i] = n
		n *= int(shape[i])
	}
	return out, n
}

// places returns, for each element of a tensor of shape in row-major order,
// what at gives for its index.
func places(shape []int64, at func(index []int) int) []int {
	_, n := strides(shape)
	out := make([]int, 0, n)
	index := make([]int, len(shape))
	for range n {
		out = append(out, at(index))
		for i := len(index) - 1; i >= 0; i-- {
			if index[i]++; index[i] < int(shape[i]) {
				break
			}
			index[i] = 0
		}
	}
	return out
}

// small returns the shape as numbers if it is known and its tensor few enough
// elements to be followed by value.
func small(shape []Dim) ([]int64, bool) {
	n, ok := product(shape)
	if shape == nil || !ok || n > maxFolded {
		return nil, false
	}
	return Value{Shape: shape}.Static()
}
