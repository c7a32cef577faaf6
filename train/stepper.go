package train

import (
	"context"
	"fmt"
	"math/rand/v2"
)

// Stepper takes the steps of a training run one at a time, with the machinery
// of Run: for loops of one's own, and for measuring what a step costs. Local is
// for runs on the terms of a federation.
type Stepper struct {
	trainer *trainer
	rng     *rand.Rand
}

// NewStepper makes ready what Run would: c.Train holds the examples to step on.
// Nothing is evaluated and no checkpoint is written.
func NewStepper(c Config) (*Stepper, error) {
	c.Recipe = c.Recipe.orDefault()
	if err := c.check(); err != nil {
		return nil, err
	}
	t, err := newTrainer(c)
	if err != nil {
		return nil, err
	}
	return &Stepper{trainer: t, rng: rand.New(rand.NewPCG(c.Seed, 1))}, nil
}

// Step updates the weights by the examples at these positions of the training
// set, Recipe.Batch of them, and returns their mean loss before the update.
func (s *Stepper) Step(ctx context.Context, at []int, rate float64) (float64, error) {
	t := s.trainer
	if len(at) != t.config.Batch {
		return 0, fmt.Errorf("train: a step on %d examples: the batch is %d", len(at), t.config.Batch)
	}
	for _, i := range at {
		if i < 0 || i >= t.config.Train.Len() {
			return 0, fmt.Errorf("train: a step on example %d of a set of %d", i, t.config.Train.Len())
		}
	}
	loss, err := t.gradients(ctx, 0, at, s.rng.Perm(len(at)), s.rng)
	if err != nil {
		return 0, err
	}
	if t.config.Clip > 0 {
		Clip(t.gradient, t.config.Clip)
	}
	t.state.Optimizer.Step(rate, t.state.Weights, t.gradient, t.decay)
	if t.config.Average > 0 {
		t.state.Average.Update(t.variables())
	}
	return loss, nil
}

// Weights are the current values of the trained weights, in the order of
// Network.Weights and in place: the next Step changes them, and the caller may.
func (s *Stepper) Weights() [][]float32 { return s.trainer.state.Weights }

// Close frees the sessions.
func (s *Stepper) Close() error {
	s.trainer.close()
	return nil
}
