package job

import (
	"context"
	"fmt"

	"github.com/vigie/vigie/attack/poison"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// trainedSide is the size that images are brought to for the small network.
const trainedSide = 64

// activations are the values before the last layer of a network: of the model
// that was named, or of one that is trained on the very data. The latter has to
// learn them by heart to show what they carry: nothing is held back.
func (a Audit) activations(c *poison.Cases) func(context.Context) ([][]float32, error) {
	return func(ctx context.Context) ([][]float32, error) {
		if a.Model != "" {
			m, err := onnx.Load(a.Model)
			if err != nil {
				return nil, fmt.Errorf("job: opening %s: %w", a.Model, err)
			}
			values, err := inner(ctx, m, c.Set)
			if err != nil {
				return nil, fmt.Errorf("job: asking %s: %w", a.Model, err)
			}
			return values, nil
		}
		set := c.Small(trainedSide)
		cnn := train.DemoCNN
		network, err := cnn.For(set, a.Seed)
		if err != nil {
			return nil, err
		}
		recipe := train.DemoRecipe
		recipe.Epochs, recipe.Seed, recipe.Average = a.Epochs, a.Seed, 0
		recipe.Augmentation = train.Augmentation{} // a trigger in a corner must stay one
		recipe.Batch = min(recipe.Batch, set.Len()/2*2)
		// Run wants a set to choose an epoch by; any serves, for it is small and of
		// the same data, and the last epoch is as good as the best.
		var few []int
		seen := make([]int, set.Classes)
		for i, l := range set.Labels {
			if seen[l] < 32 {
				seen[l]++
				few = append(few, i)
			}
		}
		result, err := train.Run(ctx, train.Config{Network: network, Train: set, Validation: set.Subset(few), Recipe: recipe}, func(e train.Epoch) {
			a.progress("training a small network", float64(e.Epoch)/float64(recipe.Epochs))
		})
		if err != nil {
			return nil, err
		}
		return inner(ctx, result.Model, set)
	}
}

// inner returns what goes into the last layer with weights.
func inner(ctx context.Context, m *onnx.Model, set *train.Set) ([][]float32, error) {
	g := m.Graph
	if len(g.Outputs) == 0 {
		return nil, fmt.Errorf("a graph without outputs: %w", ErrAsk)
	}
	input := ""
	for _, v := range g.Inputs {
		if g.Initializer(v.Name) == nil {
			if input != "" {
				return nil, fmt.Errorf("a graph with the inputs %q and %q: %w: want one image", input, v.Name, ErrAsk)
			}
			input = v.Name
		}
	}
	name := g.Outputs[0].Name
	for {
		node, _ := g.Producer(name)
		if node == nil || len(node.Inputs) == 0 {
			return nil, fmt.Errorf("no Gemm, MatMul or Conv was found before %q: %w", g.Outputs[0].Name, ErrAsk)
		}
		last := node.OpType == "Gemm" || node.OpType == "MatMul" || node.OpType == "Conv"
		if name = node.Input(0); g.Initializer(name) != nil && len(node.Inputs) > 1 {
			name = node.Input(1)
		}
		if last {
			break
		}
	}
	tapped, graph := *m, *g
	tapped.Graph = &graph
	graph.Outputs = []onnx.Value{{Name: name, Type: onnx.Float}}
	shapes, err := onnx.InferShapes(m, nil)
	if err == nil {
		graph.Outputs[0].Shape = shapes[name].Shape
	}
	rows, err := train.Logits(ctx, &tapped, input, name, set)
	if err != nil {
		return nil, err
	}
	out := make([][]float32, len(rows))
	for i, row := range rows {
		for _, v := range row {
			out[i] = append(out[i], float32(v))
		}
	}
	return out, nil
}
