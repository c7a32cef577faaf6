package federate

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// normInputs says which inputs of a normalisation are its gain, shift and running
// statistics.
var normInputs = map[string][]int{
	"BatchNormalization": {1, 2, 3, 4}, "InstanceNormalization": {1, 2}, "LayerNormalization": {1, 2}, "GroupNormalization": {1, 2},
	"RMSNormalization": {1}, "SimplifiedLayerNormalization": {1},
}

// headLayers are the operators that a last layer can be, and what its weights and
// bias are.
var headLayers = map[string][]int{"Gemm": {1, 2}, "Conv": {1, 2}, "MatMul": {0, 1}, "Einsum": {0, 1}}

// views are operators through which a variable stays that variable.
var views = map[string]bool{"Identity": true, "Transpose": true, "Reshape": true, "Unsqueeze": true, "Squeeze": true, "Flatten": true}

// personalVariables says of each variable of a network whether it belongs to one
// of the parts. A part that the network does not have is an error.
func personalVariables(m *onnx.Model, logits string, variables []string, parts []Part) ([]bool, error) {
	own := make([]bool, len(variables))
	for _, part := range parts {
		var names []string
		switch part {
		case NormPart:
			names = normVariables(m.Graph, variables)
		case HeadPart:
			names = headVariables(m.Graph, logits, variables)
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("federate: finding what stays at a site: %w: the network has no %s among what is trained", ErrTerms, part)
		}
		for i, name := range variables {
			own[i] = own[i] || slices.Contains(names, name)
		}
	}
	return own, nil
}

// variable is the variable that a tensor is, or is a view of; "" if it is none.
func variable(g *onnx.Graph, name string, variables []string) string {
	for range len(g.Nodes) + 1 {
		if slices.Contains(variables, name) {
			return name
		}
		p, _ := g.Producer(name)
		if p == nil || !views[p.OpType] || p.Domain != "" {
			return ""
		}
		name = p.Input(0)
	}
	return ""
}

// normVariables are what normalisations learn. Group normalisation is often
// exported as InstanceNormalization of grouped channels, with gain and shift
// multiplied and added behind it.
func normVariables(g *onnx.Graph, variables []string) []string {
	var out []string
	users := map[string][]*onnx.Node{}
	for _, node := range g.Nodes {
		for _, in := range node.Inputs {
			users[in] = append(users[in], node)
		}
	}
	for _, node := range g.Nodes {
		list := normInputs[node.OpType]
		if list == nil {
			continue
		}
		for _, i := range list {
			if v := variable(g, node.Input(i), variables); v != "" {
				out = append(out, v)
			}
		}
		if node.OpType != "InstanceNormalization" {
			continue
		}
		behind := node.Output(0)
		for range 4 { // Reshape, Mul, Add, and one in reserve
			if len(users[behind]) != 1 {
				break
			}
			next := users[behind][0]
			if !views[next.OpType] && next.OpType != "Mul" && next.OpType != "Add" {
				break
			}
			for _, in := range next.Inputs {
				if v := variable(g, in, variables); v != "" && in != behind {
					out = append(out, v)
				}
			}
			behind = next.Output(0)
		}
	}
	return out
}

// headVariables are the weights and biases of the last layers with weights on
// every way to the logits: one layer, or one of each member of an ensemble.
func headVariables(g *onnx.Graph, logits string, variables []string) []string {
	var out []string
	seen := map[string]bool{}
	var walk func(name string)
	walk = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		node, _ := g.Producer(name)
		if node == nil {
			return
		}
		weighs := false
		for _, i := range headLayers[node.OpType] {
			if v := variable(g, node.Input(i), variables); v != "" {
				out, weighs = append(out, v), true
			}
		}
		if weighs {
			return
		}
		for _, in := range node.Inputs {
			if v := variable(g, in, variables); v != "" && node.OpType == "Add" {
				out = append(out, v) // a bias that is added behind the product
				continue
			}
			walk(in)
		}
	}
	walk(logits)
	return out
}
