package guard

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// maxTaps is how many inner tensors are watched; maxChannels is how many numbers
// of each are kept, to which wider ones are folded.
const (
	maxTaps     = 5
	maxChannels = 96
)

// tap is an inner tensor that is watched, averaged over its places.
type tap struct {
	Tensor   string `json:"tensor"`
	Channels int    `json:"channels"` // of the tensor
	Axes     []int  `json:"axes"`     // that are averaged over; none for an embedding
}

// fold brings channels to at most maxChannels by adding each to one of the sums,
// with a sign; both follow from the channel's number alone (count sketch;
// Charikar et al. 2002). Distances are kept in expectation.
func fold(values []float32) []float64 {
	out := make([]float64, min(len(values), maxChannels))
	if len(values) <= maxChannels {
		for i, v := range values {
			out[i] = float64(v)
		}
		return out
	}
	for i, v := range values {
		at, sign := sketch(i)
		out[at] += sign * float64(v)
	}
	return out
}

// sketch is the sum to which a channel is added, and its sign there.
func sketch(channel int) (at int, sign float64) {
	h := uint64(channel)*0x9e3779b97f4a7c15 + 0x1234567
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 32
	if h>>63 != 0 {
		return int(h % maxChannels), -1
	}
	return int(h % maxChannels), 1
}

// activations end a block of a network: what the next one reads.
var activations = map[string]bool{
	"Relu": true, "LeakyRelu": true, "PRelu": true, "Elu": true, "Selu": true, "Gelu": true, "Mish": true, "HardSwish": true,
	"Clip": true, "Tanh": true, "Softplus": true, "Celu": true, "LayerNormalization": true, "Concat": true, "Add": true, "Mul": true,
}

// computing does the work of a network; the tensors they make are the last
// resort, and their number tells how deep a tensor lies.
var computing = map[string]bool{"Conv": true, "Gemm": true, "MatMul": true, "FusedMatMul": true}

// ErrNoLayers says that a graph has no inner tensors that can be watched.
var ErrNoLayers = errors.New("the graph has no inner tensors to watch")

// chooseTaps picks inner tensors spread over the depth of the network, the last
// ones among them, and returns them in the graph's order. The last is the
// embedding: what the final product reads, averaged over its places if it has
// any.
func chooseTaps(m *onnx.Model, output string, batch int64) ([]tap, error) {
	bind := map[string]int64{}
	weights := map[string]bool{}
	for _, w := range m.Graph.Initializers {
		weights[w.Name] = true
	}
	for _, in := range m.Graph.Inputs {
		if !weights[in.Name] && len(in.Shape) > 0 && in.Shape[0].Param != "" {
			bind[in.Shape[0].Param] = batch
		}
	}
	shapes, err := onnx.InferShapes(m, bind)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return nil, err
	}
	// What the answer depends on, and of that, what the input reaches.
	reaches := map[string]bool{output: true}
	for _, n := range slices.Backward(m.Graph.Nodes) {
		if slices.ContainsFunc(n.Outputs, func(o string) bool { return reaches[o] }) {
			for _, in := range n.Inputs {
				reaches[in] = true
			}
		}
	}
	follows := map[string]bool{}
	for _, in := range m.Graph.Inputs {
		follows[in.Name] = !weights[in.Name]
	}
	channelsFirst := slices.ContainsFunc(m.Graph.Nodes, func(n *onnx.Node) bool { return n.OpType == "Conv" })
	type candidate struct {
		tap
		depth int  // convolutions and products before it
		block bool // ends a block
	}
	var found []candidate
	depth := 0
	for _, n := range m.Graph.Nodes {
		fed := slices.ContainsFunc(n.Inputs, func(in string) bool { return follows[in] })
		for _, o := range n.Outputs {
			follows[o] = fed
		}
		if !fed || len(n.Outputs) == 0 || !reaches[n.Outputs[0]] || n.OpType == "Shape" || n.OpType == "Size" {
			continue
		}
		if computing[n.OpType] {
			depth++
		}
		name := n.Outputs[0]
		if depth == 0 || name == output || !activations[n.OpType] && !computing[n.OpType] {
			continue
		}
		if t, ok := tapOf(shapes[name], batch, channelsFirst); ok {
			found = append(found, candidate{t, depth, activations[n.OpType]})
		}
	}
	// The last tensor of each depth stands for it; blocks before bare products.
	var deep []candidate
	for i, c := range found {
		last := i+1 == len(found) || found[i+1].depth != c.depth
		if last && c.depth < depth { // the answer's own product is no inner layer
			deep = append(deep, c)
		}
	}
	if blocks := slices.DeleteFunc(slices.Clone(deep), func(c candidate) bool { return !c.block }); len(blocks) >= min(maxTaps, len(deep)) {
		deep = blocks
	}
	if len(deep) == 0 {
		return nil, fmt.Errorf("%w: no activation before %q has a known number of channels", ErrNoLayers, output)
	}
	var taps []tap
	for k := range min(maxTaps, len(deep)) {
		at := len(deep) - 1
		if count := min(maxTaps, len(deep)); count > 1 {
			at = k * (len(deep) - 1) / (count - 1)
		}
		taps = append(taps, deep[at].tap)
	}
	return taps, nil
}

