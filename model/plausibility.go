package model

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// The plausibility rules.
const (
	SumsToOne       = "sums-to-one"       // the probabilities of Labels sum to 1 within Tolerance
	Exclusive       = "exclusive"         // at most one of Labels is positive
	Exhaustive      = "exhaustive"        // at least one of Labels is positive
	Implies         = "implies"           // a positive Label needs a positive Requires
	NeedsSex        = "needs-sex"         // a positive Label needs (0010,0040) to be one of Values
	NeedsAge        = "needs-age"         // a positive Label needs an age of From to To years
	NeedsSide       = "needs-side"        // a positive Label needs a laterality that is one of Values
	NeedsBodyPart   = "needs-body-part"   // a positive Label needs a body part that is one of Values
	SomeConfidence  = "some-confidence"   // one of Labels has a probability of at least From
	AgreesWithPrior = "agrees-with-prior" // Label is as in the patient's latest study of the last Days, up to Flips and Jump
)

// Rule is a plausibility rule: a prediction that breaks it goes to a person.
type Rule struct {
	Rule      string   `yaml:"rule"`
	Labels    []string `yaml:"labels"`
	Label     string   `yaml:"label"`
	Requires  string   `yaml:"requires"`
	Values    []string `yaml:"values"`
	From      float64  `yaml:"from"`
	To        float64  `yaml:"to"`
	Tolerance float64  `yaml:"tolerance"`
	Unknown   Policy   `yaml:"unknown"` // of the rules about the patient and the image, where they do not say: review, or accept (the default)
	Days      int      `yaml:"days"`    // of agrees-with-prior: how long an earlier study counts
	Flips     string   `yaml:"flips"`   // of agrees-with-prior: which change of the finding a person must see
	Jump      float64  `yaml:"jump"`    // of agrees-with-prior: the largest change of the probability that nobody needs to see; 0 is any
	Text      Text     `yaml:"text"`    // what a person reads when it is broken; a general sentence where empty
}

// The changes that agrees-with-prior may refer.
const (
	FlipGone     = "gone"     // it was positive and is not
	FlipAppeared = "appeared" // it is positive and was not
	FlipBoth     = "both"
)

var (
	sexValues  = []string{"F", "M", "O"}
	sideValues = []string{"L", "R", "B", "U"}
)

// evidence is what a rule judges by.
type evidence struct {
	m        *Manifest
	by       map[string]vigie.Prediction
	about    *dicom.DataSet // nil: nothing is known of the image
	original bool           // about still says who the patient is
}

// verdictOf says whether a rule is broken, or that it could not be asked.
type verdictOf int

const (
	holds verdictOf = iota
	broken
	unasked
)

// ruleRow is a row of the table of rules.
type ruleRow struct {
	name    string
	problem func(p *problemList, path string, r Rule)
	judge   func(r Rule, e evidence) verdictOf
	text    func(r Rule, e evidence) vigie.Text
	ask     vigie.Text // what is missing where the answer is unasked
	patient bool       // it needs attributes that do not survive de-identification
}

// ruleTable are the rules, in the order in which they are listed to people. It
// is filled by init, because its rows refer back to it.
var ruleTable []ruleRow

