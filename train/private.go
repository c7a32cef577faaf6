package train

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/onnx/autodiff"
)

// Privacy makes a run differentially private (DP-SGD, Abadi et al. 2016): every
// image's gradient is clipped, and Gaussian noise is added to each sum, so that
// the model, all its checkpoints and the validation figures of every epoch say
// almost the same whether or not any one image was trained on.
//
// Recipe.Batch is then the expected batch: every image is drawn on its own with
// probability Batch over the number of images. What works (De et al. 2022):
// large batches, many views of an image, group normalisation, a moving average
// of the weights, and few epochs.
type Privacy struct {
	Epsilon float64 `json:"epsilon"` // the ledger's total when the run ends
	Delta   float64 `json:"delta"`   // well below one over the number of images
	Clip    float64 `json:"clip"`    // bound of an image's gradient; where adaptive begins [1]
	// Clipping is "flat": one bound over all weights; "layer": each weight
	// tensor has a bound of Clip/√(number of tensors); or "adaptive": one bound
	// that follows the quantile of the norms. [flat]
	Clipping string  `json:"clipping"`
	Quantile float64 `json:"quantile,omitempty"` // share left unclipped, adaptive only [0.5]
	// Views is how many augmentations of an image are averaged before clipping
	// (augmentation multiplicity): they cost time and no privacy. [1]
	Views int `json:"views"`
	// Micro is how many rows (images × views) are in memory at once for each of
	// Recipe.Parts. It changes nothing else. [64]
	Micro int `json:"micro"`
}

// Names of Privacy.Clipping.
const (
	ClipFlat     = "flat"
	ClipLayer    = "layer"
	ClipAdaptive = "adaptive"
)

func (p *Privacy) orDefault() *Privacy {
	if p == nil {
		return nil
	}
	out := *p
	out.Clip = orElse(out.Clip, 1)
	if out.Clipping == "" {
		out.Clipping = ClipFlat
	}
	if out.Clipping == ClipAdaptive {
		out.Quantile = orElse(out.Quantile, 0.5)
	}
	out.Views = max(1, out.Views)
	if out.Micro == 0 {
		out.Micro = 64
	}
	out.Micro = max(1, out.Micro/out.Views) * out.Views
	return &out
}

// ErrMixes is returned for a network in which the images of a batch influence
// each other: no image then has a gradient of its own to clip.
var ErrMixes = errors.New("private training needs a network that treats every image on its own")

// ErrBudget is returned when the ledger leaves no step to run.
var ErrBudget = errors.New("the privacy budget is spent")

func (r Recipe) checkPrivacy(s *Set) error {
	p := r.Private
	if p == nil {
		return nil
	}
	switch {
	case !(p.Epsilon > 0) || math.IsInf(p.Epsilon, 0):
		return fmt.Errorf("train: a privacy budget of epsilon %v: want a positive number", p.Epsilon)
	case !(p.Delta > 0 && p.Delta < 1):
		return fmt.Errorf("train: delta %v: want it in (0, 1), well below one over the number of images", p.Delta)
	case p.Delta*float64(s.Len()) >= 1:
		return fmt.Errorf("train: delta %g with %d images would allow giving away one of them whole; take %.0e or less", p.Delta, s.Len(), 0.1/float64(s.Len()))
	case !(p.Clip > 0) || math.IsInf(p.Clip, 0):
		return fmt.Errorf("train: a clipping norm of %v: want a positive number", p.Clip)
	case !slices.Contains([]string{ClipFlat, ClipLayer, ClipAdaptive}, p.Clipping):
		return fmt.Errorf("train: clipping %q: want flat, layer or adaptive", p.Clipping)
	case p.Clipping == ClipAdaptive && !(p.Quantile > 0 && p.Quantile < 1):
		return fmt.Errorf("train: clipping to quantile %v: want it in (0, 1)", p.Quantile)
	case p.Micro < 1 || p.Micro > 1<<16 || p.Views > 1<<10:
		return fmt.Errorf("train: %d views of an image in microbatches of %d rows; want at most %d views and %d rows", p.Views, p.Micro, 1<<10, 1<<16)
	case r.Mixup > 0:
		return errors.New("train: mixup blends images, and an image's gradient would then hold another's; private training goes without it, views of one image do its work")
	case r.ClassWeights != nil:
		return errors.New("train: class weights follow from how many images each class has, which is private; leave them out")
	case r.Clip > 0:
		return errors.New("train: private training clips every image's gradient (private clip), so the batch's needs no clip of its own; leave it out")
	}
	return nil
}

// privateState is what a private run carries over a checkpoint. The noise is not
// in it: it comes from crypto/rand and is never drawn again.
type privateState struct {
	Sigma   float64 // noise multiplier of a step: noise over sensitivity
	Planned int     // steps that the budget was planned for
	Before  int     // steps in the ledger when the run began
	Lost    int     // steps that were charged and went down with a killed process
	Clip    dp.Clip
}

// private computes the noisy gradients of a run.
type private struct {
	spec    Privacy
	rate    float64 // sampling rate
	records int
	state   *privateState
	ledger  *dp.Ledger
	sampler *dp.Sampler
	noise   *dp.Gaussian
	step    *clippedStep
}

