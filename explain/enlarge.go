package explain

// Enlarge resamples a map bilinearly. Pixel centres are aligned (coordinates
// are those of half-pixel centres, as in ONNX Resize "half_pixel"), so that the
// map lies over the image without a shift; the border is repeated.
func Enlarge(values []float32, rows, columns, toRows, toColumns int) []float32 {
	out := make([]float32, toRows*toColumns)
	ys, xs := between(rows, toRows), between(columns, toColumns)
	for y, v := range ys {
		for x, h := range xs {
			top := values[v.low*columns+h.low]*(1-h.part) + values[v.low*columns+h.high]*h.part
			bottom := values[v.high*columns+h.low]*(1-h.part) + values[v.high*columns+h.high]*h.part
			out[y*toColumns+x] = top*(1-v.part) + bottom*v.part
		}
	}
	return out
}

// position says between which two source positions a target position lies.
type position struct {
	low, high int
	part      float32
}

func between(from, to int) []position {
	out := make([]position, to)
	for i := range out {
		at := (float32(i)+0.5)*float32(from)/float32(to) - 0.5
		at = min(max(at, 0), float32(from-1))
		low := int(at)
		out[i] = position{low, min(low+1, from-1), at - float32(low)}
	}
	return out
}