func init() {
	ruleTable = []ruleRow{
		{name: SumsToOne, problem: func(p *problemList, path string, r Rule) {
			p.labels(path, r.Labels, 2)
			p.number(path+".tolerance", r.Tolerance, 1e-9, 0.5)
		}, judge: func(r Rule, e evidence) verdictOf {
			sum := 0.0
			for _, label := range r.Labels {
				sum += e.by[label].Probability
			}
			return brokenIf(!(math.Abs(sum-1) <= r.Tolerance))
		}, text: fixed("The probabilities of labels that exclude each other do not sum to one.",
			"La somme des probabilités de classes qui s’excluent n’est pas égale à un.")},

		{name: Exclusive, problem: func(p *problemList, path string, r Rule) { p.labels(path, r.Labels, 2) },
			judge: func(r Rule, e evidence) verdictOf { return brokenIf(e.positives(r.Labels) > 1) },
			text: fixed("Labels that exclude each other are positive together.",
				"Des classes qui s’excluent sont positives ensemble.")},

		{name: Exhaustive, problem: func(p *problemList, path string, r Rule) { p.labels(path, r.Labels, 2) },
			judge: func(r Rule, e evidence) verdictOf { return brokenIf(e.positives(r.Labels) == 0) },
			text: fixed("None of the labels of which one must be true is positive.",
				"Aucune des classes dont l’une doit être vraie n’est positive.")},

		{name: SomeConfidence, problem: func(p *problemList, path string, r Rule) {
			p.labels(path, r.Labels, 1)
			p.number(path+".from", r.From, 1e-6, 1)
		}, judge: func(r Rule, e evidence) verdictOf {
			highest := 0.0
			for _, label := range r.Labels {
				highest = max(highest, e.by[label].Probability)
			}
			return brokenIf(highest < r.From)
		}, text: fixed("The model is sure of no label.", "Le modèle n’est sûr d’aucune classe.")},

		{name: Implies, problem: func(p *problemList, path string, r Rule) {
			p.isLabel(path+".label", r.Label)
			p.isLabel(path+".requires", r.Requires)
			if r.Label == r.Requires {
				p.at(path+".requires", "%q requires itself", r.Label)
			}
		}, judge: func(r Rule, e evidence) verdictOf {
			return brokenIf(e.by[r.Label].Positive && !e.by[r.Requires].Positive)
		}, text: func(r Rule, e evidence) vigie.Text {
			this, other := e.by[r.Label].Code, e.by[r.Requires].Code
			return vigie.Text{
				English: fmt.Sprintf("%s is positive without %s.", this.Meaning, other.Meaning),
				French:  fmt.Sprintf("« %s » est positif sans « %s ».", or(this.French, this.Meaning), or(other.French, other.Meaning))}
		}},

		{name: NeedsSex, patient: true, problem: func(p *problemList, path string, r Rule) { p.needs(path, r, sexValues) },
			judge: func(r Rule, e evidence) verdictOf {
				return e.needs(r, e.about.String(dicom.PatientSex))
			}, text: about("%s does not go with the patient's sex.", "« %s » ne s’accorde pas avec le sexe du patient."),
			ask: vigie.Text{English: "The image does not state the patient's sex, which %s depends on.",
				French: "L’image n’indique pas le sexe du patient, dont dépend « %s »."}},

		{name: NeedsSide, problem: func(p *problemList, path string, r Rule) { p.needs(path, r, sideValues) },
			judge: func(r Rule, e evidence) verdictOf { return e.needs(r, Side(e.about)) },
			text:  about("%s does not go with the side that the image shows.", "« %s » ne s’accorde pas avec le côté que montre l’image."),
			ask: vigie.Text{English: "The image does not state its side, which %s depends on.",
				French: "L’image n’indique pas son côté, dont dépend « %s »."}},

		{name: NeedsBodyPart, problem: func(p *problemList, path string, r Rule) {
			p.isLabel(path+".label", r.Label)
			if len(r.Values) == 0 {
				p.at(path+".values", "is empty")
			}
			for i, v := range r.Values {
				if !codeStrings.MatchString(v) {
					p.at(fmt.Sprintf("%s.values[%d]", path, i), "is %q, want a DICOM code string (upper case, up to 16)", v)
				}
			}
		}, judge: func(r Rule, e evidence) verdictOf {
			where, _ := locate(e.about, dicom.BodyPartExamined, dicom.AnatomicRegionSequence, e.m.placesOf(r.Values), regions)
			switch {
			case !e.by[r.Label].Positive || where == inside:
				return holds
			case where == outside:
				return broken
			}
			return unasked
		}, text: about("%s does not go with the body part that the image shows.", "« %s » ne s’accorde pas avec la partie du corps que montre l’image."),
			ask: vigie.Text{English: "The image does not clearly say which body part it shows, which %s depends on.",
				French: "L’image n’indique pas clairement la partie du corps, dont dépend « %s »."}},

		{name: NeedsAge, patient: true, problem: func(p *problemList, path string, r Rule) {
			p.isLabel(path+".label", r.Label)
			if !(r.From >= 0 && r.From <= r.To && r.To <= 150) || math.IsNaN(r.To) {
				p.at(path, "goes from %v to %v years, want 0 to 150 in this order", r.From, r.To)
			}
		}, judge: func(r Rule, e evidence) verdictOf {
			years, known := ageOf(e.about)
			switch {
			case !e.by[r.Label].Positive:
				return holds
			case !known:
				return unasked
			}
			return brokenIf(!(years >= r.From && years < r.To+1))
		}, text: about("%s does not go with the patient's age.", "« %s » ne s’accorde pas avec l’âge du patient."),
			ask: vigie.Text{English: "The patient's age is not known, which %s depends on.",
				French: "L’âge du patient n’est pas connu, dont dépend « %s »."}},

		{name: AgreesWithPrior, problem: func(p *problemList, path string, r Rule) {
			p.isLabel(path+".label", r.Label)
			p.number(path+".days", float64(r.Days), 1, 36500)
			p.number(path+".jump", r.Jump, 0, 1)
			if r.Flips != "" {
				p.oneOf(path+".flips", r.Flips, FlipGone, FlipAppeared, FlipBoth)
			} else if r.Jump == 0 {
				p.at(path, "refers nothing: give flips (%s, %s or %s), a jump, or both", FlipGone, FlipAppeared, FlipBoth)
			}
		}, judge: func(Rule, evidence) verdictOf { return holds }, // see Manifest.CheckPriors
			text: fixed("The answer contradicts an earlier study of the same patient.", "La réponse contredit un examen antérieur du même patient.")},
	}
}

