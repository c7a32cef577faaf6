package federate

import (
	"context"
	"fmt"
	"math"

	"github.com/vigie/vigie/train"
)

// Calibration methods.
const (
	// Temperature divides all logits by one number (Guo et al. 2017).
	Temperature = "temperature"
	// Platt fits slope and shift of the log-odds of class 1 of two, to targets that
	// are a little off 0 and 1 (Platt 1999, with the corrections of Lin et al. 2007).
	Platt = "platt"
)

// Calibration is a fit to the examples of all sites together.
type Calibration struct {
	Method string `json:"method"`
	// Temperature divides the logits; of Temperature.
	Temperature float64 `json:"temperature,omitempty"`
	// The probability of class 1 is 1/(1+exp(−(Slope·s+Shift))), s being the
	// log-odds of the model; of Platt.
	Slope float64 `json:"slope,omitempty"`
	Shift float64 `json:"shift,omitempty"`

	Examples int     `json:"examples"`
	Before   float64 `json:"loss_before"` // mean log-loss
	After    float64 `json:"loss_after"`
	Steps    int     `json:"questions"` // that were asked
	Sites    int     `json:"sites"`     // of the last one
}

// logitAtMost is how large a logit is for calibration: larger ones count as this.
const logitAtMost = 100

// Terms of a calibration's sums: count, loss, and first and second derivatives.
const (
	temperatureNumbers = 4
	plattNumbers       = 8 // and the count of positives
)

func (x *examiner) calibrate(ctx context.Context, q Question, about Subject) ([]float64, error) {
	s := x.set
	switch {
	case q.Kind == Temperature && len(q.Parameters) == 1 && q.Numbers == temperatureNumbers:
	case q.Kind == Platt && len(q.Parameters) == 4 && q.Numbers == plattNumbers && s.Classes == 2 && !s.Multi():
	default:
		return x.refuse(q, "%q with %d parameters and %d numbers, of %d classes", q.Kind, len(q.Parameters), q.Numbers, s.Classes)
	}
	out := make([]float64, q.Numbers)
	if s.Len() < max(1, q.Least) {
		return out, nil
	}
	logits, err := x.logits(ctx, about)
	if err != nil {
		return nil, err
	}
	if q.Kind == Platt {
		plattSums(out, s, logits, q.Parameters)
	} else {
		temperatureSums(out, s, logits, q.Parameters[0])
	}
	return out, nil
}

// temperatureSums are count, loss, slope and curvature of the loss by β = 1/T:
// for classes that exclude each other −β·z_y + log Σ exp(β·z), else the sum of
// that for each label against 0.
func temperatureSums(out []float64, s *train.Set, logits [][]float64, beta float64) {
	add := func(z []float64, class int) {
		top := math.Inf(-1)
		for _, v := range z {
			top = max(top, beta*v)
		}
		sum, mean, square := 0.0, 0.0, 0.0
		for _, v := range z {
			e := math.Exp(beta*v - top)
			sum, mean, square = sum+e, mean+e*v, square+e*v*v
		}
		mean, square = mean/sum, square/sum
		out[1] += math.Log(sum) + top - beta*z[class]
		out[2] += mean - z[class]
		out[3] += square - mean*mean
	}
	for i, z := range logits {
		bounded := make([]float64, len(z))
		for k, v := range z {
			bounded[k] = max(-logitAtMost, min(logitAtMost, v))
		}
		if !s.Multi() {
			out[0]++
			add(bounded, s.Labels[i])
			continue
		}
		for k, v := range bounded {
			class := 0
			if s.Has(i, k) {
				class = 1
			}
			out[0]++
			add([]float64{0, v}, class)
		}
	}
}

// plattSums are count, loss, its gradient by slope and shift, its curvature by
// slope, both, and shift, and the positives. Parameters are slope, shift, and the
// targets of negatives and positives.
func plattSums(out []float64, s *train.Set, logits [][]float64, at []float64) {
	scores, positive := s.Scores(logits, 1)
	for i, score := range scores {
		score = max(-logitAtMost, min(logitAtMost, score))
		target := at[2]
		if positive[i] {
			target = at[3]
			out[7]++
		}
		z := at[0]*score + at[1]
		p := 1 / (1 + math.Exp(-z))
		out[0]++
		out[1] += max(z, 0) + math.Log1p(math.Exp(-math.Abs(z))) - target*z
		out[2] += (p - target) * score
		out[3] += p - target
		out[4] += p * (1 - p) * score * score
		out[5] += p * (1 - p) * score
		out[6] += p * (1 - p)
	}
}

// CalibrationOptions says how to calibrate.
type CalibrationOptions struct {
	Method string // Temperature or Platt
	Least  int    // as in EvaluationOptions
}

const (
	calibrationQuestions = 40
	coldest, hottest     = 1.0 / 20, 20.0 // as train.Temperature
)

