package onnx

import (
	"errors"
	"fmt"
	"slices"
)

// Builder makes a graph node by node, in topological order by construction:
//
//	b := onnx.NewBuilder(17)
//	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 4})
//	w := b.Weight("w", []int64{4, 2}, weights)
//	y := b.Op("Relu", []string{b.Op("MatMul", []string{x, w})})
//	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 2})
//	m, err := b.Build()
//
// Names that the builder makes up are unique in the graph. Mistakes are kept
// and returned by Build.
type Builder struct {
	model  *Model
	taken  map[string]bool // every name of a value
	serial map[string]int  // last number given to names that start alike
	errs   []error
}

// irVersion of built models: 8 is the first that belongs to operator set 15
// and up, and every reader of the last years knows it.
const irVersion = 8

// NewBuilder starts a graph of the default domain's operator set of that
// version.
func NewBuilder(opset int64) *Builder {
	return &Builder{
		model: &Model{
			IRVersion:    irVersion,
			Opsets:       map[string]int64{"": opset},
			ProducerName: "vigie",
			Graph:        &Graph{Name: "graph"},
		},
		taken:  map[string]bool{},
		serial: map[string]int{},
	}
}

// Extend returns a builder that appends to a model in place: to its nodes,
// initializers, inputs and outputs.
func Extend(m *Model) *Builder {
	b := &Builder{model: m, taken: map[string]bool{}, serial: map[string]int{}}
	for _, v := range slices.Concat(m.Graph.Inputs, m.Graph.ValueInfo) {
		b.taken[v.Name] = true
	}
	for _, t := range m.Graph.Initializers {
		b.taken[t.Name] = true
	}
	for _, n := range m.Graph.Nodes {
		for _, name := range n.Outputs {
			b.taken[name] = true
		}
	}
	return b
}

// Name names the graph.
func (b *Builder) Name(name string) { b.model.Graph.Name = name }

// Import adds the operator set of another domain.
func (b *Builder) Import(domain string, version int64) { b.model.Opsets[domain] = version }

// Fresh returns a name that no value has yet, beginning with prefix.
func (b *Builder) Fresh(prefix string) string {
	name := prefix
	for name == "" || b.taken[name] {
		b.serial[prefix]++
		name = fmt.Sprintf("%s_%d", prefix, b.serial[prefix])
	}
	b.taken[name] = true
	return name
}

// claim takes a name that the caller chose.
func (b *Builder) claim(kind, name string) {
	if name == "" || b.taken[name] {
		b.errs = append(b.errs, fmt.Errorf("%s %q: the name is empty or taken", kind, name))
	}
	b.taken[name] = true
}

// Input declares an input and returns its name.
func (b *Builder) Input(name string, typ DataType, shape ...Dim) string {
	b.claim("input", name)
	b.model.Graph.Inputs = append(b.model.Graph.Inputs, Value{Name: name, Type: typ, Shape: append([]Dim{}, shape...)})
	return name
}

// Weight adds a constant of floats, in row-major order, and returns its name.
func (b *Builder) Weight(name string, dims []int64, values []float32) string {
	return b.Constant(NewTensor(name, dims, values))
}

// Ints adds a constant list of integers, such as a shape or axes, under a
// fresh name that begins with prefix, and returns the name.
func (b *Builder) Ints(prefix string, values ...int64) string {
	return b.Constant(NewTensor(b.fresh(prefix), []int64{int64(len(values))}, values))
}

// fresh is Fresh for a name that Constant will claim.
func (b *Builder) fresh(prefix string) string {
	name := b.Fresh(prefix)
	delete(b.taken, name)
	return name
}

// Constant adds a constant and returns its name.
func (b *Builder) Constant(t *Tensor) string {
	b.claim("constant", t.Name)
	if err := t.Check(); err != nil {
		b.errs = append(b.errs, err)
	}
	b.model.Graph.Initializers = append(b.model.Graph.Initializers, t)
	return t.Name
}

// Op adds a node of the default domain with one output and returns the name
// of that output. An empty name in inputs omits an optional input.
func (b *Builder) Op(opType string, inputs []string, attributes ...Attribute) string {
	return b.Node(&Node{OpType: opType, Inputs: inputs, Attributes: attributes}, 1)[0]
}

// Node adds n, gives it outputs fresh names until it has as many as asked, and
// returns the names of its outputs. Outputs that n already names are kept.
func (b *Builder) Node(n *Node, outputs int) []string {
	for i, name := range n.Inputs {
		if name != "" && !b.taken[name] {
			b.errs = append(b.errs, fmt.Errorf("%v: input %d, %q, does not exist", n, i, name))
		}
	}
	for _, name := range n.Outputs {
		if name != "" {
			b.claim("output", name)
		}
	}
	for len(n.Outputs) < outputs {
		n.Outputs = append(n.Outputs, b.Fresh(n.OpType))
	}
	if n.Name == "" && len(n.Outputs) > 0 {
		n.Name = n.Outputs[0]
	}
	b.model.Graph.Nodes = append(b.model.Graph.Nodes, n)
	return n.Outputs
}

// Output declares that the value of that name is an output.
func (b *Builder) Output(name string, typ DataType, shape ...Dim) {
	if !b.taken[name] {
		b.errs = append(b.errs, fmt.Errorf("output %q does not exist", name))
	}
	b.model.Graph.Outputs = append(b.model.Graph.Outputs, Value{Name: name, Type: typ, Shape: append([]Dim{}, shape...)})
}

// Build returns the model, checked, or every mistake made on the way.
func (b *Builder) Build() (*Model, error) {
	err := errors.Join(b.errs...)
	if err == nil {
		err = b.model.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("onnx: building graph %q: %w", b.model.Graph.Name, err)
	}
	return b.model, nil
}
