package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/train"
)

// Verifying says how the verifiers of the answer are fitted.
type Verifying struct {
	Coverage float64 // stated, of prediction sets; 0: 0.95, or what the budget allows; negative: no sets
	Score    string  // guard.LAC or guard.APS; "" is LAC
	Risk     float64 // of a wrong answer among the released ones; 0: none is stated
	Certain  float64 // that it is kept; 0 is 0.95
	Unstable float64 // share of clean images with an alarm of disagreement; 0: 0.01, or what the budget allows
	Review   float64 // share of clean cases that may go to people; 0: no budget
	Margin   float64 // the gateway's review.margin, which the budget counts
}

// guardsShare is what the input guards may take of a review budget, at most.
const guardsShare = 0.2

// options are those of package guard, for a package.
func (f *Fit) options(p *model.Package, subject vigie.ModelDigest) (guard.VerifierOptions, error) {
	o := guard.VerifierOptions{
		Subject: subject, Data: f.Options.Data, Seed: f.Options.Seed, Labels: labelsOf(p), Excluding: excluding(p.Manifest), Target: p.Manifest.Output.Target,
		Certificate: p.Manifest.Certificate.Wanted(), Score: f.Verify.Score, Coverage: f.Verify.Coverage, Risk: f.Verify.Risk, Certain: f.Verify.Certain, Unstable: f.Verify.Unstable, Review: f.Verify.Review,
	}
	if !f.WithoutGuards {
		if f.Options.FalseAlarms == 0 {
			f.Options.FalseAlarms = guard.DefaultFalseAlarms
			if o.Review > 0 {
				f.Options.FalseAlarms = min(f.Options.FalseAlarms, guardsShare*o.Review)
			}
		}
		o.Inputs, o.InputsExpected = f.Options.FalseAlarms, f.Options.FalseAlarms
	}
	if !(f.Verify.Margin >= 0 && f.Verify.Margin <= 0.5) {
		return o, fmt.Errorf("job: a margin of %v: %w: want 0 to 0.5", f.Verify.Margin, ErrAsk)
	}
	if d := p.Manifest.Disagreement; d.Asks() {
		n, err := Network(p)
		if err != nil {
			return o, err
		}
		o.Apart = &guard.Apart{By: guard.Members, Members: guard.MembersOf(p.Graph, p.Manifest.Output.Name)}
		if d.By == model.ByMembers && o.Apart.Members == nil {
			return o, fmt.Errorf("job: the manifest compares the members of an ensemble: %w: output %q is no plain mean of several: compare views", ErrAsk, p.Manifest.Output.Name)
		}
		if d.By == model.ByViews || o.Apart.Members == nil {
			in := p.Manifest.Input
			o.Apart = &guard.Apart{By: guard.Views, Views: guard.ViewsOf(in.Rows, in.Columns, d.Shift, d.Brightness, d.Flip), Wiring: guard.WiringOf(n)}
		}
		if d.Mode == model.AskBorderline {
			o.Apart.Below = d.Below
		}
	} else if f.Verify.Unstable > 0 {
		return o, fmt.Errorf("job: a level of disagreement: %w: the manifest does not ask for disagreement", ErrAsk)
	}
	return o, guard.CheckVerifierOptions(o)
}

func labelsOf(p *model.Package) (labels []string) {
	for _, l := range p.Manifest.Output.Labels {
		labels = append(labels, l.Name)
	}
	return labels
}

// excluding says whether one of all labels is true of an image: the activation, or
// for probabilities a rule, says so.
func excluding(m *model.Manifest) bool {
	if m.Output.Activation != model.None || len(m.Output.Labels) < 2 {
		return m.Output.Activation == model.Softmax
	}
	return slices.ContainsFunc(m.Plausibility, func(r model.Rule) bool {
		return r.Rule == model.SumsToOne && len(r.Labels) == len(m.Output.Labels)
	})
}

