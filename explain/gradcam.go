// Package explain shows which parts of an image a model's answer rests on.
//
// Grad-CAM (Selvaraju et al. 2017) weighs each channel of the last
// convolution's activation by the mean of its gradient towards the class, adds
// the channels up and keeps what speaks for the class:
//
//	cam, err := explain.NewGradCAM(model, explain.Options{})
//	if err != nil { … }
//	defer cam.Close()
//	result, err := cam.Explain(ctx, engine.Float32([]int64{1, 1, 28, 28}, pixels), 1)
//	// result.Map: 28×28 values in 0..1; result.Logits: the answer explained
//
// One run of one graph gives the answer and the map together: onnx/autodiff
// appends the gradient to the inference graph. So the map explains exactly the
// answer that is reported, for one extra pass through the layers after the
// explained one.
//
// A map is a hint where to look, not evidence: it is as coarse as the layer,
// and shows what the model used, not what is true. Checked here as Adebayo et
// al. (2018) ask: randomising the weights changes the map.
package explain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// ErrNoLayer is returned for a model without a convolution to explain by, or
// when the named layer is not a feature map.
var ErrNoLayer = errors.New("no feature map to explain by")

// Options says how to explain. The zero value suits a classifier with one
// image input and one output of logits.
type Options struct {
	Input   string // image input [N, C, rows, columns]; empty: the only input
	Logits  string // [N, classes]; empty: the only output
	Layer   string // activation [N, K, rows, columns]; empty: see LastLayer
	Threads int    // of the engine; 0 is its default
}

// Map is a relevance map over the input image.
type Map struct {
	Rows, Columns int
	Values        []float32 // row-major, 0..1; all 0 if nothing speaks for the class
	Layer         Size      // resolution of the map before it was enlarged
	Class         int       // explained class
	Logits        []float32 // of the same run, one per class
}

// Size is a resolution in pixels.
type Size struct{ Rows, Columns int }

// GradCAM explains images by one model. It is safe for concurrent use.
type GradCAM struct {
	session             engine.Session
	input, logits       string
	layer, gradient     string
	selector            string // input [1, classes]: 1 at the class to explain
	classes             int
	channels            int
	rows, columns       int // of the input image
	mapRows, mapColumns int
}

// NewGradCAM builds the augmented graph of a model for single images. Close
// frees it.
func NewGradCAM(m *onnx.Model, o Options) (*GradCAM, error) {
	g, err := newGradCAM(m, o)
	if err != nil {
		return nil, fmt.Errorf("explain: preparing Grad-CAM: %w", err)
	}
	return g, nil
}

func newGradCAM(m *onnx.Model, o Options) (*GradCAM, error) {
	g := &GradCAM{input: o.Input, logits: o.Logits, layer: o.Layer}
	inputs := m.Graph.Inputs
	if g.input == "" {
		if len(inputs) != 1 {
			return nil, fmt.Errorf("the model has %d inputs; name the image in Options.Input", len(inputs))
		}
		g.input = inputs[0].Name
	}
	if g.logits == "" {
		if len(m.Graph.Outputs) != 1 {
			return nil, fmt.Errorf("the model has %d outputs; name the logits in Options.Logits", len(m.Graph.Outputs))
		}
		g.logits = m.Graph.Outputs[0].Name
	}
	if g.layer == "" {
		layer, err := LastLayer(m, g.logits)
		if err != nil {
			return nil, err
		}
		g.layer = layer
	}
	scored, err := g.appendScore(m)
	if err != nil {
		return nil, err
	}
	gradients, err := autodiff.Gradient(scored, autodiff.Request{
		Loss: scoreName, WithRespectTo: []string{g.layer}, Batch: 1, Keep: []string{g.logits, g.layer},
	})
	if err != nil {
		return nil, err
	}
	g.gradient = gradients.Of[g.layer]
	if err := g.readShapes(gradients.Model); err != nil {
		return nil, err
	}
	g.session, err = engine.Open(gradients.Model, engine.Options{Threads: o.Threads})
	return g, err
}

// The added input that chooses the class, and the tensor that is differentiated.
const (
	selectorName = "explain/class"
	scoreName    = "explain/score"
)

// appendScore adds logits·selector: the logit of the chosen class, which lets
// one graph explain any class.
func (g *GradCAM) appendScore(m *onnx.Model) (*onnx.Model, error) {
	shapes, err := onnx.InferShapes(m, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return nil, err
	}
	z, ok := shapes[g.logits]
	if !ok || len(z.Shape) != 2 || !z.Shape[1].Known() {
		return nil, fmt.Errorf("output %q is %v, want [N, classes]", g.logits, z)
	}
	g.classes = int(z.Shape[1].Value)
	b := onnx.Extend(m.Clone())
	g.selector = b.Input(selectorName, z.Type, onnx.Fixed(1, z.Shape[1].Value)...)
	b.Node(&onnx.Node{OpType: "Mul", Inputs: []string{g.logits, g.selector}, Outputs: []string{scoreName}}, 1)
	b.Output(scoreName, z.Type, z.Shape...)
	return b.Build()
}

func (g *GradCAM) readShapes(m *onnx.Model) error {
	for _, v := range m.Graph.Inputs {
		if v.Name == g.input {
			s, ok := v.Static()
			if !ok || len(s) != 4 || v.Type != onnx.Float {
				return fmt.Errorf("input %q is %v, want a float image [N, C, rows, columns]", v.Name, v)
			}
			g.rows, g.columns = int(s[2]), int(s[3])
		}
	}
	if g.rows == 0 {
		return fmt.Errorf("the logits do not depend on input %q", g.input)
	}
	for _, v := range m.Graph.Outputs {
		if v.Name == g.layer {
			s, ok := v.Static()
			if !ok || len(s) != 4 || v.Type != onnx.Float {
				return fmt.Errorf("layer %q is %v: %w: want [N, K, rows, columns]", v.Name, v, ErrNoLayer)
			}
			g.channels, g.mapRows, g.mapColumns = int(s[1]), int(s[2]), int(s[3])
		}
	}
	return nil
}

