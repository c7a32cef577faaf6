package onnx

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Summary is what a person wants to know of a model at a glance.
type Summary struct {
	Graph      string           `json:"graph"`
	Producer   string           `json:"producer"`
	IRVersion  int64            `json:"ir_version"`
	Opsets     map[string]int64 `json:"opsets"` // by domain, the default one as "ai.onnx"
	Inputs     []string         `json:"inputs"` // such as "image float[batch,1,28,28]"
	Outputs    []string         `json:"outputs"`
	Operators  map[string]int   `json:"operators"` // how often each is used, in graphs within the graph too
	Nodes      int              `json:"nodes"`
	Parameters int64            `json:"parameters"` // elements of the float constants
	Bytes      int64            `json:"bytes"`      // of all constants
	// MACs estimates the multiplications with accumulation of one run, named
	// dimensions counting as one: convolutions and matrix products, which is
	// nearly all of the work. -1 if shapes are not known well enough.
	MACs int64 `json:"macs"`
	// Problem says why shapes cannot be inferred with named dimensions of one,
	// if so. A model may be made for certain sizes only.
	Problem string `json:"problem,omitempty"`
	// Unknown are the operators whose shapes this package cannot infer.
	Unknown []string `json:"unknown,omitempty"`
}

// Inspect summarises a model.
func Inspect(m *Model) (*Summary, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	s := &Summary{
		Graph:     m.Graph.Name,
		Producer:  strings.TrimSpace(m.ProducerName + " " + m.ProducerVersion),
		IRVersion: m.IRVersion,
		Opsets:    map[string]int64{},
		Operators: map[string]int{},
	}
	for domain, version := range m.Opsets {
		if domain == "" {
			domain = "ai.onnx"
		}
		s.Opsets[domain] = version
	}
	bind := map[string]int64{}
	for _, v := range m.Graph.Inputs {
		if m.Graph.Initializer(v.Name) == nil {
			s.Inputs = append(s.Inputs, v.Name+" "+v.String())
		}
		for _, d := range v.Shape {
			if d.Param != "" {
				bind[d.Param] = 1
			}
		}
	}
	for _, v := range m.Graph.Outputs {
		s.Outputs = append(s.Outputs, v.Name+" "+v.String())
	}
	s.count(m.Graph)
	values, err := InferShapes(m, bind)
	if err != nil && !errors.Is(err, ErrUnknownOperator) {
		s.Problem = err.Error()
	} else if err := m.CheckWeights(); err != nil {
		s.Problem = err.Error()
	}
	unknown := map[string]bool{}
	for _, n := range m.Graph.Nodes {
		if row, ok := operators[n.key()]; !ok || m.Opsets[n.Domain] < row.from {
			unknown[n.key()] = true
		}
	}
	s.Unknown = slices.Sorted(maps.Keys(unknown))
	for _, n := range m.Graph.Nodes {
		macs, ok := n.MACs(values)
		if !ok || s.MACs > math.MaxInt64-macs {
			s.MACs = -1
			break
		}
		s.MACs += macs
	}
	return s, nil
}

// count adds up the nodes and constants of a graph and of those within it.
func (s *Summary) count(g *Graph) {
	constant := func(t *Tensor) {
		s.Bytes += int64(len(t.Raw))
		switch t.Type {
		case Float, Double, Float16, Bfloat16:
			s.Parameters += int64(len(t.Raw) / t.Type.Size())
		}
	}
	for _, t := range g.Initializers {
		constant(t)
	}
	for _, n := range g.Nodes {
		s.Nodes++
		s.Operators[n.key()]++
		for _, a := range n.Attributes {
			if a.Tensor != nil && n.OpType == "Constant" {
				constant(a.Tensor)
			}
			if a.Graph != nil {
				s.count(a.Graph)
			}
			for _, inner := range a.Graphs {
				s.count(inner)
			}
		}
	}
}

