package autodiff

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie/onnx"
)

// Inspection says of a model what can be done with it, operator by operator, and
// what that costs.
type Inspection struct {
	*onnx.Summary
	// Uses are the operators, the most expensive first.
	Uses []Use `json:"uses"`
	// ActivationBytes are of all tensors that one run with a batch of one
	// computes: what a training step keeps for its gradient, and more.
	ActivationBytes int64 `json:"activation_bytes"`
	// Runs, Gradient and PerExample are "yes" for the whole model, or why not and
	// what to do about it. Runs is "untried" without a runtime.
	Runs       string `json:"runs"`
	Gradient   string `json:"gradient"`
	PerExample string `json:"per_example"`
}

// Use is one operator as a model uses it.
type Use struct {
	Operator        string `json:"operator"`     // as in Operators
	OperatorSet     int64  `json:"operator_set"` // version of its domain that the model imports
	Count           int    `json:"count"`
	MACs            int64  `json:"macs"`             // -1 if not known
	Parameters      int64  `json:"parameters"`       // elements of constants of floats that it is the first to read
	ActivationBytes int64  `json:"activation_bytes"` // of its outputs for a batch of one
	Runs            string `json:"runs"`             // "yes", "untried", or why not
	Gradient        string `json:"gradient"`         // "rule", "lowered", "none" or "refused", see Operator
	PerExample      bool   `json:"per_example"`
	Reason          string `json:"reason,omitempty"` // why there is no gradient, and what to do
}

// Inspect looks into a model. open tries to make the runtime ready for a model
// and says why it cannot; nil leaves that untried.
func Inspect(m *onnx.Model, open func(*onnx.Model) error) (*Inspection, error) {
	summary, err := onnx.Inspect(m)
	if err != nil {
		return nil, err
	}
	in := &Inspection{Summary: summary, Runs: "untried"}
	bind := map[string]int64{}
	for _, v := range m.Graph.Inputs {
		for _, d := range v.Shape {
			if d.Param != "" {
				bind[d.Param] = 1
			}
		}
	}
	values, _ := onnx.InferShapes(m, bind) // an error is in summary.Problem
	in.count(m, values)
	if open != nil {
		in.Runs = answer(open(m))
		in.tryOperators(m, values, open)
	}
	in.Gradient, in.PerExample = differentiability(m)
	slices.SortStableFunc(in.Uses, func(a, b Use) int {
		return cmp.Or(cmp.Compare(b.MACs, a.MACs), cmp.Compare(b.ActivationBytes, a.ActivationBytes), strings.Compare(a.Operator, b.Operator))
	})
	return in, nil
}

func answer(err error) string {
	if err != nil {
		return err.Error()
	}
	return "yes"
}

// count fills Uses from the table and the shapes.
func (in *Inspection) count(m *onnx.Model, values map[string]onnx.Value) {
	table := map[string]Operator{}
	for _, row := range Operators() {
		table[row.Name] = row
	}
	constants := map[string]int64{} // elements, until somebody reads them
	for _, w := range m.Graph.Initializers {
		if n, err := w.Count(); err == nil && isFloat(w.Type) {
			constants[w.Name] = int64(n)
		}
	}
	at := map[string]int{}
	for _, n := range m.Graph.Nodes {
		key := operatorKey(n)
		i, seen := at[key]
		if !seen {
			row, known := table[key]
			use := Use{Operator: key, OperatorSet: m.Opsets[n.Domain], Runs: "untried", Gradient: row.Gradient, PerExample: row.PerExample, Reason: row.Reason}
			if !known {
				use.Gradient, use.Reason = "refused", "it is in no table: export the model with operators of the standard"
			} else if err := Differentiable(n, m.Opsets); err != nil && use.Gradient == "rule" {
				use.Gradient, use.PerExample = "refused", false
				use.Reason = fmt.Sprintf("needs operator set %d: export the model with that or a newer one", row.Since)
			}
			i, at[key] = len(in.Uses), len(in.Uses)
			in.Uses = append(in.Uses, use)
		}
		use := &in.Uses[i]
		use.Count++
		if macs, ok := n.MACs(values); ok && use.MACs >= 0 && macs <= math.MaxInt64-use.MACs {
			use.MACs += macs
		} else {
			use.MACs = -1
		}
		for _, name := range n.Inputs {
			use.Parameters += constants[name]
			delete(constants, name)
		}
		for _, name := range n.Outputs {
			v := values[name]
			if dims, ok := v.Static(); ok && name != "" {
				use.ActivationBytes += product(dims) * int64(v.Type.Size())
				in.ActivationBytes += product(dims) * int64(v.Type.Size())
			}
		}
	}
}

// tryOperators says of each operator whether the runtime has it. If the whole
// model opens, it has them all; else the first node of each is tried alone.
func (in *Inspection) tryOperators(m *onnx.Model, values map[string]onnx.Value, open func(*onnx.Model) error) {
	for i := range in.Uses {
		use := &in.Uses[i]
		if in.Runs == "yes" {
			use.Runs = "yes"
			continue
		}
		for _, n := range m.Graph.Nodes {
			if operatorKey(n) == use.Operator {
				use.Runs = answer(open(alone(m, n, values)))
				break
			}
		}
	}
}

