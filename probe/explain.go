package probe

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
)

// Question says which answer to explain, and how.
type Question struct {
	Example
	Method explain.Method
	// Class is a label of the model or a number; empty: a package's target,
	// otherwise the most probable class.
	Class string
	// Background is "black" (darkest, or 0 of numbers: of a table that the model
	// standardises the mean of its training rows), "mean" (the input's own),
	// "blur", "data" (examples of Example.Data or of the input's other rows), or a
	// file of rows, .npy or .csv. Empty: "mean", of a table "data".
	Background string
	Options    explain.Options // Background, Input and Logits are filled in
	Check      bool            // put the map to the test
	Tests      explain.CheckOptions
}

// Explanation is an explained answer.
type Explanation struct {
	Model         string            `json:"model"`
	Input         string            `json:"input"`
	Method        explain.Method    `json:"method"`
	Kind          explain.Kind      `json:"kind"`
	Score         explain.Score     `json:"score"`
	Background    string            `json:"background,omitempty"`
	Class         int               `json:"class"`
	Label         string            `json:"label"`       // the class's name, or its number
	Probability   float64           `json:"probability"` // a package's calibrated one, otherwise the softmax
	Logits        []float32         `json:"logits"`
	Rows          int               `json:"rows"`
	Columns       int               `json:"columns"`
	Layer         *explain.Size     `json:"layer,omitempty"`
	Additive      *explain.Additive `json:"additive,omitempty"`
	Surrogate     *float64          `json:"surrogate_r2,omitempty"`
	Features      []explain.Feature `json:"features,omitempty"` // of a table
	Seed          uint64            `json:"seed"`
	Evaluations   int               `json:"evaluations"`
	Duration      time.Duration     `json:"ns"` // without Check
	CheckDuration time.Duration     `json:"check_ns,omitempty"`
	Tests         *Tests            `json:"tests,omitempty"`
	Warnings      []string          `json:"warnings"`

	Map     *explain.Map    `json:"-"`
	Verdict explain.Verdict `json:"-"`
	Picture image.Image     `json:"-"` // nil where the input is no image
}

// Tests are what Check measured.
type Tests struct {
	Explains    bool              `json:"explains"`
	English     string            `json:"verdict"`
	French      string            `json:"verdict_fr"`
	Failures    []explain.Failure `json:"failures"`
	Deletion    float64           `json:"deletion_area"`
	Insertion   float64           `json:"insertion_area"`
	RandomMean  float64           `json:"random_mean"` // of insertion - deletion
	RandomMaps  int               `json:"random_maps"`
	P           float64           `json:"p"`
	Similarity  *float64          `json:"randomised_similarity,omitempty"`
	Cascading   []explain.Stage   `json:"cascading,omitempty"`
	Independent []explain.Stage   `json:"independent,omitempty"`
}

// Explain answers a question about the model.
func (m *Model) Explain(ctx context.Context, q Question) (*Explanation, error) {
	if _, err := explain.Describe(q.Method); err != nil {
		return nil, err
	}
	g, err := m.example(ctx, q.Example)
	if err != nil {
		return nil, err
	}
	input := g.input
	o := q.Options
	if o.Groups == nil {
		o.Groups = g.of
	}
	if m.Package != nil {
		o.Input, o.Logits = m.Package.Manifest.Input.Name, m.Package.Manifest.Output.Name
		o.ChannelsLast = m.Package.Manifest.Input.Layout == "NHWC"
		if o.Layer == "" {
			o.Layer = m.Package.Layer()
		}
	} else {
		out, err := m.output(o.Logits)
		if err != nil {
			return nil, err
		}
		o.Logits = out.Name
	}
	if o.Shape == nil {
		o.Shape = input.Shape[1:]
	}
	if o.Score == "" {
		o.Score = explain.Logit
	}
	described, _ := explain.Describe(q.Method)
	e := &Explanation{Model: m.Path, Input: g.source, Method: q.Method, Score: o.Score, Seed: o.Seed, Warnings: append([]string{}, m.Warnings...)}
	if described.Background || q.Check {
		if o.Background, e.Background, err = m.background(q, g); err != nil {
			return nil, err
		}
	}
	if e.Class, e.Label, err = m.class(ctx, q, o, input); err != nil {
		return nil, err
	}
	explainer, err := explain.New(q.Method, m.Graph, o)
	if err != nil {
		return nil, err
	}
	defer explainer.Close()
	start := time.Now()
	if e.Map, err = explainer.Explain(ctx, input, e.Class); err != nil {
		return nil, err
	}
	e.Duration = time.Since(start)
	if err := e.describe(m, g, q, o); err != nil {
		return nil, err
	}
	e.Verdict = explain.Judge(e.Map, nil, nil)
	if q.Check {
		start := time.Now()
		if err := e.test(ctx, m, q, o, input); err != nil {
			return nil, err
		}
		e.CheckDuration = time.Since(start)
	}
	return e, nil
}

