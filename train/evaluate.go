package train

import (
	"context"
	"fmt"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// evaluationBatch keeps the activations of one evaluation run in cache.
const evaluationBatch = 64

// evaluate returns the validation examples' logits under the given variables.
func (t *trainer) evaluate(ctx context.Context, variables [][]float32) ([][]float64, error) {
	n := t.network
	given := map[string]engine.Tensor{}
	for i, name := range n.variables() {
		given[name] = engine.Float32(n.Model.Graph.Initializer(name).Dims, variables[i])
	}
	return logits(ctx, t.forward, n.Input, n.Logits, t.copies, t.config.Validation, given)
}

// logits runs a set through a session in batches. A model that has one logit for
// two classes gets a second one: class 0's is 0.
func logits(ctx context.Context, session engine.Session, input, output string, copies int, s *Set, given map[string]engine.Tensor) ([][]float64, error) {
	size, fixed := evaluationBatch, false
	for _, in := range session.Inputs() {
		if in.Name == input && in.Shape[0].Known() {
			size, fixed = int(in.Shape[0].Value), true
		}
	}
	example := slices.Clone(s.Example())
	example[0] *= int64(copies)
	per := int(product(example))
	all := make([][]float64, 0, s.Len())
	for from := 0; from < s.Len(); from += size {
		n := size
		if !fixed {
			n = min(size, s.Len()-from)
		}
		images := make([]float32, n*per) // a batch of fixed size is filled up with zeros
		for i := range min(n, s.Len()-from) {
			s.Fill(images[i*per:(i+1)*per], from+i)
		}
		feed := map[string]engine.Tensor{input: engine.Float32(append([]int64{int64(n)}, example...), images)}
		for name, w := range given {
			feed[name] = w
		}
		out, err := session.Run(ctx, feed, output)
		if err != nil {
			return nil, err
		}
		values, err := engine.Values[float32](out[output])
		if err != nil {
			return nil, err
		}
		width := len(values) / n
		for i := range min(n, s.Len()-from) {
			row := make([]float64, 0, max(2, width))
			if width == 1 && !s.Multi() {
				row = append(row, 0)
			}
			for _, v := range values[i*width : (i+1)*width] {
				row = append(row, float64(v))
			}
			all = append(all, row)
		}
	}
	return all, nil
}

// Logits runs every example of a set through a model and returns the named
// output, [N][classes]. Images are values in 0..1; one logit for two classes is
// returned as that of class 1, with 0 for class 0.
func Logits(ctx context.Context, m *onnx.Model, input, output string, s *Set) ([][]float64, error) {
	copies, err := Fits(m, input, s.Example())
	if err != nil {
		return nil, err
	}
	session, err := engine.Open(m, engine.Options{Outputs: []string{output}})
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	defer session.Close()
	return logits(ctx, session, input, output, copies, s, nil)
}
