package attack

import (
	"context"
	"errors"
	"fmt"
)

// ErrAsk says that what was asked does not fit the target: a shape, a label, a
// bound, a pixel that is no number. The message says what would fit.
var ErrAsk = errors.New("does not fit the target")

// Target is a classifier under attack, in pixel space. It must be safe for
// concurrent use, and an example's answer must not depend on the others asked
// with it.
type Target interface {
	// Describe says what the target takes and gives. It does not change.
	Describe() Description
	// Ask answers for n examples, pixels[n, Shape…]. With an objective it also
	// gives the objective's gradient with respect to the pixels.
	Ask(ctx context.Context, pixels []float32, objective *Objective) (Answer, error)
}

// Description is what a target takes and gives.
type Description struct {
	Shape     []int64 // of one example, such as [channels, rows, columns]
	Classes   int     // at least 2; the answer is the class of the highest logit
	Low, High float64 // range of a pixel
}

// Size is the number of pixels of an example.
func (d Description) Size() int {
	n := 1
	for _, v := range d.Shape {
		n *= int(v)
	}
	return n
}

// Objective is what an attack raises, for example i
//
//	Σ_j Weights[i,j]·logit[i,j] + LogSumExp[i]·log Σ_{j≠Without[i]} exp logit[i,j] - Guards[i]·penalty[i] - ‖inside(i) - Like[i]‖²
//
// A margin has weights alone, the log-odds against class y are Weights -1 at y,
// LogSumExp 1 and Without y; any other loss is its own derivative by the logits.
type Objective struct {
	Weights   []float32 // [n, Classes]
	LogSumExp []float32 // [n]; nil: zeros
	Without   []int     // [n] class that the sum leaves out, -1: none; nil: none
	// Guards weighs the penalty of each example; nil: 1. A target without guards
	// has none to weigh.
	Guards []float32 // [n]
	// Like, of an [Insider] only, is an inner representation that an example is to
	// come near to; nil, or nil for an example: none.
	Like [][]float32 // [n]
}

// Insider is a target that shows how it represents examples inside, for attacks
// that imitate (Objective.Like).
type Insider interface {
	Target
	// Inside returns the representation of n examples.
	Inside(ctx context.Context, pixels []float32) ([][]float32, error)
}

// Answer is what a target says of n examples.
type Answer struct {
	Logits   []float32 // [n, Classes]
	Gradient []float32 // [n, Shape…] of the objective; nil if none was asked for
	// Penalty is what stands in an attacker's way beside the classes, such as the
	// scores of guards, in the objective's units: an attack that compares losses
	// subtracts it; as the objective weighs it. Nil: none.
	Penalty []float32 // [n]
	// Held says that the target would not let the answer pass, whatever it is:
	// the example is not fooled. Nil: none.
	Held []bool // [n]
}

// Expectation answers by the mean over draws of a target that answers by chance:
// its logits, gradients and penalties (expectation over transformation, Athalye
// et al. 2018). An example is held if most draws hold it. The target draws anew
// at each Ask.
func Expectation(t Target, draws int) Target {
	if draws < 1 {
		draws = 1
	}
	return &expectation{t, draws}
}

type expectation struct {
	Target
	draws int
}

func (e *expectation) Ask(ctx context.Context, pixels []float32, o *Objective) (Answer, error) {
	var mean Answer
	var held []int
	for range e.draws {
		a, err := e.Target.Ask(ctx, pixels, o)
		if err != nil {
			return Answer{}, err
		}
		for _, part := range []struct{ to, from *[]float32 }{{&mean.Logits, &a.Logits}, {&mean.Gradient, &a.Gradient}, {&mean.Penalty, &a.Penalty}} {
			if *part.from == nil {
				continue
			}
			if *part.to == nil {
				*part.to = make([]float32, len(*part.from))
			}
			for i, v := range *part.from {
				(*part.to)[i] += v / float32(e.draws)
			}
		}
		if a.Held != nil && held == nil {
			held = make([]int, len(a.Held))
		}
		for i, h := range a.Held {
			if h {
				held[i]++
			}
		}
	}
	for _, times := range held {
		mean.Held = append(mean.Held, 2*times > e.draws)
	}
	return mean, nil
}

// checkAsk checks what is asked of a target and returns the number of examples.
func checkAsk(d Description, pixels []float32, o *Objective) (int, error) {
	size := d.Size()
	if size < 1 || len(pixels) == 0 || len(pixels)%size != 0 {
		return 0, fmt.Errorf("%d pixels: %w: want a multiple of %d, examples of %v", len(pixels), ErrAsk, size, d.Shape)
	}
	n := len(pixels) / size
	if o != nil && (len(o.Weights) != n*d.Classes || o.LogSumExp != nil && len(o.LogSumExp) != n || o.Without != nil && len(o.Without) != n ||
		o.Guards != nil && len(o.Guards) != n || o.Like != nil && len(o.Like) != n) {
		return 0, fmt.Errorf("%d weights, %d factors, %d classes left out, %d weights of guards and %d likenesses for %d examples of %d classes: %w",
			len(o.Weights), len(o.LogSumExp), len(o.Without), len(o.Guards), len(o.Like), n, d.Classes, ErrAsk)
	}
	return n, nil
}