func (e *Explanation) describe(m *Model, g *given, q Question, o explain.Options) error {
	made, input := e.Map, g.input
	e.Kind, e.Logits, e.Rows, e.Columns = made.Kind, made.Logits, made.Rows, made.Columns
	e.Additive, e.Evaluations = made.Additive, made.Evaluations
	if made.Layer != (explain.Size{}) {
		e.Layer = &made.Layer
	}
	if q.Method == explain.LIME {
		e.Surrogate = &made.Surrogate
	}
	var err error
	if e.Probability, err = m.probability(made.Logits, e.Class); err != nil {
		return err
	}
	switch len(input.Shape) {
	case 2:
		e.Features, err = g.features(m, made)
	case 4:
		e.Picture, err = explain.Picture(input, o.ChannelsLast)
	}
	if a := e.Additive; a != nil && q.Method == explain.IntegratedGradients && !a.Converged {
		e.Warnings = append(e.Warnings, fmt.Sprintf("contributions miss the difference by %.3g after %d steps", a.Gap, a.Steps))
	}
	return err
}

// probability is the calibrated one of a package, the softmax of a bare graph's
// logits, or the logistic function of a single one.
func (m *Model) probability(logits []float32, class int) (float64, error) {
	if m.Package != nil {
		predictions, err := m.Package.Predictions(logits)
		if err != nil {
			return 0, err
		}
		return predictions[class].Probability, nil
	}
	if len(logits) == 1 {
		return 1 / (1 + math.Exp(-float64(logits[0]))), nil
	}
	z := make([]float64, len(logits))
	for i, v := range logits {
		z[i] = float64(v)
	}
	return train.Softmax(z, 1)[class], nil
}

// test runs both tests on the map.
func (e *Explanation) test(ctx context.Context, m *Model, q Question, o explain.Options, input engine.Tensor) error {
	if q.Tests.Score == "" && m.Package != nil && m.Package.Manifest.Output.Activation == model.Sigmoid {
		q.Tests.Score = explain.Logit // labels that do not exclude each other have no softmax
	}
	fidelity, err := explain.Measure(ctx, m.Graph, input, e.Map, o, q.Tests)
	if err != nil {
		return err
	}
	sanity, err := explain.Randomise(ctx, q.Method, m.Graph, input, e.Map, o, q.Tests)
	if err != nil && !errors.Is(err, explain.ErrNoWeights) {
		return err
	}
	e.Verdict = explain.Judge(e.Map, fidelity, sanity)
	t := &Tests{Explains: e.Verdict.Explains, English: e.Verdict.Text.English, French: e.Verdict.Text.French, Failures: append([]explain.Failure{}, e.Verdict.Failures...),
		Deletion: fidelity.Deletion.Area, Insertion: fidelity.Insertion.Area, RandomMaps: len(fidelity.Random), P: fidelity.P}
	for _, v := range fidelity.Random {
		t.RandomMean += v / float64(len(fidelity.Random))
	}
	if sanity != nil {
		t.Similarity, t.Cascading, t.Independent = &sanity.Similarity, sanity.Cascading, sanity.Independent
	}
	e.Tests = t
	return nil
}

// labels are the names of the classes, nil where the model has none.
func (m *Model) labels() []string {
	if m.Package != nil {
		var names []string
		for _, l := range m.Package.Manifest.Output.Labels {
			names = append(names, l.Name)
		}
		return names
	}
	if classes, _, err := train.Described(m.Graph); err == nil && classes != nil {
		return classes
	}
	if text := m.Graph.Metadata[zoo.LabelsKey]; text != "" {
		return strings.Split(text, ",")
	}
	return nil
}

