package onnx

import (
	"bytes"
	"maps"
	"slices"
)

// Clone returns a deep copy: nothing done to it shows in m.
func (m *Model) Clone() *Model {
	c := *m
	c.Opsets = maps.Clone(m.Opsets)
	c.Metadata = maps.Clone(m.Metadata)
	c.External = slices.Clone(m.External)
	c.Graph = m.Graph.Clone()
	return &c
}

// Clone returns a deep copy of the graph and of the graphs within it.
func (g *Graph) Clone() *Graph {
	if g == nil {
		return nil
	}
	return &Graph{
		Name:         g.Name,
		Nodes:        each(g.Nodes, (*Node).Clone),
		Inputs:       each(g.Inputs, Value.Clone),
		Outputs:      each(g.Outputs, Value.Clone),
		Initializers: each(g.Initializers, (*Tensor).Clone),
		ValueInfo:    each(g.ValueInfo, Value.Clone),
	}
}

// Clone returns a deep copy.
func (n *Node) Clone() *Node {
	c := *n
	c.Inputs = slices.Clone(n.Inputs)
	c.Outputs = slices.Clone(n.Outputs)
	c.Attributes = each(n.Attributes, Attribute.Clone)
	return &c
}

// Clone returns a deep copy.
func (a Attribute) Clone() Attribute {
	a.String = bytes.Clone(a.String)
	a.Tensor = a.Tensor.Clone()
	a.Graph = a.Graph.Clone()
	a.Floats = slices.Clone(a.Floats)
	a.Ints = slices.Clone(a.Ints)
	a.Strings = each(a.Strings, bytes.Clone)
	a.Tensors = each(a.Tensors, (*Tensor).Clone)
	a.Graphs = each(a.Graphs, (*Graph).Clone)
	return a
}

// Clone returns a deep copy.
func (t *Tensor) Clone() *Tensor {
	if t == nil {
		return nil
	}
	c := *t
	c.Dims = slices.Clone(t.Dims)
	c.Raw = bytes.Clone(t.Raw)
	c.Strings = each(t.Strings, bytes.Clone)
	return &c
}

// Clone returns a deep copy.
func (v Value) Clone() Value {
	v.Shape = slices.Clone(v.Shape)
	return v
}

// each returns the results of f for each element, nil for nil.
func each[T any](list []T, f func(T) T) []T {
	if list == nil {
		return nil
	}
	out := make([]T, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}