// tapOf says over which axes a tensor of a batch is averaged.
func tapOf(v onnx.Value, batch int64, channelsFirst bool) (tap, bool) {
	if v.Type != onnx.Float || len(v.Shape) < 2 || len(v.Shape) > 5 {
		return tap{}, false
	}
	if d := v.Shape[0]; d.Known() && d.Value != batch { // the batch is elsewhere
		return tap{}, false
	}
	t := tap{Tensor: v.Name}
	channel := 1
	if !channelsFirst {
		channel = len(v.Shape) - 1
	}
	for i := range v.Shape[1:] {
		if i+1 != channel {
			t.Axes = append(t.Axes, i+1)
		}
	}
	d := v.Shape[channel]
	if !d.Known() || d.Value < 1 || d.Value > 1<<16 {
		return tap{}, false
	}
	t.Channels = int(d.Value)
	return t, true
}

// pooledName is the output that holds the average of a tap.
func pooledName(i int) string { return fmt.Sprintf("guard/layer%d", i) }

// appendTaps returns the model with one more output for each tap: its average
// over the places, [N, channels]. The model is not changed.
func appendTaps(m *onnx.Model, output string, taps []tap) (*onnx.Model, error) {
	graph := *m.Graph
	graph.Nodes, graph.Initializers, graph.Inputs = slices.Clone(graph.Nodes), slices.Clone(graph.Initializers), slices.Clone(graph.Inputs)
	at := slices.IndexFunc(graph.Outputs, func(v onnx.Value) bool { return v.Name == output })
	if at < 0 {
		return nil, fmt.Errorf("output %q: %w: the graph has none of that name", output, ErrInput)
	}
	batch := onnx.Dim{Value: -1}
	if shape := graph.Outputs[at].Shape; len(shape) > 0 {
		batch = shape[0]
	}
	graph.Outputs = []onnx.Value{graph.Outputs[at]}
	copied := *m
	copied.Graph = &graph
	b := onnx.Extend(&copied)
	version := max(m.Opsets[""], m.Opsets["ai.onnx"])
	for i, t := range taps {
		if producer, _ := graph.Producer(t.Tensor); producer == nil {
			return nil, fmt.Errorf("layer %q: %w: the graph computes none of that name", t.Tensor, ErrOtherModel)
		}
		node := &onnx.Node{OpType: "Identity", Inputs: []string{t.Tensor}, Outputs: []string{pooledName(i)}}
		if len(t.Axes) > 0 {
			axes := make([]int64, len(t.Axes))
			for k, a := range t.Axes {
				axes[k] = int64(a)
			}
			node.OpType = "ReduceMean"
			node.Attributes = []onnx.Attribute{onnx.IntAttribute("keepdims", 0)}
			if version >= 18 {
				node.Inputs = append(node.Inputs, b.Ints("guard/axes", axes...))
			} else {
				node.Attributes = append(node.Attributes, onnx.IntsAttribute("axes", axes...))
			}
		}
		b.Node(node, 1)
		b.Output(pooledName(i), onnx.Float, batch, onnx.Dim{Value: int64(t.Channels)})
	}
	return b.Build()
}
