package explain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// Report is a map with what the tests of it found.
type Report struct {
	Map      *Map
	Fidelity *Fidelity
	Sanity   *Sanity // nil where the model has no weights to randomise
	Verdict  Verdict
}

// Verdict says whether a map may be shown as an explanation. Text is the label
// to show with it: why not, or what holds.
type Verdict struct {
	Explains bool
	Failures []Failure // why not
	Text     vigie.Text
}

// Failure is a reason why a map does not explain.
type Failure string

// The failures.
const (
	Empty           Failure = "empty"             // the same value everywhere
	NoBetter        Failure = "no-better"         // removing what it marks does no more than removing other places
	WeightsNoMatter Failure = "weights-no-matter" // it survives the loss of everything learnt
	Incomplete      Failure = "incomplete"        // the contributions do not add up
)

// The bounds of the verdict.
const (
	// Significance is the largest Fidelity.P at which the place still matters.
	Significance = 0.05
	// MostSimilar is the largest Sanity.Similarity at which a map still depends
	// on the weights.
	MostSimilar = 0.5
	// LargestGap is the largest part of the explained difference that
	// contributions may leave out.
	LargestGap = 0.1
)

// Judge labels a map. fidelity and sanity may be nil where they were not
// measured; what was not measured is not held against the map, but then nothing
// speaks for it either: without fidelity no map is said to explain.
func Judge(m *Map, fidelity *Fidelity, sanity *Sanity) Verdict {
	v := Verdict{}
	var english, french []string
	fail := func(f Failure, en, fr string) {
		v.Failures = append(v.Failures, f)
		english, french = append(english, en), append(french, fr)
	}
	if len(m.Values) == 0 || slices.Min(m.Values) == slices.Max(m.Values) {
		fail(Empty, "it is the same everywhere", "elle est la même partout")
	}
	if f := fidelity; f != nil && f.P > Significance {
		fail(NoBetter,
			fmt.Sprintf("removing what it marks changes the answer no more than removing other places (p = %.2f)", f.P),
			fmt.Sprintf("retirer ce qu’elle marque ne change pas plus la réponse que retirer d’autres endroits (p = %s)", comma(f.P)))
	}
	if s := sanity; s != nil && s.Similarity > MostSimilar {
		fail(WeightsNoMatter,
			fmt.Sprintf("it stays much the same when all that the model learnt is randomised (rank correlation %.2f)", s.Similarity),
			fmt.Sprintf("elle reste à peu près la même quand tout ce que le modèle a appris est remplacé par du hasard (corrélation des rangs %s)", comma(s.Similarity)))
	}
	if a := m.Additive; a != nil {
		if missed := math.Abs(a.Gap) / math.Max(math.Abs(a.Output-a.Reference), 1e-12); missed > LargestGap && math.Abs(a.Gap) > 1e-6 {
			fail(Incomplete,
				fmt.Sprintf("its contributions miss %.0f %% of the difference that they should add up to", 100*missed),
				fmt.Sprintf("il manque à ses contributions %.0f %% de la différence qu’elles devraient totaliser", 100*missed))
		}
	}
	switch {
	case len(v.Failures) > 0:
		v.Text = vigie.Text{
			English: "This map does not explain the answer: " + strings.Join(english, "; ") + ".",
			French:  "Cette carte n’explique pas la réponse : " + strings.Join(french, " ; ") + "."}
	case fidelity == nil:
		v.Text = vigie.Text{
			English: "Whether this map explains the answer was not tested.",
			French:  "Il n’a pas été vérifié que cette carte explique la réponse."}
	default:
		v.Explains = true
		v.Text = vigie.Text{
			English: fmt.Sprintf("The answer depends on what this map marks: more than on other places (p = %.3f).", fidelity.P),
			French:  fmt.Sprintf("La réponse dépend de ce que marque cette carte, plus que d’autres endroits (p = %s).", strings.Replace(fmt.Sprintf("%.3f", fidelity.P), ".", ",", 1))}
	}
	return v
}

func comma(v float64) string { return strings.Replace(fmt.Sprintf("%.2f", v), ".", ",", 1) }

// Check explains an answer and puts the map to the test: deletion and insertion
// against random maps, then the weights randomised.
func Check(ctx context.Context, method Method, m *onnx.Model, input engine.Tensor, class int, o Options, c CheckOptions) (*Report, error) {
	if o.Background == nil && c.Background == nil {
		return nil, fmt.Errorf("explain: checking %s: %w", method, ErrNoBackground)
	}
	e, err := New(method, m, o)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	r := &Report{}
	if r.Map, err = e.Explain(ctx, input, class); err != nil {
		return nil, err
	}
	if r.Fidelity, err = Measure(ctx, m, input, r.Map, o, c); err != nil {
		return nil, err
	}
	if r.Sanity, err = Randomise(ctx, method, m, input, r.Map, o, c); err != nil && !errors.Is(err, ErrNoWeights) {
		return nil, err
	}
	r.Verdict = Judge(r.Map, r.Fidelity, r.Sanity)
	return r, nil
}
