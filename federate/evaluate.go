package federate

import (
	"context"
	"fmt"
	"math"

	"github.com/vigie/vigie/train"
)

// EvaluationOptions says how a model is judged at the sites.
type EvaluationOptions struct {
	Classes int  // of the model, at least 2
	Labels  bool // classes do not exclude each other

	// Bins is how many intervals a score is divided into [2000]. More of them
	// narrow the bound on the AUC, and show more of single examples in the sum.
	Bins int
	// Threshold is the probability from which on an example counts as positive
	// [0.5].
	Threshold float64
	// Least is how many examples a site has at least to be counted. The others
	// answer zeros, which nobody can tell.
	Least int
}

// Evaluation is how good a model is on the examples of all sites together.
type Evaluation struct {
	Sites    int     `json:"sites"` // in the sums
	Examples int     `json:"examples"`
	Accuracy float64 `json:"accuracy"` // as train.Set.Accuracy
	Loss     float64 `json:"loss"`     // mean log-loss; an example counts for 100 at most
	// AUC is that of class 1 of two, else the mean over the classes, from the
	// histograms; the exact one is within ±AUCBins of it. Low and High are
	// DeLong's 95 % interval of the histograms, for one class alone.
	AUC     train.Interval    `json:"auc"`
	AUCBins float64           `json:"auc_error"`
	Classes []ClassEvaluation `json:"classes"` // class 1 of two, else all
	Bytes   Traffic           `json:"traffic"`
	Lost    []string          `json:"lost"`
}

// ClassEvaluation is what an evaluation says of one class against the rest.
type ClassEvaluation struct {
	Class       int            `json:"class"`
	Positives   int            `json:"positives"`
	Negatives   int            `json:"negatives"`
	AUC         train.Interval `json:"auc"`
	AUCBins     float64        `json:"auc_error"`
	Threshold   float64        `json:"threshold"`
	Sensitivity train.Interval `json:"sensitivity"` // at the threshold, Wilson's interval
	Specificity train.Interval `json:"specificity"`
	// Calibration is the expected calibration error of the probability over 20
	// equal intervals (Naeini et al. 2015).
	Calibration float64 `json:"calibration_error"`
}

const (
	evaluationBins   = 2000
	calibrationBins  = 20
	evaluationCounts = 3 // of examples, of right answers, and the loss
	lossAtMost       = 100
)

func (o EvaluationOptions) orDefault() EvaluationOptions {
	if o.Bins == 0 {
		o.Bins = evaluationBins
	}
	if o.Threshold == 0 {
		o.Threshold = 0.5
	}
	return o
}

// blocks is how many classes are counted apart.
func blocks(classes int, labels bool) int {
	if classes == 2 && !labels {
		return 1
	}
	return classes
}

// perClass is how many numbers an answer has for each class: negatives and
// positives by bin, those at the threshold, and by interval of probability
// examples, positives and the sum of probabilities.
func perClass(bins int) int { return 2*bins + 2 + 3*calibrationBins }

func (o EvaluationOptions) question() Question {
	return Question{Task: TaskEvaluate, Numbers: evaluationCounts + blocks(o.Classes, o.Labels)*perClass(o.Bins), Bins: o.Bins, Threshold: o.Threshold, Least: o.Least}
}

// scoreBin is the bin of a score, a log-odds: bins are widest where the model is
// sure. They keep the order of scores.
func scoreBin(score float64, bins int) int {
	const half = 4 // log-odds up to which half of the bins are used, either way
	u := 0.5 + 0.5*score/(half+math.Abs(score))
	if math.IsInf(score, 0) {
		u = 0
		if score > 0 {
			u = 1
		}
	}
	return max(0, min(bins-1, int(u*float64(bins))))
}

// examiner answers about the model from a set, of examples that it was not
// trained on.
type examiner struct {
	set    *train.Set
	logits Logits
}

// Logits answers for the examples of a set with a model's variables:
// [example][logit].
type Logits func(ctx context.Context, of Subject) ([][]float64, error)

// Answers answers what is asked about the model from the engine's answers for a
// set: of examples that the site does not train on, unless their fit is asked for.
func (e *Engine) Answers(s *train.Set) Answerers {
	return AnswersOf(s, func(ctx context.Context, of Subject) ([][]float64, error) { return e.LogitsOf(ctx, of, s) })
}

