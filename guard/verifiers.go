package guard

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/vigie/vigie"
)

// VerifiersSchema is the version of the verifiers' file that this package reads.
const VerifiersSchema = 1

// MaxVerifiers bounds the file, in bytes.
const MaxVerifiers = 4 << 20

// ErrVerifiers is returned for bytes that are not a file of verifiers, or that
// contradict themselves; the message says what is wrong.
var ErrVerifiers = errors.New("not a valid file of output verifiers")

// Verifiers look at a model's answer, as guards look at its input: which labels
// the calibration cannot rule out, whether the answer is sure enough for a stated
// risk, and whether slightly altered copies of the image, or the members of an
// ensemble, agree. What they need was fitted to one model (FitVerifiers) and is
// kept in one file, JSON, that names the model by digest. They do not change.
type Verifiers struct {
	Schema  int               `json:"schema"`
	Subject vigie.ModelDigest `json:"subject"` // the package's digest without what was fitted
	Data    string            `json:"data"`    // what they were fitted on, for people
	Seed    uint64            `json:"seed"`
	Images  int               `json:"images"`

	Labels    []string `json:"labels"`    // of the model, in its order
	Excluding bool     `json:"excluding"` // one label is true of each image
	Target    string   `json:"target"`

	Sets        *Sets   `json:"sets,omitempty"`
	WithoutSets string  `json:"without_sets,omitempty"` // why there are none
	Confidence  *Floor  `json:"confidence,omitempty"`   // nil: no risk was stated
	Apart       *Apart  `json:"disagreement,omitempty"` // nil: the manifest does not ask for it
	Budget      *Budget `json:"budget,omitempty"`       // what this comes to in cases for people
}

// Floor is the confidence below which an answer is not released, so that of the
// released ones no more than Risk are wrong: Learn then Test (Angelopoulos et al.
// 2021) over floorLevels, each tested at its share of 1-Certainty (Bonferroni) by
// the bound of Clopper and Pearson, as Geifman and El-Yaniv 2017 bound a risk.
type Floor struct {
	Risk      float64 `json:"risk"`      // stated, of the released answers
	Certainty float64 `json:"certainty"` // that it is kept, over draws of the held-out images
	Below     float64 `json:"below"`     // answers with a confidence below go to a person
	Released  int     `json:"released"`  // of the held-out images, at this floor
	Wrong     int     `json:"wrong"`     // of those
	Bound     float64 `json:"bound"`     // of the risk, at most Risk
}

// floorLevels are the floors that are tried, fixed before any data are seen.
var floorLevels = []float64{0, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999}

// The names of verifiers in findings and budgets.
const (
	Confidence   Name = "confidence"
	Disagreement Name = "disagreement"
	SetsPart     Name = "sets"
	InputPart    Name = "input-guards"
	Borderline   Name = "borderline"
	Rules        Name = "rules"
	Uncertified  Name = "certificate"
)

// confidence is the probability of the answer that predictions give, of the target
// where labels do not exclude each other; 0 where they give not just one.
func (v *Verifiers) confidence(predictions []vigie.Prediction) float64 {
	if v.Excluding {
		positive := -1.0
		for _, p := range predictions {
			if p.Positive && positive >= 0 {
				return 0
			}
			if p.Positive {
				positive = p.Probability
			}
		}
		return max(positive, 0)
	}
	for _, p := range predictions {
		if p.Label == v.Target {
			if p.Positive {
				return p.Probability
			}
			return 1 - p.Probability
		}
	}
	return 0
}

// Wrong says whether an answer that is released would be wrong: another label than
// the true one, or, where labels do not exclude each other, about the target.
func (v *Verifiers) Wrong(predictions []vigie.Prediction, truth []bool) bool {
	for i, p := range predictions {
		if (v.Excluding || p.Label == v.Target) && p.Positive != truth[i] {
			return true
		}
	}
	return false
}

