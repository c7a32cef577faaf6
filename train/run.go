package train

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vigie/vigie/onnx"
)

// Config is a training run. Zero fields of the recipe take the values in
// brackets.
type Config struct {
	Network    *Network
	Train      *Set
	Validation *Set
	Recipe
	// Checkpoint is a file that Run writes after every epoch and, if it exists,
	// goes on from: a run that was killed ends with the same weights as one that
	// was not. Empty means none.
	Checkpoint string
	// CheckpointEvery is how often the checkpoint is written within an epoch,
	// too; 0 means only after each. It does not change the result.
	CheckpointEvery time.Duration
	// Warn, if not nil, is told what may be a mistake but stops nothing.
	Warn func(string)
	// Ledger is the file that a private run charges its steps to; see
	// dp.OpenLedger. Empty counts this run alone.
	Ledger string

	bits io.Reader // in tests, where sampling and noise come from; nil: crypto/rand
}

// Recipe is everything that decides a result besides network and data. It is
// recorded in the History.
type Recipe struct {
	Epochs       int          `json:"epochs"`
	Batch        int          `json:"batch"`           // images of a step [64]
	Parts        int          `json:"parts"`           // equal parts that a batch is computed in [2]
	Rate         float64      `json:"rate"`            // peak learning rate [2e-3]
	Warmup       float64      `json:"warmup"`          // epochs of linear warm-up
	Optimizer    string       `json:"optimizer"`       // "adamw" or "sgd" [adamw]
	Momentum     float64      `json:"momentum"`        // of sgd [0.9]
	Decay        float64      `json:"decay"`           // weight decay of matrices and kernels
	Smoothing    float64      `json:"label_smoothing"` // share of the target spread over all classes
	Mixup        float64      `json:"mixup"`           // α of the Beta distribution (Zhang et al. 2018); 0 is off
	ClassWeights []float64    `json:"class_weights"`   // by class; nil counts every image alike
	Clip         float64      `json:"clip,omitempty"`  // largest norm of the gradient; 0 is off
	Average      float64      `json:"average"`         // decay of the moving average of weights; 0 is off
	Patience     int          `json:"patience"`        // epochs without a better validation AUC before stopping; 0 is never
	Seed         uint64       `json:"seed"`
	Augmentation Augmentation `json:"augmentation"`
	Private      *Privacy     `json:"private,omitempty"`   // nil trains without privacy
	Hardening    *Hardening   `json:"hardening,omitempty"` // nil trains on images as they are
	// Kernels is 1 to 3 to compute on the engine's own operators with so many
	// terms a number (autodiff.Request.Kernels); 0 is the runtime's.
	// The weights that come out differ in their last digits.
	Kernels int `json:"kernels,omitempty"`
}

func (r Recipe) orDefault() Recipe {
	if r.Batch == 0 {
		r.Batch = 64
	}
	if r.Parts == 0 {
		r.Parts = 2
	}
	r.Rate = orElse(r.Rate, 2e-3)
	if r.Optimizer == "" {
		r.Optimizer = "adamw"
	}
	r.Momentum = orElse(r.Momentum, 0.9)
	r.Private = r.Private.orDefault()
	r.Hardening = r.Hardening.orDefault()
	return r
}

// BalancedWeights weighs classes by the inverse of their frequency, mean 1 over
// the images.
func BalancedWeights(s *Set) []float64 {
	weights := make([]float64, s.Classes)
	for c, n := range s.Counts() {
		weights[c] = float64(s.Len()) / float64(s.Classes*n)
	}
	return weights
}

// Epoch is a line of the History.
type Epoch struct {
	Epoch          int     `json:"epoch"`          // from 1
	Loss           float64 `json:"loss,omitempty"` // mean over the training batches, before each step; not in a private run: see History.Withheld
	Rate           float64 `json:"rate"`           // at the end of the epoch
	ValidationLoss float64 `json:"validation_loss"`
	ValidationAUC  float64 `json:"validation_auc"` // of two classes; the mean of one against the rest for more
	Accuracy       float64 `json:"validation_accuracy"`
	// Robust, of a hardened run, is the share of the validation images that are
	// told right also under what the network is hardened against, as the training's
	// own adversary finds it: to compare epochs by, no verdict.
	Robust   float64       `json:"validation_robust_accuracy,omitempty"`
	Duration time.Duration `json:"ns"`
	Best     bool          `json:"best"` // the best so far: these weights are kept
}

