package explain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// FewestExplained is the smallest share of inputs whose map must pass for a
// method to be said to explain a model. One map in twenty passes by chance.
const FewestExplained = 0.5

// Standing is what a method is worth on one model, measured once on several
// inputs: a single map may fail by bad luck, a method that fails here makes maps
// which show nothing.
type Standing struct {
	Method Method `json:"method"`
	Images int    `json:"images"` // inputs, at least 1

	// Tested says whether the maps were compared with random ones; Explained is
	// then how many did better (Fidelity.P within Significance), MeanP and
	// MeanScore are means of Fidelity.P and Fidelity.Score.
	Tested    bool    `json:"tested"`
	Explained int     `json:"explained"`
	MeanP     float64 `json:"mean_p"`
	MeanScore float64 `json:"mean_score"` // insertion area - deletion area

	// Randomised says whether the model has weights that could be randomised.
	// Similarity is then the mean over inputs and randomisations of all weights,
	// as Sanity.Similarity, and Error its standard error over the
	// randomisations.
	Randomised bool    `json:"randomised"`
	Similarity float64 `json:"similarity"`
	Error      float64 `json:"error"`

	// MapTime and TestTime are medians over the inputs.
	MapTime  time.Duration `json:"map_ns,omitempty"`
	TestTime time.Duration `json:"test_ns,omitempty"`
}

// Failures are the reasons why the method explains nothing of the model, of what
// was measured. What was not is no failure.
func (s *Standing) Failures() []Failure {
	var out []Failure
	if s.Tested && float64(s.Explained) < FewestExplained*float64(s.Images) {
		out = append(out, NoBetter)
	}
	if s.Randomised && !(s.Similarity <= MostSimilar) { // not a number fails too
		out = append(out, WeightsNoMatter)
	}
	return out
}

// Text says what a standing says of the method, which people know by that name:
// why it was passed over, or that it was not.
func (s *Standing) Text(name string) vigie.Text {
	var english, french []string
	for _, f := range s.Failures() {
		switch f {
		case NoBetter:
			english = append(english, fmt.Sprintf("on %d of %d images its maps do no better than random ones", s.Images-s.Explained, s.Images))
			french = append(french, fmt.Sprintf("sur %d des %d images, ses cartes ne valent pas mieux que des cartes au hasard", s.Images-s.Explained, s.Images))
		case WeightsNoMatter:
			english = append(english, fmt.Sprintf("its maps stay much the same when all that the model learnt is randomised (rank correlation %.2f)", s.Similarity))
			french = append(french, fmt.Sprintf("ses cartes restent à peu près les mêmes quand tout ce que le modèle a appris est remplacé par du hasard (corrélation des rangs %s)", comma(s.Similarity)))
		}
	}
	if len(english) == 0 {
		return vigie.Text{
			English: fmt.Sprintf("%s passed its tests on this model.", name),
			French:  fmt.Sprintf("%s a passé ses tests sur ce modèle.", name)}
	}
	return vigie.Text{
		English: fmt.Sprintf("%s does not explain this model: %s.", name, strings.Join(english, "; ")),
		French:  fmt.Sprintf("%s n’explique pas ce modèle : %s.", name, strings.Join(french, " ; "))}
}

// Sanity is the standing's part of a map's verdict, nil where the model has no
// weights to randomise.
func (s *Standing) Sanity() *Sanity {
	if !s.Randomised {
		return nil
	}
	return &Sanity{Similarity: s.Similarity, Error: s.Error}
}

// Survey measures what a method is worth on a model: its map of every input is
// compared with random maps as Measure does, and with the maps of the model
// whose weights are all randomised as Randomise does in its last stage, with the
// same draws. o is as for New, shown turns a map into what people are shown of
// it (nil: the map itself), which is what is tested. Errors are those of New,
// Explain and Measure.
func Survey(ctx context.Context, method Method, m *onnx.Model, inputs []engine.Tensor, class int, shown func(*Map) *Map, o Options, c CheckOptions) (*Standing, error) {
	s, maps, err := surveyMaps(ctx, method, m, inputs, class, shown, o)
	if err != nil {
		return nil, err
	}
	tester, err := NewTester(m, o, c)
	if err != nil {
		return nil, err
	}
	defer tester.Close()
	s.Tested = true
	var took []time.Duration
	for i, made := range maps {
		start := time.Now()
		f, err := tester.Measure(ctx, inputs[i], made)
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
		if f.P <= Significance {
			s.Explained++
		}
		s.MeanP += f.P / float64(len(maps))
		s.MeanScore += f.Score / float64(len(maps))
	}
	s.TestTime = median(took)
	return s, s.randomise(ctx, m, inputs, maps, shown, o, c)
}

