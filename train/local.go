package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Local trains one network on other people's terms: from weights that are given,
// for a few epochs, on a set that may be small or hold one class only. It is what
// a site of a federation does in a round, and one Local serves many sets in
// turn, so that a thousand virtual sites need one set of sessions.
type Local struct {
	trainer *trainer
	fresh   []float32 // room for one example
	each    *eachStep // nil until Each is asked for
}

// Pull is what bends local steps towards what others do. Its zero value is plain
// descent.
type Pull struct {
	// Proximal is μ of FedProx (Li et al. 2020, section 3.2): μ/2·‖w − w₀‖² is
	// added to the loss, w₀ being the weights that the run began with.
	Proximal float64
	// Correction is added to every gradient, in the order of Network.Weights: the
	// difference of control variates of SCAFFOLD (Karimireddy et al. 2020,
	// equation 3). Nil adds nothing.
	Correction [][]float32
}

// LocalRun is one run of a Local.
type LocalRun struct {
	Epochs int     // over the set, at least 1
	Rate   float64 // constant
	// Seed and Round decide the order of examples and their augmentation. The
	// same numbers, set and weights give the same weights.
	Seed  uint64
	Round int
	Pull
}

// NewLocal makes a network ready for examples like the set's, by the recipe's
// batch, optimiser, momentum (0 is none), decay, clipping, smoothing and
// augmentation. The set itself is only looked at for its form. Private training, mixup and moving averages
// have no place here and are refused.
func NewLocal(network *Network, r Recipe, like *Set) (*Local, error) {
	momentum := r.Momentum
	r = r.orDefault()
	r.Momentum = momentum // here 0 is none, as SCAFFOLD wants it
	if network == nil || like == nil {
		return nil, errors.New("train: a network and a set are needed")
	}
	switch {
	case r.Private != nil || r.Mixup != 0 || r.Average != 0:
		return nil, errors.New("train: local training with mixup, a moving average or privacy of its own: leave them out")
	case r.Batch < 1 || r.Batch%r.Parts != 0:
		return nil, fmt.Errorf("train: a batch of %d does not divide into %d parts", r.Batch, r.Parts)
	case r.Optimizer != "adamw" && r.Optimizer != "sgd":
		return nil, fmt.Errorf("train: optimizer %q: want adamw or sgd", r.Optimizer)
	case r.ClassWeights != nil && (like.Multi() || len(r.ClassWeights) != like.Classes):
		return nil, fmt.Errorf("train: %d class weights for %d classes", len(r.ClassWeights), like.Classes)
	case r.Augmentation != (Augmentation{}) && like.Shape != nil:
		return nil, fmt.Errorf("train: augmentation is for images, and examples have shape %v; leave it out", like.Shape)
	case r.Smoothing < 0 || r.Smoothing >= 1 || r.Clip < 0:
		return nil, fmt.Errorf("train: label smoothing %g and a clipping norm of %g: want 0 to less than 1, and 0 or more", r.Smoothing, r.Clip)
	}
	none := like.Subset(nil)
	if like.Multi() {
		none.Marks = []uint8{}
	}
	t, err := newTrainer(Config{Network: network, Train: none, Validation: none, Recipe: r})
	if err != nil {
		return nil, err
	}
	return &Local{trainer: t, fresh: make([]float32, product(t.example()))}, nil
}

// Names are the variables' names: the trained weights, then the running
// statistics of batch normalisations.
func (l *Local) Names() []string { return l.trainer.network.variables() }

// Trained is how many of them are weights and not statistics.
func (l *Local) Trained() int { return len(l.trainer.state.Weights) }

// Variables are the current values, in the order of Names and in place: Run
// begins with them and leaves its result there.
func (l *Local) Variables() [][]float32 { return l.trainer.variables() }