// History is a training run's record.
type History struct {
	Recipe     Recipe  `json:"recipe"`
	Images     int     `json:"train_images"`
	Validation int     `json:"validation_images"`
	Weights    int     `json:"trained_parameters"`
	Best       int     `json:"best_epoch"`
	Strongest  int     `json:"strongest_epoch,omitempty"` // of a hardened run: that withstands most, whatever its AUC
	Epochs     []Epoch `json:"epochs"`
	// Withheld says why the epochs have no training loss; empty if they have.
	Withheld string `json:"loss_withheld,omitempty"`
}

// withheld is why a private run releases no training loss.
const withheld = "the training loss is a function of the training images that no noise was added to: it is not released, for the privacy statement does not count it"

// Result is a finished training run.
type Result struct {
	Model   *onnx.Model // the network with the weights of the best epoch
	History History
	Logits  [][]float64 // of the validation images, by the kept weights
	Privacy *Statement  // what a private run promises; nil without privacy
	// Strongest is the network with the weights of History.Strongest; nil without
	// hardening.
	Strongest *onnx.Model
	Hardened  *HardenedRecord // of a hardened run, what Fit.Choose says of it
}

// ErrDiverged is returned when the loss is no longer a number.
var ErrDiverged = errors.New("training diverged; lower the rate or lengthen the warm-up")

