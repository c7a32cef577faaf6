package privacy

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/attack"
)

// InvertOptions say how an image is climbed to. Zero values are defaults.
type InvertOptions struct {
	Steps int     // [300]
	Rate  float64 // of a step of Adam, share of the pixel range [0.02]
	TV    float64 // weight of the mean total variation; 0: none
	// Pull is the weight of the mean squared distance from where it starts, in
	// units of the pixel range [0].
	Pull     float64
	Start    []float32 // [Shape…]; nil: mid-range
	Spread   float64   // deviation of the noise on the start, share of the range [0.05]
	Rows     int       // of an image [channels, rows, columns], for the total variation; 0: none
	Columns  int
	Seed     uint64
	Progress func(done float64)
}

// Inverted is what a model takes for a class.
type Inverted struct {
	Pixels      []float32
	Probability float64 // of the class, as the model sees it
}

// Invert climbs to an image that the model takes for a class: model inversion by
// its outputs (Fredrikson et al. 2015, MI-Face), here with Adam on log p and total
// variation. That the image looks like something does not show that it is
// somebody: compare it with the class's mean, and with images that were never
// trained on.
func Invert(ctx context.Context, t attack.Target, class int, o InvertOptions) (*Inverted, error) {
	d := t.Describe()
	if class < 0 || class >= d.Classes || o.Start != nil && len(o.Start) != d.Size() {
		return nil, fmt.Errorf("privacy: inverting class %d from a start of %d pixels: %w: the model tells %d classes of %v apart", class, len(o.Start), ErrAsk, d.Classes, d.Shape)
	}
	if o.Steps == 0 {
		o.Steps = 300
	}
	if o.Rate == 0 {
		o.Rate = 0.02
	}
	if o.Spread == 0 {
		o.Spread = 0.05
	}
	if o.Progress == nil {
		o.Progress = func(float64) {}
	}
	if o.Steps < 1 || o.Steps > 1<<20 || !(o.Rate > 0) || !(o.TV >= 0) || !(o.Pull >= 0) || !(o.Spread >= 0) {
		return nil, fmt.Errorf("privacy: inverting a model in %d steps of %v, total variation %v, pull %v, spread %v: %w", o.Steps, o.Rate, o.TV, o.Pull, o.Spread, ErrAsk)
	}
	span := d.High - d.Low
	rng := rand.New(rand.NewPCG(o.Seed, uint64(class)+0x1e57))
	start, x := make([]float32, d.Size()), make([]float32, d.Size())
	for i := range x {
		start[i] = float32(d.Low + span/2)
		if o.Start != nil {
			start[i] = o.Start[i]
		}
		x[i] = start[i] + float32(o.Spread*span*rng.NormFloat64())
	}
	clip(x, d.Low, d.High)
	weights := make([]float32, d.Classes)
	weights[class] = 1
	objective := &attack.Objective{Weights: weights, LogSumExp: []float32{-1}} // log p
	first, second := make([]float64, len(x)), make([]float64, len(x))
	for step := range o.Steps {
		a, err := t.Ask(ctx, x, objective)
		if err != nil {
			return nil, fmt.Errorf("privacy: inverting a model: %w", err)
		}
		slope := make([]float64, len(x))
		for i, g := range a.Gradient {
			slope[i] = -float64(g) + 2*o.Pull*(float64(x[i])-float64(start[i]))/(span*span*float64(len(x)))
		}
		if o.Rows > 0 && o.TV > 0 {
			addVariation(slope, x, o.Rows, o.Columns, o.TV/span)
		}
		n := float64(step + 1)
		rate := o.Rate * span * (1 + math.Cos(math.Pi*float64(step)/float64(o.Steps))) / 2
		for i, g := range slope {
			first[i] = 0.9*first[i] + 0.1*g
			second[i] = 0.999*second[i] + 0.001*g*g
			x[i] -= float32(rate * (first[i] / (1 - math.Pow(0.9, n))) / (math.Sqrt(second[i]/(1-math.Pow(0.999, n))) + 1e-12))
		}
		clip(x, d.Low, d.High)
		o.Progress(n / float64(o.Steps))
	}
	a, err := t.Ask(ctx, x, nil)
	if err != nil {
		return nil, fmt.Errorf("privacy: inverting a model: %w", err)
	}
	z := make([]float64, d.Classes)
	for c, v := range a.Logits {
		z[c] = float64(v)
	}
	return &Inverted{x, math.Exp(z[class] - logSum(z))}, nil
}

// MostSimilar is the highest SSIM of an image with others, and whose it is; -1 of
// none.
func MostSimilar(image []float32, among [][]float32, rows, columns int) (similarity float64, at int, err error) {
	similarity, at = math.Inf(-1), -1
	for i, other := range among {
		s, err := SSIM(image, other, rows, columns)
		if err != nil {
			return 0, -1, err
		}
		if s > similarity {
			similarity, at = s, i
		}
	}
	return similarity, at, nil
}