// LastLayer finds the activation that Grad-CAM explains by unless told
// otherwise: the tensor that leaves the last convolution's block (convolution,
// normalisation, bias, Relu or another elementwise activation) before it is
// pooled, flattened or joined with others. Convolutions of a single position,
// as squeeze-and-excitation has them, show no place and are passed over.
func LastLayer(m *onnx.Model, logits string) (string, error) {
	shapes, err := onnx.InferShapes(m, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return "", err
	}
	reaches := map[string]bool{logits: true}
	for _, n := range slices.Backward(m.Graph.Nodes) {
		if !slices.ContainsFunc(n.Outputs, func(out string) bool { return out != "" && reaches[out] }) {
			continue
		}
		if n.OpType == "Conv" && hasPlaces(shapes[n.Outputs[0]]) {
			return follow(m, shapes, n.Outputs[0]), nil
		}
		for _, in := range n.Inputs {
			reaches[in] = true
		}
	}
	return "", fmt.Errorf("the model has no convolution before %q: %w; name a layer in Options.Layer", logits, ErrNoLayer)
}

// hasPlaces says whether a tensor is an image of more than one position, as far
// as its shape is known.
func hasPlaces(v onnx.Value) bool {
	return len(v.Shape) == 4 && !(v.Shape[2].Value == 1 && v.Shape[3].Value == 1)
}

// follow walks from a convolution's output through its block: nodes that are
// its value's only reader and keep or only regroup its elements. The last value
// of rank 4 on the way is the layer.
func follow(m *onnx.Model, shapes map[string]onnx.Value, from string) string {
	readers := map[string][]*onnx.Node{}
	for _, n := range m.Graph.Nodes {
		for _, in := range n.Inputs {
			if n.OpType != "Shape" { // reads no element
				readers[in] = append(readers[in], n)
			}
		}
	}
	layer := from
	for at := from; ; {
		next := readers[at]
		if len(next) != 1 || !blockOperators[next[0].OpType] {
			return layer
		}
		at = next[0].Outputs[0]
		if v, ok := shapes[at]; ok && len(v.Shape) == 4 && sameArea(v, shapes[from]) {
			layer = at
		}
	}
}

func sameArea(a, b onnx.Value) bool {
	return len(b.Shape) == 4 && a.Shape[2] == b.Shape[2] && a.Shape[3] == b.Shape[3]
}

// blockOperators continue a convolution's block.
var blockOperators = map[string]bool{
	"BatchNormalization": true, "InstanceNormalization": true, "GroupNormalization": true, "Reshape": true,
	"Add": true, "Mul": true, "Relu": true, "LeakyRelu": true, "PRelu": true, "Elu": true, "Clip": true, "Gelu": true,
	"HardSwish": true, "Mish": true, "Softplus": true, "Tanh": true, "Identity": true, "Dropout": true, "Cast": true,
}

// Explain runs one image [1, C, rows, columns] and explains a class by its index.
func (g *GradCAM) Explain(ctx context.Context, image engine.Tensor, class int) (*Map, error) {
	if class < 0 || class >= g.classes {
		return nil, fmt.Errorf("explain: class %d: the model has classes 0 to %d", class, g.classes-1)
	}
	selector := make([]float32, g.classes)
	selector[class] = 1
	out, err := g.session.Run(ctx, map[string]engine.Tensor{
		g.input:    image,
		g.selector: engine.Float32([]int64{1, int64(g.classes)}, selector),
	})
	if err != nil {
		return nil, fmt.Errorf("explain: running Grad-CAM: %w", err)
	}
	logits, err := engine.Values[float32](out[g.logits])
	if err != nil {
		return nil, fmt.Errorf("explain: running Grad-CAM: %w", err)
	}
	activation, err := engine.Values[float32](out[g.layer])
	if err != nil {
		return nil, fmt.Errorf("explain: running Grad-CAM: %w", err)
	}
	gradient, err := engine.Values[float32](out[g.gradient])
	if err != nil {
		return nil, fmt.Errorf("explain: running Grad-CAM: %w", err)
	}
	coarse := g.combine(activation, gradient)
	return &Map{
		Rows: g.rows, Columns: g.columns, Class: class, Logits: logits,
		Layer:  Size{g.mapRows, g.mapColumns},
		Values: Enlarge(coarse, g.mapRows, g.mapColumns, g.rows, g.columns),
	}, nil
}

// combine is Grad-CAM's equations 1 and 2, scaled so that the strongest place
// is 1.
func (g *GradCAM) combine(activation, gradient []float32) []float32 {
	area := g.mapRows * g.mapColumns
	sum := make([]float64, area)
	for k := range g.channels {
		weight := 0.0
		for _, d := range gradient[k*area : (k+1)*area] {
			weight += float64(d) / float64(area)
		}
		for i, a := range activation[k*area : (k+1)*area] {
			sum[i] += weight * float64(a)
		}
	}
	top := 0.0
	for _, v := range sum {
		top = math.Max(top, v)
	}
	out := make([]float32, area)
	if top <= 0 || math.IsNaN(top) || math.IsInf(top, 0) {
		return out
	}
	for i, v := range sum {
		out[i] = float32(math.Max(v, 0) / top)
	}
	return out
}

// Close frees the graph.
func (g *GradCAM) Close() error { return g.session.Close() }