// truths are the labels of the images, of each label of the package; nil where
// they do not say.
func truths(p *model.Package, set *train.Set) [][]bool {
	labels := len(p.Manifest.Output.Labels)
	single := labels == 1 && set.Classes == 2 && !set.Multi() // absent and present
	if set.Len() == 0 || !single && (set.Classes != labels || excluding(p.Manifest) == set.Multi()) {
		return nil
	}
	out := make([][]bool, set.Len())
	for i := range out {
		out[i] = make([]bool, labels)
		for k := range labels {
			at := k
			if single {
				at = 1
			}
			out[i][k] = set.Has(i, at)
		}
	}
	return out
}

// answered are held-out images with what the model says of them, and the time that
// one image took, once and again.
func answered(ctx context.Context, p *model.Package, apart *guard.Apart, images [][]float32, truth [][]bool, margin float64, threads int) (held []guard.Held, again []float64, err error) {
	n, err := Network(p)
	if err != nil {
		return nil, nil, err
	}
	var also []string
	var second *guard.Second
	if apart != nil && apart.By == guard.Views {
		if second, err = guard.OpenSecond(p.Graph, apart, threads); err != nil {
			return nil, nil, err
		}
		defer func() { err = errors.Join(err, second.Close()) }()
	} else if apart != nil {
		also = apart.Members
	}
	answers, err := guard.Answers(ctx, n, images, threads, also...)
	if err != nil {
		return nil, nil, err
	}
	held = make([]guard.Held, len(images))
	for i, a := range answers {
		h := &held[i]
		if h.Predictions, err = p.Predictions(a.Output); err != nil {
			return nil, nil, fmt.Errorf("job: image %d: %w", i, err)
		}
		h.Borderline, h.Rules = p.Manifest.ReviewAnswer(h.Predictions)
		for _, v := range h.Predictions {
			h.Borderline = h.Borderline || math.Abs(v.Probability-v.Threshold) < margin
		}
		if truth != nil {
			h.Truth = truth[i]
		}
		switch {
		case second != nil:
			start := time.Now()
			h.Apart, err = second.Ask(ctx, engine.Float32(p.Manifest.Input.Shape(1), images[i]), a.Output)
			again = append(again, time.Since(start).Seconds())
		case apart != nil:
			others := make([][]float64, len(a.Also))
			for k, m := range a.Also {
				for _, x := range m {
					others[k] = append(others[k], float64(x))
				}
			}
			h.Apart, err = guard.Spread(p.Manifest.Output.Activation, a.Output, others)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("job: image %d: %w", i, err)
		}
	}
	return held, again, nil
}

// certify says of each image whether the certificate that the manifest asks for
// sends it to a person. Images are of rows and columns.
func certify(ctx context.Context, p *model.Package, images [][]float32, rows, columns int, held []guard.Held, seed uint64, threads int) (err error) {
	wanted := p.Manifest.Certificate
	if !wanted.Wanted() {
		return nil
	}
	about, err := p.Certified()
	if err != nil {
		return err
	}
	certifier, err := certificate.Open(about, wanted.CertificateOptions(threads))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, certifier.Close()) }()
	for i, values := range images {
		h := &held[i]
		if !wanted.Asks(p.Manifest.Output.Target, h.Predictions) {
			continue
		}
		input, answer := engine.Float32(p.Manifest.Input.Shape(1), values), model.AnswerOf(h.Predictions)
		if wanted.Patch != nil {
			region, touched, _, err := p.Manifest.Squares(*wanted.Patch, rows, columns)
			if err != nil {
				return err
			}
			found, err := certifier.Squares(ctx, input, answer, touched, region)
			if err != nil {
				return fmt.Errorf("job: image %d: %w", i, err)
			}
			h.Uncertified = !found.Agreed() || wanted.Patch.Uncertified == model.Review && !found.Certified
		}
		if wanted.Smoothing != nil {
			found, err := certifier.Smooth(ctx, input, seedOf(seed, i))
			if err != nil {
				return fmt.Errorf("job: image %d: %w", i, err)
			}
			h.Uncertified = h.Uncertified || found.Abstain || found.Answer != answer
		}
	}
	return nil
}

