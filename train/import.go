package train

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vigie/vigie/onnx"
)

// ImportOptions say how to train a graph that was built elsewhere.
type ImportOptions struct {
	Output string   // the logits; empty means the first output
	Freeze []string // patterns of weights that stay as they are, as path.Match has them: "layer1.*"
}

// Import makes a network of any ONNX graph that has one input of floats with the
// examples first: it finds the weights, so that the graph can be trained without
// the program that it came from.
//
// Weights are the float constants that convolutions, matrix products,
// normalisations, embeddings and the additions and multiplications behind them
// use; constants that only prepare the input (mean and deviation of pixels) are
// not. What exporters do to an inference graph is undone where it would be in
// the way: a constant that was merged with an equal one becomes its own weight
// again, a Softmax or Sigmoid after the logits is taken off, and a batch size
// that was fixed is opened where the graph allows it. m is not changed.
func Import(m *onnx.Model, o ImportOptions) (*Network, error) {
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("train: importing a graph: %w", err)
	}
	m = m.Clone()
	n := &Network{Model: m}
	if err := n.findInput(); err != nil {
		return nil, err
	}
	ownConstants(m.Graph)
	if err := n.findLogits(o.Output); err != nil {
		return nil, err
	}
	openBatch(m, n.Input, n.Logits)
	n.findWeights()
	if err := n.Freeze(o.Freeze...); err != nil {
		return nil, err
	}
	n.findLayer()
	return n, nil
}

// findInput finds the one input that data go to.
func (n *Network) findInput() error {
	var inputs []string
	for _, v := range n.Model.Graph.Inputs {
		if n.Model.Graph.Initializer(v.Name) == nil {
			inputs = append(inputs, v.String())
			n.Input = v.Name
		}
	}
	if len(inputs) != 1 {
		return fmt.Errorf("train: importing a graph: it has the inputs %s; training feeds one input: export the model with one", strings.Join(inputs, ", "))
	}
	return nil
}

// ownConstants turns constants in nodes into initializers, and copies of
// initializers by Identity, which is how exporters merge equal ones, into
// initializers of their own.
func ownConstants(g *onnx.Graph) {
	var kept []*onnx.Node
	for _, node := range g.Nodes {
		var constant *onnx.Tensor
		switch node.OpType {
		case "Constant":
			if t := node.Tensor("value"); t != nil && t.Type == onnx.Float {
				constant = t.Clone()
			}
		case "Identity":
			if w := g.Initializer(node.Input(0)); w != nil && w.Type == onnx.Float {
				constant = w.Clone()
			}
		}
		isOutput := slices.ContainsFunc(g.Outputs, func(v onnx.Value) bool { return v.Name == node.Output(0) })
		if constant == nil || node.Domain != "" || isOutput {
			kept = append(kept, node)
			continue
		}
		constant.Name = node.Output(0)
		g.Initializers = append(g.Initializers, constant)
	}
	g.Nodes = kept
}

// findLogits finds the output to train on and takes off the activation after it.
func (n *Network) findLogits(name string) error {
	g := n.Model.Graph
	at := 0
	if name != "" {
		at = slices.IndexFunc(g.Outputs, func(v onnx.Value) bool { return v.Name == name })
	}
	if at < 0 || len(g.Outputs) == 0 {
		return fmt.Errorf("train: importing a graph: it has no output %q; it has %s", name, names(g.Outputs))
	}
	out := &g.Outputs[at]
	n.Logits = out.Name
	if p, _ := g.Producer(out.Name); p != nil && p.Domain == "" && (p.OpType == "Softmax" || p.OpType == "Sigmoid") && len(out.Shape) == 2 {
		n.Logits = p.Input(0)
		out.Name = p.Input(0)
		g.Nodes = slices.DeleteFunc(g.Nodes, func(node *onnx.Node) bool { return node == p })
	}
	return nil
}

func names(values []onnx.Value) string {
	var list []string
	for _, v := range values {
		list = append(list, v.Name)
	}
	return strings.Join(list, ", ")
}

// openBatch names the first dimension of input and outputs if the graph works
// for any number of examples.
func openBatch(m *onnx.Model, input, logits string) {
	open := onnx.Dim{Value: -1, Param: "batch"}
	g := *m.Graph
	g.Inputs, g.Outputs, g.ValueInfo = slices.Clone(g.Inputs), slices.Clone(g.Outputs), nil
	for i, v := range g.Inputs {
		if v.Name != input || len(v.Shape) == 0 || !v.Shape[0].Known() {
			continue
		}
		g.Inputs[i].Shape = append([]onnx.Dim{open}, v.Shape[1:]...)
		for j, out := range g.Outputs {
			g.Outputs[j].Shape = nil
			if len(out.Shape) > 0 {
				g.Outputs[j].Shape = append([]onnx.Dim{open}, out.Shape[1:]...)
			}
		}
		candidate := *m
		candidate.Graph = &g
		const some = 3 // not a size that an export has fixed by accident
		shapes, err := onnx.InferShapes(&candidate, map[string]int64{"batch": some})
		if z := shapes[logits].Shape; err == nil && len(z) > 0 && z[0].Value == some {
			*m.Graph = g
		}
		return
	}
}

// weightInputs says which inputs of an operator are weights.
var weightInputs = map[string][]int{
	"Conv": {1, 2}, "ConvTranspose": {1, 2}, "Gemm": {1, 2}, "MatMul": {0, 1}, "Einsum": {0, 1},
	"com.microsoft.FusedMatMul": {0, 1}, "com.microsoft.FusedGemm": {1, 2}, "com.microsoft.FusedConv": {1, 2},
	"BatchNormalization": {1, 2}, "InstanceNormalization": {1, 2}, "LayerNormalization": {1, 2}, "GroupNormalization": {1, 2},
	"RMSNormalization": {1}, "SimplifiedLayerNormalization": {1}, "PRelu": {1}, "Gather": {0}, "Expand": {0},
	"LSTM": {1, 2, 3}, "GRU": {1, 2, 3}, "RNN": {1, 2, 3},
}