func fixed(english, french string) func(Rule, evidence) vigie.Text {
	return func(Rule, evidence) vigie.Text { return vigie.Text{English: english, French: french} }
}

// about names the label in a sentence.
func about(english, french string) func(Rule, evidence) vigie.Text {
	return func(r Rule, e evidence) vigie.Text {
		return named(vigie.Text{English: english, French: french}, e.by[r.Label].Code)
	}
}

func named(t vigie.Text, c vigie.Code) vigie.Text {
	return vigie.Text{English: fmt.Sprintf(t.English, c.Meaning), French: fmt.Sprintf(t.French, or(c.French, c.Meaning))}
}

func brokenIf(yes bool) verdictOf {
	if yes {
		return broken
	}
	return holds
}

// needs compares an attribute with the values that a positive label needs.
func (e evidence) needs(r Rule, value string) verdictOf {
	switch {
	case !e.by[r.Label].Positive:
		return holds
	case value == "":
		return unasked
	}
	return brokenIf(!slices.Contains(r.Values, value))
}

func (e evidence) positives(labels []string) (count int) {
	for _, label := range labels {
		if e.by[label].Positive {
			count++
		}
	}
	return count
}

// Side is the side that an image says it shows, "L", "R", "B" or "U"; empty if it
// does not say, or says two: Image Laterality and Laterality that differ.
func Side(d *dicom.DataSet) string {
	image, series := strings.TrimSpace(d.String(dicom.ImageLaterality)), strings.TrimSpace(d.String(dicom.Laterality))
	switch {
	case image == "":
		return series
	case series == "" || series == image:
		return image
	}
	return ""
}

// placesOf are the body parts of terms, with the synonyms and codes that the
// manifest knows them by.
func (m *Manifest) placesOf(terms []string) (places []Place) {
	for _, term := range terms {
		place := Place{Term: term}
		for _, known := range m.Accepts.BodyParts {
			if known.Term == term {
				place = known
			}
		}
		places = append(places, place)
	}
	return places
}

func ruleOf(name string) *ruleRow {
	if at := slices.IndexFunc(ruleTable, func(r ruleRow) bool { return r.name == name }); at >= 0 {
		return &ruleTable[at]
	}
	return nil
}

// Review says why a person must look at predictions: the target's probability
// is in the borderline band, or a plausibility rule is broken. about may be
// nil or de-identified; a rule about the patient then has nothing to judge by
// and is passed over: ReviewOriginal asks it where the original is at hand.
// Where nothing was predicted there is nothing implausible: somebody else must
// have said why.
func (m *Manifest) Review(predictions []vigie.Prediction, about *dicom.DataSet) []vigie.Reason {
	return m.review(predictions, about, false)
}

// ReviewOriginal is Review where about is the original: a rule about the patient
// that it gives no answer to is a reason as well, if the rule says so.
func (m *Manifest) ReviewOriginal(predictions []vigie.Prediction, about *dicom.DataSet) []vigie.Reason {
	return m.review(predictions, about, true)
}

// ReviewAnswer says what of Review would be found of an answer whatever image it is
// about: the borderline band, and rules that need no attribute of the image.
func (m *Manifest) ReviewAnswer(predictions []vigie.Prediction) (borderline, implausible bool) {
	for _, r := range m.Review(predictions, nil) {
		borderline = borderline || r.Code == vigie.ReasonBorderline
		implausible = implausible || r.Code == vigie.ReasonImplausible && !strings.HasPrefix(r.Detail, detailUnknown)
	}
	return borderline, implausible
}

