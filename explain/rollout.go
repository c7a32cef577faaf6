package explain

import (
	"context"
	"fmt"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// rollout follows attention from the layer that answers back to the input.
//
// Plain (Abnar and Zuidema 2020): the heads' mean A, with the residual
// connection as an identity of the same weight, ½(A + I), multiplied through
// the layers. Gradient-weighted (Chefer et al. 2021, equations 5 and 6): the
// mean over heads of the positive part of A times the gradient of the score,
// R ← R + Ā·R from R = I, which knows the class; the identity that R begins
// with says nothing of the input and is taken off.
//
// The tokens' relevance is the class token's row, or the mean of all rows where
// the model has no class token. The class token's own share is left out.
type rollout struct {
	*subject
	layers   []attention
	grid     grid
	weighted bool
	slope    *slope         // weighted
	plain    engine.Session // otherwise
}

func openRollout(weighted bool) func(*onnx.Model, Options) (Explainer, error) {
	return func(m *onnx.Model, o Options) (Explainer, error) {
		s, err := describeSubject(m, o)
		if err != nil {
			return nil, err
		}
		if s.fixed && s.batch != 1 {
			return nil, fmt.Errorf("the model takes batches of %d: %w: want 1 or any", s.batch, ErrInput)
		}
		single := *s.model
		graph := *s.model.Graph
		single.Graph = &graph
		graph.Inputs = []onnx.Value{{Name: s.input, Type: onnx.Float, Shape: onnx.Fixed(append([]int64{1}, s.layout.shape...)...)}}
		graph.Inputs = append(graph.Inputs, weightsAmongInputs(s.model, s.input)...)
		graph.Outputs = []onnx.Value{{Name: s.logits, Type: onnx.Float, Shape: onnx.Fixed(1, int64(s.classes))}}
		s.model, s.fixed, s.batch, s.output = &single, true, 1, graph.Outputs[0]
		r := &rollout{subject: s, weighted: weighted}
		if r.layers, err = findAttention(s.model, s.logits); err != nil {
			return nil, err
		}
		if r.grid, err = gridOf(s.model, s.layout, r.layers[0].tokens); err != nil {
			return nil, err
		}
		var names []string
		for _, a := range r.layers {
			names = append(names, a.tensor)
		}
		if weighted {
			r.slope, err = openSlope(s, 1, names, names)
			return r, err
		}
		shapes, _ := onnx.InferShapes(s.model, nil)
		for _, name := range names {
			graph.Outputs = append(graph.Outputs, onnx.Value{Name: name, Type: onnx.Float, Shape: shapes[name].Shape})
		}
		r.plain, err = engine.Open(&single, engine.Options{Threads: o.Threads})
		return r, err
	}
}

// weightsAmongInputs are the inputs that old exporters list for weights.
func weightsAmongInputs(m *onnx.Model, input string) []onnx.Value {
	var out []onnx.Value
	for _, v := range m.Graph.Inputs {
		if v.Name != input {
			out = append(out, v)
		}
	}
	return out
}

func (r *rollout) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := r.example(input, class)
	if err != nil {
		return nil, err
	}
	tick := r.progress(1)
	var out map[string]engine.Tensor
	if r.weighted {
		out, err = r.slope.run(ctx, values, class)
	} else {
		out, err = r.plain.Run(ctx, map[string]engine.Tensor{r.input: engine.Float32(append([]int64{1}, r.layout.shape...), values)})
	}
	if err != nil {
		return nil, err
	}
	tick(1)
	logits, err := engine.Values[float32](out[r.logits])
	if err != nil {
		return nil, err
	}
	n := r.layers[0].tokens
	rolled := identity(n)
	for _, a := range r.layers {
		weights, err := engine.Values[float32](out[a.tensor])
		if err != nil {
			return nil, err
		}
		var gradient []float32
		if r.weighted {
			if gradient, err = engine.Values[float32](out[r.slope.of[a.tensor]]); err != nil {
				return nil, err
			}
		}
		rolled = multiply(step(weights, gradient, a.heads, n), rolled, n)
	}
	if r.weighted {
		for i := range n {
			rolled[i*n+i]--
		}
	}
	m := r.blank(logits)
	coarse := relevance(r.patches(rolled, n))
	over := r.grid.over
	large := Enlarge(coarse, r.grid.rows, r.grid.columns, over.Rows, over.Columns)
	for row := range m.Rows {
		copy(m.Values[row*m.Columns:(row+1)*m.Columns], large[row*over.Columns:])
	}
	m.Layer = Size{r.grid.rows, r.grid.columns}
	m.Evaluations = 1
	return m, nil
}

// step is what one layer does to the tokens, [tokens, tokens].
func step(weights, gradient []float32, heads, n int) []float64 {
	out := identity(n)
	if gradient == nil {
		for i := range n {
			out[i*n+i] = 0.5
		}
	}
	for h := range heads {
		for i := range n * n {
			w := float64(weights[h*n*n+i])
			if gradient == nil {
				out[i] += w / float64(2*heads)
			} else if w *= float64(gradient[h*n*n+i]); w > 0 {
				out[i] += w / float64(heads)
			}
		}
	}
	return out
}

// patches are the tokens' relevance for the answer, class tokens left out.
func (r *rollout) patches(rolled []float64, n int) []float64 {
	out := make([]float64, r.grid.rows*r.grid.columns)
	if r.grid.first > 0 {
		copy(out, rolled[r.grid.first:n])
		return out
	}
	for i := range n {
		for j := range out {
			out[j] += rolled[i*n+j] / float64(n)
		}
	}
	return out
}

func identity(n int) []float64 {
	out := make([]float64, n*n)
	for i := range n {
		out[i*n+i] = 1
	}
	return out
}

// multiply is a·b of square matrices.
func multiply(a, b []float64, n int) []float64 {
	out := make([]float64, n*n)
	for i := range n {
		row := out[i*n : (i+1)*n]
		for k := range n {
			if w := a[i*n+k]; w != 0 {
				for j, v := range b[k*n : (k+1)*n] {
					row[j] += w * v
				}
			}
		}
	}
	return out
}

func (r *rollout) Close() error {
	if r.weighted {
		return r.slope.Close()
	}
	return r.plain.Close()
}
