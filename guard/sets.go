package guard

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/vigie/vigie"
)

// The scores by which a label is compared with the images that truly had it. The
// higher, the less the label fits.
const (
	// LAC is 1 - the label's probability: the smallest sets on the whole (Sadinle,
	// Lei and Wasserman 2019).
	LAC = "lac"
	// APS is the probability of all labels that are more probable, and half the
	// label's own (Romano, Sesia and Candès 2020, with their random number put at
	// its mean, so that the same image always gets the same set): with many
	// labels, sets grow where the image is hard and shrink where it is easy.
	APS = "aps"
)

// maxScores bounds how many scores of a label are kept. More are thinned at
// random: what is left is exchangeable with a new image as all were.
const maxScores = 2000

// Sets are the calibration of conformal prediction sets, for each label by itself
// (Mondrian; Vovk, Gammerman and Shafer 2005, section 4.5). Of new images
// exchangeable with the calibration's whose true label is y, the set holds y in a
// share of at least 1-Alpha, in the mean over calibrations, whatever the model is
// worth. With n images of y, one calibration's share scatters as Beta(n+1-l, l)
// with l = floor(Alpha·(n+1)).
//
// A set always holds the model's answer as well, which only adds coverage: it
// is never empty, and a set that is not decided at one Alpha is not at a smaller
// one.
type Sets struct {
	Score     string     `json:"score"` // LAC or APS
	Alpha     float64    `json:"alpha"` // 1 - the stated coverage, 0..0.5
	Questions []Question `json:"questions"`
}

// Question is what one set is about: which of all labels is true, or, where
// labels do not exclude each other, whether one is.
type Question struct {
	Label    string      `json:"label,omitempty"` // empty: all labels
	Options  []string    `json:"options"`
	Scores   [][]float64 `json:"scores,omitempty"` // of each option, ascending
	Labelled []int       `json:"labelled"`         // images of each option, before thinning
}

// score is the nonconformity of an option.
func score(kind string, p []float64, y int) float64 {
	if kind == LAC {
		return 1 - p[y]
	}
	sum := p[y] / 2
	for i, v := range p {
		if v > p[y] || v == p[y] && i < y {
			sum += v
		}
	}
	return sum
}

// pvalues says of each option how well it fits: the share of the images that truly
// had it, this one among them, that it fits no better.
func (q *Question) pvalues(kind string, p []float64) []float64 {
	out := make([]float64, len(p))
	for y := range p {
		at, _ := slices.BinarySearch(q.Scores[y], score(kind, p, y))
		out[y] = float64(1+len(q.Scores[y])-at) / float64(len(q.Scores[y])+1)
	}
	return out
}

// reading is what one question makes of an answer.
type reading struct {
	p       []float64 // of each option
	answer  int       // the option that the model gives
	pvalues []float64
}

// rival is the p-value of the option that is hardest to rule out beside the
// answer. The set is undecided at every Alpha below it.
func (r reading) rival() float64 {
	most := 0.0
	for y, v := range r.pvalues {
		if y != r.answer {
			most = max(most, v)
		}
	}
	return most
}

// read puts predictions to a question.
func (q *Question) read(kind string, predictions []vigie.Prediction) reading {
	p, answer := q.options(predictions)
	return reading{p, answer, q.pvalues(kind, p)}
}

// options are the probabilities of a question's options, and the one that the
// predictions give for an answer.
func (q *Question) options(predictions []vigie.Prediction) (p []float64, answer int) {
	if q.Label == "" {
		return exclusive(predictions)
	}
	for _, v := range predictions {
		if v.Label == q.Label {
			if v.Positive {
				answer = 1
			}
			return []float64{1 - v.Probability, v.Probability}, answer
		}
	}
	return []float64{0.5, 0.5}, 0 // checked before: every label is predicted
}

// exclusive are the probabilities of labels of which one is true, and the answer:
// the one positive label, or the most probable one where there is not just one.
func exclusive(predictions []vigie.Prediction) (p []float64, answer int) {
	positives, best := 0, 0
	for i, v := range predictions {
		p = append(p, v.Probability)
		if v.Positive {
			positives, answer = positives+1, i
		}
		if v.Probability > predictions[best].Probability {
			best = i
		}
	}
	if positives != 1 {
		answer = best
	}
	return p, answer
}

// questions are those of a model.
func questions(labels []string, excluding bool) []Question {
	if excluding {
		return []Question{{Options: labels}}
	}
	var out []Question
	for _, l := range labels {
		out = append(out, Question{Label: l, Options: []string{vigie.SetAbsent, vigie.SetPresent}})
	}
	return out
}

// truth is the option of a question that is true of an image; -1: nobody said, or
// said what cannot be.
func (q *Question) truth(labels []string, of []bool) int {
	if len(of) != len(labels) {
		return -1
	}
	if q.Label != "" {
		if of[slices.Index(labels, q.Label)] {
			return 1
		}
		return 0
	}
	at := slices.Index(of, true)
	if at < 0 || slices.Contains(of[at+1:], true) {
		return -1
	}
	return at
}

