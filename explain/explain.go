package explain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// Explainer explains the answers of one model by one method. It is safe for
// concurrent use.
type Explainer interface {
	// Explain says what the score of a class rests on, for an example in the
	// shape of the model's input with a batch of 1. The error says what does
	// not fit; ctx ends it between two runs of the model and within one.
	Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error)
	// Close frees the graphs.
	Close() error
}

// Kind is the question that a map answers.
type Kind string

// The kinds of map.
const (
	Relevance    Kind = "relevance"    // 0..1, where evidence for the class lies, 1 at the strongest place
	Contribution Kind = "contribution" // signed, in units of the score: what the place adds to it
	Sensitivity  Kind = "sensitivity"  // signed, score by unit of the input: what a change would do
)

// Map holds a value for each place of an input: pixel, position or feature.
type Map struct {
	Method        Method
	Kind          Kind
	Rows, Columns int       // of an image; a sequence or a table is one row
	Values        []float32 // row-major
	Class         int       // explained class
	Logits        []float32 // the model's answer, one for each class
	Layer         Size      // of Grad-CAM, rollout, occlusion: resolution before the map was enlarged
	Segments      []int     // of a map that is constant over segments: the segment of each place
	Additive      *Additive // of methods whose values add up to a difference of scores
	Surrogate     float64   // LIME: weighted R² of the linear model, 1 is perfect
	Evaluations   int       // examples on which the model was run, gradients included
}

// Additive says how well contributions add up to what they explain:
// Output - Reference = ΣValues + Gap.
type Additive struct {
	Output    float64 `json:"output"`    // score of the input
	Reference float64 `json:"reference"` // mean score of the background
	Gap       float64 `json:"gap"`       // what the contributions leave out
	Steps     int     // integrated gradients: points on each path
	Converged bool    // integrated gradients: the gap is within the tolerance
}

// Size is a resolution in pixels.
type Size struct {
	Rows    int `json:"rows"`
	Columns int `json:"columns"`
}

// Errors that callers branch on.
var (
	// ErrNoLayer: the model has no feature map to explain by, or the named
	// layer is none.
	ErrNoLayer = errors.New("no feature map to explain by")
	// ErrNoAttention: the model has no attention that rollout can follow.
	ErrNoAttention = errors.New("no attention to roll out")
	// ErrNoBackground: the method compares with a background and has none.
	ErrNoBackground = errors.New("no background to compare with; choose Options.Background")
	// ErrInput: an input, a class or an option does not fit the model.
	ErrInput = errors.New("does not fit the model")
)

// Score is the number that is explained.
type Score string

// The scores. Logit is what the literature explains; of two classes that exclude
// each other LogOdds is the whole answer, and their logits by themselves are
// not.
const (
	Logit       Score = "logit"       // the class's output as it is
	LogOdds     Score = "log-odds"    // its logit less the log-sum-exp of the others'
	Probability Score = "probability" // its softmax
)

// Options says how to explain. The zero value suits a classifier with one
// input and one output of logits, for methods without a background.
type Options struct {
	Input        string // empty: the only one
	Logits       string // output [N, classes]; empty: the only one
	ChannelsLast bool   // images are [N, rows, columns, channels], sequences [N, length, channels]
	// Shape is that of one example, for models that leave more than the batch open.
	Shape []int64
	Score Score // empty: Logit
	// Background stands for "not there" in methods that compare or remove.
	Background Background
	Layer      string // Grad-CAM: activation [N, K, rows, columns]; empty: see LastLayer
	// Samples is how often a method that samples asks the model; 0 is its
	// default: 50 noisy copies (SmoothGrad), 200 points (GradientSHAP), 2048
	// coalitions (KernelSHAP), 1000 (LIME). Each counts for every background.
	Samples int
	// Segments is how many pieces KernelSHAP and LIME cut an image or a
	// sequence into. 0: about 50. The columns of a table are its pieces.
	Segments int
	// Groups instead assigns each place to a piece, numbered from 0. Occlusion
	// then covers one piece at a time.
	Groups []int
	Window int     // occlusion: side of the square; 0: an eighth of the shorter side, at least 2
	Stride int     // occlusion: 0: half a window
	Noise  float64 // SmoothGrad: standard deviation as a share of the input's range; 0: 0.15
	// Tolerance is the gap at which integrated gradients stop adding points,
	// relative to the difference explained; 0: 0.01. MaxSteps bounds them; 0: 1024.
	Tolerance float64
	MaxSteps  int
	Seed      uint64 // of every random choice
	Threads   int    // of the engine; 0 is its default
	Batch     int    // examples in one run of the model; 0: by their size
	// Progress, if not nil, is told how many of how many examples have been
	// run. It is called on the goroutine of Explain.
	Progress func(done, total int)
}

// Method names a way to explain.
type Method string

