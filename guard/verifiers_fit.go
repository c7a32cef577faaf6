package guard

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/vigie/vigie"
)

// Held is a held-out image with the model's answer to it.
type Held struct {
	Predictions []vigie.Prediction
	Truth       []bool  // of each label; nil: nobody said
	Apart       float64 // what Second or the members gave
	Borderline  bool    // the manifest's band, or the site's margin, sends it to a person
	Rules       bool    // a rule about the answer alone does
	Uncertified bool    // the certificate that the manifest asks for does
	Alarm       bool    // the input guards do
}

// VerifierOptions says how to fit.
type VerifierOptions struct {
	Subject   vigie.ModelDigest
	Data      string
	Seed      uint64
	Labels    []string
	Excluding bool
	Target    string

	Score    string  // of sets; "" is LAC
	Coverage float64 // stated, of sets; 0: 0.95, or what the budget allows; negative: no sets
	Risk     float64 // of a wrong answer among the released ones; 0: none is stated
	Certain  float64 // that the risk is kept; 0 is 0.95
	Apart    *Apart  // what is asked again, without scores; nil: nothing
	Unstable float64 // share of clean images with an alarm of disagreement; 0: 0.01, or what the budget allows

	Review float64 // the budget: share of clean cases that may go to people; 0: none is stated
	// Inputs is what the input guards take of it: their promised, and their
	// expected share of false alarms. 0: there are no guards.
	Inputs, InputsExpected float64
	Certificate            bool // the manifest asks for certificates: see Held.Uncertified
}

// The defaults of VerifierOptions.
const (
	DefaultCoverage = 0.95
	DefaultCertain  = 0.95
	DefaultUnstable = 0.01
)

// maxAlpha is the smallest coverage that is worth stating, as its complement.
const maxAlpha = 0.5

// setsShare is what the sets take of a budget that disagreement shares.
const setsShare = 0.8

// ErrBudget says that a review budget does not suffice for what is asked.
var ErrBudget = errors.New("the review budget does not suffice")

// Budget records how many clean cases go to people, and how that was chosen.
type Budget struct {
	Stated   float64 `json:"stated,omitempty"` // 0: no budget was stated, the shares are what the settings came to
	Expected float64 `json:"expected"`         // share of clean cases sent to people; of a stated budget, at most that
	// Share is the share of new cases that these thresholds send, as far as the
	// images they were chosen on can tell: 95 per cent of the draws.
	Share Share  `json:"share"`
	On    int    `json:"on"` // images that it was measured on
	Parts []Part `json:"parts"`
}

// Part is what one reason for a review contributes.
type Part struct {
	Name   Name    `json:"name"`
	Share  float64 `json:"share"`  // of the images, with or without other reasons
	Alone  float64 `json:"alone"`  // of the images, for this reason only
	Chosen bool    `json:"chosen"` // its threshold was chosen by the budget
	What   string  `json:"what"`   // its threshold, for people
}

func (b *Budget) check() error {
	if !within(b.Stated, 0, 1) || !within(b.Expected, 0, 1) || b.On < 1 || !(b.Share.Low >= 0 && b.Share.Low <= b.Share.Value && b.Share.Value <= b.Share.High && b.Share.High <= 1) || len(b.Parts) > 16 {
		return fmt.Errorf("a budget of %v with an expected share of %v", b.Stated, b.Expected)
	}
	for _, p := range b.Parts {
		if !within(p.Share, 0, 1) || !within(p.Alone, 0, p.Share) || p.Name == "" || len(p.Name) > 64 || len(p.What) > 256 {
			return fmt.Errorf("a part %q with a share of %v", p.Name, p.Share)
		}
	}
	return nil
}

func (o VerifierOptions) check() error {
	switch {
	case o.Score != LAC && o.Score != APS:
		return fmt.Errorf("the score %q: want %s or %s", o.Score, LAC, APS)
	case o.Coverage >= 0 && o.Coverage != 0 && !(o.Coverage >= 1-maxAlpha && o.Coverage < 1), math.IsNaN(o.Coverage):
		return fmt.Errorf("a coverage of %v: want %v to less than 1, or a negative number for no sets", o.Coverage, 1-maxAlpha)
	case !(o.Risk >= 0 && o.Risk < 0.5) || !(o.Certain >= 0.5 && o.Certain < 1):
		return fmt.Errorf("a risk of %v at a certainty of %v: want 0 to less than 0.5, and 0.5 to less than 1", o.Risk, o.Certain)
	case !(o.Unstable >= 0 && o.Unstable <= 0.2):
		return fmt.Errorf("%v alarms of disagreement: want 0 to 0.2", o.Unstable)
	case !(o.Review >= 0 && o.Review < 1):
		return fmt.Errorf("a review budget of %v: want more than 0 and less than 1", o.Review)
	case o.Review > 0 && o.InputsExpected >= o.Review:
		return fmt.Errorf("a review budget of %v: %w: the input guards alone are promised %v of it", o.Review, ErrBudget, o.Inputs)
	}
	return nil
}

