package train

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Network is a model with what training and explaining need to know of it. CNN
// builds one, package onnx/zoo others, and Import makes one of any ONNX graph.
type Network struct {
	Model   *onnx.Model
	Input   string   // float [N, …], for images [N, channels, rows, columns] of values 0..1
	Logits  string   // float [N, classes], or [N, 1]: the logit of class 1 of two
	Weights []string // initializers to train, in order
	Layer   string   // activation after the last convolution, for Grad-CAM; may be empty

	// Members are the logits of an ensemble's members, each trained on a loss of
	// its own; Logits is then their mean. See Ensemble.
	Members []string

	norms []norm // batch normalisations to train, found by withNorms
}

// norm is a batch normalisation whose gain or shift is trained: it normalises by
// the batch's statistics while training, and what it will use afterwards are
// running averages of those (Ioffe and Szegedy 2015).
type norm struct {
	node           int // position in the inference graph
	mean, variance string
	momentum       float64   // what a running statistic keeps at each step
	batch          [2]string // tensors of the training graph: mean and biased variance of the batch
	count          int64     // elements that each statistic is taken over; 0 until known
}

// withNorms returns a copy of the network that knows its batch normalisations. A
// layer whose gain and shift are frozen keeps its running statistics, too.
func (n *Network) withNorms(size int64) (*Network, error) {
	out := *n
	out.norms = nil
	var shapes map[string]onnx.Value
	for i, node := range n.Model.Graph.Nodes {
		if node.OpType != "BatchNormalization" || node.Domain != "" {
			continue
		}
		if !slices.Contains(n.Weights, node.Input(1)) && !slices.Contains(n.Weights, node.Input(2)) {
			continue
		}
		for _, name := range []string{node.Input(3), node.Input(4)} {
			if n.Model.Graph.Initializer(name) == nil {
				return nil, fmt.Errorf("train: batch normalisation %q: its running statistics %q are computed by the graph, not a constant; freeze this layer", node.Name, name)
			}
		}
		if node.Int("training_mode", 0) != 0 {
			return nil, fmt.Errorf("train: batch normalisation %q is exported in training mode; export the model for inference (model.eval() in PyTorch)", node.Name)
		}
		if shapes == nil {
			var err error
			if shapes, err = onnx.InferShapes(n.Model, batchOf(n.Model, n.Input, size)); err != nil {
				return nil, fmt.Errorf("train: inferring shapes: %w", err)
			}
		}
		x, ok := shapes[node.Input(0)].Static()
		if !ok || len(x) < 2 {
			return nil, fmt.Errorf("train: batch normalisation %q: the shape of its input %v is not known; export the model with fixed sizes, only the batch left open", node.Name, shapes[node.Input(0)])
		}
		name := fmt.Sprintf("train/norm%d", len(out.norms))
		out.norms = append(out.norms, norm{
			node: i, mean: node.Input(3), variance: node.Input(4), momentum: float64(node.Float("momentum", 0.9)),
			batch: [2]string{name + "/mean", name + "/variance"}, count: product(x) / x[1],
		})
	}
	return &out, nil
}

// shaped returns a copy of the network whose input has the given example shape,
// with the batch left open: sizes that an export left open are those of the data.
// The graph must then have no shape left that is not known.
func (n *Network) shaped(example []int64, size int64) (*Network, error) {
	graph := *n.Model.Graph
	graph.Inputs = slices.Clone(graph.Inputs)
	for i, in := range graph.Inputs {
		if in.Name != n.Input {
			continue
		}
		if in.Shape[0].Known() && in.Shape[0].Value != size {
			return nil, fmt.Errorf("train: input %v takes batches of %d only; export the model with an open batch size, or train in batches of %[2]d", in, in.Shape[0].Value)
		}
		graph.Inputs[i].Shape = append(slices.Clone(in.Shape[:1]), onnx.Fixed(example...)...)
	}
	m := *n.Model
	m.Graph = &graph
	out := *n
	out.Model = &m
	return &out, nil
}

// batchOf binds the name of the batch dimension, if it has one.
func batchOf(m *onnx.Model, input string, size int64) map[string]int64 {
	for _, in := range m.Graph.Inputs {
		if in.Name == input && len(in.Shape) > 0 && in.Shape[0].Param != "" {
			return map[string]int64{in.Shape[0].Param: size}
		}
	}
	return nil
}

// trainingModel is the network with its batch normalisations in training mode.
// Their momentum is 0, so that the statistics they return are the batch's own:
// running averages are the trainer's to keep.
func (n *Network) trainingModel() *onnx.Model {
	if len(n.norms) == 0 {
		return n.Model
	}
	graph := *n.Model.Graph
	graph.Nodes = slices.Clone(graph.Nodes)
	for _, b := range n.norms {
		node := graph.Nodes[b.node].Clone()
		node.Outputs = append(node.Outputs[:1:1], b.batch[:]...)
		node.Set(onnx.IntAttribute("training_mode", 1))
		node.Set(onnx.FloatAttribute("momentum", 0))
		graph.Nodes[b.node] = node
	}
	m := *n.Model
	m.Graph = &graph
	return &m
}

// variables are the names of all that training changes: the weights, then mean
// and variance of each batch normalisation.
func (n *Network) variables() []string {
	names := slices.Clone(n.Weights)
	for _, b := range n.norms {
		names = append(names, b.mean, b.variance)
	}
	return names
}

// variablesAsInputs is the network's inference graph with the variables to be
// given at each run.
func (n *Network) variablesAsInputs() *onnx.Model {
	given := map[string]bool{}
	for _, name := range n.variables() {
		given[name] = true
	}
	graph := *n.Model.Graph
	graph.Initializers = nil
	graph.Inputs = slices.DeleteFunc(slices.Clone(graph.Inputs), func(v onnx.Value) bool { return given[v.Name] })
	for _, w := range n.Model.Graph.Initializers {
		if given[w.Name] {
			graph.Inputs = append(graph.Inputs, onnx.Value{Name: w.Name, Type: w.Type, Shape: onnx.Fixed(w.Dims...)})
		} else {
			graph.Initializers = append(graph.Initializers, w)
		}
	}
	m := *n.Model
	m.Graph = &graph
	return &m
}

// withValues is the network's model with other values for the variables.
func (n *Network) withValues(values [][]float32) (*onnx.Model, error) {
	m := n.Model.Clone()
	for i, name := range n.variables() {
		w := m.Graph.Initializer(name)
		*w = *onnx.NewTensor(name, w.Dims, values[i])
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	return m, nil
}
