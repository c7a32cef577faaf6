package train

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Hardening is what a network is trained to withstand, and how. It is part of
// the recipe, and so of the record of the run. Zero fields take the values in
// brackets.
type Hardening struct {
	// Method is PGDAT, TRADES, or empty for no adversary: masks and noise alone.
	Method string `json:"method,omitempty"`
	// Norm is what bounds the adversary: Linf, L2, or Patch, a square of any
	// content. [linf]
	Norm string `json:"norm,omitempty"`
	// Eps is the bound, in units of the pixel range 0..1. Not of a Patch.
	Eps float64 `json:"eps,omitempty"`
	// Side is that of a Patch in pixels. Its place is where the slope of the loss
	// is largest.
	Side     int     `json:"patch_side,omitempty"`
	Steps    int     `json:"steps,omitempty"`     // of the inner maximisation [7]
	StepSize float64 `json:"step_size,omitempty"` // share of Eps [2.5/Steps]
	Ramp     float64 `json:"ramp,omitempty"`      // epochs over which Eps grows from 0; 0 begins with all of it
	// Clean is the share of each batch that PGDAT leaves unperturbed.
	Clean float64 `json:"clean_share,omitempty"`
	// Beta weighs what TRADES adds to the loss of the clean images. [6]
	Beta float64 `json:"beta,omitempty"`
	// AWP is the length of the adversarial weight perturbation (Wu et al. 2020)
	// as a share of each weight's own; 0 is off. It begins when Eps has grown.
	AWP float64 `json:"awp,omitempty"`

	Occlusion *Occlusion `json:"occlusion,omitempty"` // masks; nil: none
	// Noise is the standard deviation of Gaussian noise on every pixel, which is
	// not clipped to 0..1: that of randomised smoothing (Cohen et al. 2019).
	Noise float64 `json:"noise,omitempty"`

	// Floor is the validation AUC, of clean images, that the kept epoch must have:
	// of those that have it, the one that withstands most is kept. If none has it,
	// the one whose AUC is highest is.
	Floor float64 `json:"auc_floor,omitempty"`
}

// The methods of adversarial training.
const (
	// PGDAT lowers the loss at the worst perturbation found (Madry et al. 2018).
	PGDAT = "pgd-at"
	// TRADES lowers the loss of the clean image and Beta times the divergence of
	// the answers at clean and perturbed image (Zhang et al. 2019, equation 5).
	TRADES = "trades"
)

// What bounds an adversary.
const (
	Linf  = "linf"
	L2    = "l2"
	Patch = "patch"
)

// adversarial says that there is an inner maximisation.
func (h *Hardening) adversarial() bool { return h != nil && h.Method != "" }

// trades is Beta, or 0 for another method.
func (h *Hardening) trades() float64 {
	if h == nil || h.Method != TRADES {
		return 0
	}
	return h.Beta
}

func (h *Hardening) orDefault() *Hardening {
	if h == nil {
		return nil
	}
	out := *h
	if out.Method != "" {
		if out.Norm == "" {
			out.Norm = Linf
		}
		if out.Steps == 0 {
			out.Steps = 7
		}
		if out.StepSize == 0 {
			out.StepSize = 2.5 / float64(max(1, out.Steps))
		}
	}
	if out.Method == TRADES {
		out.Beta = orElse(out.Beta, 6)
	}
	out.Occlusion = out.Occlusion.orDefault()
	return &out
}

// ErrHardening is returned for a hardening that is none, or that does not go
// with the rest of the recipe.
var ErrHardening = errors.New("cannot be hardened like this")

// maxInner bounds the steps of the inner maximisation.
const maxInner = 1 << 10

