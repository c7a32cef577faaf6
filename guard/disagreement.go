package guard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// What disagreement is measured between.
const (
	Views   = "views"   // the image and slightly altered copies of it
	Members = "members" // the members of an ensemble
)

// View is a slightly altered copy of an image: moved, with the edge repeated,
// mirrored, or lighter.
type View struct {
	Down  int     `json:"down,omitempty"`  // pixels
	Right int     `json:"right,omitempty"` // pixels
	Flip  bool    `json:"flip,omitempty"`  // left and right change places
	Light float64 `json:"light,omitempty"` // added brightness, as a share of the range
}

const maxViews = 15 // with which an image goes through the model in one run

// ViewsOf are the views by which a model is asked: moved by shift pixels four
// ways, lighter and darker by light, and mirrored if sides do not matter to it. 0:
// a twenty-eighth of the smaller side, and 0.05.
func ViewsOf(rows, columns, shift int, light float64, flip bool) []View {
	if shift == 0 {
		shift = max(1, int(math.Round(float64(min(rows, columns))/28)))
	}
	if light == 0 {
		light = 0.05
	}
	views := []View{{Down: shift}, {Down: -shift}, {Right: shift}, {Right: -shift}, {Light: light}, {Light: -light}}
	if flip {
		views = append(views, View{Flip: true})
	}
	return views
}

// view alters a copy of an image.
func (g geometry) view(values []float32, v View) []float32 {
	out := make([]float32, len(values))
	for c := range g.channels {
		black, white := g.black[c], g.black[c]+g.scale[c]
		low, high := min(black, white), max(black, white)
		for r := range g.rows {
			for k := range g.columns {
				from := min(max(k-v.Right, 0), g.columns-1)
				if v.Flip {
					from = g.columns - 1 - from
				}
				value := values[g.index(c, min(max(r-v.Down, 0), g.rows-1)*g.columns+from)]
				if v.Light != 0 {
					value = min(max(value+float32(v.Light)*g.scale[c], low), high)
				}
				out[g.index(c, r*g.columns+k)] = value
			}
		}
	}
	return out
}

// Apart is how far apart several answers about one image usually are.
type Apart struct {
	By      string   `json:"by"`                // Views or Members
	Views   []View   `json:"views,omitempty"`   // of Views
	Members []string `json:"members,omitempty"` // of Members: the tensors of the members' outputs
	Wiring  *Wiring  `json:"network,omitempty"` // of Views: how an image enters the model
	Below   float64  `json:"below,omitempty"`   // asked only of answers with a confidence below; 0: of all
	Level   float64  `json:"level"`             // p-values up to it are an alarm

	// The clean images' scores, ascending within each answer, and the answer of
	// each; all 0 where answers are not told apart.
	Scores []float64 `json:"scores,omitempty"`
	Class  []int     `json:"class,omitempty"`
}

// Wiring is a Network without its graph.
type Wiring struct {
	Input        string    `json:"input"`
	Output       string    `json:"output"`
	Activation   string    `json:"activation"`
	Shape        []int64   `json:"shape"`
	ChannelsLast bool      `json:"channels_last"`
	Black        []float64 `json:"black"`
	White        []float64 `json:"white"`
}

// WiringOf is how images enter a network.
func WiringOf(n Network) *Wiring {
	return &Wiring{n.Input, n.Output, n.Activation, n.Shape, n.ChannelsLast, n.Black, n.White}
}

func (w *Wiring) of(m *onnx.Model) Network {
	return Network{Model: m, Input: w.Input, Output: w.Output, Activation: w.Activation, Shape: w.Shape, ChannelsLast: w.ChannelsLast, Black: w.Black, White: w.White}
}

// pvalue compares a score with the clean images that led to the same answer.
func (a *Apart) pvalue(v *Verifiers, predictions []vigie.Prediction, apart float64) float64 {
	return calibration{a.Scores, a.Class}.pvalue(apart, v.answer(predictions))
}

