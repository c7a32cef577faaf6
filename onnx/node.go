package onnx

import (
	"fmt"
	"strings"
)

// Attribute returns the node's attribute of that name, or nil.
func (n *Node) Attribute(name string) *Attribute {
	for i := range n.Attributes {
		if n.Attributes[i].Name == name {
			return &n.Attributes[i]
		}
	}
	return nil
}

// typed returns the attribute if it is there and of the type asked for.
func (n *Node) typed(name string, typ AttributeType) *Attribute {
	if a := n.Attribute(name); a != nil && a.Type == typ {
		return a
	}
	return nil
}

// Int returns an integer attribute, or def if the node has none of that name.
func (n *Node) Int(name string, def int64) int64 {
	if a := n.typed(name, AttributeInt); a != nil {
		return a.Int
	}
	return def
}

// Float is Int for a float attribute.
func (n *Node) Float(name string, def float32) float32 {
	if a := n.typed(name, AttributeFloat); a != nil {
		return a.Float
	}
	return def
}

// Text is Int for a string attribute.
func (n *Node) Text(name, def string) string {
	if a := n.typed(name, AttributeString); a != nil {
		return string(a.String)
	}
	return def
}

// Ints returns a list of integers, nil if the node has none of that name. The
// caller must not change it.
func (n *Node) Ints(name string) []int64 {
	if a := n.typed(name, AttributeInts); a != nil {
		return a.Ints
	}
	return nil
}

// Floats is Ints for floats.
func (n *Node) Floats(name string) []float32 {
	if a := n.typed(name, AttributeFloats); a != nil {
		return a.Floats
	}
	return nil
}

// Tensor returns a tensor attribute or nil.
func (n *Node) Tensor(name string) *Tensor {
	if a := n.typed(name, AttributeTensor); a != nil {
		return a.Tensor
	}
	return nil
}

// Set adds or replaces an attribute.
func (n *Node) Set(a Attribute) {
	if old := n.Attribute(a.Name); old != nil {
		*old = a
		return
	}
	n.Attributes = append(n.Attributes, a)
}

// Input returns the name of input i, "" if it is omitted.
func (n *Node) Input(i int) string {
	if i < len(n.Inputs) {
		return n.Inputs[i]
	}
	return ""
}

// Output returns the name of output i, "" if it is omitted.
func (n *Node) Output(i int) string {
	if i < len(n.Outputs) {
		return n.Outputs[i]
	}
	return ""
}

// String names the node for messages: operator, name, and first output.
func (n *Node) String() string {
	op := n.OpType
	if n.Domain != "" {
		op = n.Domain + "." + op
	}
	return fmt.Sprintf("%s %q → %q", op, n.Name, strings.Join(n.Outputs, ", "))
}

// IntAttribute returns an attribute that holds v. So do the functions after it.
func IntAttribute(name string, v int64) Attribute {
	return Attribute{Name: name, Type: AttributeInt, Int: v}
}

// FloatAttribute returns a float attribute.
func FloatAttribute(name string, v float32) Attribute {
	return Attribute{Name: name, Type: AttributeFloat, Float: v}
}

// TextAttribute returns a string attribute.
func TextAttribute(name, v string) Attribute {
	return Attribute{Name: name, Type: AttributeString, String: []byte(v)}
}

// IntsAttribute returns an attribute that holds a list of integers.
func IntsAttribute(name string, v ...int64) Attribute {
	return Attribute{Name: name, Type: AttributeInts, Ints: v}
}

// FloatsAttribute returns an attribute that holds a list of floats.
func FloatsAttribute(name string, v ...float32) Attribute {
	return Attribute{Name: name, Type: AttributeFloats, Floats: v}
}

// TensorAttribute returns an attribute that holds a constant.
func TensorAttribute(name string, v *Tensor) Attribute {
	return Attribute{Name: name, Type: AttributeTensor, Tensor: v}
}

// Initializer returns the graph's constant of that name, or nil. It searches
// the list: a loop over many names makes a map first.
func (g *Graph) Initializer(name string) *Tensor {
	for _, t := range g.Initializers {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Producer returns the node that computes the value of that name, and which of
// its outputs it is; nil for an input, an initializer or an unknown name.
func (g *Graph) Producer(name string) (*Node, int) {
	for _, n := range g.Nodes {
		for i, output := range n.Outputs {
			if output == name && name != "" {
				return n, i
			}
		}
	}
	return nil, 0
}

// Known reports whether the dimension is a number.
func (d Dim) Known() bool { return d.Param == "" && d.Value >= 0 }

// String returns the number or the name of the dimension, "?" if it has none.
func (d Dim) String() string {
	switch {
	case d.Param != "":
		return d.Param
	case d.Value >= 0:
		return fmt.Sprint(d.Value)
	}
	return "?"
}

// Fixed returns a shape of numbers.
func Fixed(dims ...int64) []Dim {
	shape := make([]Dim, len(dims))
	for i, d := range dims {
		shape[i] = Dim{Value: d}
	}
	return shape
}

// Static returns the shape as numbers, and whether it is known to the last
// dimension.
func (v Value) Static() ([]int64, bool) {
	if v.Shape == nil {
		return nil, false
	}
	dims := make([]int64, len(v.Shape))
	for i, d := range v.Shape {
		if !d.Known() {
			return nil, false
		}
		dims[i] = d.Value
	}
	return dims, true
}

// String describes the value, such as float[batch,3,224,224].
func (v Value) String() string {
	if v.Shape == nil {
		return v.Type.String() + "[…]"
	}
	dims := make([]string, len(v.Shape))
	for i, d := range v.Shape {
		dims[i] = d.String()
	}
	return fmt.Sprintf("%v[%s]", v.Type, strings.Join(dims, ","))
}