// Calibrate fits a calibration of the global model to the examples of all sites
// together, by Newton's method, each step of which is a question: the same as the
// fit to the pooled examples, but for rounding. The terms must allow
// TaskCalibrate; errors are as those of Round.
func (c *Coordinator) Calibrate(ctx context.Context, links []Link, o CalibrationOptions) (Calibration, error) {
	out := Calibration{Method: o.Method}
	fail := func(err error) (Calibration, error) {
		return Calibration{}, fmt.Errorf("federate: calibrating the model at its sites: %w", err)
	}
	ask := func(numbers int, parameters ...float64) ([]float64, error) {
		if out.Steps++; out.Steps > calibrationQuestions {
			return nil, fmt.Errorf("%w: no end after %d questions", ErrRound, calibrationQuestions)
		}
		sums, err := c.Ask(ctx, links, Question{Task: TaskCalibrate, Numbers: numbers, Kind: o.Method, Parameters: parameters, Least: o.Least})
		if err != nil {
			return nil, err
		}
		if !(sums.Values[0] >= 1) {
			return nil, fmt.Errorf("%w: no site has examples to count", ErrRound)
		}
		out.Sites, out.Examples = sums.Sites, int(sums.Values[0])
		return sums.Values, nil
	}
	switch o.Method {
	case Temperature:
		out.Before = math.NaN()
		end, err := descend([2]float64{1}, func(at [2]float64) (slope, error) {
			if at[0] < 1/hottest || at[0] > 1/coldest {
				return slope{loss: math.Inf(1)}, nil
			}
			v, err := ask(temperatureNumbers, at[0])
			if err != nil {
				return slope{}, err
			}
			if math.IsNaN(out.Before) { // at a temperature of 1
				out.Before = v[1] / v[0]
			}
			return slope{n: v[0], loss: v[1], gradient: [2]float64{v[2]}, curve: [3]float64{v[3], 0, 1}}, nil
		})
		if err != nil {
			return fail(err)
		}
		out.Temperature, out.After = 1/end.at[0], end.loss/end.n
	case Platt:
		start, err := ask(plattNumbers, 1, 0, 0, 1)
		if err != nil {
			return fail(err)
		}
		n, positives := start[0], start[7]
		if positives < 1 || n-positives < 1 {
			return fail(fmt.Errorf("%w: %g positives of %g: %w", ErrRound, positives, n, train.ErrOneClass))
		}
		out.Before = start[1] / n
		low, high := 1/(n-positives+2), (positives+1)/(positives+2)
		end, err := descend([2]float64{1, 0}, func(at [2]float64) (slope, error) {
			v, err := ask(plattNumbers, at[0], at[1], low, high)
			if err != nil {
				return slope{}, err
			}
			return slope{n: v[0], loss: v[1], gradient: [2]float64{v[2], v[3]}, curve: [3]float64{v[4], v[5], v[6]}}, nil
		})
		if err != nil {
			return fail(err)
		}
		out.Slope, out.Shift = end.at[0], end.at[1]
		last, err := ask(plattNumbers, out.Slope, out.Shift, 0, 1)
		if err != nil {
			return fail(err)
		}
		out.After = last[1] / last[0]
	default:
		return fail(fmt.Errorf("%w: method %q: want %s or %s", ErrRound, o.Method, Temperature, Platt))
	}
	return out, nil
}

// slope is a loss of two parameters with its derivatives, summed over n examples.
type slope struct {
	at       [2]float64
	n, loss  float64
	gradient [2]float64
	curve    [3]float64 // by the first, both, the second
}

// descend finds the minimum of a convex loss by Newton's method, with steps
// halved as long as they do not lower the loss.
func descend(at [2]float64, of func([2]float64) (slope, error)) (slope, error) {
	now, err := of(at)
	if err != nil {
		return now, err
	}
	now.at = at
	for {
		// a little weight on the diagonal, so that a flat loss has a step, too
		a, b, d := now.curve[0]+1e-9*now.n, now.curve[1], now.curve[2]+1e-9*now.n
		determinant := a*d - b*b
		step := [2]float64{
			-(d*now.gradient[0] - b*now.gradient[1]) / determinant,
			-(a*now.gradient[1] - b*now.gradient[0]) / determinant,
		}
		gain := -(step[0]*now.gradient[0] + step[1]*now.gradient[1]) / now.n // twice what the step would lower the mean loss by
		if !(gain > 1e-13) {
			return now, nil
		}
		for {
			next, err := of([2]float64{at[0] + step[0], at[1] + step[1]})
			if err != nil {
				return now, err
			}
			// other sites than before have another loss: the step stands
			if next.loss < now.loss || next.n != now.n && !math.IsInf(next.loss, 0) {
				at = [2]float64{at[0] + step[0], at[1] + step[1]}
				next.at = at
				now = next
				break
			}
			step[0], step[1] = step[0]/2, step[1]/2
			if gain /= 2; !(gain > 1e-13) {
				return now, nil
			}
		}
	}
}