// MACs estimates the multiplications with accumulation of one node, given the
// types and shapes that InferShapes found; false if its shapes are not known.
// Operators other than convolutions, products and recurrent cells count as 0.
func (n *Node) MACs(values map[string]Value) (int64, bool) {
	var per []Dim // the sizes that are summed over for each element of the result
	result := values[n.Output(0)].Shape
	w := values[n.Input(1)].Shape
	switch n.key() {
	case "Conv", "com.microsoft.FusedConv":
		if len(w) == 0 {
			return 0, false
		}
		per = w[1:]
	case "ConvTranspose":
		if len(w) == 0 {
			return 0, false
		}
		per, result = w[1:], values[n.Input(0)].Shape
	case "MatMul", "Gemm", "com.microsoft.FusedMatMul", "com.microsoft.FusedGemm":
		a := values[n.Input(0)].Shape
		if len(a) == 0 {
			return 0, false
		}
		per = a[len(a)-1:]
		if n.Int("transA", 0) != 0 && len(a) > 1 {
			per = a[len(a)-2 : len(a)-1]
		}
	case "Einsum":
		return n.einsumMACs(values)
	case "RNN", "GRU", "LSTM": // at each step and example, every weight once
		x, r := values[n.Input(0)].Shape, values[n.Input(2)].Shape
		if len(x) != 3 || len(w) != 3 || len(r) != 3 {
			return 0, false
		}
		input, ok := product(joined(x[:2], w))
		recurrent, also := product(joined(x[:2], r))
		if !ok || !also || input > math.MaxInt64-recurrent {
			return 0, false
		}
		return input + recurrent, true
	default:
		return 0, true
	}
	if result == nil {
		return 0, false
	}
	return product(slices.Concat(result, per))
}

// einsumMACs is the product of all indices' sizes, as if every factor were
// multiplied in one loop.
func (n *Node) einsumMACs(values map[string]Value) (int64, bool) {
	ranks := make([]int, len(n.Inputs))
	for i, name := range n.Inputs {
		ranks[i] = (&fact{shape: values[name].Shape}).rank()
	}
	e, err := ParseEinsum(n.Text("equation", ""), ranks)
	if err != nil || e == nil {
		return 0, false
	}
	sizes := map[int]Dim{}
	for i, term := range e.Terms {
		for j, index := range term {
			if ranks[i] < 0 {
				return 0, false
			}
			if d, ok := sizes[index]; !ok || d == (Dim{Value: 1}) {
				sizes[index] = values[n.Inputs[i]].Shape[j]
			}
		}
	}
	return product(slices.Collect(maps.Values(sizes)))
}

// String lays the summary out for a terminal.
func (s *Summary) String() string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", label, fmt.Sprintf(format, args...))
	}
	line("graph", "%s (IR version %d, by %s)", s.Graph, s.IRVersion, s.Producer)
	for _, domain := range slices.Sorted(maps.Keys(s.Opsets)) {
		line("opset", "%s %d", domain, s.Opsets[domain])
	}
	for _, v := range s.Inputs {
		line("input", "%s", v)
	}
	for _, v := range s.Outputs {
		line("output", "%s", v)
	}
	line("parameters", "%d (constants of %d bytes)", s.Parameters, s.Bytes)
	if s.MACs >= 0 {
		line("work", "%d multiply-accumulates a run", s.MACs)
	} else {
		line("work", "not known: shapes are missing")
	}
	names := slices.Sorted(maps.Keys(s.Operators))
	slices.SortStableFunc(names, func(a, b string) int { return s.Operators[b] - s.Operators[a] })
	uses := make([]string, len(names))
	for i, name := range names {
		uses[i] = fmt.Sprintf("%s ×%d", name, s.Operators[name])
	}
	line("operators", "%d nodes: %s", s.Nodes, strings.Join(uses, ", "))
	if s.Problem != "" {
		line("problem", "%s", s.Problem)
	}
	if len(s.Unknown) > 0 {
		line("unknown", "%s", strings.Join(s.Unknown, ", "))
	}
	return b.String()
}
