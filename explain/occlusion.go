package explain

import (
	"context"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

func openOcclusion(m *onnx.Model, o Options) (Explainer, error) {
	s, err := openSubject(m, o)
	if err != nil {
		return nil, err
	}
	return &occlusion{s}, nil
}

// occlusion covers a square window of the background at every stride and takes
// the mean drop of the score over the windows that cover a place (Zeiler and
// Fergus 2014). Of a table it covers one feature at a time.
type occlusion struct{ *subject }

func (e *occlusion) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := e.example(input, class)
	if err != nil {
		return nil, err
	}
	from, err := e.background(input)
	if err != nil {
		return nil, err
	}
	l := e.layout
	windows, grain := windowsOver(l, e.options)
	of, count := []int(nil), len(windows)
	if e.options.Groups != nil {
		if of, count, err = groups(e.options.Groups, l.places()); err != nil {
			return nil, err
		}
		grain = Size{}
	}
	n := count * len(from)
	tick := e.progress(n + 1)
	logits, err := e.logitsOf(ctx, values, from[0])
	if err != nil {
		return nil, err
	}
	tick(1)
	whole := scoreOf(e.score, logits, class)
	scores, err := e.scores(ctx, n, class, func(i int, row []float32) {
		copy(row, values)
		l.replace(row, from[i%len(from)], func(place int) bool {
			if of != nil {
				return of[place] == i/len(from)
			}
			return windows[i/len(from)].covers(place/l.columns, place%l.columns)
		})
	}, tick)
	if err != nil {
		return nil, err
	}
	drops := make([]float64, count) // by window or group
	for i, v := range scores {
		drops[i/len(from)] += (whole - v) / float64(len(from))
	}
	if of != nil {
		m := e.spread(&pieces{of: of, count: count, logits: logits}, drops)
		m.Evaluations = n + 1
		return m, nil
	}
	drop := make([]float64, l.places())
	covered := make([]float64, l.places())
	for i, w := range windows {
		mean := drops[i]
		for y := w.top; y < w.bottom; y++ {
			for x := w.left; x < w.right; x++ {
				drop[y*l.columns+x] += mean
				covered[y*l.columns+x]++
			}
		}
	}
	m := e.blank(logits)
	for p := range m.Values {
		m.Values[p] = float32(drop[p] / covered[p])
	}
	m.Layer, m.Evaluations = grain, n+1
	return m, nil
}

// window is a rectangle of places, right and bottom excluded.
type window struct{ top, left, bottom, right int }

func (w window) covers(y, x int) bool {
	return y >= w.top && y < w.bottom && x >= w.left && x < w.right
}

// windowsOver covers every place at least once: the last window of a row or a
// column ends at the border. It says also how many windows lie below and beside
// each other.
func windowsOver(l layout, o Options) ([]window, Size) {
	if l.table() {
		out := make([]window, l.columns)
		for i := range out {
			out[i] = window{0, i, 1, i + 1}
		}
		return out, Size{1, l.columns}
	}
	side := l.columns
	if l.image() {
		side = min(l.rows, l.columns)
	}
	size := or(o.Window, max(2, side/8))
	stride := min(or(o.Stride, max(1, size/2)), size) // a longer one would leave gaps
	var out []window
	tops, lefts := starts(l.rows, min(size, l.rows), stride), starts(l.columns, min(size, l.columns), stride)
	for _, y := range tops {
		for _, x := range lefts {
			out = append(out, window{y, x, min(y+size, l.rows), min(x+size, l.columns)})
		}
	}
	return out, Size{len(tops), len(lefts)}
}

func starts(length, size, stride int) []int {
	var out []int
	for at := 0; at+size < length; at += stride {
		out = append(out, at)
	}
	return append(out, length-size)
}
