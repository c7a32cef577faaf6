package onnx

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ErrUnknownOperator says that the shape table lacks an operator of the model;
// the message names each one.
var ErrUnknownOperator = errors.New("unknown operator")

// InferShapes returns the type and shape of every tensor of the model's
// outermost graph by name: inputs, constants and what the nodes compute. bind
// gives sizes to named dimensions, such as {"batch": 8}; others stay names
// where the operators allow to follow them. Chains that compute shapes, as
// exporters write them (Shape ▸ Gather ▸ Concat ▸ Reshape), are evaluated, so
// that a model whose named dimensions are all bound comes out with numbers.
//
// An operator that the table lacks leaves its results as the model declares
// them (or unknown) and is reported as [ErrUnknownOperator] together with the
// map of what was found; any other error, such as operands whose shapes do not
// fit, comes with a nil map.
func InferShapes(m *Model, bind map[string]int64) (map[string]Value, error) {
	in, err := infer(m, bind)
	if err != nil && !errors.Is(err, ErrUnknownOperator) {
		return nil, err
	}
	values := make(map[string]Value, len(in.facts))
	for name, f := range in.facts {
		values[name] = Value{Name: name, Type: f.typ, Shape: f.shape}
	}
	return values, err
}

// Operators returns the operators that InferShapes knows, sorted, those of a
// domain other than the default as "domain.Operator", with the first operator
// set version it knows of each.
func Operators() map[string]int64 {
	all := map[string]int64{}
	for name, row := range operators {
		all[name] = row.from
	}
	return all
}

// operator is one row of the table: from which version of its domain's
// operator set on the rule holds, and the rule, which looks at the version
// where later ones differ.
type operator struct {
	from int64
	rule func(*op) error
}

// family is a part of the table, one file each.
type family map[string]operator

// operators is the table.
var operators = func() family {
	all := family{}
	for _, f := range []family{
		elementwise, matrices, convolutions, pools, normalizations, layouts, extents, indexing, reductions, constants, resizes,
	} {
		for name, row := range f {
			if _, twice := all[name]; twice {
				panic("onnx: operator " + name + " is in two families")
			}
			all[name] = row
		}
	}
	return all
}()

// key is the name of a node's operator in the table.
func (n *Node) key() string {
	if n.Domain == "" {
		return n.OpType
	}
	return n.Domain + "." + n.OpType
}

// inference is the state of one run over a graph.
type inference struct {
	model *Model
	bind  map[string]int64
	facts map[string]*fact
}

func infer(m *Model, bind map[string]int64) (*inference, error) {
	if m.Graph == nil {
		return nil, fmt.Errorf("onnx: inferring shapes: %w: no graph", ErrInvalid)
	}
	for name, size := range bind {
		if size < 0 {
			return nil, fmt.Errorf("onnx: inferring shapes: dimension %q is bound to %d", name, size)
		}
	}
	in := &inference{model: m, bind: bind, facts: map[string]*fact{}}
	declared := map[string]Value{}
	for _, v := range m.Graph.ValueInfo {
		declared[v.Name] = v
	}
	for _, v := range m.Graph.Inputs {
		in.facts[v.Name] = &fact{typ: v.Type, shape: in.bound(v.Shape)}
	}
	for _, t := range m.Graph.Initializers {
		f, err := constantFact(t)
		if err != nil {
			return nil, fmt.Errorf("onnx: inferring shapes of graph %q: %w", m.Graph.Name, err)
		}
		in.facts[t.Name] = f
	}
	unknown := map[string]bool{}
	for _, n := range m.Graph.Nodes {
		known, err := in.node(n)
		if err != nil {
			return nil, fmt.Errorf("onnx: inferring shapes of graph %q: %v: %w", m.Graph.Name, n, err)
		}
		if known != "" {
			unknown[known] = true
		}
		for _, name := range n.Outputs {
			if v, ok := declared[name]; ok {
				in.facts[name].complete(v.Type, in.bound(v.Shape))
			}
		}
	}
	for _, v := range m.Graph.Outputs {
		f := in.facts[v.Name]
		if f == nil {
			return nil, fmt.Errorf("onnx: inferring shapes of graph %q: %w: output %q is never computed", m.Graph.Name, ErrInvalid, v.Name)
		}
		shape := in.bound(v.Shape)
		if !f.agrees(v.Type, shape) {
			return nil, fmt.Errorf("onnx: inferring shapes of graph %q: %w: output %q is declared as %v and computed as %v",
				m.Graph.Name, ErrInvalid, v.Name, v, f)
		}
		f.complete(v.Type, shape)
	}
	if len(unknown) > 0 {
		return in, fmt.Errorf("onnx: inferring shapes of graph %q: %w: %s", m.Graph.Name, ErrUnknownOperator,
			strings.Join(slices.Sorted(maps.Keys(unknown)), ", "))
	}
	return in, nil
}