// TriedAnswers says what the verifiers, and everything else that sends a case to a
// person, do with labelled images.
type TriedAnswers struct {
	Labels  []TriedLabel    `json:"labels,omitempty"` // coverage of the sets
	Decided *train.Interval `json:"decided,omitempty"`
	Stated  float64         `json:"stated_coverage,omitempty"`
	Budget  float64         `json:"budget,omitempty"`
	Sent    train.Interval  `json:"sent"` // share of the images that go to people
	ByPart  map[string]int  `json:"by_part"`
	// Released are the answers that go out without a person.
	Released int             `json:"released"`
	Right    *train.Interval `json:"right,omitempty"`     // share of the released that is right
	Before   *train.Interval `json:"right_all,omitempty"` // share of all answers that is right
	Again    float64         `json:"again_seconds,omitempty"`
}

// TriedLabel is the coverage of one label.
type TriedLabel struct {
	Label string         `json:"label"`
	Held  train.Interval `json:"held"` // share of the images with this label whose set holds it
	Of    int            `json:"of"`
}

// tryAnswers runs the verifiers on images, of which the guards have raised alarms.
func (t Try) tryAnswers(ctx context.Context, p *model.Package, v *guard.Verifiers, images [][]float32, set *train.Set, alarms []bool) (*TriedAnswers, error) {
	truth := truths(p, set)
	held, again, err := answered(ctx, p, v.Apart, images, truth, t.Margin, t.Threads)
	if err == nil {
		err = certify(ctx, p, images, set.Rows, set.Columns, held, t.Data.Seed, t.Threads)
	}
	if err != nil {
		return nil, err
	}
	out := &TriedAnswers{ByPart: map[string]int{}}
	if len(again) > 0 {
		out.Again = median(again)
	}
	if v.Budget != nil {
		out.Budget = v.Budget.Stated
	}
	covered, of := map[string]int{}, map[string]int{}
	decided, sent, right, all := 0, 0, 0, 0
	for i, h := range held {
		j, err := v.Judge(h.Predictions, h.Apart)
		if err != nil {
			return nil, fmt.Errorf("job: image %d: %w", i, err)
		}
		parts := map[string]bool{string(guard.Borderline): h.Borderline, string(guard.Rules): h.Rules, string(guard.Uncertified): h.Uncertified, string(guard.InputPart): alarms != nil && alarms[i]}
		for _, r := range j.Reasons {
			parts[string(r.Code)] = true
		}
		review := false
		for name, is := range parts {
			if is {
				out.ByPart[name]++
				review = true
			}
		}
		once := true
		for _, s := range j.Sets {
			once = once && s.Decided()
			if h.Truth == nil {
				continue
			}
			key, holds := "", false
			if s.Label == "" {
				at := slices.Index(h.Truth, true)
				key, holds = v.Labels[at], slices.Contains(s.Holds, v.Labels[at])
			} else {
				name := vigie.SetAbsent
				if h.Truth[slices.Index(v.Labels, s.Label)] {
					name = vigie.SetPresent
				}
				key, holds = s.Label+" "+name, slices.Contains(s.Holds, name)
			}
			if of[key]++; holds {
				covered[key]++
			}
		}
		if once {
			decided++
		}
		if review {
			sent++
		}
		if h.Truth != nil {
			ok := !v.Wrong(h.Predictions, h.Truth)
			if ok {
				all++
			}
			if ok && !review {
				right++
			}
		}
	}
	interval := func(hits, n int) *train.Interval { i := train.Wilson(hits, n); return &i }
	if v.Sets != nil {
		out.Stated, out.Decided = 1-v.Sets.Alpha, interval(decided, len(held))
		for _, promise := range v.Sets.Promises() {
			if n := of[promise.Label]; n > 0 {
				out.Labels = append(out.Labels, TriedLabel{promise.Label, train.Wilson(covered[promise.Label], n), n})
			}
		}
	}
	out.Sent, out.Released = train.Wilson(sent, len(held)), len(held)-sent
	if truth != nil {
		out.Before = interval(all, len(held))
		if out.Released > 0 {
			out.Right = interval(right, out.Released)
		}
	}
	return out, nil
}