// answer is the class by which scores are compared: the label given for an answer,
// or whether the target was found.
func (v *Verifiers) answer(predictions []vigie.Prediction) int {
	if v.Excluding {
		_, answer := exclusive(predictions)
		return answer
	}
	if at := slices.Index(v.Labels, v.Target); predictions[at].Positive {
		return 1
	}
	return 0
}

func (a *Apart) text() vigie.Text {
	if a.By == Members {
		return vigie.Text{
			English: "The networks that this model is made of disagree about this image more than about almost any during validation.",
			French:  "Les réseaux qui composent ce modèle divergent sur cette image plus que sur presque toutes celles de la validation."}
	}
	return vigie.Text{
		English: "The model’s answer changes when the image is moved by a pixel or made slightly lighter or darker, which means nothing medically.",
		French:  "La réponse du modèle varie dès que l’image est déplacée d’un pixel ou légèrement éclaircie ou assombrie, ce qui n’a aucun sens médical."}
}

func (a *Apart) check(v *Verifiers) error {
	switch {
	case a.By == Views && len(a.Views) >= 1 && len(a.Views) <= maxViews && len(a.Members) == 0 && a.Wiring != nil:
		n := a.Wiring.of(nil)
		if _, err := n.geometry(); err != nil {
			return err
		}
	case a.By == Members && len(a.Members) >= 2 && len(a.Members) <= 256 && len(a.Views) == 0 && a.Wiring == nil:
	default:
		return fmt.Errorf("disagreement by %q of %d views and %d members", a.By, len(a.Views), len(a.Members))
	}
	for _, w := range a.Views {
		if w.Down < -64 || w.Down > 64 || w.Right < -64 || w.Right > 64 || !within(w.Light, -0.5, 0.5) {
			return fmt.Errorf("the view %+v", w)
		}
	}
	for _, m := range a.Members {
		if m == "" || len(m) > 1024 {
			return fmt.Errorf("a member %q", m)
		}
	}
	if !within(a.Below, 0, 1) || !within(a.Level, 0, 1) || len(a.Scores) < 1 || len(a.Scores) > 1<<17 || len(a.Class) != len(a.Scores) {
		return fmt.Errorf("disagreement at a level of %v below %v with %d scores", a.Level, a.Below, len(a.Scores))
	}
	for i, s := range a.Scores {
		c := a.Class[i]
		if !within(s, 0, 1) || c < 0 || c >= max(2, len(v.Labels)) || i > 0 && (c < a.Class[i-1] || c == a.Class[i-1] && s < a.Scores[i-1]) {
			return fmt.Errorf("the scores of disagreement are not sorted from 0 to 1 at %d", i)
		}
	}
	return nil
}

// MembersOf are the tensors of the outputs of an ensemble's members: what the node
// that computes the model's output is the plain mean of. Nil: the model is none.
func MembersOf(m *onnx.Model, output string) []string {
	producer, _ := m.Graph.Producer(output)
	for producer != nil && producer.Domain == "" && producer.OpType == "Identity" {
		producer, _ = m.Graph.Producer(producer.Inputs[0])
	}
	if producer == nil || producer.Domain != "" || producer.OpType != "Mean" || len(producer.Inputs) < 2 || len(producer.Inputs) > 256 {
		return nil
	}
	for _, name := range producer.Inputs {
		if p, _ := m.Graph.Producer(name); p == nil {
			return nil
		}
	}
	return slices.Clone(producer.Inputs)
}

// WithOutputs is a model that also gives the named tensors, float32, with its own
// output. It shares the model's nodes and weights.
func WithOutputs(m *onnx.Model, output string, names []string) (*onnx.Model, error) {
	alone, err := appendTaps(m, output, nil)
	if err != nil {
		return nil, err
	}
	return addOutputs(alone, names)
}