// AnswersOf answers TaskEvaluate and TaskCalibrate from a model's answers for a
// set.
func AnswersOf(s *train.Set, logits Logits) Answerers {
	x := &examiner{s, logits}
	return Answerers{TaskEvaluate: answerFunc(x.evaluate), TaskCalibrate: answerFunc(x.calibrate)}
}

type answerFunc func(ctx context.Context, q Question, about Subject) ([]float64, error)

func (f answerFunc) Answer(ctx context.Context, q Question, about Subject) ([]float64, error) {
	return f(ctx, q, about)
}

func (x *examiner) refuse(q Question, format string, arguments ...any) ([]float64, error) {
	return nil, fmt.Errorf("federate: answering %s: %w: %s", q.Task, ErrOrder, fmt.Sprintf(format, arguments...))
}

func (x *examiner) evaluate(ctx context.Context, q Question, about Subject) ([]float64, error) {
	s := x.set
	classes := blocks(s.Classes, s.Multi())
	if q.Bins < 1 || !(q.Threshold > 0 && q.Threshold < 1) || q.Numbers != evaluationCounts+classes*perClass(q.Bins) {
		return x.refuse(q, "%d numbers of %d bins at a threshold of %g do not fit a model of %d classes", q.Numbers, q.Bins, q.Threshold, s.Classes)
	}
	out := make([]float64, q.Numbers)
	if s.Len() < max(1, q.Least) {
		return out, nil
	}
	logits, err := x.logits(ctx, about)
	if err != nil {
		return nil, err
	}
	evaluationSums(out, s, logits, q.Bins, q.Threshold)
	return out, nil
}

func evaluationSums(out []float64, s *train.Set, logits [][]float64, bins int, threshold float64) {
	out[0] = float64(s.Len())
	out[1] = math.Round(s.Accuracy(logits)*float64(s.Len()*right(s))) / float64(right(s))
	rest := out[evaluationCounts:]
	for class := range s.Classes {
		if class == 0 && blocks(s.Classes, s.Multi()) == 1 {
			continue
		}
		block := rest[:perClass(bins)]
		rest = rest[perClass(bins):]
		scores, positive := s.Scores(logits, class)
		for i, score := range scores {
			p := s.Probabilities(logits[i], 1)[class]
			side := 0
			if positive[i] {
				side = 1
			}
			block[side*bins+scoreBin(score, bins)]++
			if p >= threshold {
				block[2*bins+side]++
			}
			at := 2*bins + 2 + min(calibrationBins-1, int(p*calibrationBins))
			block[at]++
			block[at+calibrationBins] += float64(side)
			block[at+2*calibrationBins] += p
		}
	}
	for i := range logits {
		one := s.Subset([]int{i})
		out[2] += min(lossAtMost, one.LogLoss(logits[i:i+1], 1))
	}
}

// right is how many answers of an example may be right.
func right(s *train.Set) int {
	if s.Multi() {
		return s.Classes
	}
	return 1
}

// Evaluate judges the global model on the examples of all sites together, in a
// round of its own: of what a site counts, the sums alone are opened. The terms
// must allow TaskEvaluate; errors are as those of Round.
func (c *Coordinator) Evaluate(ctx context.Context, links []Link, o EvaluationOptions) (Evaluation, error) {
	o = o.orDefault()
	fail := func(err error) (Evaluation, error) {
		return Evaluation{}, fmt.Errorf("federate: evaluating the model at its sites: %w", err)
	}
	if o.Classes < 2 || o.Bins < 2 || !(o.Threshold > 0 && o.Threshold < 1) || o.Least < 0 {
		return fail(fmt.Errorf("%w: %d classes, %d bins, a threshold of %g: want at least 2 and 2, and between 0 and 1", ErrRound, o.Classes, o.Bins, o.Threshold))
	}
	sums, err := c.Ask(ctx, links, o.question())
	if err != nil {
		return fail(err)
	}
	e, err := o.read(sums.Values)
	if err != nil {
		return fail(err)
	}
	e.Sites, e.Bytes, e.Lost = sums.Sites, sums.Bytes, sums.Lost
	return e, nil
}