// bound returns the shape with the bound names replaced by their sizes.
func (in *inference) bound(shape []Dim) []Dim {
	if shape == nil {
		return nil
	}
	out := make([]Dim, len(shape))
	for i, d := range shape {
		switch size, ok := in.bind[d.Param]; {
		case d.Param == "" && d.Value >= 0:
			out[i] = d
		case d.Param == "":
			out[i] = anyDim
		case ok:
			out[i] = Dim{Value: size}
		default:
			out[i] = Dim{Value: -1, Param: d.Param}
		}
	}
	return out
}

// node applies the rule of a node and stores facts for all its outputs. If
// the table lacks the operator, its name is returned.
func (in *inference) node(n *Node) (unknown string, err error) {
	version, ok := in.model.Opsets[n.Domain]
	if !ok {
		return "", fmt.Errorf("%w: the model imports no operator set of domain %q", ErrInvalid, n.Domain)
	}
	o := &op{Node: n, version: version, in: make([]*fact, len(n.Inputs)), out: make([]fact, len(n.Outputs))}
	for i, name := range n.Inputs {
		if name == "" {
			continue
		}
		if o.in[i] = in.facts[name]; o.in[i] == nil {
			return "", fmt.Errorf("%w: input %d, %q, does not exist yet", ErrInvalid, i, name)
		}
	}
	row, ok := operators[n.key()]
	switch {
	case !ok:
		unknown = n.key()
	case version < row.from:
		unknown = fmt.Sprintf("%s of operator set %d (known from %d on)", n.key(), version, row.from)
	default:
		if err := row.rule(o); err != nil {
			return "", err
		}
	}
	for i, name := range n.Outputs {
		if len(o.out[i].shape) > MaxRank {
			return "", fmt.Errorf("%w: %d dimensions", ErrLimit, len(o.out[i].shape))
		}
		if name != "" {
			o.out[i].limit()
			in.facts[name] = &o.out[i]
		}
	}
	return unknown, nil
}

// op is a node with what is known of its inputs, for a rule to work on.
type op struct {
	*Node
	version int64
	in      []*fact
	out     []fact
}

// x returns what is known of input i, nil if it is omitted.
func (o *op) x(i int) *fact {
	if i < len(o.in) {
		return o.in[i]
	}
	return nil
}

// need is x for inputs that the operator requires: the first n.
func (o *op) need(n int) error {
	for i := range n {
		if o.x(i) == nil {
			return fmt.Errorf("%w: input %d is missing", ErrInvalid, i)
		}
	}
	return nil
}

// set stores the type and shape of output i, if the node has it.
func (o *op) set(i int, typ DataType, shape []Dim) {
	if i < len(o.out) {
		o.out[i].typ, o.out[i].shape = typ, shape
	}
}

// fold stores the elements of output 0, if they are few and fit its shape.
func (o *op) fold(d data) {
	if len(o.out) > 0 {
		o.out[0].data = d
	}
}

// mistake is an error of the model, not of the program.
func mistake(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}
