package simulate

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/watch"
	"github.com/vigie/vigie/guard"
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
	// Guards are those of inner layers and texture; nil: examples are no images.
	Guards *GuardsAtSites `json:"guards,omitempty"`
}

// GuardsAtSites is a fit of guards from sums.
type GuardsAtSites struct {
	Parts      []string `json:"parts"` // inner layers, and the texture
	Fitted     int      `json:"fitted"`
	Calibrated int      `json:"calibrated"`
	// Apart is by how much a distance differs from that of the fit to the same
	// examples in one place, at most, in nats.
	Apart float64 `json:"apart"`
	// Otherwise is how many of the examples would be judged otherwise, at five false
	// alarms in a hundred.
	Otherwise int `json:"judged_otherwise"`
}

// askable adds to terms what evaluating at the sites takes.
func askable(t federate.Terms) federate.Terms {
	t.Tasks, t.Questions = []federate.Task{federate.TaskEvaluate, federate.TaskCalibrate, federate.TaskGuards}, 100
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
	if e.Pixels == nil || e.Rows < 8 || e.Columns < 8 {
		return nil
	}
	if s.Guards, err = o.guards(ctx, engine, c, links); err != nil {
		return fmt.Errorf("simulate: fitting guards: %w", err)
	}
	return nil
}

// answers are what a site answers with, about a part of the evaluation set.
func (o Options) answers(e *federate.Engine, s *train.Set) federate.Answerers {
	out := e.Answers(s)
	if s.Pixels != nil {
		images, patients := watch.ImagesOf(s)
		out[federate.TaskGuards] = &watch.Site{Network: watch.NetworkOf(e, o.Network, s), Images: images, Patients: patients, Seed: o.Seed, Threads: 1}
	}
	return out
}

// guards fits guards at the sites, and to the same halves in one place.
func (o Options) guards(ctx context.Context, e *federate.Engine, c *federate.Coordinator, links []federate.Link) (*GuardsAtSites, error) {
	of := watch.NetworkOf(e, o.Network, o.Evaluation)
	got, err := watch.Fit(ctx, c, links, of, 0)
	if err != nil {
		return nil, err
	}
	n, err := of(federate.Subject{Variables: c.Weights().Variables})
	if err != nil {
		return nil, err
	}
	want, err := guard.NewAdditive(n)
	if err != nil {
		return nil, err
	}
	var halves [2][][]float32
	for _, s := range portions(o.Evaluation, o.Sites, o.Seed) {
		images, patients := watch.ImagesOf(s)
		if len(images) < 2 {
			continue
		}
		first, second := guard.Halves(guard.Examples{Images: images, Patients: patients}, o.Seed)
		for k, at := range [][]int{first, second} {
			for _, i := range at {
				halves[k] = append(halves[k], images[i])
			}
		}
	}
	var measured [2]*guard.Features
	for k, images := range halves {
		if measured[k], err = guard.Measure(ctx, n, images, 1); err != nil {
			return nil, err
		}
	}
	for want.Step != guard.StepDone {
		f := measured[0]
		if want.Step == guard.StepClean {
			f = measured[1]
		}
		sums, err := want.Sums(f)
		if err != nil {
			return nil, err
		}
		if err := want.Next(sums); err != nil {
			return nil, err
		}
	}
	out := &GuardsAtSites{Fitted: measured[0].Len(), Calibrated: measured[1].Len()}
	for _, p := range got.Parts {
		out.Parts = append(out.Parts, p.Name)
	}
	for _, f := range measured {
		out.Apart = max(out.Apart, got.Apart(want, f))
		ours, err := got.PValues(f)
		if err != nil {
			return nil, err
		}
		theirs, err := want.PValues(f)
		if err != nil {
			return nil, err
		}
		for i := range ours {
			if (ours[i] <= 0.05) != (theirs[i] <= 0.05) {
				out.Otherwise++
			}
		}
	}
	return out, nil
}

func (s *AtSites) String() string {
	one := s.Classes[len(s.Classes)-1]
	text := fmt.Sprintf("at sites  AUC %.4f ± %.4f by bins, exactly %.4f; accuracy %.1f %%, calibration error %.4f; %d examples of %d sites\n", s.AUC.Value, s.AUCBins, s.Exact.Value, 100*s.Accuracy, one.Calibration, s.Examples, s.Sites)
	if len(s.Classes) == 1 {
		text += fmt.Sprintf("          at a probability of %.2f: sensitivity %.1f %% (%.1f to %.1f), specificity %.1f %% (%.1f to %.1f)\n", one.Threshold,
			100*one.Sensitivity.Value, 100*one.Sensitivity.Low, 100*one.Sensitivity.High, 100*one.Specificity.Value, 100*one.Specificity.Low, 100*one.Specificity.High)
	}
	text += fmt.Sprintf("          temperature %.4f after %d questions, %.4f with all examples in one place (%.1e apart)\n", s.Temperature.Temperature, s.Temperature.Steps, s.Pooled, math.Abs(s.Temperature.Temperature-s.Pooled))
	if g := s.Guards; g != nil {
		text += fmt.Sprintf("          guards of %d inner layers and the texture, fitted to %d and calibrated on %d images: distances within %.1e nats of one place, %d images judged otherwise\n", len(g.Parts)-1, g.Fitted, g.Calibrated, g.Apart, g.Otherwise)
	}
	return text
}