// The methods.
const (
	GradCAM             Method = "gradcam"
	GradCAMPlusPlus     Method = "gradcam++"
	Rollout             Method = "rollout"
	GradientRollout     Method = "gradient-rollout"
	Gradient            Method = "gradient"
	SmoothGrad          Method = "smoothgrad"
	IntegratedGradients Method = "integrated-gradients"
	GradientSHAP        Method = "gradientshap"
	Occlusion           Method = "occlusion"
	KernelSHAP          Method = "kernelshap"
	LIME                Method = "lime"
)

// Description is a row of the table of methods.
type Description struct {
	Method     Method
	About      string // what it does, with its source
	Kind       Kind
	Background bool // needs Options.Background
	Gradients  bool // needs a model that can be differentiated
	open       func(*onnx.Model, Options) (Explainer, error)
}

// methods is the whole table; each method has its own file.
var methods = []Description{
	{GradCAM, "last convolution's channels, weighted by their mean gradient (Selvaraju et al. 2017)", Relevance, false, true, openCAM(camWeights)},
	{GradCAMPlusPlus, "the same, weighted by the places where the gradient is positive (Chattopadhay et al. 2018)", Relevance, false, true, openCAM(camPlusPlusWeights)},
	{Rollout, "attention followed through all layers of a transformer; the same for every class (Abnar and Zuidema 2020)", Relevance, false, false, openRollout(false)},
	{GradientRollout, "attention times its positive gradient, followed through all layers (Chefer et al. 2021)", Relevance, false, true, openRollout(true)},
	{Gradient, "gradient of the score (Simonyan et al. 2014)", Sensitivity, false, true, openGradient},
	{SmoothGrad, "mean gradient over noisy copies of the input (Smilkov et al. 2017)", Sensitivity, false, true, openSmoothGrad},
	{IntegratedGradients, "gradient along the way from the background (Sundararajan et al. 2017)", Contribution, true, true, openIntegrated},
	{GradientSHAP, "gradient at random points on the ways from random backgrounds (Erion et al. 2021)", Contribution, true, true, openGradientSHAP},
	{Occlusion, "drop of the score when a window is covered (Zeiler and Fergus 2014)", Contribution, true, false, openOcclusion},
	{KernelSHAP, "Shapley values of features or superpixels by weighted regression (Lundberg and Lee 2017)", Contribution, true, false, openKernelSHAP},
	{LIME, "linear model of the answer near the input, over features or superpixels (Ribeiro et al. 2016)", Contribution, true, false, openLIME},
}

// Methods lists the methods.
func Methods() []Description { return slices.Clone(methods) }

// Describe returns a method's row.
func Describe(m Method) (Description, error) {
	var known []string
	for _, d := range methods {
		if d.Method == m {
			return d, nil
		}
		known = append(known, string(d.Method))
	}
	return Description{}, fmt.Errorf("explain: method %q is not known: choose one of %s", m, strings.Join(known, ", "))
}

// New makes a model ready to be explained. It does not keep or change m.
// Errors: ErrNoLayer, ErrNoAttention, ErrNoBackground, ErrInput, those of
// autodiff for a model that cannot be differentiated, and the engine's.
func New(method Method, m *onnx.Model, o Options) (Explainer, error) {
	d, err := Describe(method)
	if err != nil {
		return nil, err
	}
	if d.Background && o.Background == nil {
		return nil, fmt.Errorf("explain: preparing %s: %w", method, ErrNoBackground)
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("explain: preparing %s: %w", method, err)
	}
	e, err := d.open(m, o)
	if err != nil {
		return nil, fmt.Errorf("explain: preparing %s: %w", method, err)
	}
	return &named{e, method, d.Kind}, nil
}

func (o Options) check() error {
	for _, option := range []struct {
		name  string
		value int
	}{{"Samples", o.Samples}, {"Segments", o.Segments}, {"Window", o.Window}, {"Stride", o.Stride}, {"MaxSteps", o.MaxSteps}, {"Threads", o.Threads}, {"Batch", o.Batch}} {
		if option.value < 0 || option.value > 1<<24 {
			return fmt.Errorf("option %s is %d: want 0 for the default, or more", option.name, option.value)
		}
	}
	if !(o.Noise >= 0 && o.Noise <= 10) || !(o.Tolerance >= 0) {
		return fmt.Errorf("noise %v and tolerance %v: want 0 for the defaults, or more", o.Noise, o.Tolerance)
	}
	switch o.Score {
	case "", Logit, LogOdds, Probability:
		return nil
	}
	return fmt.Errorf("score %q is not known: choose one of %s, %s, %s", o.Score, Logit, LogOdds, Probability)
}

// named puts the method's name on maps and errors.
type named struct {
	Explainer
	method Method
	kind   Kind
}

func (n *named) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	m, err := n.Explainer.Explain(ctx, input, class)
	if err != nil {
		return nil, fmt.Errorf("explain: %s: %w", n.method, err)
	}
	m.Method, m.Kind, m.Class = n.method, n.kind, class
	return m, nil
}

func or[T int | float64](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}