// CheckVerifierOptions says what is wrong with options before long work.
func CheckVerifierOptions(o VerifierOptions) error {
	o.Score, o.Certain = cmp.Or(o.Score, LAC), cmp.Or(o.Certain, DefaultCertain)
	if err := o.check(); err != nil {
		return fmt.Errorf("guard: fitting verifiers: %w", err)
	}
	return nil
}

// Divide says which images Fit fits on and which it calibrates on: by patient, as
// it does itself.
func Divide(e Examples, o FitOptions) (fitted, calibrated []int, err error) {
	o.FalseAlarms = cmp.Or(o.FalseAlarms, DefaultFalseAlarms)
	if fitted, calibrated, err = divide(e, o); err != nil {
		err = fmt.Errorf("guard: dividing images: %w", err)
	}
	return fitted, calibrated, err
}

// Halves divides images by patient, seeded: equal images count as one patient's.
func Halves(e Examples, seed uint64) (first, second []int) {
	order, members := e.groups()
	rng := rand.New(rand.NewPCG(seed, 0x9a4e))
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, r := range order {
		if len(first) <= len(second) {
			first = append(first, members[r]...)
		} else {
			second = append(second, members[r]...)
		}
	}
	slices.Sort(first)
	slices.Sort(second)
	return first, second
}

// FitVerifiers fits the verifiers to a model. Without a budget, all images
// calibrate, and thresholds are the stated ones. With one, calibrating images fix
// what each answer scores, and choosing images, which nothing else was fitted on,
// fix the thresholds: by conformal risk control (Angelopoulos et al. 2022), the
// expected share of cases sent to people is then at most the budget for new cases
// exchangeable with them, whatever the model is worth. Input guards are counted by
// their own promise (a union bound).
func FitVerifiers(calibrating, choosing []Held, o VerifierOptions) (*Verifiers, error) {
	v, err := fitVerifiers(calibrating, choosing, o)
	if err != nil {
		return nil, fmt.Errorf("guard: fitting verifiers: %w", err)
	}
	return v, nil
}

func fitVerifiers(calibrating, choosing []Held, o VerifierOptions) (*Verifiers, error) {
	o.Score, o.Certain = cmp.Or(o.Score, LAC), cmp.Or(o.Certain, DefaultCertain)
	if err := o.check(); err != nil {
		return nil, err
	}
	if len(calibrating)+len(choosing) == 0 || o.Review > 0 && (len(calibrating) == 0 || len(choosing) == 0) {
		return nil, fmt.Errorf("%d images to calibrate on and %d to choose on: %w", len(calibrating), len(choosing), ErrTooFew)
	}
	if o.Review == 0 {
		calibrating = append(slices.Clone(calibrating), choosing...)
		choosing = calibrating
	}
	v := &Verifiers{Schema: VerifiersSchema, Subject: o.Subject, Data: o.Data, Seed: o.Seed, Images: len(calibrating),
		Labels: o.Labels, Excluding: o.Excluding, Target: o.Target}
	if o.Review > 0 {
		v.Images += len(choosing)
	}
	if err := v.fitSets(calibrating, o); err != nil {
		return nil, err
	}
	if o.Risk > 0 {
		if err := v.fitFloor(calibrating, o); err != nil {
			return nil, err
		}
	}
	if o.Apart != nil {
		if err := v.fitApart(calibrating, o); err != nil {
			return nil, err
		}
	}
	if o.Review > 0 {
		if err := v.choose(calibrating, choosing, o); err != nil {
			return nil, err
		}
	}
	v.account(choosing, o)
	return v, nil
}

// fitSets calibrates the sets, or says why there are none.
func (v *Verifiers) fitSets(calibrating []Held, o VerifierOptions) error {
	switch {
	case o.Coverage < 0:
		v.WithoutSets = "none were wanted"
		return nil
	case !slices.ContainsFunc(calibrating, func(c Held) bool { return c.Truth != nil }):
		v.WithoutSets = "the images have no labels"
	default:
		s := fitSets(o.Score, o.Labels, o.Excluding, calibrating, o.Seed)
		s.Alpha = 1 - cmp.Or(o.Coverage, DefaultCoverage)
		least := s.Alpha
		if o.Coverage == 0 && o.Review > 0 {
			least = 0.1 // the budget may choose less coverage, but a label of fewer than nine images says too little
		}
		if v.WithoutSets = s.short(least); v.WithoutSets == "" {
			v.Sets = s
			return nil
		}
	}
	if o.Coverage > 0 {
		return fmt.Errorf("no prediction sets with a coverage of %v: %w: %s", o.Coverage, ErrTooFew, v.WithoutSets)
	}
	return nil
}