// besideWeights are operators whose constant operand is a weight (a bias, a
// gain, a position) if the other operand comes from weights already.
var besideWeights = map[string]bool{"Add": true, "Mul": true, "Concat": true}

// passes are operators through which a weight stays a weight.
var passes = map[string]bool{"Transpose": true, "Reshape": true, "Unsqueeze": true, "Squeeze": true, "Identity": true, "Flatten": true}

// findWeights lists the weights that the logits depend on, in the order of use.
func (n *Network) findWeights() {
	g := n.Model.Graph
	weight := map[string]*onnx.Tensor{} // value → the constant that it is a view of
	for _, w := range g.Initializers {
		if w.Type == onnx.Float && len(w.Dims) > 0 && product(w.Dims) > 0 { // scalars are constants of formulas
			weight[w.Name] = w
		}
	}
	needed := map[string]bool{n.Logits: true}
	for _, node := range slices.Backward(g.Nodes) {
		if slices.ContainsFunc(node.Outputs, func(out string) bool { return needed[out] }) {
			for _, in := range node.Inputs {
				needed[in] = true
			}
		}
	}
	users := map[string][]*onnx.Node{}
	for _, node := range g.Nodes {
		for _, in := range node.Inputs {
			users[in] = append(users[in], node)
		}
	}
	learnt := map[string]bool{} // depends on a weight
	for _, node := range g.Nodes {
		if !needed[node.Output(0)] {
			continue
		}
		if w := weight[node.Input(0)]; w != nil && passes[node.OpType] && node.Domain == "" {
			weight[node.Output(0)] = w
			continue
		}
		depends := slices.ContainsFunc(node.Inputs, func(in string) bool { return learnt[in] })
		use := func(in string) {
			if w := weight[in]; w != nil {
				depends = true
				if !slices.Contains(n.Weights, w.Name) {
					n.Weights = append(n.Weights, w.Name)
				}
			}
		}
		key := node.OpType
		if node.Domain != "" {
			key = node.Domain + "." + key
		}
		if list := weightInputs[key]; list != nil && !groupsOnly(node, users, weight) {
			for _, i := range list {
				use(node.Input(i))
			}
		} else if besideWeights[key] && depends {
			for _, in := range node.Inputs {
				// One number for all is a constant of a formula, too, unless it is
				// the bias of a product.
				if w := weight[in]; w != nil && (product(w.Dims) > 1 || biasOfProduct(g, node)) {
					use(in)
				}
			}
		}
		for _, out := range node.Outputs {
			learnt[out] = depends
		}
	}
}

// biasOfProduct says that an Add follows a matrix product or convolution.
func biasOfProduct(g *onnx.Graph, node *onnx.Node) bool {
	return node.OpType == "Add" && slices.ContainsFunc(node.Inputs, func(in string) bool {
		p, _ := g.Producer(in)
		return p != nil && (p.OpType == "MatMul" || p.OpType == "Conv" || p.OpType == "Gemm" || p.OpType == "Einsum")
	})
}

// groupsOnly recognises the InstanceNormalization of grouped channels that group
// normalisation is exported as: its own scale and shift are 1 and 0, what is
// learnt comes after the Reshape behind it.
func groupsOnly(node *onnx.Node, users map[string][]*onnx.Node, weight map[string]*onnx.Tensor) bool {
	if node.OpType != "InstanceNormalization" {
		return false
	}
	next := users[node.Output(0)]
	if len(next) != 1 || next[0].OpType != "Reshape" {
		return false
	}
	for i, want := range []float32{1, 0} {
		w := weight[node.Input(1+i)]
		if w == nil {
			return false
		}
		values, err := onnx.Values[float32](w)
		if err != nil || slices.ContainsFunc(values, func(v float32) bool { return v != want }) {
			return false
		}
	}
	return true
}

// Freeze takes the weights whose names match one of the patterns (path.Match:
// "*" stands for any text) out of those that are trained. A pattern that matches
// nothing is an error, since it is nearly always a mistyped name.
func (n *Network) Freeze(patterns ...string) error {
	for _, pattern := range patterns {
		frozen := false
		var kept []string
		for _, name := range n.Weights {
			match, err := path.Match(pattern, strings.ReplaceAll(name, "/", "."))
			if err != nil {
				return fmt.Errorf("train: freezing %q: %w", pattern, err)
			}
			if match {
				frozen = true
			} else {
				kept = append(kept, name)
			}
		}
		if !frozen {
			return fmt.Errorf("train: freezing %q: no weight has such a name; the weights are %s", pattern, strings.Join(n.Weights, ", "))
		}
		n.Weights = kept
	}
	if len(n.Weights) == 0 {
		return fmt.Errorf("train: nothing is left to train of this graph: it has no weights, or all are frozen")
	}
	return nil
}

// findLayer finds the last feature map of images, for Grad-CAM.
func (n *Network) findLayer() {
	shapes, err := onnx.InferShapes(n.Model, batchOf(n.Model, n.Input, 1))
	if err != nil {
		return // said when training starts
	}
	for _, node := range n.Model.Graph.Nodes {
		s := shapes[node.Output(0)].Shape
		if len(s) == 4 && s[2].Value > 1 && s[3].Value > 1 && shapes[node.Output(0)].Type == onnx.Float {
			n.Layer = node.Output(0)
		}
	}
}