// SurveyWeights is Survey without the comparison with random maps, which means
// something only on images of the kind that the model reads: whether the weights
// matter to a map can be seen on any.
func SurveyWeights(ctx context.Context, method Method, m *onnx.Model, inputs []engine.Tensor, class int, shown func(*Map) *Map, o Options, c CheckOptions) (*Standing, error) {
	s, maps, err := surveyMaps(ctx, method, m, inputs, class, shown, o)
	if err != nil {
		return nil, err
	}
	return s, s.randomise(ctx, m, inputs, maps, shown, o, c)
}

// surveyMaps explains every input.
func surveyMaps(ctx context.Context, method Method, m *onnx.Model, inputs []engine.Tensor, class int, shown func(*Map) *Map, o Options) (*Standing, []*Map, error) {
	if len(inputs) == 0 {
		return nil, nil, fmt.Errorf("explain: surveying %s: no inputs: %w", method, ErrInput)
	}
	e, err := New(method, m, o)
	if err != nil {
		return nil, nil, err
	}
	defer e.Close()
	s := &Standing{Method: method, Images: len(inputs)}
	var took []time.Duration
	maps := make([]*Map, len(inputs))
	for i, input := range inputs {
		start := time.Now()
		made, err := e.Explain(ctx, input, class)
		if err != nil {
			return nil, nil, err
		}
		took = append(took, time.Since(start))
		maps[i] = asShown(made, shown)
	}
	s.MapTime = median(took)
	return s, maps, nil
}

func asShown(m *Map, shown func(*Map) *Map) *Map {
	if shown == nil {
		return m
	}
	return shown(m)
}

// randomise fills in how alike the maps stay when every weight is drawn anew.
// Each randomised model is opened once and explains all the inputs.
func (s *Standing) randomise(ctx context.Context, m *onnx.Model, inputs []engine.Tensor, maps []*Map, shown func(*Map) *Map, o Options, c CheckOptions) error {
	fail := func(err error) error {
		return fmt.Errorf("explain: randomising the weights under %s: %w", s.Method, err)
	}
	if err := c.check(); err != nil {
		return fail(err)
	}
	described, err := describeSubject(m, o)
	if err != nil {
		return fail(err)
	}
	layers := layersOf(m, described.logits)
	if len(layers) == 0 {
		return nil
	}
	names := map[string]bool{}
	for _, l := range layers {
		for _, w := range l.weights {
			names[w] = true
		}
	}
	var means []float64
	for r := range or(c.Randomisations, 5) {
		mean, err := s.against(ctx, m, names, rand.New(rand.NewPCG(o.Seed+uint64(r), 0xADEB)), inputs, maps, shown, o)
		if err != nil {
			return fail(err)
		}
		means = append(means, mean)
	}
	s.Randomised = true
	s.Similarity, s.Error = meanError(means)
	return nil
}

// against compares the maps with those of one randomised model.
func (s *Standing) against(ctx context.Context, m *onnx.Model, names map[string]bool, rng *rand.Rand, inputs []engine.Tensor, maps []*Map, shown func(*Map) *Map, o Options) (mean float64, err error) {
	random, err := randomised(m, names, rng)
	if err != nil {
		return 0, err
	}
	e, err := New(s.Method, random, o)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	for i, input := range inputs {
		other, err := e.Explain(ctx, input, maps[i].Class)
		if err != nil {
			return 0, err
		}
		mean += Compare(maps[i], asShown(other, shown)).read(maps[i].Kind) / float64(len(inputs))
	}
	if math.IsNaN(mean) {
		return 0, errors.New("the similarity of two maps is not a number")
	}
	return mean, nil
}

func median(durations []time.Duration) time.Duration {
	slices.Sort(durations)
	return durations[len(durations)/2]
}