// alone is a model of one node, its constants kept and its other inputs given.
func alone(m *onnx.Model, n *onnx.Node, values map[string]onnx.Value) *onnx.Model {
	graph := &onnx.Graph{Name: "one " + n.OpType, Nodes: []*onnx.Node{n}}
	given := map[string]bool{"": true}
	reads(n, func(name string) {
		if given[name] {
			return
		}
		given[name] = true
		if w := m.Graph.Initializer(name); w != nil {
			graph.Initializers = append(graph.Initializers, w)
		} else if v, ok := values[name]; ok {
			v.Name = name
			graph.Inputs = append(graph.Inputs, v)
		}
	})
	for _, out := range n.Outputs {
		if out != "" {
			v := values[out]
			v.Name = out
			if v.Type == onnx.Undefined {
				v.Type = onnx.Float
			}
			graph.Outputs = append(graph.Outputs, v)
		}
	}
	return &onnx.Model{IRVersion: m.IRVersion, Opsets: m.Opsets, ProducerName: m.ProducerName, Graph: graph}
}

// triedSize stands for named dimensions other than the batch, such as the length
// of a sequence.
const triedSize = 64

// differentiability builds the gradients of the sum of the first output of
// floats with respect to every input and weight of floats: attributes and
// shapes may be refused where the operators are not.
func differentiability(m *onnx.Model) (gradient, perExample string) {
	values, err := onnx.InferShapes(m, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return err.Error(), err.Error()
	}
	loss := ""
	for _, v := range m.Graph.Outputs {
		if loss == "" && isFloat(values[v.Name].Type) {
			loss = v.Name
		}
	}
	if loss == "" {
		return "no output is a floating-point number", "no output is a floating-point number"
	}
	reached := reachable(m.Graph, loss)
	var wrt []string
	for _, w := range m.Graph.Initializers {
		if isFloat(w.Type) && reached[w.Name] {
			wrt = append(wrt, w.Name)
		}
	}
	weights := len(wrt)
	for _, v := range m.Graph.Inputs {
		if isFloat(v.Type) && reached[v.Name] && m.Graph.Initializer(v.Name) == nil {
			wrt = append(wrt, v.Name)
		}
	}
	if len(wrt) == 0 {
		return "no input or weight is a floating-point number", "no input or weight is a floating-point number"
	}
	wrt = withGradient(m, wrt)
	sizes := map[string]int64{}
	for _, v := range m.Graph.Inputs {
		for i, d := range v.Shape {
			if i > 0 && d.Param != "" {
				sizes[d.Param] = triedSize
			}
		}
	}
	_, err = Gradient(m, Request{Loss: loss, WithRespectTo: wrt, Batch: 1, Dimensions: sizes})
	gradient = answer(err)
	rank := len(values[loss].Shape)
	if weights == 0 || rank == 0 {
		return gradient, "the model has no weights, or no axis for the examples"
	}
	each := m.Clone()
	b := onnx.Extend(each)
	sum := loss
	if rank > 1 {
		sum = b.Op("ReduceSum", []string{loss, b.Ints("axes", iota64(rank)[1:]...)}, onnx.IntAttribute("keepdims", 0))
	}
	_, err = Gradient(each, Request{Loss: sum, WithRespectTo: wrt, Batch: 2, Dimensions: sizes, PerExample: true})
	return gradient, answer(err)
}

// reachable are the tensors that one depends on.
func reachable(g *onnx.Graph, name string) map[string]bool {
	seen := map[string]bool{name: true}
	for i := len(g.Nodes) - 1; i >= 0; i-- {
		if slices.ContainsFunc(g.Nodes[i].Outputs, func(out string) bool { return seen[out] }) {
			reads(g.Nodes[i], func(in string) { seen[in] = true })
		}
	}
	return seen
}

// withGradient leaves out constants that are settings rather than weights,
// such as a Clip's bounds or a Resize's scales: tensors that only ever enter an
// operator where nothing has a gradient.
func withGradient(m *onnx.Model, names []string) []string {
	setting := map[string]int{"Clip": 1, "Dropout": 1, "Resize": 1, "Pad": 2, "OneHot": 2, "Range": 0, "BatchNormalization": 3}
	use := map[string]bool{}
	for _, n := range m.Graph.Nodes {
		for i, in := range n.Inputs {
			if from, ok := setting[operatorKey(n)]; !ok || i < from {
				use[in] = true
			}
		}
	}
	kept := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !use[name] })
	if len(kept) == 0 {
		return names
	}
	return kept
}

// String lays the inspection out for a terminal.
func (in *Inspection) String() string {
	var b strings.Builder
	b.WriteString(in.Summary.String())
	line := func(label, text string) { fmt.Fprintf(&b, "%-11s %s\n", label, text) }
	line("activations", fmt.Sprintf("%d bytes for a batch of one", in.ActivationBytes))
	line("runs", in.Runs)
	line("gradient", in.Gradient)
	line("per example", in.PerExample)
	fmt.Fprintf(&b, "\n%-28s %5s %5s %14s %6s %12s %12s  %-8s %-8s %s\n", "operator", "set", "uses", "macs", "share", "parameters", "activations", "runs", "gradient", "per example")
	for _, u := range in.Uses {
		macs, share, per, runs := fmt.Sprint(u.MACs), "", "no", u.Runs
		if u.MACs < 0 {
			macs = "?"
		} else if in.MACs > 0 {
			share = fmt.Sprintf("%.1f%%", 100*float64(u.MACs)/float64(in.MACs))
		}
		if u.PerExample {
			per = "yes"
		}
		if runs != "yes" && runs != "untried" {
			runs = "no"
		}
		fmt.Fprintf(&b, "%-28s %5d %5d %14s %6s %12d %12d  %-8s %-8s %s\n", u.Operator, u.OperatorSet, u.Count, macs, share, u.Parameters, u.ActivationBytes, runs, u.Gradient, per)
	}
	for _, u := range in.Uses {
		if u.Reason != "" {
			line("\n"+u.Operator, u.Reason)
		}
		if u.Runs != "yes" && u.Runs != "untried" && in.Runs != "yes" {
			line("\n"+u.Operator, u.Runs)
		}
	}
	return b.String()
}
