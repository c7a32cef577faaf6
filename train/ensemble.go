package train

import (
	"fmt"
	"maps"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Ensemble joins networks that read the same input into one, whose logits are
// the mean of theirs, in one graph: who runs or explains it need not know. Every
// name of member 1 but the input's begins with "member1." and so on.
//
// Training lowers the sum of the members' own losses, so that each learns as it
// would alone. All see the same batches; they differ by the weights that they
// begin with, which is most of what makes the mistakes of networks differ (Fort,
// Hu and Lakshminarayanan 2019; the mean as Lakshminarayanan et al. 2017). Clip
// and Privacy bound the joint gradient of all members.
//
// Layer, if every member has one of the same places, holds the members' maps one
// behind the other, [N, Σ channels, …], and the members read it there, so that
// Grad-CAM explains the whole. The networks are not changed.
func Ensemble(members ...*Network) (*Network, error) {
	if len(members) == 0 {
		return nil, fmt.Errorf("train: an ensemble of no networks")
	}
	first := members[0]
	joined := &onnx.Model{
		IRVersion: first.Model.IRVersion, Opsets: maps.Clone(first.Model.Opsets),
		ProducerName: first.Model.ProducerName, ProducerVersion: first.Model.ProducerVersion,
		Metadata: maps.Clone(first.Model.Metadata), Graph: &onnx.Graph{Name: first.Model.Graph.Name},
	}
	out := &Network{Model: joined, Input: first.Input, Logits: first.Logits}
	input, err := first.value(first.Model.Graph.Inputs, first.Input)
	if err != nil {
		return nil, err
	}
	result, err := first.value(first.Model.Graph.Outputs, first.Logits)
	if err != nil {
		return nil, err
	}
	joined.Graph.Inputs = []onnx.Value{input}
	var copies []*onnx.Graph
	var layers []string
	for k, n := range members {
		if !maps.Equal(n.Model.Opsets, joined.Opsets) {
			return nil, fmt.Errorf("train: an ensemble of networks of the operator sets %v and %v: export them alike", joined.Opsets, n.Model.Opsets)
		}
		prefix := fmt.Sprintf("member%d.", k+1)
		named := func(name string) string {
			switch name {
			case "":
				return ""
			case n.Input:
				return first.Input
			}
			return prefix + name
		}
		g, err := renamed(n.Model.Graph, named)
		if err != nil {
			return nil, err
		}
		for _, v := range n.Model.Graph.Inputs {
			if v.Name != n.Input && n.Model.Graph.Initializer(v.Name) == nil {
				return nil, fmt.Errorf("train: an ensemble of networks with a second input %q: train one network alone", v.Name)
			}
		}
		copies = append(copies, g)
		out.Members = append(out.Members, named(n.Logits))
		for _, w := range n.Weights {
			out.Weights = append(out.Weights, named(w))
		}
		if n.Layer != "" {
			layers = append(layers, named(n.Layer))
		}
	}
	for _, g := range copies {
		joined.Graph.Initializers = append(joined.Graph.Initializers, g.Initializers...)
	}
	if sizes := channels(members); len(layers) == len(members) && sizes != nil {
		joinLayers(joined, copies, layers, sizes)
		out.Layer = ensembleLayer
	} else {
		for _, g := range copies {
			joined.Graph.Nodes = append(joined.Graph.Nodes, g.Nodes...)
		}
	}
	b := onnx.Extend(joined)
	b.Node(&onnx.Node{OpType: "Mean", Inputs: out.Members, Outputs: []string{out.Logits}}, 1)
	b.Output(out.Logits, result.Type, result.Shape...)
	if out.Model, err = b.Build(); err != nil {
		return nil, fmt.Errorf("train: joining an ensemble: %w", err)
	}
	return out, nil
}

// MaxMembers bounds an ensemble.
const MaxMembers = 64

// EnsembleOf joins as many networks as build is asked for; one stays as it is.
func EnsembleOf(count int, build func() (*Network, error)) (*Network, error) {
	if count < 1 || count > MaxMembers {
		return nil, fmt.Errorf("train: an ensemble of %d members: want 1 to %d", count, MaxMembers)
	}
	var members []*Network
	for range count {
		n, err := build()
		if err != nil {
			return nil, err
		}
		members = append(members, n)
	}
	if count == 1 {
		return members[0], nil
	}
	return Ensemble(members...)
}

// ensembleLayer is the tensor that holds the members' last maps.
const ensembleLayer = "members.layer"

// heads are the logits whose losses training lowers.
func (n *Network) heads() []string {
	if n.Members != nil {
		return n.Members
	}
	return []string{n.Logits}
}

func (n *Network) value(values []onnx.Value, name string) (onnx.Value, error) {
	for _, v := range values {
		if v.Name == name {
			return v, nil
		}
	}
	return onnx.Value{}, fmt.Errorf("train: a network without the input or output %q", name)
}

// renamed copies nodes and constants of a graph under other names.
func renamed(g *onnx.Graph, named func(string) string) (*onnx.Graph, error) {
	out := &onnx.Graph{}
	for _, w := range g.Initializers {
		c := *w // the values stay shared; nobody writes to them
		c.Name = named(w.Name)
		out.Initializers = append(out.Initializers, &c)
	}
	for _, node := range g.Nodes {
		for _, a := range node.Attributes {
			if a.Graph != nil || a.Graphs != nil {
				return nil, fmt.Errorf("train: an ensemble of networks in which %v branches: train one network alone", node)
			}
		}
		c := node.Clone()
		c.Name = named(node.Name)
		for i, name := range node.Inputs {
			c.Inputs[i] = named(name)
		}
		for i, name := range node.Outputs {
			c.Outputs[i] = named(name)
		}
		out.Nodes = append(out.Nodes, c)
	}
	return out, nil
}

// channels are the numbers of channels of the members' layers, or nil if the
// layers do not lie on the same places.
func channels(members []*Network) (sizes []int64) {
	var places []onnx.Dim
	for k, n := range members {
		shapes, err := onnx.InferShapes(n.Model, nil)
		if err != nil {
			return nil // said when training starts
		}
		v := shapes[n.Layer]
		if len(v.Shape) < 3 || v.Type != onnx.Float || !v.Shape[1].Known() || k > 0 && !slices.Equal(v.Shape[2:], places) {
			return nil
		}
		places = v.Shape[2:]
		sizes = append(sizes, v.Shape[1].Value)
	}
	return sizes
}

// joinLayers appends the members' nodes so that each one's layer goes through
// one tensor of all: first what comes before the layers, then the tensor, then
// the rest.
func joinLayers(joined *onnx.Model, copies []*onnx.Graph, layers []string, sizes []int64) {
	var after []*onnx.Node
	parts := make([]string, len(layers))
	for k, g := range copies {
		parts[k] = layers[k] + ".read"
		seen := false
		for _, node := range g.Nodes {
			for i, in := range node.Inputs {
				if in == layers[k] {
					node.Inputs[i] = parts[k]
				}
			}
			if seen {
				after = append(after, node)
			} else {
				joined.Graph.Nodes = append(joined.Graph.Nodes, node)
			}
			seen = seen || slices.Contains(node.Outputs, layers[k])
		}
	}
	b := onnx.Extend(joined)
	b.Node(&onnx.Node{OpType: "Concat", Inputs: layers, Outputs: []string{ensembleLayer}, Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 1)}}, 1)
	b.Node(&onnx.Node{OpType: "Split", Inputs: []string{ensembleLayer, b.Ints("members.channels", sizes...)}, Outputs: parts, Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 1)}}, len(parts))
	joined.Graph.Nodes = append(joined.Graph.Nodes, after...)
}
