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
	in, err := Infer(m, bind)
	if in == nil {
		return nil, err
	}
	return in.Values(), err
}

// Infer is InferShapes for callers who also need the elements of small tensors
// that do not depend on the inputs' elements: axes, shapes, pads. Its result is
// nil where InferShapes' map is.
func Infer(m *Model, bind map[string]int64) (*Inference, error) {
	in, err := infer(m, bind)
	if err != nil && !errors.Is(err, ErrUnknownOperator) {
		return nil, err
	}
	return &Inference{in.facts}, err
}

// Inference is what is known of a model's tensors before it runs.
type Inference struct {
	facts map[string]*fact
}

// Values returns the type and shape of every tensor by name.
func (in *Inference) Values() map[string]Value {
	values := make(map[string]Value, len(in.facts))
	for name, f := range in.facts {
		values[name] = Value{Name: name, Type: f.typ, Shape: f.shape}
	}
	return values
}

// Ints returns the elements, in row-major order, of an integer or boolean (as
// 0 and 1) tensor of at most 1024 elements; false if they are not all known.
func (in *Inference) Ints(name string) ([]int64, bool) { return in.facts[name].numbers() }

// Floats is Ints for tensors of floats.
func (in *Inference) Floats(name string) ([]float64, bool) {
	f := in.facts[name]
	if f == nil || f.data.floats == nil {
		return nil, false
	}
	return slices.Clone(f.data.floats), true
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
		recurrent, control, microsoft,
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
	model   *Model
	bind    map[string]int64
	facts   map[string]*fact
	unknown map[string]bool // operators that the table lacks
}

func infer(m *Model, bind map[string]int64) (*inference, error) {
	if m.Graph == nil {
		return nil, fmt.Errorf("onnx: inferring shapes: %w: no graph", ErrInvalid)
	}
	for _, name := range slices.Sorted(maps.Keys(bind)) {
		if size := bind[name]; size < 0 {
			return nil, fmt.Errorf("onnx: inferring shapes: dimension %q is bound to %d", name, size)
		}
	}
	in := &inference{model: m, bind: bind, facts: map[string]*fact{}, unknown: map[string]bool{}}
	for _, v := range m.Graph.Inputs {
		f := &fact{typ: v.Type, shape: in.bound(v.Shape)}
		if err := f.measure(); err != nil {
			return nil, fmt.Errorf("onnx: inferring shapes of graph %q: input %q: %w", m.Graph.Name, v.Name, err)
		}
		in.facts[v.Name] = f
	}
	if err := in.nodes(m.Graph, 1); err != nil {
		return nil, fmt.Errorf("onnx: inferring shapes of graph %q: %w", m.Graph.Name, err)
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
	if len(in.unknown) > 0 {
		return in, fmt.Errorf("onnx: inferring shapes of graph %q: %w: %s", m.Graph.Name, ErrUnknownOperator,
			strings.Join(slices.Sorted(maps.Keys(in.unknown)), ", "))
	}
	return in, nil
}

// nodes applies the rules to the constants and nodes of a graph whose inputs
// are known.
func (in *inference) nodes(g *Graph, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("%w: graphs nested deeper than %d", ErrLimit, MaxDepth)
	}
	for _, t := range g.Initializers {
		f, err := constantFact(t)
		if err != nil {
			return err
		}
		in.facts[t.Name] = f
	}
	declared := map[string]Value{}
	for _, v := range g.ValueInfo {
		declared[v.Name] = v
	}
	for _, n := range g.Nodes {
		unknown, err := in.node(n, depth)
		if err != nil {
			return fmt.Errorf("%v: %w", n, err)
		}
		if unknown != "" {
			in.unknown[unknown] = true
		}
		for _, name := range n.Outputs {
			if v, ok := declared[name]; ok {
				in.facts[name].complete(v.Type, in.bound(v.Shape))
			}
		}
	}
	return nil
}

// branch returns what is known of the results of a graph within the graph,
// which sees the values around it.
func (in *inference) branch(g *Graph, depth int) ([]fact, error) {
	if g == nil {
		return nil, mistake("a branch without a graph")
	}
	if err := in.nodes(g, depth+1); err != nil {
		return nil, err
	}
	out := make([]fact, len(g.Outputs))
	for i, v := range g.Outputs {
		f := in.facts[v.Name]
		if f == nil {
			return nil, mistake("output %q of a branch is never computed", v.Name)
		}
		out[i] = *f
		out[i].complete(v.Type, in.bound(v.Shape))
	}
	return out, nil
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
func (in *inference) node(n *Node, depth int) (unknown string, err error) {
	version, ok := in.model.Opsets[n.Domain]
	if !ok {
		return "", fmt.Errorf("%w: the model imports no operator set of domain %q", ErrInvalid, n.Domain)
	}
	o := &op{Node: n, version: version, in: make([]*fact, len(n.Inputs)), out: make([]fact, len(n.Outputs))}
	o.branch = func(g *Graph) ([]fact, error) { return in.branch(g, depth) }
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
			if err := o.out[i].measure(); err != nil {
				return "", fmt.Errorf("output %q: %w", name, err)
			}
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
	branch  func(*Graph) ([]fact, error) // the results of a graph within the node
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