// fitSets calibrates sets on held-out images. Alpha is left to the caller.
func fitSets(kind string, labels []string, excluding bool, cases []Held, seed uint64) *Sets {
	s := &Sets{Score: kind, Questions: questions(labels, excluding)}
	rng := rand.New(rand.NewPCG(seed, 0x5e75))
	for i := range s.Questions {
		q := &s.Questions[i]
		q.Scores, q.Labelled = make([][]float64, len(q.Options)), make([]int, len(q.Options))
		for _, c := range cases {
			if y := q.truth(labels, c.Truth); y >= 0 {
				p, _ := q.options(c.Predictions)
				q.Scores[y] = append(q.Scores[y], score(kind, p, y))
			}
		}
		for y, of := range q.Scores {
			q.Labelled[y] = len(of)
			if len(of) > maxScores {
				rng.Shuffle(len(of), func(a, b int) { of[a], of[b] = of[b], of[a] })
				of = of[:maxScores]
			}
			slices.Sort(of)
			q.Scores[y] = append([]float64{}, of...)
		}
	}
	return s
}

// short names an option that has too few images for a level: with fewer than
// 1/alpha - 1 of them it would be in every set, and every case would go to a
// person. Empty: there is none.
func (s *Sets) short(alpha float64) string {
	need := fewest(alpha)
	for _, q := range s.Questions {
		for y, of := range q.Scores {
			if len(of) < need {
				name := q.Options[y]
				if q.Label != "" {
					name = q.Label + " " + name
				}
				return fmt.Sprintf("%q has %d labelled images and a coverage of %v takes %d of each label", name, len(of), round(1-alpha), need)
			}
		}
	}
	return ""
}

func round(v float64) float64 { return math.Round(v*1e6) / 1e6 }

// rival is the largest of all questions.
func (s *Sets) rival(predictions []vigie.Prediction) float64 {
	most := 0.0
	for i := range s.Questions {
		most = max(most, s.Questions[i].read(s.Score, predictions).rival())
	}
	return most
}

// of are the sets of an answer.
func (s *Sets) of(predictions []vigie.Prediction) (out []vigie.LabelSet) {
	for i := range s.Questions {
		q := &s.Questions[i]
		r := q.read(s.Score, predictions)
		set := vigie.LabelSet{Label: q.Label, Coverage: round(1 - s.Alpha)}
		for y, name := range q.Options {
			if y == r.answer || r.pvalues[y] > s.Alpha {
				set.Holds = append(set.Holds, name)
			}
		}
		out = append(out, set)
	}
	return out
}

// Promise says what the coverage of one label comes to.
type Promise struct {
	Label    string  `json:"label"` // or the label and "present" or "absent"
	Images   int     `json:"images"`
	Coverage float64 `json:"coverage"` // the mean over calibrations of this size, at least
	Low      float64 `json:"low"`      // of single calibrations, 95 in 100 lie between Low and High
	High     float64 `json:"high"`
}

// Promises are the finite-sample meaning of the stated coverage, label by label.
func (s *Sets) Promises() (out []Promise) {
	for _, q := range s.Questions {
		for y, of := range q.Scores {
			n := float64(len(of))
			l := math.Floor(s.Alpha*(n+1) + 1e-9)
			p := Promise{Label: strings.TrimSpace(q.Label + " " + q.Options[y]), Images: q.Labelled[y], Coverage: 1 - l/(n+1)}
			p.Low, p.High = betaQuantile(0.025, n+1-l, l), betaQuantile(0.975, n+1-l, l)
			out = append(out, p)
		}
	}
	return out
}

// undecided is what a person reads of sets that hold more than one answer.
func undecided(sets []vigie.LabelSet, predictions []vigie.Prediction) *vigie.Reason {
	code := func(name string) (english, french string) {
		for _, p := range predictions {
			if p.Label == name {
				return p.Code.Meaning, or(p.Code.French, p.Code.Meaning)
			}
		}
		return name, name
	}
	var english, french, detail []string
	all := false
	for _, set := range sets {
		if set.Decided() {
			continue
		}
		names := []string{set.Label}
		if all = set.Label == ""; all {
			names = set.Holds
		}
		for _, name := range names {
			e, f := code(name)
			english, french, detail = append(english, e), append(french, "« "+f+" »"), append(detail, name)
		}
	}
	if len(detail) == 0 {
		return nil
	}
	percent := strings.TrimSuffix(fmt.Sprintf("%.1f", 100*sets[0].Coverage), ".0")
	text := vigie.Text{
		English: fmt.Sprintf("The answer may be %s: at a coverage of %s %%, the model does not decide.", strings.Join(english, " or "), percent),
		French:  fmt.Sprintf("La réponse peut être %s : au taux de couverture de %s %%, le modèle ne tranche pas.", strings.Join(french, " ou "), strings.Replace(percent, ".", ",", 1))}
	if !all {
		text = vigie.Text{
			English: fmt.Sprintf("At a coverage of %s %%, the model does not decide whether there is: %s.", percent, strings.Join(english, ", ")),
			French:  fmt.Sprintf("Au taux de couverture de %s %%, le modèle ne tranche pas sur la présence de : %s.", strings.Replace(percent, ".", ",", 1), strings.Join(french, ", "))}
	}
	if len(detail) > 8 {
		detail = append(detail[:8], "…")
	}
	return &vigie.Reason{Code: vigie.ReasonUndecided, Text: text, Detail: strings.Join(detail, ", ")}
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
