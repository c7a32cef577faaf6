package model

import (
	"errors"
	"fmt"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
)

// ErrImage is returned for pixels that are not an image a model can read.
var ErrImage = errors.New("not an image that a model can read")

// Prepare turns the luminance of a frame into the model's input, a float32
// tensor of one example: window of the input's shape, area average, photometric
// orientation, range, mean and standard deviation.
func (m *Manifest) Prepare(l *dicom.Luminance) (engine.Tensor, error) {
	if l == nil || l.Rows < 1 || l.Columns < 1 || len(l.Values) != l.Rows*l.Columns {
		return engine.Tensor{}, fmt.Errorf("model: preparing an input: %w", ErrImage)
	}
	in := &m.Input
	plane := in.plane(l)
	channels := in.Channels
	data := make([]float32, channels*len(plane))
	for c := range channels {
		scale, shift := in.Range.High-in.Range.Low, in.Range.Low
		if len(in.Mean) > 0 {
			shift -= in.Mean[c]
		}
		if len(in.Std) > 0 {
			scale, shift = scale/in.Std[c], shift/in.Std[c]
		}
		for i, v := range plane {
			if in.Photometric == Inverted {
				v = 1 - v
			}
			at := c*len(plane) + i
			if in.Layout == "NHWC" {
				at = i*channels + c
			}
			data[at] = float32(v*scale + shift)
		}
	}
	return engine.Float32(in.Shape(1), data), nil
}

// Window is the part of an image, in pixels, that reaches the model, and where
// in the model's input it lies: a map over the input is drawn back over the
// image with it.
type Window struct {
	Top, Left, Rows, Columns                     int // in the image
	InputTop, InputLeft, InputRows, InputColumns int // in the input; the rest of it is padding
}

// Window returns the window of an image of the given size.
func (in *Input) Window(rows, columns int) Window {
	w := Window{Rows: rows, Columns: columns, InputRows: in.Rows, InputColumns: in.Columns}
	wide := columns*in.Rows > rows*in.Columns // wider than the input
	switch in.Aspect {
	case CentreCrop:
		if wide {
			w.Columns = max(1, rows*in.Columns/in.Rows)
			w.Left = (columns - w.Columns) / 2
		} else {
			w.Rows = max(1, columns*in.Rows/in.Columns)
			w.Top = (rows - w.Rows) / 2
		}
	case Pad:
		if wide {
			w.InputRows = max(1, rows*in.Columns/columns)
			w.InputTop = (in.Rows - w.InputRows) / 2
		} else {
			w.InputColumns = max(1, columns*in.Rows/rows)
			w.InputLeft = (in.Columns - w.InputColumns) / 2
		}
	}
	return w
}

// plane returns the input's pixels, row-major, 0..1, padding black.
func (in *Input) plane(l *dicom.Luminance) []float64 {
	w := in.Window(l.Rows, l.Columns)
	part := average(l, w.Top, w.Left, w.Rows, w.Columns, w.InputRows, w.InputColumns)
	if w.InputRows == in.Rows && w.InputColumns == in.Columns {
		return part
	}
	plane := make([]float64, in.Rows*in.Columns)
	for r := range w.InputRows {
		copy(plane[(w.InputTop+r)*in.Columns+w.InputLeft:], part[r*w.InputColumns:(r+1)*w.InputColumns])
	}
	return plane
}

// span is the source cells that one of m target cells covers when both n and m
// divide the same length evenly: first to last, of which the ends may be
// covered in part. Weights are shares of the target cell and sum to 1.
type span struct {
	first, last          int
	begin, whole, finish float64 // weight of first, of each cell between, of last
}

func spans(n, m int) []span {
	all := make([]span, m)
	for t := range all {
		// In units of 1/(n·m) of the length: source cell s is [s·m, (s+1)·m),
		// target cell t is [t·n, (t+1)·n).
		start, end := t*n, (t+1)*n
		s := span{first: start / m, last: (end - 1) / m, whole: float64(m) / float64(n)}
		s.begin = float64(min((s.first+1)*m, end)-start) / float64(n)
		if s.last > s.first {
			s.finish = float64(end-s.last*m) / float64(n)
		}
		all[t] = s
	}
	return all
}

// average resamples a window of an image to rows × columns by the mean over the
// area that each target pixel covers, partly covered pixels in proportion: what
// cv2.INTER_AREA computes when it reduces. The mean of the whole window stays
// the same. When it enlarges, a target pixel takes the source pixel it lies in,
// or the mixture of those it overlaps.
func average(l *dicom.Luminance, top, left, height, width, rows, columns int) []float64 {
	out := make([]float64, rows*columns)
	line := make([]float64, columns)
	across, down := spans(width, columns), spans(height, rows)
	next := -1 // the source row that line holds
	for t, d := range down {
		target := out[t*columns:][:columns]
		for y := d.first; y <= d.last; y++ {
			if y != next {
				reduce(line, l.Values[(top+y)*l.Columns+left:][:width], across)
				next = y
			}
			weight := d.whole
			switch y {
			case d.first:
				weight = d.begin
			case d.last:
				weight = d.finish
			}
			for i, v := range line {
				target[i] += v * weight
			}
		}
	}
	return out
}

// reduce averages a row of pixels over the spans.
func reduce(line []float64, source []float32, across []span) {
	for t, s := range across {
		sum := 0.0
		if s.last > s.first {
			for _, v := range source[s.first+1 : s.last] {
				sum += float64(v)
			}
			sum = sum*s.whole + float64(source[s.last])*s.finish
		}
		line[t] = sum + float64(source[s.first])*s.begin
	}
}