// class finds the class to explain and its name.
func (m *Model) class(ctx context.Context, q Question, o explain.Options, input engine.Tensor) (int, string, error) {
	labels := m.labels()
	name := func(class int) string {
		if class >= 0 && class < len(labels) {
			return labels[class]
		}
		return strconv.Itoa(class)
	}
	switch at := slices.Index(labels, q.Class); {
	case q.Class == "" && m.Package != nil:
		target := m.Package.Manifest.Output.Target
		return slices.Index(labels, target), target, nil
	case q.Class == "":
		answer, err := m.Run(ctx, map[string]engine.Tensor{m.inputs()[0].Name: input}, o.Logits)
		if err != nil {
			return 0, "", err
		}
		best, at, top := 0, 0, math.Inf(-1)
		each(answer.Tensors[o.Logits], func(v float64) {
			if v > top {
				best, top = at, v
			}
			at++
		})
		return best, name(best), nil
	case at >= 0:
		return at, q.Class, nil
	}
	class, err := strconv.Atoi(q.Class)
	if err != nil {
		have := "its classes have no names"
		if len(labels) > 0 {
			have = "its labels are " + strings.Join(labels, ", ")
		}
		to := ""
		if out, err := m.output(o.Logits); err == nil && len(out.Shape) == 2 && out.Shape[1].Known() {
			to = fmt.Sprintf(" to %d", out.Shape[1].Value-1)
		}
		return 0, "", fmt.Errorf("probe: class %q: %w: %s; a number from 0%s will do as well", q.Class, ErrAsk, have, to)
	}
	return class, name(class), nil
}

// Draw draws the map over the image with what was found below it.
func (e *Explanation) Draw() (*image.RGBA, error) {
	if e.Picture == nil {
		return nil, fmt.Errorf("probe: drawing the explanation of %s: %w: its input is no image; write .npy or .csv instead", e.Input, ErrAsk)
	}
	line := fmt.Sprintf("%s, %s %.3f. %s map of %s.", filepath.Base(e.Model), train.Spoken(e.Label), e.Probability, e.Method, e.Kind)
	if e.Kind == explain.Contribution {
		line += " Red speaks for it, blue against it."
	}
	return explain.Draw(e.Picture, e.Map, e.Verdict, line)
}

// Write writes the explanation for people.
func (e *Explanation) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s: %s, probability %.4f, %s %.4g\n", e.Model, e.Input, train.Spoken(e.Label), e.Probability, "logit", e.Logits[e.Class])
	fmt.Fprintf(&b, "%s (%s of the %s), %d×%d, %d evaluations in %s\n", e.Method, e.Kind, e.Score, e.Rows, e.Columns, e.Evaluations, e.Duration.Round(time.Millisecond))
	if e.Background != "" {
		fmt.Fprintf(&b, "compared with      %s\n", e.Background)
	}
	if a := e.Additive; a != nil {
		fmt.Fprintf(&b, "adds up            %.4g = %.4g - %.4g, gap %.2g\n", a.Output-a.Reference, a.Output, a.Reference, a.Gap)
	}
	if e.Surrogate != nil {
		fmt.Fprintf(&b, "linear model       R² %.3f\n", *e.Surrogate)
	}
	if t := e.Tests; t != nil {
		fmt.Fprintf(&b, "deletion area      %.4f\ninsertion area     %.4f\n  difference       %+.4f, of %d random maps %+.4f in the mean, p = %.3f\n",
			t.Deletion, t.Insertion, t.Insertion-t.Deletion, t.RandomMaps, t.RandomMean, t.P)
		for i, s := range t.Cascading {
			fmt.Fprintf(&b, "weights randomised down to %-24s rank %+.2f, of sizes %+.2f, SSIM %.2f; it alone %+.2f, %+.2f, %.2f\n",
				s.Layer, s.Rank, s.AbsRank, s.SSIM, t.Independent[i].Rank, t.Independent[i].AbsRank, t.Independent[i].SSIM)
		}
		fmt.Fprintf(&b, "%s\n%s\n", t.English, t.French)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if e.Features != nil {
		return explain.WriteFeatures(w, e.Features, 30)
	}
	return nil
}
