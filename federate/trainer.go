package federate

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Engine is the built-in trainer's machinery for one network: any number of
// sites in a process share it, one trains at a time.
type Engine struct {
	mu    sync.Mutex
	local *train.Local
	dims  [][]int64 // of each of the network's variables
	own   []bool    // of each of the network's variables: whether it is a site's own
	start []float32 // values of those that the network was built with
}

// NewEngine makes a network ready for training on sets like this one, as the
// terms say. kernels is train.Recipe.Kernels of this machine.
func NewEngine(network *train.Network, terms Terms, like *train.Set, kernels int) (*Engine, error) {
	recipe := terms.recipe()
	recipe.Kernels = kernels
	local, err := train.NewLocal(network, recipe, like)
	if err != nil {
		return nil, err
	}
	e := &Engine{local: local}
	if e.own, err = personalVariables(network.Model, network.Logits, local.Names(), terms.Personal); err != nil {
		return nil, errors.Join(err, local.Close())
	}
	if e.dims, err = dimsOf(network.Model, local.Names()); err != nil {
		return nil, errors.Join(err, local.Close())
	}
	for i, v := range local.Variables() {
		if e.own[i] {
			e.start = append(e.start, v...)
		}
	}
	if _, trained := e.size(); trained == 0 {
		return nil, errors.Join(fmt.Errorf("federate: making an engine: %w: nothing of the network is left to share of what is trained", ErrTerms), local.Close())
	}
	return e, nil
}

// size counts the variables that are shared.
func (e *Engine) size() (variables, trained int) {
	for i, v := range e.local.Variables() {
		if e.own[i] {
			continue
		}
		if i < e.local.Trained() {
			trained += len(v)
		}
		variables += len(v)
	}
	return variables, trained
}

// Close frees the sessions.
func (e *Engine) Close() error { return e.local.Close() }

// Variables are those that the network was built with and that sites share, one
// after the other, and how many of them are trained.
func (e *Engine) Variables() (all []float32, trained int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, v := range e.local.Variables() {
		if !e.own[i] {
			all = append(all, v...)
		}
	}
	_, trained = e.size()
	return all, trained
}

// Layout says which tensors of the network Variables are.
func (e *Engine) Layout() []Span {
	e.mu.Lock()
	defer e.mu.Unlock()
	var spans []Span
	for i, v := range e.local.Variables() {
		if !e.own[i] {
			spans = append(spans, Span{e.local.Names()[i], len(v)})
		}
	}
	return spans
}

// Logits answers for a set with the given variables: [example][logit]. What a
// site has of its own is as at the beginning.
func (e *Engine) Logits(ctx context.Context, variables []float32, s *train.Set) ([][]float64, error) {
	return e.LogitsOf(ctx, Subject{Variables: variables}, s)
}

// LogitsOf answers for a set with the given variables and those that are a site's
// own; nil are those of the beginning.
func (e *Engine) LogitsOf(ctx context.Context, of Subject, s *train.Set) ([][]float64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(of.Variables, of.Own)
	return e.local.Logits(ctx, s)
}

// Model is the network with the given variables.
func (e *Engine) Model(variables []float32) (*onnx.Model, error) {
	return e.ModelOf(Subject{Variables: variables})
}

// ModelOf is the network with the given variables and those that are a site's own;
// nil are those of the beginning.
func (e *Engine) ModelOf(of Subject) (*onnx.Model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(of.Variables, of.Own)
	return e.local.Model()
}

// set spreads variables over the network's.
func (e *Engine) set(variables, own []float32) {
	if own == nil {
		own = e.start
	}
	for i, v := range e.local.Variables() {
		if e.own[i] {
			own = own[copy(v, own):]
		} else {
			variables = variables[copy(v, variables):]
		}
	}
}

// Trainer is the engine on a site's examples.
func (e *Engine) Trainer(s *train.Set) Trainer {
	if len(e.start) > 0 {
		return &personalTrainer{setTrainer{engine: e, set: s}}
	}
	return &setTrainer{engine: e, set: s}
}

// personalTrainer has variables of its own.
type personalTrainer struct{ setTrainer }

func (t *personalTrainer) Personal() []float32 { return t.engine.start }

type setTrainer struct {
	engine   *Engine
	set      *train.Set
	patients [][]int // examples of each
}

func (t *setTrainer) Size() (variables, trained int) { return t.engine.size() }

func (t *setTrainer) Examples() int { return t.set.Len() }

func (t *setTrainer) Train(ctx context.Context, w Work) (int, float64, error) {
	e := t.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(w.Variables, w.Own)
	o := train.LocalRun{Epochs: w.Terms.Epochs, Rate: w.Rate, Seed: w.Seed, Round: w.Round}
	o.Proximal = w.Terms.Proximal
	if rest := w.Correction; rest != nil {
		for i, v := range e.local.Variables()[:e.local.Trained()] {
			if e.own[i] { // nobody else has a gradient of it
				o.Correction = append(o.Correction, make([]float32, len(v)))
				continue
			}
			o.Correction = append(o.Correction, rest[:len(v)])
			rest = rest[len(v):]
		}
	}
	steps, loss, err := e.local.Run(ctx, t.set, o)
	if err != nil {
		return steps, 0, err
	}
	at, own := w.Variables, w.Own
	for i, v := range e.local.Variables() {
		if e.own[i] {
			own = own[copy(own, v):] // all of it, or nothing of nil
		} else {
			at = at[copy(at, v):]
		}
	}
	return steps, loss, nil
}

// Patients implements PatientTrainer: people, or examples where people are not
// known.
func (t *setTrainer) Patients() int { return len(t.people()) }

func (t *setTrainer) people() [][]int {
	if t.patients == nil {
		at := map[string]int{}
		for i := range t.set.Len() {
			name := t.set.Person(i)
			p, met := at[name]
			if !met {
				p = len(t.patients)
				at[name] = p
				t.patients = append(t.patients, nil)
			}
			t.patients[p] = append(t.patients[p], i)
		}
	}
	return t.patients
}

// Gradients implements PatientTrainer.
func (t *setTrainer) Gradients(ctx context.Context, w Work, patients []int, yield func([]float32) error) error {
	e := t.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(w.Variables, w.Own)
	o := train.EachRun{Seed: w.Seed, Round: w.Round}
	if w.Terms.DP != nil {
		o.Views = w.Terms.DP.Views
	}
	people := t.people()
	for _, p := range patients {
		o.Records = append(o.Records, people[p])
	}
	return e.local.Each(ctx, t.set, o, yield)
}