// fitFloor finds the lowest confidence from which on the risk is kept.
func (v *Verifiers) fitFloor(calibrating []Held, o VerifierOptions) error {
	delta := (1 - o.Certain) / float64(len(floorLevels))
	least := 1.0
	for _, level := range floorLevels {
		f := &Floor{Risk: o.Risk, Certainty: o.Certain, Below: level}
		for _, c := range calibrating {
			if c.Truth == nil || v.confidence(c.Predictions) < level {
				continue
			}
			f.Released++
			if v.Wrong(c.Predictions, c.Truth) {
				f.Wrong++
			}
		}
		f.Bound = mostErrors(f.Wrong, f.Released, delta)
		least = min(least, f.Bound)
		if f.Bound <= o.Risk && f.Released > 0 {
			v.Confidence = f
			return nil
		}
	}
	return fmt.Errorf("a risk of %v at a certainty of %v: %w: at no confidence can it be shown, the lowest bound is %.3g", o.Risk, o.Certain, ErrTooFew, least)
}

// fitApart calibrates disagreement.
func (v *Verifiers) fitApart(calibrating []Held, o VerifierOptions) error {
	a := *o.Apart
	a.Level = cmp.Or(o.Unstable, DefaultUnstable)
	v.Apart = &a
	var scores []float64
	var class []int
	for _, c := range calibrating {
		if v.Asks(c.Predictions) {
			scores, class = append(scores, c.Apart), append(class, v.answer(c.Predictions))
		}
	}
	need := fewest(a.Level)
	if o.Review > 0 && o.Unstable == 0 {
		need = 19 // the level is the budget's
	}
	if len(scores) < need {
		return fmt.Errorf("%d images to calibrate disagreement on: %w: %d are needed, or more alarms", len(scores), ErrTooFew, need)
	}
	c := calibrate(scores, class, true, 2*need)
	a.Scores, a.Class = c.Scores, c.Class
	return nil
}

// sent says which parts send a case to a person.
func (v *Verifiers) sent(c Held) map[Name]bool {
	return map[Name]bool{
		Borderline: c.Borderline, Rules: c.Rules, InputPart: c.Alarm, Uncertified: c.Uncertified,
		SetsPart:     v.Sets != nil && v.Sets.rival(c.Predictions) > v.Sets.Alpha,
		Confidence:   v.Confidence != nil && v.confidence(c.Predictions) < v.Confidence.Below,
		Disagreement: v.Asks(c.Predictions) && v.Apart.pvalue(v, c.Predictions, c.Apart) <= v.Apart.Level,
	}
}

