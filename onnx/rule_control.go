package onnx

// control are the operators that hold graphs.
var control = family{
	"If":   {1, conditional},
	"Loop": {1, loopBody},
	"Scan": {9, scanBody},
}

// conditional has the results of the branch that a known condition takes, else
// what both branches agree on.
func conditional(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	var chosen []fact
	taken, known := o.x(0).number()
	for i, name := range []string{"then_branch", "else_branch"} {
		a := o.Attribute(name)
		if a == nil || a.Graph == nil {
			return mistake("no %s", name)
		}
		if known && (taken != 0) != (i == 0) {
			continue
		}
		results, err := o.branch(a.Graph)
		if err != nil {
			return err
		}
		if len(results) != len(o.out) {
			return mistake("%s has %d results for %d outputs", name, len(results), len(o.out))
		}
		if chosen == nil {
			chosen = results
			continue
		}
		for j := range chosen {
			chosen[j] = common(chosen[j], results[j])
		}
	}
	copy(o.out, chosen)
	return nil
}

// common is what holds of either tensor.
func common(a, b fact) fact {
	out := fact{}
	if a.typ == b.typ {
		out.typ = a.typ
	}
	if a.shape != nil && b.shape != nil && len(a.shape) == len(b.shape) {
		out.shape = make([]Dim, len(a.shape))
		for i := range out.shape {
			out.shape[i] = anyDim
			if a.shape[i] == b.shape[i] {
				out.shape[i] = a.shape[i]
			}
		}
	}
	return out
}

// loopBody and scanBody give the element types that the body declares: how
// often it runs, and so every shape, is known only when the graph runs.
func loopBody(o *op) error { return bodyTypes(o, 1) } // the first result is the condition

func scanBody(o *op) error { return bodyTypes(o, 0) }

func bodyTypes(o *op, skip int) error {
	a := o.Attribute("body")
	if a == nil || a.Graph == nil {
		return mistake("no body")
	}
	for i := range o.out {
		if i+skip < len(a.Graph.Outputs) {
			o.set(i, a.Graph.Outputs[i+skip].Type, nil)
		}
	}
	return nil
}
