package enclave

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
)

// What a package does not say of its methods is measured when it is loaded, on
// drawn textures.
const (
	surveyTextures = 4
	surveyTime     = 30 * time.Second // for all methods together
)

// mapper makes the map of an answer, puts it to the test and labels it.
type mapper struct {
	about    *model.Manifest
	class    int
	budget   time.Duration
	explains explain.Explainer // nil: no method explains this model
	tester   *explain.Tester
	name     string // of the method, as the manifest spells it
	standing *explain.Standing
	rejected []string
	why      vigie.Text // there is no method
}

// newMapper chooses the first of the manifest's methods that explains the model.
// nil: the manifest wants no map. A method that does not fit the model is an
// error: the manifest is wrong.
func newMapper(pkg *model.Package, options Options) (*mapper, error) {
	names := pkg.Manifest.Explanation.Methods()
	if len(names) == 0 {
		return nil, nil
	}
	m := &mapper{about: pkg.Manifest, class: pkg.Target(), budget: options.ExplainBudget}
	o, c, err := pkg.ExplainOptions(names[0], options.Threads)
	if err != nil {
		return nil, err
	}
	if m.tester, err = explain.NewTester(pkg.Graph, o, c); err != nil { // the same for all methods
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), surveyTime)
	defer cancel()
	var english, french []string
	for _, name := range names {
		method, _ := model.MethodOf(name)
		if o, _, err = pkg.ExplainOptions(name, options.Threads); err != nil {
			return nil, errors.Join(err, m.close())
		}
		explainer, err := explain.New(method, pkg.Graph, o)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		standing, err := standingOf(ctx, pkg, name, method, o, options.Logger)
		if err != nil {
			return nil, errors.Join(err, explainer.Close(), m.close())
		}
		if standing == nil || len(standing.Failures()) == 0 {
			m.name, m.explains, m.standing = name, explainer, standing
			return m, nil
		}
		if err := explainer.Close(); err != nil {
			return nil, errors.Join(err, m.close())
		}
		text := standing.Text(name)
		options.Logger.Warn("a method of explanation is passed over", "method", name, "why", text.English)
		m.rejected = append(m.rejected, name)
		english, french = append(english, text.English), append(french, text.French)
	}
	m.why = vigie.Text{English: strings.Join(english, " "), French: strings.Join(french, " ")}
	options.Logger.Error("no method explains this model: answers go out without a map", "methods", strings.Join(names, ", "))
	return m, nil
}

// standingOf is what a method is worth on the package's model: what the survey
// in the package says, or else how much the weights matter to its maps of drawn
// textures. nil: it could not be measured.
func standingOf(ctx context.Context, pkg *model.Package, name string, method explain.Method, o explain.Options, logger *slog.Logger) (*explain.Standing, error) {
	if surveyed := pkg.Explained.Of(name); surveyed != nil {
		return &surveyed.Standing, nil
	}
	textures, err := drawTextures(pkg.Manifest)
	if err != nil {
		return nil, err
	}
	standing, err := explain.SurveyWeights(ctx, method, pkg.Graph, textures, pkg.Target(), (*explain.Map).Supporting, o, explain.CheckOptions{})
	if err != nil { // such as a model that overflows with random weights
		why := err.Error()
		if ctx.Err() != nil {
			why = fmt.Sprintf("it takes longer than %s", surveyTime)
		}
		logger.Warn("what a method of explanation is worth on this model could not be measured: its maps are labelled as untested; vigie model survey --write measures it once for all",
			"method", name, "why", why)
		return nil, nil
	}
	return standing, nil
}

// drawTextures makes inputs that are no radiographs but have something of their
// spectrum: whether weights matter to a map shows on any image with structure.
func drawTextures(m *model.Manifest) ([]engine.Tensor, error) {
	random := rand.New(rand.NewPCG(1, 0x7E87))
	inputs := make([]engine.Tensor, surveyTextures)
	for i := range inputs {
		l := &dicom.Luminance{Rows: m.Input.Rows, Columns: m.Input.Columns, Values: make([]float32, m.Input.Rows*m.Input.Columns)}
		sum := make([]float64, len(l.Values))
		for octave := range 5 { // waves of 1 to 16 periods, weaker as they get finer
			for range 4 {
				periods := math.Exp2(float64(octave)) * (0.75 + random.Float64()/2)
				angle, phase := random.Float64()*2*math.Pi, random.Float64()*2*math.Pi
				down, across := periods*math.Sin(angle)/float64(l.Rows), periods*math.Cos(angle)/float64(l.Columns)
				for p := range sum {
					sum[p] += math.Sin(2*math.Pi*(down*float64(p/l.Columns)+across*float64(p%l.Columns))+phase) / math.Exp2(float64(octave))
				}
			}
		}
		low, high := math.Inf(1), math.Inf(-1)
		for _, v := range sum {
			low, high = min(low, v), max(high, v)
		}
		for p, v := range sum {
			l.Values[p] = float32((v - low) / max(high-low, 1e-9))
		}
		var err error
		if inputs[i], err = m.Prepare(l); err != nil {
			return nil, err
		}
	}
	return inputs, nil
}

// explained is a map over the model's input, its label, and a second computation
// of the answer that it explains.
type explained struct {
	shown  *explain.Map       // what speaks for the target; nil: no map
	label  *vigie.Explanation // without the map itself
	logits []float32
	short  bool // the budget did not suffice for the map, or for its test
}