// Judged is what the verifiers say of one answer.
type Judged struct {
	Sets    []vigie.LabelSet
	Results []vigie.GuardResult
	Reasons []vigie.Reason // why a person must read the case
}

// Asks reports whether the model must be asked more than once about an image with
// this answer: see Second.
func (v *Verifiers) Asks(predictions []vigie.Prediction) bool {
	return v.Apart != nil && (v.Apart.Below == 0 || v.confidence(predictions) < v.Apart.Below)
}

// Judge looks at the predictions for one image. apart is what Second measured; not
// a number, where Asks is true, is the largest there can be. An error means that
// nothing can be said, and the image must go to a person.
func (v *Verifiers) Judge(predictions []vigie.Prediction, apart float64) (*Judged, error) {
	if !slices.EqualFunc(predictions, v.Labels, func(p vigie.Prediction, l string) bool { return p.Label == l }) {
		return nil, fmt.Errorf("guard: verifying an answer: %w: its labels are not those that the verifiers were fitted to", ErrOtherModel)
	}
	for _, p := range predictions {
		if !(p.Probability >= 0 && p.Probability <= 1) {
			return nil, fmt.Errorf("guard: verifying an answer: %w", errNotFinite)
		}
	}
	j := &Judged{}
	rule := func(name Name, broken bool, why vigie.Reason) {
		r := vigie.GuardResult{Guard: string(name), PValue: 1}
		if broken {
			r.PValue, r.Alarm, r.Reason = math.SmallestNonzeroFloat64, true, &why
			j.Reasons = append(j.Reasons, why)
		}
		j.Results = append(j.Results, r)
	}
	if v.Sets != nil {
		j.Sets = v.Sets.of(predictions)
		if why := undecided(j.Sets, predictions); why != nil {
			j.Reasons = append(j.Reasons, *why)
		}
	}
	if v.Confidence != nil {
		rule(Confidence, v.confidence(predictions) < v.Confidence.Below, vigie.Reason{Code: vigie.ReasonUnsure, Detail: string(Confidence), Text: vigie.Text{
			English: "The model is not sure enough of its answer: among answers as unsure, more than the stated share may be wrong.",
			French:  "Le modèle n’est pas assez sûr de sa réponse : parmi les réponses aussi incertaines, plus que la part annoncée peuvent être fausses."}})
	}
	if v.Asks(predictions) {
		r := vigie.GuardResult{Guard: string(Disagreement), PValue: v.Apart.pvalue(v, predictions, apart)}
		if r.PValue <= v.Apart.Level {
			r.Alarm = true
			r.Reason = &vigie.Reason{Code: vigie.ReasonUnstable, Detail: string(Disagreement) + " of " + v.Apart.By, Text: v.Apart.text()}
			j.Reasons = append(j.Reasons, *r.Reason)
		}
		j.Results = append(j.Results, r)
	}
	return j, nil
}

// Summary is a copy without the scores, for people to see. It judges nothing.
func (v *Verifiers) Summary() *Verifiers {
	if v == nil {
		return nil
	}
	out := *v
	if v.Sets != nil {
		sets := *v.Sets
		sets.Questions = slices.Clone(sets.Questions)
		for i := range sets.Questions {
			sets.Questions[i].Scores = nil
		}
		out.Sets = &sets
	}
	if v.Apart != nil {
		apart := *v.Apart
		apart.Scores, apart.Class = nil, nil
		out.Apart = &apart
	}
	return &out
}

// Marshal writes the file. Equal verifiers give equal bytes.
func (v *Verifiers) Marshal() ([]byte, error) {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, fmt.Errorf("guard: writing verifiers: %w", err)
	}
	data = append(data, '\n')
	if _, err := ParseVerifiers(data); err != nil { // what cannot be read again is not written
		return nil, fmt.Errorf("guard: writing verifiers: %w", err)
	}
	return data, nil
}

