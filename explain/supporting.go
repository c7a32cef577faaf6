package explain

import "math"

// Supporting is what of a map is shown to people who ask what speaks for the
// class: a relevance in 0..1 that leaves out what speaks against it. A
// contribution keeps its positive values, a sensitivity its sizes, a relevance
// all, each relative to the largest size of either sign: places that speak for
// the class only weakly stay weak.
//
// It is put to the test instead of the whole map where it is what people see.
func (m *Map) Supporting() *Map {
	out := *m
	out.Kind = Relevance
	out.Values = make([]float32, len(m.Values))
	top := 0.0
	for _, v := range m.Values {
		top = math.Max(top, math.Abs(float64(v)))
	}
	if !(top > 0) || math.IsInf(top, 0) {
		return &out
	}
	for i, v := range m.Values {
		if m.Kind == Sensitivity {
			v = float32(math.Abs(float64(v)))
		}
		out.Values[i] = float32(math.Max(float64(v), 0) / top)
	}
	return &out
}