// newPrivate plans the budget and builds the clipped step. What is in a ledger
// already counts: the noise is chosen so that all of it together stays within
// Epsilon.
func newPrivate(t *trainer) (p *private, err error) {
	c := t.config
	if len(t.network.norms) > 0 {
		node := t.network.Model.Graph.Nodes[t.network.norms[0].node]
		return nil, fmt.Errorf("train: %q is a batch normalisation, which makes every image's output depend on the others of its batch: %w; build the network with group normalisation (vigie model new … --norm group), or freeze that layer", node.Name, ErrMixes)
	}
	made := &private{spec: *c.Private, records: c.Train.Len(), rate: float64(c.Batch) / float64(c.Train.Len())}
	p = made
	defer func() {
		if err != nil {
			made.close()
		}
	}()
	if p.ledger, err = c.openLedger(); err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	p.sampler, p.noise = dp.NewSampler(), dp.NewGaussian()
	if c.bits != nil {
		p.sampler, p.noise = dp.SamplerFrom(c.bits), dp.GaussianFrom(c.bits)
	}
	if p.step, err = newClippedStep(t, c.Private); err != nil {
		if errors.Is(err, autodiff.ErrMixesExamples) {
			err = fmt.Errorf("%w: %w", ErrMixes, err)
		}
		return nil, fmt.Errorf("train: %w", err)
	}
	return p, nil
}

// openLedger opens the configured ledger, or one that lasts for the run.
func (c Config) openLedger() (*dp.Ledger, error) {
	data := c.Train.Digest()
	if c.Ledger == "" {
		return dp.NewLedger(data, c.Train.Len()), nil
	}
	return dp.OpenLedger(c.Ledger, data, c.Train.Len())
}

// planner is a PLD accountant on a coarse grid: as safe as the fine one that the
// statement uses, a fraction of a per cent less tight, and done in a second.
var planner = dp.PLD{Interval: 1e-3}

// usedUp is the share of a budget after which the rest buys nothing but noise.
const usedUp = 0.98

// begin plans a run that starts afresh. resume takes its place after a kill.
func (p *private) begin(steps int) error {
	before, plan := p.ledger.Steps(), dp.Plan{Epsilon: p.spec.Epsilon, Delta: p.spec.Delta, Before: p.ledger.Runs(), Run: dp.Run{Rate: p.rate, Steps: steps}}
	already, err := p.ledger.Epsilon(planner, p.spec.Delta)
	if err != nil {
		return fmt.Errorf("train: accounting for the ledger: %w", err)
	}
	if already > usedUp*p.spec.Epsilon {
		return fmt.Errorf("train: the ledger holds %d steps on these images already, at epsilon %.3f of %g: %w; losses on the same images add up: allow a larger epsilon, or use the model that was trained with them", before, already, p.spec.Epsilon, ErrBudget)
	}
	solved, err := plan.Solve(planner)
	if err != nil {
		return fmt.Errorf("train: planning the privacy budget: %w", err)
	}
	p.state = &privateState{Sigma: solved.Run.Sigma, Planned: steps, Before: before, Clip: dp.Clip{Norm: p.spec.Clip}}
	if p.spec.Clipping == ClipAdaptive {
		expected := p.rate * float64(p.records)
		p.state.Clip.Quantile, p.state.Clip.Rate, p.state.Clip.CountNoise = p.spec.Quantile, 0.2, expected/20
	}
	_, err = p.multiplier()
	return err
}

// resume takes up a checkpoint's plan. Steps that were charged after the
// checkpoint was written are lost and stay charged, so that the run ends that
// many steps earlier.
func (p *private) resume(s *privateState, done int) error {
	if s == nil {
		return errors.New("the checkpoint is of a run without privacy")
	}
	charged := p.ledger.Steps() - s.Before
	if charged < done {
		return fmt.Errorf("the ledger holds %d steps of this run and the checkpoint %d: it is not this run's ledger, and going on would count too little", max(0, charged), done)
	}
	p.state = s
	p.state.Lost = charged - done
	return nil
}

// beginPrivate plans the budget, or takes up the plan of a checkpoint.
func (t *trainer) beginPrivate() error {
	p := t.private
	if p == nil {
		return nil
	}
	steps := t.config.Train.Len() / t.config.Batch // of an epoch
	if t.state.Private != nil {
		if err := p.resume(t.state.Private, len(t.state.History.Epochs)*steps+t.state.Step); err != nil {
			return fmt.Errorf("train: going on from %s: %w", t.config.Checkpoint, err)
		}
		return nil
	}
	if err := p.begin(t.config.Epochs * steps); err != nil {
		return err
	}
	t.state.Private = p.state
	return nil
}

// budgetOver says whether a private run has no step left, and none done that
// still waits for the end of its epoch.
func (t *trainer) budgetOver() bool {
	return t.private != nil && t.private.left() <= 0 && t.state.Step == 0
}

// multiplier is the noise on the gradients, over the bound.
func (p *private) multiplier() (float64, error) {
	return p.state.Clip.Split(p.state.Sigma)
}

// left is how many steps the plan still pays for.
func (p *private) left() int {
	return p.state.Planned - (p.ledger.Steps() - p.state.Before)
}

func (p *private) close() {
	if p.step != nil {
		p.step.close()
	}
	if p.ledger != nil {
		p.ledger.Close()
	}
}
