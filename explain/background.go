package explain

import (
	"errors"
	"fmt"
	"math"

	"github.com/vigie/vigie/engine"
)

// Background gives the inputs that stand for "not there", each in the shape of
// the input. Every choice is a statement about what absence looks like (black?
// the average patient?), so that there is no default.
type Background func(input engine.Tensor) ([]engine.Tensor, error)

// Constant is an input of nothing but v: 0 is black, or the mean of
// standardised columns.
func Constant(v float32) Background {
	return func(input engine.Tensor) ([]engine.Tensor, error) {
		values := make([]float32, input.Len())
		for i := range values {
			values[i] = v
		}
		return []engine.Tensor{engine.Float32(input.Shape, values)}, nil
	}
}

// References are inputs of a data set: the answer is then explained against the
// mean of theirs. A hundred suffice for most tables.
func References(inputs ...engine.Tensor) Background {
	return func(engine.Tensor) ([]engine.Tensor, error) {
		if len(inputs) == 0 {
			return nil, errors.New("a background of no inputs")
		}
		return inputs, nil
	}
}

// Rows are references in one tensor [n, shape of one example].
func Rows(t engine.Tensor) (Background, error) {
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("explain: reading a background: %w", err)
	}
	values, err := engine.Values[float32](t)
	if err != nil {
		return nil, fmt.Errorf("explain: reading a background: %w", err)
	}
	if len(t.Shape) < 2 || t.Shape[0] < 1 {
		return nil, fmt.Errorf("explain: reading a background of shape %v: want [n, shape of one example]", t.Shape)
	}
	n := int(t.Shape[0])
	per := len(values) / n
	shape := append([]int64{1}, t.Shape[1:]...)
	inputs := make([]engine.Tensor, n)
	for i := range inputs {
		inputs[i] = engine.Float32(shape, values[i*per:(i+1)*per])
	}
	return References(inputs...), nil
}

// Mean is the input's own mean, channel by channel, which removes shapes and
// keeps brightness. For images and sequences with the channels first.
func Mean() Background {
	return func(input engine.Tensor) ([]engine.Tensor, error) {
		values, channels, err := planes(input)
		if err != nil {
			return nil, err
		}
		out := make([]float32, len(values))
		per := len(values) / channels
		for c := range channels {
			sum := 0.0
			for _, v := range values[c*per : (c+1)*per] {
				sum += float64(v)
			}
			for i := range per {
				out[c*per+i] = float32(sum / float64(per))
			}
		}
		return []engine.Tensor{engine.Float32(input.Shape, out)}, nil
	}
}

// Blur is the input seen through a Gaussian of that standard deviation in
// pixels, which removes detail and stays close to images (Fong and Vedaldi
// 2017). For images with the channels first; the border is repeated.
func Blur(deviation float64) Background {
	return func(input engine.Tensor) ([]engine.Tensor, error) {
		if !(deviation > 0 && deviation <= 1e4) {
			return nil, fmt.Errorf("blurring by %v pixels: want a positive number", deviation)
		}
		values, channels, err := planes(input)
		if err != nil {
			return nil, err
		}
		if len(input.Shape) < 3 {
			return nil, fmt.Errorf("blurring an input of shape %v: want an image", input.Shape)
		}
		rows, columns := int(input.Shape[len(input.Shape)-2]), int(input.Shape[len(input.Shape)-1])
		out := make([]float32, len(values))
		for c := range channels {
			at := c * rows * columns
			copy(out[at:at+rows*columns], blurred(values[at:at+rows*columns], rows, columns, deviation))
		}
		return []engine.Tensor{engine.Float32(input.Shape, out)}, nil
	}
}

// planes are the numbers of an image or a sequence, and its channels.
func planes(input engine.Tensor) ([]float32, int, error) {
	if err := input.Check(); err != nil {
		return nil, 0, err
	}
	values, err := engine.Values[float32](input)
	if err != nil {
		return nil, 0, err
	}
	shape := input.Shape
	if len(shape) < 3 || len(shape) > 4 || len(values) == 0 {
		return nil, 0, fmt.Errorf("a background from an input of shape %v: want an image [1, channels, rows, columns] or a sequence [1, channels, length]", shape)
	}
	return values, int(shape[1]), nil
}

// blurred filters rows, then columns.
func blurred(values []float32, rows, columns int, deviation float64) []float32 {
	reach := int(math.Ceil(3 * deviation))
	kernel := make([]float64, 2*reach+1)
	total := 0.0
	for i := range kernel {
		x := float64(i-reach) / deviation
		kernel[i] = math.Exp(-x * x / 2)
		total += kernel[i]
	}
	pass := func(from []float32, lines, length, across, along int) []float32 {
		out := make([]float32, len(from))
		for l := range lines {
			for i := range length {
				sum := 0.0
				for k, w := range kernel {
					j := min(max(i+k-reach, 0), length-1)
					sum += w * float64(from[l*across+j*along])
				}
				out[l*across+i*along] = float32(sum / total)
			}
		}
		return out
	}
	return pass(pass(values, rows, columns, columns, 1), columns, rows, 1, columns)
}

// maxBackground bounds the references: each multiplies the work.
const maxBackground = 4096

// background checks what Options.Background gives for an input.
func (s *subject) background(input engine.Tensor) ([][]float32, error) {
	if s.options.Background == nil {
		return nil, ErrNoBackground
	}
	values, err := engine.Values[float32](input)
	if err != nil {
		return nil, err
	}
	given, err := s.options.Background(engine.Float32(append([]int64{1}, s.layout.shape...), values))
	if err != nil {
		return nil, fmt.Errorf("background: %w", err)
	}
	if len(given) < 1 || len(given) > maxBackground {
		return nil, fmt.Errorf("a background of %d inputs: want 1 to %d", len(given), maxBackground)
	}
	out := make([][]float32, len(given))
	for i, t := range given {
		if out[i], err = s.example(t, 0); err != nil {
			return nil, fmt.Errorf("background %d: %w", i, err)
		}
	}
	return out, nil
}