// Run trains a network. progress, if not nil, is called after every epoch. When
// the context ends, the run stops, writes its checkpoint if it has one, and
// returns an *Interrupted.
func Run(ctx context.Context, c Config, progress func(Epoch)) (*Result, error) {
	c.Recipe = c.Recipe.orDefault()
	if err := c.check(); err != nil {
		return nil, err
	}
	t, err := newTrainer(c)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if err := t.resume(); err != nil {
		return nil, err
	}
	if err := t.beginPrivate(); err != nil {
		return nil, err
	}
	for e := len(t.state.History.Epochs); e < c.Epochs && !t.patienceOver() && !t.budgetOver(); e++ {
		epoch, err := t.epoch(ctx, e)
		if err != nil && ctx.Err() != nil {
			return nil, t.interrupted(err)
		}
		if err != nil {
			return nil, fmt.Errorf("train: epoch %d: %w", e+1, err)
		}
		if err := t.save(); err != nil {
			return nil, err
		}
		if progress != nil {
			progress(epoch)
		}
	}
	finished := *t.network
	finished.Model = c.Network.Model // as it came, sizes left open
	m, err := finished.withValues(t.state.Best)
	if err != nil {
		return nil, err
	}
	logits, err := t.evaluate(ctx, t.state.Best)
	if err != nil && ctx.Err() != nil {
		return nil, t.interrupted(err)
	}
	if err != nil {
		return nil, err
	}
	statement, err := t.statement()
	if err != nil {
		return nil, err
	}
	result := &Result{Model: m, History: t.state.History, Logits: logits, Privacy: statement}
	if c.Hardening != nil {
		if result.Strongest, err = finished.withValues(t.state.Strongest); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// Check finds what Run would refuse before it builds anything.
func (c Config) Check() error {
	c.Recipe = c.Recipe.orDefault()
	return c.check()
}

func (c Config) check() error {
	if c.Network == nil || c.Train == nil || c.Validation == nil {
		return errors.New("train: a network, a training set and a validation set are needed")
	}
	for _, s := range []*Set{c.Train, c.Validation} {
		if err := s.Check(); err != nil {
			return err
		}
	}
	switch {
	case c.Epochs <= 0:
		return fmt.Errorf("train: %d epochs: want at least 1", c.Epochs)
	case c.Batch <= 0 || c.Parts <= 0 || c.Batch%c.Parts != 0:
		return fmt.Errorf("train: a batch of %d does not divide into %d parts", c.Batch, c.Parts)
	case c.Train.Len() < c.Batch:
		return fmt.Errorf("train: %d training examples do not fill one batch of %d; choose a batch of at most %d", c.Train.Len(), c.Batch, c.Train.Len())
	case c.Train.Classes != c.Validation.Classes:
		return fmt.Errorf("train: %d classes in training and %d in validation", c.Train.Classes, c.Validation.Classes)
	case c.ClassWeights != nil && len(c.ClassWeights) != c.Train.Classes:
		return fmt.Errorf("train: %d class weights for %d classes", len(c.ClassWeights), c.Train.Classes)
	case c.Optimizer != "adamw" && c.Optimizer != "sgd":
		return fmt.Errorf("train: optimizer %q: want adamw or sgd", c.Optimizer)
	case c.Clip < 0 || c.Mixup < 0 || c.Mixup > 1:
		return fmt.Errorf("train: a clipping norm of %g and a mixup of %g; want a norm of 0 or more, a mixup of 0 to 1", c.Clip, c.Mixup)
	case c.ClassWeights != nil && c.Train.Multi():
		return errors.New("train: class weights are for classes that exclude each other; leave them out")
	case c.Augmentation != (Augmentation{}) && c.Train.Shape != nil:
		return fmt.Errorf("train: augmentation is for images, and examples have shape %v; leave it out", c.Train.Shape)
	case c.Smoothing < 0 || c.Smoothing >= 1:
		return fmt.Errorf("train: label smoothing %g: want 0 or more and less than 1", c.Smoothing)
	}
	if err := c.checkHardening(); err != nil {
		return err
	}
	return c.checkPrivacy(c.Train)
}

// epoch runs over the training images once, in an order drawn from the seed and
// the epoch's number, and evaluates.
func (t *trainer) epoch(ctx context.Context, e int) (Epoch, error) {
	start := time.Now().Add(-t.state.Spent)
	c := t.config
	rng := rand.New(rand.NewPCG(c.Seed, uint64(e)<<1|1))
	order := rng.Perm(c.Train.Len())
	steps := len(order) / c.Batch // the rest of the images is dropped this time
	rate := 0.0
	saved := time.Now()
	for s := range steps {
		partner := rng.Perm(c.Batch)
		if s < t.state.Step { // done before the checkpoint: draw what it drew
			if c.Mixup > 0 {
				beta(rng, c.Mixup)
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			t.state.Spent = time.Since(start)
			return Epoch{}, err
		}
		loss, err := t.gradients(ctx, e, order[s*c.Batch:(s+1)*c.Batch], partner, rng)
		if errors.Is(err, ErrBudget) && t.state.Step > 0 {
			break // steps that were charged and lost end the run early
		}
		if err != nil {
			return Epoch{}, err
		}
		if math.IsNaN(loss) || math.IsInf(loss, 0) {
			return Epoch{}, ErrDiverged
		}
		t.state.Total += loss
		rate = CosineRate(c.Rate, e*steps+s, int(c.Warmup*float64(steps)), c.Epochs*steps)
		if c.Clip > 0 {
			Clip(t.gradient, c.Clip)
		}
		t.state.Optimizer.Step(rate, t.state.Weights, t.gradient, t.decay)
		if c.Average > 0 {
			t.state.Average.Update(t.variables())
		}
		t.state.Step = s + 1
		if c.CheckpointEvery > 0 && time.Since(saved) >= c.CheckpointEvery && s+1 < steps {
			t.state.Spent = time.Since(start)
			if err := t.save(); err != nil {
				return Epoch{}, err
			}
			saved = time.Now()
		}
	}
	current := t.variables()
	if c.Average > 0 {
		current = t.state.Average.Weights
	}
	logits, err := t.evaluate(ctx, current)
	if err != nil {
		return Epoch{}, err
	}
	auc, err := c.Validation.MeanAUC(logits)
	if err != nil {
		return Epoch{}, err
	}
	out := Epoch{
		Epoch: e + 1, Loss: t.state.Total / float64(steps), Rate: rate,
		ValidationLoss: c.Validation.LogLoss(logits, 1), ValidationAUC: auc,
		Accuracy: c.Validation.Accuracy(logits),
	}
	if t.hardened != nil {
		if out.Robust, err = t.hardened.resists(ctx, t, current); err != nil {
			return Epoch{}, err
		}
		if h := t.state.History; h.Strongest == 0 || out.Robust > h.Epochs[h.Strongest-1].Robust {
			t.state.Strongest = clone(current)
			t.state.History.Strongest = e + 1
		}
	}
	if t.better(out) {
		out.Best = true
		t.state.Best = clone(current)
		t.state.History.Best = e + 1
	}
	out.Duration = time.Since(start)
	t.state.Step, t.state.Total, t.state.Spent = 0, 0, 0
	t.state.History.Epochs = append(t.state.History.Epochs, out)
	return out, nil
}

// better compares by validation AUC, then by validation loss: small validation
// sets give the same AUC to many epochs.
func (t *trainer) better(e Epoch) bool {
	if t.state.History.Best == 0 {
		return true
	}
	best := t.state.History.Epochs[t.state.History.Best-1]
	if h := t.config.Hardening; h != nil {
		return h.better(e, best)
	}
	if e.ValidationAUC != best.ValidationAUC {
		return e.ValidationAUC > best.ValidationAUC
	}
	return e.ValidationLoss < best.ValidationLoss
}

func (t *trainer) patienceOver() bool {
	h := t.state.History
	return t.config.Patience > 0 && len(h.Epochs)-h.Best >= t.config.Patience && h.Best > 0
}

func clone(weights [][]float32) [][]float32 {
	out := make([][]float32, len(weights))
	for i, w := range weights {
		out[i] = slices.Clone(w)
	}
	return out
}
