package simulate

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/train"
)

// AtSites is what the sites found together on examples that they hold, of which
// the coordinator has opened sums alone.
type AtSites struct {
	federate.Evaluation
	// Exact is the AUC of the same examples in one place, for comparison.
	Exact       train.Interval       `json:"exact_auc"`
	Temperature federate.Calibration `json:"temperature"`
	// Pooled is the temperature of the same examples in one place.
	Pooled float64 `json:"pooled_temperature"`
}

// askable adds to terms what evaluating at the sites takes.
func askable(t federate.Terms) federate.Terms {
	t.Tasks, t.Questions = []federate.Task{federate.TaskEvaluate, federate.TaskCalibrate}, 100
	return t
}

// portions divides a set among sites by person, as evenly as can be.
func portions(s *train.Set, sites int, seed uint64) []*train.Set {
	var people [][]int
	known := map[string]int{}
	for i := range s.Len() {
		person := s.Person(i)
		at, met := known[person]
		if !met {
			at = len(people)
			known[person] = at
			people = append(people, nil)
		}
		people[at] = append(people[at], i)
	}
	rng := rand.New(rand.NewPCG(seed, 0xe7a1))
	rng.Shuffle(len(people), func(i, j int) { people[i], people[j] = people[j], people[i] })
	at := make([][]int, sites)
	for i, examples := range people {
		at[i%sites] = append(at[i%sites], examples...)
	}
	out := make([]*train.Set, sites)
	for i := range out {
		out[i] = s.Subset(at[i])
	}
	return out
}

// ask has the sites judge and calibrate the final model on the evaluation set,
// which is divided among them, and compares with the same in one place.
func (o Options) ask(ctx context.Context, r *Report, engine *federate.Engine, c *federate.Coordinator, links []federate.Link) error {
	s := &AtSites{Exact: r.AUC}
	var err error
	e := o.Evaluation
	if s.Evaluation, err = c.Evaluate(ctx, links, federate.EvaluationOptions{Classes: e.Classes, Labels: e.Multi()}); err != nil {
		return err
	}
	if s.Temperature, err = c.Calibrate(ctx, links, federate.CalibrationOptions{Method: federate.Temperature}); err != nil {
		return err
	}
	logits, err := engine.Logits(ctx, c.Weights().Variables, e)
	if err != nil {
		return err
	}
	if s.Pooled, err = e.Temperature(logits); err != nil {
		return err
	}
	r.AtSites = s
	return nil
}

func (s *AtSites) String() string {
	one := s.Classes[len(s.Classes)-1]
	text := fmt.Sprintf("at sites  AUC %.4f ± %.4f by bins, exactly %.4f; accuracy %.1f %%, calibration error %.4f; %d examples of %d sites\n", s.AUC.Value, s.AUCBins, s.Exact.Value, 100*s.Accuracy, one.Calibration, s.Examples, s.Sites)
	if len(s.Classes) == 1 {
		text += fmt.Sprintf("          at a probability of %.2f: sensitivity %.1f %% (%.1f to %.1f), specificity %.1f %% (%.1f to %.1f)\n", one.Threshold,
			100*one.Sensitivity.Value, 100*one.Sensitivity.Low, 100*one.Sensitivity.High, 100*one.Specificity.Value, 100*one.Specificity.Low, 100*one.Specificity.High)
	}
	return text + fmt.Sprintf("          temperature %.4f after %d questions, %.4f with all examples in one place (%.1e apart)\n", s.Temperature.Temperature, s.Temperature.Steps, s.Pooled, math.Abs(s.Temperature.Temperature-s.Pooled))
}
