package attack

import (
	"math"
)

// Loss is what an attack raises.
type Loss string

// The losses, of logits z of an example of class y; z₍₁₎ is the largest.
const (
	// CrossEntropy is that of class y; towards a class t, less that of t. It is
	// raised as the log-odds v = log Σ_{j≠y} exp z_j - z_y, of which it is the
	// rising function log(1 + exp v): the direction is the same, and does not
	// vanish in float32 where the model is sure.
	CrossEntropy Loss = "ce"
	// Margin is max_{j≠y} z_j - z_y; towards t: z_t - max_{j≠t} z_j. The example
	// is fooled where it is positive. Of two classes it is linear in the logits
	// and, unlike cross-entropy, has a slope where the model is sure.
	Margin Loss = "margin"
	// DLR is the difference of logits ratio (Croce and Hein 2020, equation 6),
	// (max_{j≠y} z_j - z_y)/(z₍₁₎ - z₍₃₎); towards t (equation 7) (z_t -
	// z_y)/(z₍₁₎ - (z₍₃₎ + z₍₄₎)/2). It does not exist for two classes, nor the
	// second form for three: there it is the margin.
	DLR Loss = "dlr"
)

// goal is what an example is to be taken for: no longer its own class, or, with
// a class of 0 or more, that one.
type goal struct {
	label int
	class int // -1: any other
}

// reached says whether logits meet the goal.
func (g goal) reached(z []float32) bool {
	best := argmax(z)
	if g.class >= 0 {
		return best == g.class
	}
	return best != g.label
}

// margin is positive exactly where the goal is reached, but for ties, which
// reached gives to the first class.
func (g goal) margin(z []float32) float64 {
	if g.class >= 0 {
		return float64(z[g.class]) - float64(z[other(z, g.class)])
	}
	return float64(z[other(z, g.label)]) - float64(z[g.label])
}

// argmax is the class of the largest logit, the first of equals.
func argmax(z []float32) int {
	best := 0
	for c, v := range z {
		if v > z[best] {
			best = c
		}
	}
	return best
}

// other is the class of the largest logit but one class's.
func other(z []float32, but int) int {
	best := -1
	for c, v := range z {
		if c != but && (best < 0 || v > z[best]) {
			best = c
		}
	}
	return best
}

// linear says whether the slope of the loss by the logits does not depend on
// them, beyond what Objective.LogSumExp carries.
func (l Loss) linear(classes int) bool { return l == CrossEntropy || classes == 2 }

// value is the loss.
func (l Loss) value(z []float32, g goal) float64 {
	switch l {
	case CrossEntropy:
		if g.class >= 0 {
			return float64(z[g.class]) - logSumExp(z, g.class)
		}
		return logSumExp(z, g.label) - float64(z[g.label])
	case DLR:
		top, raised, lowered := l.parts(z, g)
		if top == nil {
			break
		}
		return (float64(z[raised]) - float64(z[lowered])) / scaleOf(z, top)
	}
	return g.margin(z)
}

// slope writes the loss's derivative by the logits, less the part that the
// returned factor of the log-sum-exp, without a class, carries. Where the loss is linear, z may be nil.
func (l Loss) slope(z []float32, g goal, weights []float32) (logSumExp float32, without int) {
	clear(weights)
	if l == CrossEntropy {
		if g.class >= 0 {
			weights[g.class] = 1
			return -1, g.class
		}
		weights[g.label] = -1
		return 1, g.label
	}
	if len(weights) == 2 {
		up := 1 - g.label
		if g.class >= 0 {
			up = g.class
		}
		weights[up], weights[1-up] = 1, -1
		return 0, -1
	}
	if l == DLR {
		if top, raised, lowered := l.parts(z, g); top != nil {
			s := scaleOf(z, top)
			r := (float64(z[raised]) - float64(z[lowered])) / (s * s)
			weights[raised] += float32(1 / s)
			weights[lowered] -= float32(1 / s)
			weights[top[0]] -= float32(r)
			for _, c := range top[1:] {
				weights[c] += float32(r / float64(len(top)-1))
			}
			return 0, -1
		}
	}
	if g.class >= 0 {
		weights[g.class], weights[other(z, g.class)] = 1, -1
	} else {
		weights[other(z, g.label)], weights[g.label] = 1, -1
	}
	return 0, -1
}

// parts are the classes of a DLR: top[0] less the mean of top[1:] is its scale,
// raised less lowered what is scaled. Nil where it does not exist.
func (l Loss) parts(z []float32, g goal) (top []int, raised, lowered int) {
	order := byValue(z)
	switch {
	case g.class < 0 && len(z) >= 3:
		return []int{order[0], order[2]}, other(z, g.label), g.label
	case g.class >= 0 && len(z) >= 4:
		return []int{order[0], order[2], order[3]}, g.class, g.label
	}
	return nil, 0, 0
}

func scaleOf(z []float32, top []int) float64 {
	mean := 0.0
	for _, c := range top[1:] {
		mean += float64(z[c]) / float64(len(top)-1)
	}
	return float64(z[top[0]]) - mean + 1e-12
}

func logSumExp(z []float32, without int) float64 {
	top := float64(z[other(z, without)])
	sum := 0.0
	for c, v := range z {
		if c != without {
			sum += math.Exp(float64(v) - top)
		}
	}
	return top + math.Log(sum)
}