// ParseVerifiers reads the file strictly: an unknown field, a number out of range,
// scores that are not sorted and more than one way to write the same are errors.
func ParseVerifiers(data []byte) (*Verifiers, error) {
	v, err := parseVerifiers(data)
	if err != nil {
		return nil, fmt.Errorf("guard: reading verifiers: %w: %w", ErrVerifiers, err)
	}
	return v, nil
}

func parseVerifiers(data []byte) (*Verifiers, error) {
	if len(data) > MaxVerifiers {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(data), MaxVerifiers)
	}
	v := &Verifiers{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	again, err := json.MarshalIndent(v, "", " ")
	if err != nil || !bytes.Equal(append(again, '\n'), data) {
		return nil, errors.New("it is not written the one way it is written")
	}
	return v, nil
}

// Fits refuses verifiers of another package.
func (v *Verifiers) Fits(subject vigie.ModelDigest, labels []string) error {
	if v.Subject != subject {
		return fmt.Errorf("guard: opening the verifiers of %s: %w: they were fitted to %s; fit them again with vigie model fit", subject, ErrOtherModel, v.Subject)
	}
	if !slices.Equal(v.Labels, labels) {
		return fmt.Errorf("guard: opening the verifiers of %s: %w: they know other labels", subject, ErrOtherModel)
	}
	return nil
}

func within(v, least, most float64) bool { return v >= least && v <= most }

func (v *Verifiers) check() error {
	if v.Schema != VerifiersSchema {
		return fmt.Errorf("schema %d, this version reads %d", v.Schema, VerifiersSchema)
	}
	if _, err := vigie.Digest(v.Subject).Sum(); err != nil {
		return fmt.Errorf("its subject: %w", err)
	}
	if n := len(v.Labels); n < 1 || n > 4096 || v.Excluding && n < 2 || !slices.Contains(v.Labels, v.Target) || len(v.Data) > 1024 || v.Images < 1 {
		return fmt.Errorf("%d labels, target %q, %d images", n, v.Target, v.Images)
	}
	for i, l := range v.Labels {
		if l == "" || len(l) > 128 || slices.Contains(v.Labels[:i], l) {
			return fmt.Errorf("label %d is %q", i, l)
		}
	}
	if v.Sets != nil {
		if err := v.Sets.check(v); err != nil {
			return err
		}
	}
	if f := v.Confidence; f != nil && !(f.Risk > 0 && f.Risk < 0.5 && f.Certainty >= 0.5 && f.Certainty < 1 && slices.Contains(floorLevels, f.Below) &&
		f.Wrong >= 0 && f.Wrong <= f.Released && f.Released <= v.Images && within(f.Bound, 0, f.Risk)) {
		return fmt.Errorf("a floor of confidence at %v for a risk of %v", f.Below, f.Risk)
	}
	if v.Apart != nil {
		if err := v.Apart.check(v); err != nil {
			return err
		}
	}
	if v.Budget != nil {
		return v.Budget.check()
	}
	return nil
}

func (s *Sets) check(v *Verifiers) error {
	if s.Score != LAC && s.Score != APS || !within(s.Alpha, 0, maxAlpha) {
		return fmt.Errorf("sets by the score %q at a level of %v", s.Score, s.Alpha)
	}
	want := questions(v.Labels, v.Excluding)
	if len(s.Questions) != len(want) {
		return fmt.Errorf("%d questions, want %d", len(s.Questions), len(want))
	}
	for i, q := range s.Questions {
		if q.Label != want[i].Label || !slices.Equal(q.Options, want[i].Options) || len(q.Scores) != len(q.Options) || len(q.Labelled) != len(q.Options) {
			return fmt.Errorf("question %d is about %q", i, q.Label)
		}
		for y, of := range q.Scores {
			if len(of) < 1 || len(of) > maxScores || q.Labelled[y] < len(of) || !slices.IsSorted(of) || !within(of[0], 0, 1) || !within(of[len(of)-1], 0, 1) {
				return fmt.Errorf("the scores of question %d, option %q, are %d that are not sorted from 0 to 1", i, q.Options[y], len(of))
			}
		}
	}
	return nil
}
