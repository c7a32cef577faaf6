package federate

import (
	"context"
	"sync"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Engine is the built-in trainer's machinery for one network: any number of
// sites in a process share it, one trains at a time.
type Engine struct {
	mu    sync.Mutex
	local *train.Local
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
	return &Engine{local: local}, nil
}

// Close frees the sessions.
func (e *Engine) Close() error { return e.local.Close() }

// Variables are those that the network was built with, one after the other, and
// how many of them are trained.
func (e *Engine) Variables() (all []float32, trained int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, v := range e.local.Variables() {
		if i < e.local.Trained() {
			trained += len(v)
		}
		all = append(all, v...)
	}
	return all, trained
}

// Logits answers for a set with the given variables: [example][logit].
func (e *Engine) Logits(ctx context.Context, variables []float32, s *train.Set) ([][]float64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(variables)
	return e.local.Logits(ctx, s)
}

// Model is the network with the given variables.
func (e *Engine) Model(variables []float32) (*onnx.Model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(variables)
	return e.local.Model()
}

// set spreads variables over the network's.
func (e *Engine) set(variables []float32) {
	for _, v := range e.local.Variables() {
		variables = variables[copy(v, variables):]
	}
}

// Trainer is the engine on a site's examples.
func (e *Engine) Trainer(s *train.Set) Trainer { return &setTrainer{e, s} }

type setTrainer struct {
	engine *Engine
	set    *train.Set
}

func (t *setTrainer) Size() (variables, trained int) {
	for i, v := range t.engine.local.Variables() {
		if i < t.engine.local.Trained() {
			trained += len(v)
		}
		variables += len(v)
	}
	return variables, trained
}

func (t *setTrainer) Examples() int { return t.set.Len() }

func (t *setTrainer) Train(ctx context.Context, w Work) (int, float64, error) {
	e := t.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(w.Variables)
	o := train.LocalRun{Epochs: w.Terms.Epochs, Rate: w.Rate, Seed: w.Seed, Round: w.Round}
	o.Proximal = w.Terms.Proximal
	if rest := w.Correction; rest != nil {
		for _, v := range e.local.Variables()[:e.local.Trained()] {
			o.Correction = append(o.Correction, rest[:len(v)])
			rest = rest[len(v):]
		}
	}
	steps, loss, err := e.local.Run(ctx, t.set, o)
	if err != nil {
		return steps, 0, err
	}
	at := w.Variables
	for _, v := range e.local.Variables() {
		at = at[copy(at, v):]
	}
	return steps, loss, nil
}
