package explain

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// modelLayer is a node with a matrix or a kernel of weights and the weights that
// follow it (bias, normalisation), as far as the next such node.
type modelLayer struct {
	name    string
	weights []string
}

// layersOf lists the layers on the way to the logits, from the output back.
func layersOf(m *onnx.Model, logits string) []modelLayer {
	inits := map[string]*onnx.Tensor{}
	for _, w := range m.Graph.Initializers {
		inits[w.Name] = w
	}
	producer := map[string]*onnx.Node{}
	for _, n := range m.Graph.Nodes {
		for _, out := range n.Outputs {
			producer[out] = n
		}
	}
	// weight follows a name back over nodes that keep the numbers.
	weight := func(name string) *onnx.Tensor {
		for {
			if w := inits[name]; w != nil {
				if w.Type == onnx.Float || w.Type == onnx.Double {
					return w
				}
				return nil
			}
			n := producer[name]
			if n == nil || !slices.Contains([]string{"Transpose", "Identity", "Reshape", "Unsqueeze", "Squeeze"}, n.OpType) {
				return nil
			}
			name = n.Inputs[0]
		}
	}
	needed := map[string]bool{logits: true}
	taken := map[string]bool{}
	var layers []modelLayer
	var following []string
	for _, n := range slices.Backward(m.Graph.Nodes) {
		if !slices.ContainsFunc(n.Outputs, func(out string) bool { return out != "" && needed[out] }) {
			continue
		}
		layer := false
		for i, in := range n.Inputs {
			needed[in] = true
			if !carriesWeights(n.OpType, i) {
				continue
			}
			w := weight(in)
			if w == nil || taken[w.Name] {
				continue
			}
			taken[w.Name] = true
			following = append(following, w.Name)
			layer = layer || slices.Contains([]string{"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"}, n.OpType) && len(w.Dims) > 1
		}
		if layer {
			layers = append(layers, modelLayer{n.Name, following})
			following = nil
		}
	}
	return layers
}

// carriesWeights says whether an operand is learnt; the others are settings.
func carriesWeights(op string, operand int) bool {
	switch op {
	case "Conv", "ConvTranspose", "Gemm", "LSTM", "GRU", "PRelu", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization":
		return operand > 0
	case "BatchNormalization":
		return operand > 0
	case "MatMul", "Add", "Mul", "Sub":
		return true
	case "Gather": // embeddings
		return operand == 0
	}
	return false
}

// randomised returns the model with these weights drawn anew: normally, with the
// mean and the deviation that each had, so that signals keep their size. Those
// that must stay positive, such as running variances, are shuffled instead.
func randomised(m *onnx.Model, names map[string]bool, rng *rand.Rand) (*onnx.Model, error) {
	out := *m
	graph := *m.Graph
	out.Graph = &graph
	graph.Initializers = slices.Clone(graph.Initializers)
	variance := map[string]bool{}
	for _, n := range graph.Nodes {
		if n.OpType == "BatchNormalization" {
			variance[n.Input(3)], variance[n.Input(4)] = true, true
		}
	}
	for i, w := range graph.Initializers {
		if !names[w.Name] {
			continue
		}
		values, err := w.Floats()
		if err != nil {
			return nil, err
		}
		if variance[w.Name] {
			rng.Shuffle(len(values), func(i, j int) { values[i], values[j] = values[j], values[i] })
		} else {
			redraw(values, rng)
		}
		if w.Type == onnx.Double {
			graph.Initializers[i] = onnx.NewTensor(w.Name, w.Dims, values)
			continue
		}
		single := make([]float32, len(values))
		for j, v := range values {
			single[j] = float32(v)
		}
		graph.Initializers[i] = onnx.NewTensor(w.Name, w.Dims, single)
	}
	return &out, nil
}

func redraw(values []float64, rng *rand.Rand) {
	var sum, squares float64
	for _, v := range values {
		sum += v
	}
	mean := sum / float64(max(1, len(values)))
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	deviation := math.Sqrt(squares / float64(max(1, len(values))))
	for i := range values {
		values[i] = mean + deviation*rng.NormFloat64()
	}
}