// choose sets the levels that the budget is free to choose. Each choosing image
// gets the smallest t at which it would be sent, where part k sends the share
// t·w[k] of the images that is most suspicious to it, as calibrating images order
// them; images that other reasons send anyway get 0. The largest t at which the
// images sent, and the new case, are no more than the budget of all is taken.
func (v *Verifiers) choose(calibrating, choosing []Held, o VerifierOptions) error {
	freeSets, freeApart := v.Sets != nil && o.Coverage == 0, v.Apart != nil && o.Unstable == 0
	ws, wa := 1.0, 1.0
	if freeSets && freeApart {
		ws, wa = setsShare, 1-setsShare
	}
	var rivals []float64
	asked := 0
	for _, c := range calibrating {
		if freeSets {
			rivals = append(rivals, v.Sets.rival(c.Predictions))
		}
		if freeApart && v.Asks(c.Predictions) {
			asked++
		}
	}
	slices.Sort(rivals)
	share := float64(asked) / float64(len(calibrating)) // of the images that are asked again
	need := make([]float64, len(choosing))
	count := map[Name]int{}
	for i, c := range choosing {
		fixed, free := false, math.Inf(1)
		for name, sent := range v.sent(c) {
			if sent && name != InputPart && !(name == SetsPart && freeSets) && !(name == Disagreement && freeApart) {
				fixed = true
				count[name]++
			}
		}
		if freeSets {
			at, _ := slices.BinarySearch(rivals, v.Sets.rival(c.Predictions))
			free = min(free, float64(1+len(rivals)-at)/float64(len(rivals)+1)/ws)
		}
		if freeApart && v.Asks(c.Predictions) {
			free = min(free, v.Apart.pvalue(v, c.Predictions, c.Apart)*share/wa)
		}
		if need[i] = free; fixed {
			need[i] = 0
		}
	}
	slices.Sort(need)
	output := o.Review - o.InputsExpected
	most := int(math.Floor(output*float64(len(choosing)+1)+1e-9)) - 1 // images that may be sent
	fixed := 0
	for fixed < len(need) && need[fixed] == 0 {
		fixed++
	}
	if fixed > most {
		var costs []string
		for _, name := range []Name{Borderline, Rules, Uncertified, SetsPart, Confidence, Disagreement} {
			if n := count[name]; n > 0 {
				costs = append(costs, fmt.Sprintf("%s %.1f %%", name, 100*float64(n)/float64(len(choosing))))
			}
		}
		return fmt.Errorf("a review budget of %v: %w: what is not for it to choose already sends %s of the clean cases, and %.1f %% together with the input guards",
			o.Review, ErrBudget, cmp.Or(strings.Join(costs, ", "), "too few images, so that one case is too many,"), 100*(float64(fixed+1)/float64(len(choosing)+1)+o.InputsExpected))
	}
	if !freeSets && !freeApart {
		return nil
	}
	limit := math.Inf(1)
	if most < len(need) {
		limit = need[most] * (1 - 1e-9) // images that need less are sent, at most so many; not one that needs the same, however its products are rounded
	}
	if freeSets {
		v.Sets.Alpha = alphaAt(rivals, limit*ws, v.Sets)
		if v.Sets.Alpha > maxAlpha {
			return fmt.Errorf("a review budget of %v: %w: it leaves prediction sets a coverage of %.0f %%, less than one half; leave them out or raise it", o.Review, ErrBudget, 100*(1-min(v.Sets.Alpha, 1)))
		}
	}
	if freeApart {
		v.Apart.Level = 0
		if share > 0 {
			v.Apart.Level = min(0.2, limit*wa/share)
		}
	}
	return nil
}

// alphaAt is the level at which the sets send exactly the images whose place among
// rivals, ascending, is above share: (1 + how many are at least as high)/(n+1) <
// share. No smaller than what leaves a label out at all, which sends fewer.
func alphaAt(rivals []float64, share float64, s *Sets) float64 {
	n := len(rivals)
	m := 0 // so many rivals, at least, are as high as one that is not sent
	for float64(1+m)/float64(n+1) < share && m <= n {
		m++
	}
	alpha := 0.0
	switch {
	case m == 0:
		alpha = 1
	case m <= n:
		alpha = rivals[n-m]
	}
	for _, q := range s.Questions {
		for _, of := range q.Scores {
			alpha = max(alpha, 1/float64(len(of)+1))
		}
	}
	return alpha
}

// account counts what the thresholds come to.
func (v *Verifiers) account(on []Held, o VerifierOptions) {
	b := &Budget{Stated: o.Review, On: len(on)}
	counts, alone := map[Name]int{}, map[Name]int{}
	output, all := 0, 0
	for _, c := range on {
		var reasons []Name
		for name, sent := range v.sent(c) {
			if sent {
				counts[name]++
				reasons = append(reasons, name)
			}
		}
		if len(reasons) == 1 {
			alone[reasons[0]]++
		}
		if len(reasons) > 0 {
			all++
		}
		if len(reasons) > 1 || len(reasons) == 1 && reasons[0] != InputPart {
			output++
		}
	}
	n := len(on)
	b.Expected = min(1, float64(output+1)/float64(n+1)+o.InputsExpected)
	b.Share = sentShare(min(all, n-1), n)
	part := func(name Name, chosen bool, format string, args ...any) {
		b.Parts = append(b.Parts, Part{name, float64(counts[name]) / float64(n), float64(alone[name]) / float64(n), chosen, fmt.Sprintf(format, args...)})
	}
	if o.Inputs > 0 {
		part(InputPart, false, "false alarms of at most %.2g %% of clean images", 100*o.Inputs)
	}
	part(Borderline, false, "the manifest's band and the site's margin")
	part(Rules, false, "plausibility rules about the answer alone")
	if counts[Uncertified] > 0 || o.Certificate {
		part(Uncertified, false, "certificates that the manifest asks for")
	}
	if v.Sets != nil {
		part(SetsPart, o.Review > 0 && o.Coverage == 0, "prediction sets with a coverage of %.4g %%", 100*(1-v.Sets.Alpha))
	}
	if v.Confidence != nil {
		part(Confidence, false, "confidence below %v", v.Confidence.Below)
	}
	if v.Apart != nil {
		part(Disagreement, o.Review > 0 && o.Unstable == 0, "disagreement of %s at a level of %.3g", v.Apart.By, v.Apart.Level)
	}
	v.Budget = b
}