func (c Config) checkHardening() error {
	h := c.Hardening
	if h == nil {
		return nil
	}
	refuse := func(format string, a ...any) error {
		return fmt.Errorf("train: hardening: "+format+": %w", append(a, ErrHardening)...)
	}
	finite := func(v float64) bool { return v >= 0 && !math.IsInf(v, 0) }
	switch {
	case !slices.Contains([]string{"", PGDAT, TRADES}, h.Method):
		return refuse("method %q: want %s, %s or none", h.Method, PGDAT, TRADES)
	case h.Method == "" && h.Occlusion == nil && h.Noise == 0:
		return refuse("there is no adversary, no mask and no noise to withstand")
	case h.Method == "" && (h.Eps != 0 || h.Side != 0 || h.Clean != 0 || h.Ramp != 0):
		return refuse("an eps, a patch, a clean share or a ramp without an adversary: name a method")
	case h.Method != "" && !slices.Contains([]string{Linf, L2, Patch}, h.Norm):
		return refuse("norm %q: want %s, %s or %s", h.Norm, Linf, L2, Patch)
	case h.Method != "" && h.Norm != Patch && !(h.Eps > 0 && finite(h.Eps)):
		return refuse("eps %v: want more than 0, in units of the pixel range, such as 8/255", h.Eps)
	case h.Method != "" && h.Norm == Linf && h.Eps > 1:
		return refuse("eps %v: pixels are 0 to 1, and so at most is the bound; 8 levels of 255 are 8/255", h.Eps)
	case h.Norm == Patch && (h.Side < 1 || h.Side > min(c.Train.Rows, c.Train.Columns) || h.Eps != 0 || h.Ramp != 0):
		return refuse("a patch of side %d with eps %v and a ramp of %v: want a side of 1 to %d pixels, and neither eps nor ramp", h.Side, h.Eps, h.Ramp, min(c.Train.Rows, c.Train.Columns))
	case h.Norm != Patch && h.Side != 0:
		return refuse("a patch of side %d bounded by %s: want the norm %s", h.Side, h.Norm, Patch)
	case h.Method != "" && (h.Steps < 1 || h.Steps > maxInner || !(h.StepSize > 0 && finite(h.StepSize))):
		return refuse("%d steps of %v: want 1 to %d steps, each a share of eps above 0", h.Steps, h.StepSize, maxInner)
	case !finite(h.Ramp) || h.Ramp >= float64(c.Epochs) && h.Ramp > 0:
		return refuse("a ramp of %v epochs: want 0 or more, and less than the %d epochs of the run", h.Ramp, c.Epochs)
	case !(h.Clean >= 0 && h.Clean < 1) || h.Method == TRADES && h.Clean > 0:
		return refuse("a clean share of %v: want 0 or more and less than 1; %s keeps the clean images by itself", h.Clean, TRADES)
	case !finite(h.Beta) || h.Beta != 0 && h.Method != TRADES:
		return refuse("a beta of %v: want a number above 0, and the method %s", h.Beta, TRADES)
	case !(h.AWP >= 0 && h.AWP < 1):
		return refuse("a weight perturbation of %v: want a share of 0 or more and less than 1, such as 0.005", h.AWP)
	case !(h.Noise >= 0 && h.Noise <= 10):
		return refuse("noise of deviation %v: want 0 to 10, in units of the pixel range, such as 0.25", h.Noise)
	case !(h.Floor >= 0 && h.Floor <= 1):
		return refuse("an AUC floor of %v: want 0 to 1", h.Floor)
	case c.Train.Shape != nil:
		return refuse("examples of shape %v: masks, noise and bounds are those of images", c.Train.Shape)
	case c.Private != nil:
		return refuse("differential privacy clips each image's own gradient, and an adversary has none; leave one of them out")
	}
	if h.Occlusion != nil {
		return h.Occlusion.check(c.Train.Rows, c.Train.Columns)
	}
	return nil
}

// eps is the bound at a moment of the run, in epochs from its start.
func (h *Hardening) eps(at float64) float64 {
	if h.Ramp > 0 && at < h.Ramp {
		return h.Eps * at / h.Ramp
	}
	return h.Eps
}

// better compares epochs of a hardened run: see Hardening.Floor.
func (h *Hardening) better(e, best Epoch) bool {
	in, was := e.ValidationAUC >= h.Floor, best.ValidationAUC >= h.Floor
	switch {
	case in != was:
		return in
	case in && e.Robust != best.Robust:
		return e.Robust > best.Robust
	case e.ValidationAUC != best.ValidationAUC:
		return e.ValidationAUC > best.ValidationAUC
	}
	return e.ValidationLoss < best.ValidationLoss
}
