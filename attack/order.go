package attack

import (
	"cmp"
	"slices"
)

// byValue lists positions by falling value, equals in their order.
func byValue(v []float32) []int { return order(v, func(x float32) float32 { return -x }) }

// byMagnitude lists positions by falling absolute value, equals in their order.
func byMagnitude(v []float32) []int {
	return order(v, func(x float32) float32 { return -max(x, -x) })
}

func order[T cmp.Ordered](v []T, key func(T) T) []int {
	at := make([]int, len(v))
	for i := range at {
		at[i] = i
	}
	slices.SortStableFunc(at, func(a, b int) int { return cmp.Compare(key(v[a]), key(v[b])) })
	return at
}