// explain makes, tests and labels the map of one input. What does not fit into
// the budget is labelled as untested, or left out; errors are the engine's, or
// ctx has ended.
func (m *mapper) explain(ctx context.Context, input engine.Tensor) (*explained, error) {
	out := &explained{label: &vigie.Explanation{Target: m.about.Output.Target, Verdict: vigie.MapNone, Rejected: m.rejected}}
	if m.explains == nil {
		out.label.Text = m.why
		return out, m.answer(ctx, input, out)
	}
	budget := m.budget
	if deadline, ok := ctx.Deadline(); ok { // the answer itself must not be lost over its map
		budget = min(budget, time.Until(deadline)/2)
	}
	limited, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	made, err := m.explains.Explain(limited, input, m.class)
	if err != nil {
		if !m.spent(ctx, limited) {
			return nil, err
		}
		out.label.Text, out.short = textNoTime(m.name, m.budget), true
		return out, m.answer(ctx, input, out)
	}
	out.logits, out.shown = made.Logits, made.Supporting()
	if slices.Max(out.shown.Values) == 0 {
		out.shown = nil
		out.label.Text = textEmpty(m.name, m.about.Output.Labels[m.class].Code)
		return out, nil
	}
	fidelity, err := m.tester.Measure(limited, input, out.shown)
	if err != nil && !m.spent(ctx, limited) {
		return nil, err
	}
	out.label.Method, out.short = m.name, fidelity == nil
	m.judge(out, fidelity)
	return out, nil
}

// spent says that the budget is, and the case's own time is not.
func (m *mapper) spent(ctx, limited context.Context) bool {
	return limited.Err() != nil && ctx.Err() == nil
}

// answer computes the answer a second time where no map did.
func (m *mapper) answer(ctx context.Context, input engine.Tensor, out *explained) (err error) {
	out.logits, err = m.tester.Answer(ctx, input)
	return err
}

// warmUp explains a blank image, and says where the budget does not suffice on
// this machine: by a drawn texture, since a blank image needs no test.
func (m *mapper) warmUp(ctx context.Context, blank engine.Tensor, logger *slog.Logger) error {
	if _, err := m.explain(ctx, blank); err != nil || m.explains == nil {
		return err
	}
	textures, err := drawTextures(m.about)
	if err != nil {
		return err
	}
	// A model may fail on what is no radiograph: that is no reason not to start.
	if made, err := m.explain(ctx, textures[0]); err == nil && made.short {
		logger.Warn("the map of a case and its test do not fit into the time allowed for them: maps will be left out, or labelled as untested; allow more, or let the manifest ask for less (window, samples)",
			"method", m.name, "budget", m.budget)
	}
	return nil
}

// judge puts the label on a map. fidelity is nil where there was no time for
// the test.
func (m *mapper) judge(out *explained, fidelity *explain.Fidelity) {
	label := out.label
	label.Tests = &vigie.MapTests{Background: m.about.Explanation.TestBackground()}
	var sanity *explain.Sanity
	measured := m.standing != nil
	if measured {
		label.Tests.ModelImages = m.standing.Images
		if sanity = m.standing.Sanity(); sanity != nil {
			label.Tests.Similarity, label.Tests.SimilarityError = &sanity.Similarity, sanity.Error
		}
		if m.standing.Tested {
			label.Tests.ModelExplained = &m.standing.Explained
		}
	}
	if fidelity != nil {
		mean := 0.0
		for _, v := range fidelity.Random {
			mean += v / float64(len(fidelity.Random))
		}
		label.Tests.Insertion, label.Tests.Deletion = &fidelity.Insertion.Area, &fidelity.Deletion.Area
		label.Tests.RandomMean, label.Tests.RandomMaps, label.Tests.P = &mean, len(fidelity.Random), &fidelity.P
		label.Tests.Steps = len(fidelity.Deletion.Score) - 1
	}
	verdict := explain.Judge(out.shown, fidelity, sanity)
	label.Text = verdict.Text
	for _, f := range verdict.Failures {
		label.Failures = append(label.Failures, string(f))
	}
	switch {
	case len(verdict.Failures) > 0:
		label.Verdict = vigie.MapFailed
	case fidelity == nil || !measured:
		label.Verdict, label.Text = vigie.MapUntested, textUntested(m.budget, fidelity != nil)
	default:
		label.Verdict = vigie.MapPassed
	}
}

// method is the one in use, for the configuration.
func (m *mapper) method() string {
	if m.explains == nil {
		return model.NoExplanation
	}
	return m.name
}

func (m *mapper) close() error {
	var err error
	if m.explains != nil {
		err = m.explains.Close()
	}
	return errors.Join(err, m.tester.Close())
}

func textNoTime(method string, budget time.Duration) vigie.Text {
	return vigie.Text{
		English: fmt.Sprintf("There is no map: to make one (%s) took longer than the %s allowed for a case.", method, budget),
		French:  fmt.Sprintf("Il n’y a pas de carte : en faire une (%s) a pris plus que les %s accordées à un cas.", method, budget)}
}

func textEmpty(method string, target vigie.Code) vigie.Text {
	return vigie.Text{
		English: fmt.Sprintf("There is no map: by %s, no place of the image speaks for %s.", method, target.Meaning),
		French:  fmt.Sprintf("Il n’y a pas de carte : d’après %s, aucun endroit de l’image ne parle pour « %s ».", method, target.French)}
}

// textUntested says which of the tests there was no time for: that of this map,
// or that of the method on this model.
func textUntested(budget time.Duration, thisMap bool) vigie.Text {
	if thisMap {
		return vigie.Text{
			English: "Whether this map depends on what the model has learnt was not measured.",
			French:  "Il n’a pas été mesuré si cette carte dépend de ce que le modèle a appris."}
	}
	return vigie.Text{
		English: fmt.Sprintf("Whether the answer depends on what this map marks was not measured: it took longer than the %s allowed for a case.", budget),
		French:  fmt.Sprintf("Il n’a pas été mesuré si la réponse dépend de ce que marque cette carte : cela a pris plus que les %s accordées à un cas.", budget)}
}