// addOutputs lets a graph give tensors of the shape of its first output as well.
func addOutputs(m *onnx.Model, names []string) (*onnx.Model, error) {
	graph := *m.Graph
	graph.Outputs = slices.Clone(graph.Outputs)
	copied := *m
	copied.Graph = &graph
	b := onnx.Extend(&copied)
	for _, name := range names {
		if producer, _ := m.Graph.Producer(name); producer == nil {
			return nil, fmt.Errorf("output %q: %w: the graph computes none of that name", name, ErrOtherModel)
		}
		b.Output(name, onnx.Float, m.Graph.Outputs[0].Shape...)
	}
	return b.Build()
}

// Second asks a model again about images it has answered. It is safe for
// concurrent use.
type Second struct {
	guard *Guard
	apart *Apart
}

// OpenSecond prepares the second asking of a model by views. Close it.
func OpenSecond(m *onnx.Model, a *Apart, threads int) (*Second, error) {
	if a.By != Views || a.Wiring == nil {
		return nil, fmt.Errorf("guard: preparing views: disagreement is by %q", a.By)
	}
	g, err := open(a.Wiring.of(m), nil, threads)
	if err != nil {
		return nil, fmt.Errorf("guard: preparing views: %w", err)
	}
	return &Second{g, a}, nil
}

// Close frees the engine.
func (s *Second) Close() error {
	if s == nil {
		return nil
	}
	return s.guard.Close()
}

// Ask runs the views of an image through the model, in one run where the graph
// takes any number of images, and returns how far apart they are from output, 0 to
// 1: see Spread. ErrInput: another shape, or values that are not numbers.
func (s *Second) Ask(ctx context.Context, input engine.Tensor, output []float32) (float64, error) {
	values, err := engine.Values[float32](input)
	if err == nil {
		err = s.guard.geometry.check(values)
	}
	if err != nil {
		return 0, fmt.Errorf("guard: asking again: %w", err)
	}
	copies := make([][]float32, len(s.apart.Views))
	for i, v := range s.apart.Views {
		copies[i] = s.guard.geometry.view(values, v)
	}
	answers, err := s.guard.answers(ctx, copies)
	if err != nil {
		return 0, fmt.Errorf("guard: asking again: %w", err)
	}
	return Spread(s.guard.network.Activation, output, answers)
}

// Spread is the mean distance of other answers from the model's own, 0 to 1: of
// labels that exclude each other the total variation of the probabilities, of
// others the largest difference of one.
func Spread(activation string, output []float32, others [][]float64) (float64, error) {
	n := Network{Activation: activation}
	own := make([]float64, len(output))
	for i, v := range output {
		own[i] = float64(v)
	}
	p, sum := n.probabilities(own), 0.0
	for _, other := range others {
		if len(other) != len(own) {
			return 0, fmt.Errorf("%d outputs beside %d: %w", len(other), len(own), ErrInput)
		}
		total, most := 0.0, 0.0
		for i, q := range n.probabilities(other) {
			d := math.Abs(q - p[i])
			total, most = total+d/2, max(most, d)
		}
		if activation != Softmax {
			total = most
		}
		sum += total / float64(len(others))
	}
	if math.IsNaN(sum) || len(others) == 0 {
		return 0, errors.Join(errNotFinite, ErrInput)
	}
	return min(sum, 1), nil
}

// Answered is what a model says of one image.
type Answered struct {
	Output []float32
	Also   [][]float32 // of the tensors named
}

// Answers runs images through a model, and takes further tensors of its graph from
// the same runs.
func Answers(ctx context.Context, n Network, images [][]float32, threads int, also ...string) ([]Answered, error) {
	g, err := open(n, nil, threads, also...)
	if err != nil {
		return nil, fmt.Errorf("guard: asking the model: %w", err)
	}
	looks, err := g.looks(ctx, images)
	out := make([]Answered, len(looks))
	for i, l := range looks {
		if l != nil {
			out[i] = Answered{l.Output, l.Also}
		}
	}
	if err = errors.Join(err, g.Close()); err != nil {
		return nil, fmt.Errorf("guard: asking the model: %w", err)
	}
	return out, nil
}
