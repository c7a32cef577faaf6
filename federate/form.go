package federate

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Variable is one tensor of a model that rounds move.
type Variable struct {
	Name    string
	Dims    []int64
	Trained bool // and not a running statistic
	Own     bool // of the site; see Terms.Personal
}

// size is how many numbers a variable has.
func (v Variable) size() int {
	n := 1
	for _, d := range v.Dims {
		n *= int(d)
	}
	return n
}

// Form says which variables a model has, in the order in which vectors hold
// their numbers, and what those that are a site's own begin with.
type Form struct {
	Variables []Variable
	Start     []float32 // of the site's own
}

// Form is the form of the engine's network.
func (e *Engine) Form() Form {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := Form{Start: slices.Clone(e.start)}
	for i, name := range e.local.Names() {
		l.Variables = append(l.Variables, Variable{Name: name, Dims: e.dims[i], Trained: i < e.local.Trained(), Own: e.own[i]})
	}
	return l
}

// FormOf is the layout of a network whose examples are like the set's.
func FormOf(network *train.Network, terms Terms, like *train.Set) (Form, error) {
	e, err := NewEngine(network, terms, like, 0)
	if err != nil {
		return Form{}, err
	}
	return e.Form(), e.Close()
}

// size counts the shared variables' numbers, all and those that are trained, and
// the site's own.
func (l Form) size() (variables, trained, own int) {
	for _, v := range l.Variables {
		switch n := v.size(); {
		case v.Own:
			own += n
		case v.Trained:
			variables, trained = variables+n, trained+n
		default:
			variables += n
		}
	}
	return variables, trained, own
}

// each calls a function with the part of the shared or of the own numbers that
// each variable has.
func (l Form) each(shared, own []float32, do func(v Variable, part []float32) error) error {
	for _, v := range l.Variables {
		n := v.size()
		from := &shared
		if v.Own {
			from = &own
		}
		if len(*from) < n {
			return fmt.Errorf("federate: dividing numbers among the model's variables: %q has %d, and %d are left", v.Name, n, len(*from))
		}
		if err := do(v, (*from)[:n:n]); err != nil {
			return err
		}
		*from = (*from)[n:]
	}
	return nil
}

func dimsOf(m *onnx.Model, names []string) ([][]int64, error) {
	var out [][]int64
	for _, name := range names {
		w := m.Graph.Initializer(name)
		if w == nil {
			return nil, fmt.Errorf("federate: reading the network: it has no constant %q", name)
		}
		out = append(out, slices.Clone(w.Dims))
	}
	return out, nil
}