// write writes it for people.
func (t *TriedAnswers) write(s *strings.Builder) {
	percent := func(i train.Interval) string {
		return fmt.Sprintf("%.2f %% (95 %% %.2f to %.2f)", 100*i.Value, 100*i.Low, 100*i.High)
	}
	if t.Decided != nil {
		fmt.Fprintf(s, "sets               decided in %s, at a stated coverage of %.4g %%\n", percent(*t.Decided), 100*t.Stated)
		for _, l := range t.Labels {
			fmt.Fprintf(s, "  %-16s held in %s of %d\n", l.Label, percent(l.Held), l.Of)
		}
	}
	fmt.Fprintf(s, "to people          %s", percent(t.Sent))
	if t.Budget > 0 {
		fmt.Fprintf(s, ", for a budget of %.4g %%", 100*t.Budget)
	}
	s.WriteString("\n")
	for _, name := range slices.Sorted(maps.Keys(t.ByPart)) {
		fmt.Fprintf(s, "  %-16s %d\n", name, t.ByPart[name])
	}
	if t.Right != nil && t.Before != nil {
		fmt.Fprintf(s, "right              %s of %d released, %s of all\n", percent(*t.Right), t.Released, percent(*t.Before))
	}
	if t.Again > 0 {
		fmt.Fprintf(s, "asking again       %.3f ms an image (median)\n", 1000*t.Again)
	}
}

// WriteVerifiers writes what a package's verifiers are and send, for people.
func WriteVerifiers(w io.Writer, v *guard.Verifiers) error {
	var s strings.Builder
	var promises []guard.Promise
	if v.Sets != nil {
		promises = v.Sets.Promises()
	}
	writeVerifiers(&s, v, promises)
	_, err := io.WriteString(w, s.String())
	return err
}

func writeVerifiers(s *strings.Builder, v *guard.Verifiers, promises []guard.Promise) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(s, "%-18s %s\n", name, fmt.Sprintf(format, args...))
	}
	if v.Sets == nil {
		line("prediction sets", "none: %s", v.WithoutSets)
	} else {
		line("prediction sets", "coverage %.4g %% of each label, by %s", 100*(1-v.Sets.Alpha), v.Sets.Score)
		for _, p := range promises {
			line("", "%s: %.2f %% in the mean over calibrations of %d images, a single one %.1f to %.1f %%", p.Label, 100*p.Coverage, p.Images, 100*p.Low, 100*p.High)
		}
	}
	if f := v.Confidence; f != nil {
		line("stated risk", "at most %.4g %% of the released answers wrong, with %.4g %% certainty: confidence from %v on; %d of %d were wrong, the bound is %.2f %%",
			100*f.Risk, 100*f.Certainty, f.Below, f.Wrong, f.Released, 100*f.Bound)
	}
	if a := v.Apart; a != nil {
		what := fmt.Sprintf("%d views", len(a.Views))
		if a.By == guard.Members {
			what = fmt.Sprintf("%d members", len(a.Members))
		}
		asked := "of every answer"
		if a.Below > 0 {
			asked = fmt.Sprintf("of answers with a confidence below %v", a.Below)
		}
		line("disagreement", "%s, %s, an alarm at a level of %.3g", what, asked, a.Level)
	}
	if b := v.Budget; b != nil {
		head := "no budget was stated; by these settings"
		if b.Stated > 0 {
			head = fmt.Sprintf("budget %.4g %%;", 100*b.Stated)
		}
		line("to people", "%s %.2f %% of clean cases are expected (of one fit, 95 %%: %.2f to %.2f), measured on %d images",
			head, 100*b.Expected, 100*b.Share.Low, 100*b.Share.High, b.On)
		for _, p := range b.Parts {
			chosen := ""
			if p.Chosen {
				chosen = ", chosen by the budget"
			}
			line("", "%-12s %5.2f %%, alone %5.2f %%: %s%s", p.Name, 100*p.Share, 100*p.Alone, p.What, chosen)
		}
	}
}
