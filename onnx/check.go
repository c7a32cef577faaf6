package onnx

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ErrInvalid says that a model breaks a rule of ONNX's intermediate
// representation; the message names the rule and where.
var ErrInvalid = errors.New("not a valid ONNX model")

// maxProblems bounds how many errors one check returns.
const maxProblems = 10

// Check reports every broken rule (up to ten) of the standard's chapter on
// graphs (docs/IR.md): operator sets declared, names unique, each value
// computed exactly once and before it is used, attributes of one kind,
// constants as long as they say, inputs and outputs typed, and this package's
// limits kept. It does not look into operators; InferShapes does.
func (m *Model) Check() error {
	c := checker{model: m, items: MaxItems}
	switch {
	case m.Graph == nil:
		return fmt.Errorf("onnx: checking a model: %w: it has no graph", ErrInvalid)
	case m.IRVersion < 1:
		c.problem("IR version %d: want 1 or more", m.IRVersion)
	}
	for _, domain := range slices.Sorted(maps.Keys(m.Opsets)) {
		if version := m.Opsets[domain]; version < 1 {
			c.problem("operator set %q is of version %d: want 1 or more", domain, version)
		}
	}
	c.graph(m.Graph, nil, 1)
	if len(c.problems) == 0 {
		return nil
	}
	return fmt.Errorf("onnx: checking graph %q: %w", m.Graph.Name, errors.Join(c.problems...))
}

type checker struct {
	model    *Model
	problems []error
	items    int
}

func (c *checker) problem(format string, args ...any) {
	c.add(fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...))
}

func (c *checker) add(err error) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, err)
	}
}

// full reports whether enough was found, or too much was read, to go on.
func (c *checker) full() bool { return len(c.problems) >= maxProblems || c.items < 0 }

// scope is what a graph's nodes may use: values of this graph that exist by
// now, then those of the graphs around it.
type scope struct {
	names map[string]bool
	outer *scope
}

func (s *scope) has(name string) bool {
	for ; s != nil; s = s.outer {
		if s.names[name] {
			return true
		}
	}
	return false
}

func (c *checker) graph(g *Graph, outer *scope, depth int) {
	if depth > MaxDepth {
		c.add(fmt.Errorf("%w: graphs nested deeper than %d", ErrLimit, MaxDepth))
		return
	}
	c.items -= len(g.Nodes) + len(g.Initializers) + len(g.Inputs) + len(g.Outputs) + len(g.ValueInfo)
	if c.items < 0 {
		c.add(fmt.Errorf("%w: more than %d nodes, values and tensors", ErrLimit, MaxItems))
		return
	}
	s := &scope{names: map[string]bool{}, outer: outer}
	c.values("input", g.Inputs, depth == 1)
	for _, v := range g.Inputs {
		s.names[v.Name] = true
	}
	c.initializers(g, s)
	producers := map[string]*Node{}
	for _, n := range g.Nodes {
		if n == nil {
			c.problem("a node is missing")
			return
		}
		for _, name := range n.Outputs {
			if name == "" {
				continue
			}
			if first := producers[name]; first != nil {
				c.problem("value %q is computed twice: by %v and by %v", name, first, n)
			} else if s.names[name] {
				c.problem("%v computes %q, which is an input or a constant", n, name)
			}
			producers[name] = n
		}
	}
	for _, n := range g.Nodes {
		if c.full() {
			return
		}
		c.node(n, s, producers, depth)
		for _, name := range n.Outputs {
			s.names[name] = true
		}
	}
	c.values("output", g.Outputs, depth == 1)
	for _, v := range g.Outputs {
		if !s.has(v.Name) {
			c.problem("output %q is never computed", v.Name)
		}
	}
	c.values("inner value", g.ValueInfo, false)
}

// values checks declarations among themselves. Those of the outermost graph's
// inputs and outputs must be typed.
func (c *checker) values(kind string, values []Value, typed bool) {
	seen := map[string]bool{}
	for _, v := range values {
		if v.Name == "" {
			c.problem("an %s has no name", kind)
		}
		if seen[v.Name] {
			c.problem("%s %q is declared twice", kind, v.Name)
		}
		seen[v.Name] = true
		if _, ok := types[v.Type]; !ok && (typed || v.Type != Undefined) {
			c.problem("%s %q is of unknown element %v", kind, v.Name, v.Type)
		}
		if len(v.Shape) > MaxRank {
			c.add(fmt.Errorf("%w: %s %q has more than %d dimensions", ErrLimit, kind, v.Name, MaxRank))
		}
	}
}