// Run trains on a set and returns how many steps it took and their mean loss. A
// batch that the set does not fill is computed with fewer examples; the mean is
// over those.
func (l *Local) Run(ctx context.Context, s *Set, o LocalRun) (steps int, loss float64, err error) {
	t := l.trainer
	if err := l.fits(s); err != nil {
		return 0, 0, err
	}
	if s.Len() == 0 || o.Epochs < 1 || !(o.Rate > 0) {
		return 0, 0, fmt.Errorf("train: %d examples, %d epochs, a rate of %g: want at least 1, 1 and more than 0", s.Len(), o.Epochs, o.Rate)
	}
	if o.Correction != nil && !sameSizes(o.Correction, t.state.Weights) {
		return 0, 0, errors.New("train: the correction has not the weights' sizes")
	}
	t.config.Train, t.config.Seed = s, o.Seed
	switch t.config.Optimizer {
	case "sgd":
		t.state.Optimizer = &SGD{Momentum: t.config.Momentum, Nesterov: true, Decay: t.config.Decay}
	default:
		t.state.Optimizer = &AdamW{Decay: t.config.Decay, Kernels: t.config.Kernels > 0}
	}
	var start [][]float32
	if o.Proximal != 0 {
		start = clone(t.state.Weights)
	}
	for e := range o.Epochs {
		epoch := o.Round*o.Epochs + e
		rng := rand.New(rand.NewPCG(o.Seed, uint64(epoch)<<1|1))
		order := rng.Perm(s.Len())
		for from := 0; from < len(order); from += t.config.Batch {
			if err := ctx.Err(); err != nil {
				return steps, 0, err
			}
			at := order[from:min(from+t.config.Batch, len(order))]
			l.pad(at, epoch)
			one, err := t.gradients(ctx, epoch, at, rng.Perm(len(at)), rng)
			if err != nil {
				return steps, 0, err
			}
			if math.IsNaN(one) || math.IsInf(one, 0) {
				return steps, 0, fmt.Errorf("train: after %d local steps the loss is %v: %w", steps, one, ErrDiverged)
			}
			loss += one
			if t.config.Clip > 0 {
				Clip(t.gradient, t.config.Clip)
			}
			l.pull(o.Pull, start)
			t.state.Optimizer.Step(o.Rate, t.state.Weights, t.gradient, t.decay)
			steps++
		}
	}
	return steps, loss / float64(steps), nil
}

// pad fills the places of a batch that at leaves over: with weight 0, and for
// batch normalisation, which sees every place, with the same examples again.
func (l *Local) pad(at []int, epoch int) {
	t := l.trainer
	for b := len(at); b < t.config.Batch; b++ {
		t.fill(b, l.fresh, epoch, at[b%len(at)], at[b%len(at)], 1, 1)
		t.batch.weights[b] = 0
	}
}

func (l *Local) pull(p Pull, start [][]float32) {
	t := l.trainer
	for i, g := range t.gradient {
		if p.Proximal != 0 {
			mu, w, w0 := float32(p.Proximal), t.state.Weights[i], start[i]
			for j := range g {
				g[j] += mu * (w[j] - w0[j])
			}
		}
		if p.Correction != nil {
			for j, v := range p.Correction[i] {
				g[j] += v
			}
		}
	}
}

// Logits answers for a set with the current variables: [example][logit].
func (l *Local) Logits(ctx context.Context, s *Set) ([][]float64, error) {
	t := l.trainer
	if err := l.fits(s); err != nil {
		return nil, err
	}
	t.config.Validation = s
	return t.evaluate(ctx, t.variables())
}

// Model is the network with the current variables.
func (l *Local) Model() (*onnx.Model, error) {
	finished := *l.trainer.network
	finished.Model = l.trainer.config.Network.Model // as it came, sizes left open
	return finished.withValues(l.Variables())
}

// Close frees the sessions.
func (l *Local) Close() error {
	l.trainer.close()
	l.each.close()
	return nil
}

// fits says whether a set is of the form that the sessions were made for. It may
// lack classes, unlike a training set of one's own.
func (l *Local) fits(s *Set) error {
	if s == nil {
		return errors.New("train: a set is needed")
	}
	if err := s.checkSizes(); err != nil {
		return err
	}
	like := l.trainer.config.Train
	if !slices.Equal(s.Example(), like.Example()) || s.Classes != like.Classes || s.Multi() != like.Multi() {
		return fmt.Errorf("train: set %q has examples of shape %v and %d classes; this network was made ready for %v and %d", s.Name, s.Example(), s.Classes, like.Example(), like.Classes)
	}
	for i, label := range s.Labels {
		if label < 0 || label >= s.Classes {
			return fmt.Errorf("train: checking set %q: %s has label %d, want 0 to %d", s.Name, s.name(i), label, s.Classes-1)
		}
	}
	for i, v := range s.Values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Errorf("train: checking set %q: value %d is %v; leave it out or correct it", s.Name, i, v)
		}
	}
	return nil
}

func sameSizes(a, b [][]float32) bool {
	return slices.EqualFunc(a, b, func(x, y []float32) bool { return len(x) == len(y) })
}