func (m *Manifest) review(predictions []vigie.Prediction, about *dicom.DataSet, original bool) []vigie.Reason {
	if len(predictions) == 0 {
		return nil
	}
	e := evidence{m: m, by: make(map[string]vigie.Prediction, len(predictions)), about: about, original: original}
	for _, p := range predictions {
		e.by[p.Label] = p
	}
	var reasons []vigie.Reason
	if target, ok := e.by[m.Output.Target]; ok && m.Output.Borderline != nil {
		if band := m.Output.Borderline; target.Probability >= band.From && target.Probability <= band.To {
			reasons = append(reasons, vigie.Reason{Code: vigie.ReasonBorderline, Detail: m.Output.Target, Text: vigie.Text{
				English: fmt.Sprintf("The probability of %s, %.2f, is between %.2f and %.2f, where the model does not decide.", target.Code.Meaning, target.Probability, band.From, band.To),
				French:  fmt.Sprintf("La probabilité de « %s », %s, est entre %s et %s, où le modèle ne tranche pas.", or(target.Code.French, target.Code.Meaning), comma(target.Probability), comma(band.From), comma(band.To))}})
		}
	}
	for _, rule := range m.Plausibility {
		row := ruleOf(rule.Rule)
		if row == nil {
			continue // a manifest that was read has none
		}
		switch row.judge(rule, e) {
		case broken:
			text := row.text(rule, e)
			if rule.Text != (Text{}) {
				text = rule.Text.Vigie()
			}
			reasons = append(reasons, vigie.Reason{Code: vigie.ReasonImplausible, Text: text, Detail: rule.Rule})
		case unasked:
			if rule.Unknown == Review && (original || !row.patient) {
				reasons = append(reasons, vigie.Reason{Code: vigie.ReasonImplausible, Detail: detailUnknown + rule.Rule, Text: named(row.ask, e.by[rule.Label].Code)})
			}
		}
	}
	return reasons
}

// rules refuses rules that name what is not there, that no image could keep, and
// that contradict each other.
func (p *problemList) rules(path string, list []Rule) {
	for i, r := range list {
		here := fmt.Sprintf("%s[%d]", path, i)
		row := ruleOf(r.Rule)
		if row == nil {
			var names []string
			for _, known := range ruleTable {
				names = append(names, known.name)
			}
			p.at(here+".rule", "%q is no rule: want %s", r.Rule, strings.Join(names, ", "))
			continue
		}
		row.problem(p, here, r)
		if r.Unknown != "" {
			p.oneOf(here+".unknown", string(r.Unknown), string(Review), string(Accept))
			if row.ask == (vigie.Text{}) {
				p.at(here+".unknown", "means nothing for the rule %s, which is about the answer alone", r.Rule)
			}
		}
		if r.Text != (Text{}) {
			p.text(here+".text", r.Text)
		}
		for k, other := range list[:i] {
			p.contradict(here, r, fmt.Sprintf("plausibility[%d]", k), other)
		}
	}
}

// contradict refuses a pair of rules with which a label could never be positive.
func (p *problemList) contradict(path string, r Rule, otherPath string, other Rule) {
	never := func(label string) {
		p.at(path, "and %s contradict each other: %q could never be positive", otherPath, label)
	}
	for _, pair := range [][2]Rule{{r, other}, {other, r}} {
		if a, b := pair[0], pair[1]; a.Rule == Implies && b.Rule == Exclusive && slices.Contains(b.Labels, a.Label) && slices.Contains(b.Labels, a.Requires) {
			never(a.Label)
		}
	}
	if r.Rule != other.Rule || r.Label != other.Label || r.Label == "" {
		return
	}
	switch r.Rule {
	case NeedsSex, NeedsSide, NeedsBodyPart:
		if !slices.ContainsFunc(r.Values, func(v string) bool { return slices.Contains(other.Values, v) }) {
			never(r.Label)
		}
	case NeedsAge:
		if r.From > other.To || other.From > r.To {
			never(r.Label)
		}
	}
}

func (p *problemList) isLabel(path, name string) {
	if p.m.label(name) < 0 {
		p.at(path, "%q is no label", name)
	}
}

func (p *problemList) labels(path string, names []string, least int) {
	if len(names) < least {
		p.at(path+".labels", "has %d, needs %d or more", len(names), least)
	}
	for i, name := range names {
		p.isLabel(fmt.Sprintf("%s.labels[%d]", path, i), name)
		if slices.Contains(names[:i], name) {
			p.at(fmt.Sprintf("%s.labels[%d]", path, i), "%q is there twice", name)
		}
	}
}

func (p *problemList) needs(path string, r Rule, allowed []string) {
	p.isLabel(path+".label", r.Label)
	if len(r.Values) == 0 {
		p.at(path+".values", "is empty")
	}
	for i, v := range r.Values {
		p.oneOf(fmt.Sprintf("%s.values[%d]", path, i), v, allowed...)
	}
}