func (c *checker) initializers(g *Graph, s *scope) {
	declared := map[string]Value{}
	for _, v := range g.Inputs {
		declared[v.Name] = v
	}
	seen := map[string]bool{}
	for _, t := range g.Initializers {
		if t == nil || t.Name == "" {
			c.problem("a constant has no name")
			continue
		}
		if seen[t.Name] {
			c.problem("constant %q is given twice", t.Name)
		}
		seen[t.Name] = true
		if err := t.Check(); err != nil {
			c.add(err)
		}
		if v, ok := declared[t.Name]; ok && v.Type != t.Type {
			c.problem("constant %q is of type %v, declared as %v", t.Name, t.Type, v.Type)
		}
		s.names[t.Name] = true
	}
}

func (c *checker) node(n *Node, s *scope, producers map[string]*Node, depth int) {
	c.items -= len(n.Inputs) + len(n.Outputs) + len(n.Attributes)
	if n.OpType == "" {
		c.problem("node %q has no operator", n.Name)
	}
	if _, ok := c.model.Opsets[n.Domain]; !ok {
		c.problem("%v: the model imports no operator set of domain %q", n, n.Domain)
	}
	if !slices.ContainsFunc(n.Outputs, func(name string) bool { return name != "" }) {
		c.problem("%v has no output", n)
	}
	for i, name := range n.Inputs {
		if name == "" || s.has(name) {
			continue
		}
		if later := producers[name]; later == nil {
			c.problem("%v: input %d, %q, does not exist", n, i, name)
		} else if cycle := loop(n, producers); cycle != "" {
			c.problem("the nodes form a cycle: %s", cycle)
		} else {
			c.problem("%v uses %q before %v computes it", n, name, later)
		}
		break // one per node is enough to find it
	}
	seen := map[string]bool{}
	for i := range n.Attributes {
		a := &n.Attributes[i]
		if a.Name == "" || seen[a.Name] {
			c.problem("%v: attribute %q: the name is empty or given twice", n, a.Name)
		}
		seen[a.Name] = true
		c.attribute(n, a, s, depth)
	}
}

func (c *checker) attribute(n *Node, a *Attribute, s *scope, depth int) {
	tensors, graphs := a.Tensors, a.Graphs
	switch a.Type {
	case AttributeTensor:
		tensors = []*Tensor{a.Tensor}
	case AttributeGraph:
		graphs = []*Graph{a.Graph}
	case AttributeFloat, AttributeInt, AttributeString, AttributeFloats, AttributeInts, AttributeStrings,
		AttributeTensors, AttributeGraphs:
	default:
		c.problem("%v: attribute %q is of unknown type %d", n, a.Name, a.Type)
	}
	for _, t := range tensors {
		if t == nil {
			c.problem("%v: attribute %q has no tensor", n, a.Name)
		} else if err := t.Check(); err != nil {
			c.add(fmt.Errorf("%v: attribute %q: %w", n, a.Name, err))
		}
	}
	for _, g := range graphs {
		if g == nil {
			c.problem("%v: attribute %q has no graph", n, a.Name)
			continue
		}
		c.graph(g, s, depth+1)
	}
}

// loop returns the cycle of nodes that n is in or leads back to, as
// "A → B → A", or "".
func loop(n *Node, producers map[string]*Node) string {
	const (
		open = 1
		done = 2
	)
	state := map[*Node]int{}
	type step struct {
		node *Node
		next int // input to look at
	}
	path := []step{{node: n}}
	state[n] = open
	for len(path) > 0 {
		top := &path[len(path)-1]
		if top.next == len(top.node.Inputs) {
			state[top.node] = done
			path = path[:len(path)-1]
			continue
		}
		producer := producers[top.node.Inputs[top.next]]
		top.next++
		switch {
		case producer == nil || state[producer] == done:
		case state[producer] == open:
			names := []string{}
			for _, s := range path {
				if len(names) > 0 || s.node == producer {
					names = append(names, s.node.label())
				}
			}
			slices.Reverse(names) // the path runs from consumer to producer
			names = append(names, names[0])
			if n := len(names); n > 8 {
				names = slices.Concat(names[:4], []string{fmt.Sprintf("(%d more)", n-8)}, names[n-4:])
			}
			return strings.Join(names, " → ")
		default:
			state[producer] = open
			path = append(path, step{node: producer})
		}
	}
	return ""
}

// label is the shortest name of the node that a person can search for.
func (n *Node) label() string {
	if n.Name != "" {
		return n.Name
	}
	return n.OpType + "(" + strings.Join(n.Outputs, ",") + ")"
}