// read makes an evaluation of the sums.
func (o EvaluationOptions) read(sums []float64) (Evaluation, error) {
	n := sums[0]
	if !(n >= 1) {
		return Evaluation{}, fmt.Errorf("%w: no site has examples to count", ErrRound)
	}
	e := Evaluation{Examples: int(n), Accuracy: sums[1] / n, Loss: sums[2] / n}
	rest := sums[evaluationCounts:]
	classes := blocks(o.Classes, o.Labels)
	for k := range classes {
		class := k
		if classes == 1 {
			class = 1
		}
		one, err := o.readClass(class, rest[:perClass(o.Bins)])
		if err != nil {
			return Evaluation{}, err
		}
		rest = rest[perClass(o.Bins):]
		e.Classes = append(e.Classes, one)
		e.AUC.Value += one.AUC.Value / float64(classes)
		e.AUCBins += one.AUCBins / float64(classes)
	}
	e.AUC.Low, e.AUC.High = e.AUC.Value, e.AUC.Value
	if classes == 1 {
		e.AUC = e.Classes[0].AUC
	}
	return e, nil
}

func (o EvaluationOptions) readClass(class int, block []float64) (ClassEvaluation, error) {
	negatives, positives := block[:o.Bins], block[o.Bins:2*o.Bins]
	out := ClassEvaluation{Class: class, Threshold: o.Threshold}
	var err error
	if out.AUC, out.AUCBins, err = histogramAUC(negatives, positives); err != nil {
		return out, fmt.Errorf("class %d: %w", class, err)
	}
	n, p := total(negatives), total(positives)
	out.Negatives, out.Positives = int(n), int(p)
	out.Specificity = train.Wilson(int(n-block[2*o.Bins]), int(n))
	out.Sensitivity = train.Wilson(int(block[2*o.Bins+1]), int(p))
	bins := block[2*o.Bins+2:]
	for b := range calibrationBins {
		out.Calibration += math.Abs(bins[b+2*calibrationBins]-bins[b+calibrationBins]) / (n + p)
	}
	return out, nil
}

func total(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum
}

// histogramAUC is the area under the curve of scores of which only the bins are
// known, pairs in one bin counting half, with DeLong's 95 % interval as
// train.AUC has it. The exact area differs by at most half the share of such
// pairs, within.
func histogramAUC(negatives, positives []float64) (auc train.Interval, within float64, err error) {
	n, p := total(negatives), total(positives)
	if !(n >= 1) || !(p >= 1) {
		return auc, 0, fmt.Errorf("%w: %g positives and %g negatives at all sites: %w", ErrRound, p, n, train.ErrOneClass)
	}
	// the scores as the numbers of their bins, a bin's examples together
	below, belowPositive := 0.0, 0.0
	above, under := make([]float64, len(positives)), make([]float64, len(negatives))
	for b := range negatives {
		above[b] = (below + negatives[b]/2) / n             // share of negatives below a positive here
		under[b] = 1 - (belowPositive+positives[b]/2)/p     // share of positives above a negative here
		within += positives[b] * negatives[b] / (2 * n * p) //
		auc.Value += positives[b] * above[b] / p
		below += negatives[b]
		belowPositive += positives[b]
	}
	spread := func(counts, values []float64, n float64) float64 {
		if n < 2 {
			return 0
		}
		sum := 0.0
		for b, v := range values {
			sum += counts[b] * (v - auc.Value) * (v - auc.Value)
		}
		return sum / (n - 1)
	}
	se := math.Sqrt(spread(positives, above, p)/p + spread(negatives, under, n)/n)
	auc.Low, auc.High = auc.Value, auc.Value
	switch {
	case auc.Value > 1-1e-9: // see train.AUC
		auc = train.Interval{Value: 1, Low: math.Pow(0.05, 1/min(n, p)), High: 1}
	case auc.Value < 1e-9:
		auc = train.Interval{High: 1 - math.Pow(0.05, 1/min(n, p))}
	case se > 0:
		logit := math.Log(auc.Value / (1 - auc.Value))
		half := 1.959963984540054 * se / (auc.Value * (1 - auc.Value))
		logistic := func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }
		auc.Low, auc.High = logistic(logit-half), logistic(logit+half)
	}
	return auc, within, nil
}
