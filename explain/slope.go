package explain

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// slope is a graph that gives answers together with gradients of the score of a
// chosen class, so that a map explains exactly the answer beside it.
type slope struct {
	session  engine.Session
	input    string
	logits   string
	selector string            // input [1, classes]: 1 at the class to explain
	of       map[string]string // gradient's output by tensor
	batch    int
	layout   layout
	classes  int
}

// The added input that chooses the class, and the tensor that is differentiated.
const (
	selectorName = "explain/class"
	scoreName    = "explain/score"
)

// openSlope builds the graph for gradients with respect to tensors of the
// model, of which keep are returned as well. Where the model's operators do not
// let examples of a batch be told apart, it runs one at a time.
func openSlope(s *subject, batch int, wrt, keep []string) (*slope, error) {
	scored, selector, err := s.appendScore()
	if err != nil {
		return nil, err
	}
	g := &slope{input: s.input, logits: s.logits, selector: selector, batch: batch, layout: s.layout, classes: s.classes}
	if s.fixed {
		g.batch = s.batch
	}
	request := autodiff.Request{Loss: scoreName, WithRespectTo: wrt, Batch: int64(g.batch), Keep: append([]string{s.logits}, keep...), PerExample: g.batch > 1}
	gradients, err := autodiff.Gradient(scored, request)
	if errors.Is(err, autodiff.ErrMixesExamples) && !s.fixed {
		g.batch, request.Batch, request.PerExample = 1, 1, false
		gradients, err = autodiff.Gradient(scored, request)
	}
	if err != nil {
		return nil, err
	}
	g.of = gradients.Of
	g.session, err = engine.Open(gradients.Model, engine.Options{Threads: s.options.Threads})
	return g, err
}

// appendScore adds the score of the class that the selector chooses, which lets
// one graph explain any class.
func (s *subject) appendScore() (*onnx.Model, string, error) {
	b := onnx.Extend(s.model.Clone())
	z, typ := s.logits, s.output.Type
	selector := b.Input(selectorName, typ, onnx.Fixed(1, int64(s.classes))...)
	score := z
	switch s.score {
	case Probability:
		score = b.Op("Softmax", []string{z}, onnx.IntAttribute("axis", 1))
	case LogOdds:
		// log p/(1-p) = z_c - log Σ_{k≠c} exp z_k; the class is moved out of
		// reach of the second sum.
		far := b.Weight("explain/far", []int64{1, 1}, []float32{1e9})
		others := b.Op("Sub", []string{z, b.Op("Mul", []string{selector, far})})
		axes, attributes := []string{others}, []onnx.Attribute{onnx.IntAttribute("keepdims", 1)}
		if max(s.model.Opsets[""], s.model.Opsets["ai.onnx"]) >= 18 {
			axes = append(axes, b.Ints("explain/classes", 1))
		} else {
			attributes = append(attributes, onnx.IntsAttribute("axes", 1))
		}
		score = b.Op("Sub", []string{z, b.Op("ReduceLogSumExp", axes, attributes...)})
	}
	chosen := b.Op("Mul", []string{score, selector})
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{chosen, b.Ints("explain/classes", 1)}, Outputs: []string{scoreName},
		Attributes: []onnx.Attribute{onnx.IntAttribute("keepdims", 0)}}, 1)
	b.Output(scoreName, typ, s.output.Shape[0])
	m, err := b.Build()
	return m, selector, err
}

// run computes one batch of rows for a class. The rows beyond count are filling.
func (g *slope) run(ctx context.Context, rows []float32, class int) (map[string]engine.Tensor, error) {
	selector := make([]float32, g.classes)
	selector[class] = 1
	out, err := g.session.Run(ctx, map[string]engine.Tensor{
		g.input:    engine.Float32(append([]int64{int64(g.batch)}, g.layout.shape...), rows),
		g.selector: engine.Float32([]int64{1, int64(g.classes)}, selector),
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// each runs n examples, written by fill, and hands each one's input gradient
// and logits to visit, which must not keep them.
func (g *slope) each(ctx context.Context, n, class int, fill func(i int, row []float32), visit func(i int, gradient, logits []float32), tick func(int)) error {
	elements := g.layout.elements()
	rows := make([]float32, g.batch*elements)
	for from := 0; from < n; from += g.batch {
		count := min(g.batch, n-from)
		clear(rows)
		for i := range count {
			fill(from+i, rows[i*elements:(i+1)*elements])
		}
		for i := count; i < g.batch; i++ {
			copy(rows[i*elements:(i+1)*elements], rows[:elements])
		}
		out, err := g.run(ctx, rows, class)
		if err != nil {
			return err
		}
		gradient, err := engine.Values[float32](out[g.of[g.input]])
		if err != nil {
			return err
		}
		logits, err := engine.Values[float32](out[g.logits])
		if err != nil {
			return err
		}
		if i, ok := firstUnusable(gradient[:count*elements]); ok {
			return fmt.Errorf("the gradient is %v: the explanation would mean nothing", gradient[i])
		}
		if i, ok := firstUnusable(logits[:count*g.classes]); ok {
			return fmt.Errorf("the model's answer is %v: the explanation would mean nothing", logits[i])
		}
		for i := range count {
			visit(from+i, gradient[i*elements:(i+1)*elements], logits[i*g.classes:(i+1)*g.classes])
		}
		if tick != nil {
			tick(count)
		}
	}
	return nil
}

func firstUnusable(values []float32) (int, bool) {
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return i, true
		}
	}
	return 0, false
}

func (g *slope) Close() error { return g.session.Close() }
