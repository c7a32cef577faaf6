package probe

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// The losses of a Request.
const (
	// CrossEntropy is the mean over the examples of -Σ target·log softmax of
	// the output [N, K]: PyTorch's cross_entropy. Labels are classes [N] or
	// [N, 1], or distributions [N, K], whose rows add up to 1.
	CrossEntropy = "cross-entropy"
	// BinaryCrossEntropy is, for an output [N, K] of independent logits, the
	// sum over labels and mean over examples of the cross-entropy of their
	// sigmoid: K times PyTorch's binary_cross_entropy_with_logits. Labels are
	// 0 to 1, [N, K], or [N] for K = 1.
	BinaryCrossEntropy = "bce"
	// Sum is the sum of all elements of the output, of any shape; no labels.
	Sum = "sum"
)

// Losses are the losses of a Request.
func Losses() []string { return []string{CrossEntropy, BinaryCrossEntropy, Sum} }

// What a Request can differentiate with respect to, beside a tensor's name.
const (
	Inputs  = "input"   // every input of a floating-point type
	Weights = "weights" // every trainable weight that the loss depends on
)

// Request says which gradients to compute.
type Request struct {
	Loss   string
	Labels *engine.Tensor // nil for Sum
	Output string         // an output or inner tensor; empty: the only output, or a package's
	// WithRespectTo holds Inputs, Weights or names of inputs, weights or inner
	// tensors. Weights leaves out what optimisers leave alone: the running
	// statistics of batch normalisation and settings such as Resize's scales.
	WithRespectTo []string
	// PerExample asks for each example's own gradient: that of a weight of
	// shape S has shape [N, S…], and the losses are not averaged.
	PerExample bool
}

// Gradients is the result of Gradient. Tensors holds each gradient under the
// name of what it is a gradient of.
type Gradients struct {
	Model     string                   `json:"model"`
	Loss      string                   `json:"loss"`
	Value     float64                  `json:"value"`       // mean over the examples, or the sum
	Each      []float64                `json:"per_example"` // loss of each example
	Gradients []Figures                `json:"gradients"`
	Duration  time.Duration            `json:"ns"` // of the run alone
	Warnings  []string                 `json:"warnings"`
	Tensors   map[string]engine.Tensor `json:"-"`
}

// Gradient computes a loss of the model on inputs, as Model.Inputs gives them,
// and its gradients. An operator on the way that cannot be differentiated is an
// error that names it (autodiff.ErrNotDifferentiable).
func (m *Model) Gradient(ctx context.Context, inputs map[string]engine.Tensor, r Request) (*Gradients, error) {
	bound, values, err := m.bound(inputs)
	if err != nil {
		return nil, err
	}
	var out onnx.Value
	if r.Output != "" { // inner tensors are as good as outputs: logits before an activation
		out.Name = r.Output
		err = expose(bound, values, []string{r.Output})
	} else {
		out, err = m.output("")
	}
	if err != nil {
		return nil, err
	}
	loss, feed, err := appendLoss(bound, values, out.Name, r)
	if err != nil {
		return nil, err
	}
	for name, t := range inputs {
		feed[name] = t
	}
	names, err := m.resolve(loss, values, r.WithRespectTo)
	if err != nil {
		return nil, err
	}
	differentiated := loss.total
	if r.PerExample {
		differentiated = loss.each
	}
	keep := []string{loss.each}
	if loss.total != loss.each {
		keep = append(keep, loss.total)
	}
	graph, err := autodiff.Gradient(loss.model, autodiff.Request{Loss: differentiated, WithRespectTo: names, PerExample: r.PerExample, Keep: keep})
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	session, err := engine.Open(graph.Model, engine.Options{})
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	defer session.Close()
	needed := map[string]engine.Tensor{}
	for _, v := range session.Inputs() {
		needed[v.Name] = feed[v.Name]
	}
	start := time.Now()
	computed, err := session.Run(ctx, needed)
	if err != nil {
		return nil, fmt.Errorf("probe: computing gradients of %s: %w", m.Path, err)
	}
	g := &Gradients{Model: m.Path, Loss: r.Loss, Duration: time.Since(start), Warnings: append([]string{}, m.Warnings...), Tensors: map[string]engine.Tensor{}}
	each(computed[loss.each], func(v float64) { g.Each = append(g.Each, v) })
	each(computed[loss.total], func(v float64) { g.Value = v })
	if bad := figures("", computed[loss.each]).Unusable; bad > 0 {
		reasons := slices.Concat(m.Warnings, []string{"look for values in the inputs that are not numbers, or too large"})
		return nil, fmt.Errorf("probe: the loss of %d of %d examples is not a number; %s", bad, len(g.Each), strings.Join(reasons, "; "))
	}
	if hint := activated(bound.Graph, out.Name, r.Loss); hint != "" {
		g.Warnings = append(g.Warnings, hint)
	}
	for _, name := range names {
		t := computed[graph.Of[name]]
		g.Tensors[name] = t
		f := figures(name, t)
		if f.Unusable > 0 {
			g.Warnings = append(g.Warnings, fmt.Sprintf("gradient of %q has %d elements that are NaN or infinite", name, f.Unusable))
		}
		g.Gradients = append(g.Gradients, f)
	}
	return g, nil
}

// carries are operators that hand elements on as they are.
var carries = []string{"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast"}

// activated says that a loss which applies an activation itself is taken of what
// an activation gave already; empty if it is not. The value is defined all the
// same, and seldom meant. Cross-entropy of a LogSoftmax is that of its input.
func activated(g *onnx.Graph, output, loss string) string {
	within := map[string]string{CrossEntropy: "softmax", BinaryCrossEntropy: "sigmoid"}[loss]
	if within == "" {
		return ""
	}
	name := output
	for {
		node, _ := g.Producer(name)
		if node == nil || node.Domain != "" {
			return ""
		}
		switch {
		case node.OpType == "Softmax", node.OpType == "Sigmoid", node.OpType == "LogSoftmax" && loss != CrossEntropy:
			next := "take the activation off"
			if p, _ := g.Producer(node.Input(0)); p != nil {
				next = fmt.Sprintf("name them as the output (%q)", node.Input(0))
			}
			return fmt.Sprintf("output %q is what a %s gives, and %s takes the %s of it once more; it is made for logits: %s, if that is what you mean", output, node.OpType, loss, within, next)
		case slices.Contains(carries, node.OpType):
			name = node.Input(0)
		default:
			return ""
		}
	}
}

// Metadata describes the gradients for the header of a safetensors file.
func (g *Gradients) Metadata() map[string]string {
	return map[string]string{"format": "pt", "loss": g.Loss, "value": strconv.FormatFloat(g.Value, 'g', -1, 64), "made_by": "vigie grad"}
}

// loss is a model with a loss appended: its value for each example, [N], and
// over all.
type loss struct {
	model       *onnx.Model
	each, total string
}

// appendLoss appends the loss and returns the tensors that it needs.
func appendLoss(m *onnx.Model, values map[string]onnx.Value, output string, r Request) (*loss, map[string]engine.Tensor, error) {
	v := values[output]
	shape, static := v.Static()
	if !static || len(shape) == 0 {
		return nil, nil, fmt.Errorf("probe: loss of output %q: %w: its shape is %v, want one whose first dimension counts the examples", output, ErrAsk, v)
	}
	if !isFloat(v.Type) {
		return nil, nil, fmt.Errorf("probe: loss of output %q: %w: it is %v; gradients exist for floats only", output, ErrAsk, v)
	}
	var build func(*onnx.Model, string, ...string) (*autodiff.Loss, error)
	switch r.Loss {
	case CrossEntropy:
		build = autodiff.SoftmaxCrossEntropy
	case BinaryCrossEntropy:
		build = autodiff.BinaryCrossEntropy
	case Sum:
		if r.Labels != nil {
			return nil, nil, fmt.Errorf("probe: labels: %w: the loss %q takes none", ErrAsk, Sum)
		}
		l, err := appendSum(m, v, output)
		return l, map[string]engine.Tensor{}, err
	default:
		return nil, nil, fmt.Errorf("probe: loss %q is not known: choose one of %q", r.Loss, Losses())
	}
	if len(shape) != 2 {
		return nil, nil, fmt.Errorf("probe: loss of output %q: %w: %s needs logits [N, classes], it is %v", output, ErrAsk, r.Loss, v)
	}
	if r.Labels == nil {
		return nil, nil, fmt.Errorf("probe: the loss %q needs labels", r.Loss)
	}
	target, err := targets(*r.Labels, shape[0], shape[1], v.Type, r.Loss)
	if err != nil {
		return nil, nil, err
	}
	l, err := build(m, output)
	if err != nil {
		return nil, nil, fmt.Errorf("probe: %w", err)
	}
	weight, err := engine.Zeros(v.Type, shape[0])
	if err != nil {
		return nil, nil, err
	}
	switch w := weight.Data.(type) {
	case []float32:
		for i := range w {
			w[i] = 1 / float32(len(w))
		}
	case []float64:
		for i := range w {
			w[i] = 1 / float64(len(w))
		}
	}
	return &loss{l.Model, l.Each, l.Total}, map[string]engine.Tensor{l.Target: target, l.Weight: weight}, nil
}

// appendSum adds the sum over everything but the examples, and over everything.
func appendSum(m *onnx.Model, v onnx.Value, output string) (*loss, error) {
	b := onnx.Extend(m.Clone())
	l := &loss{each: output}
	if len(v.Shape) > 1 {
		axes := make([]int64, len(v.Shape)-1)
		for i := range axes {
			axes[i] = int64(i) + 1
		}
		l.each = b.Op("ReduceSum", []string{output, b.Ints("loss_axes", axes...)}, onnx.IntAttribute("keepdims", 0))
		b.Output(l.each, v.Type, v.Shape[0])
	}
	l.total = b.Op("ReduceSum", []string{l.each, b.Ints("loss_axes", 0)}, onnx.IntAttribute("keepdims", 1))
	b.Output(l.total, v.Type, onnx.Dim{Value: 1})
	var err error
	if l.model, err = b.Build(); err != nil {
		return nil, fmt.Errorf("probe: appending a sum: %w", err)
	}
	return l, nil
}

// targets turns labels into the distribution over classes, or the probability
// of each label, that the losses take.
func targets(labels engine.Tensor, n, classes int64, typ onnx.DataType, loss string) (engine.Tensor, error) {
	size := int64(labels.Len())
	wrong := func(want string) error {
		return fmt.Errorf("probe: labels of shape %v: %w: %s over %d examples and %d classes wants %s", labels.Shape, ErrAsk, loss, n, classes, want)
	}
	if len(labels.Shape) == 0 || labels.Shape[0] != n {
		return engine.Tensor{}, wrong(fmt.Sprintf("one label for each of the %d examples", n))
	}
	if loss == CrossEntropy && classes == 1 {
		return engine.Tensor{}, fmt.Errorf("probe: cross-entropy over one class: %w: it is 0 whatever the output is; take the loss %q", ErrAsk, BinaryCrossEntropy)
	}
	target := make([]float64, n*classes)
	whole := !isFloat(labels.Type())
	switch {
	case loss == CrossEntropy && whole && size == n:
		i := 0
		var err error
		each(labels, func(v float64) {
			if (v < 0 || v >= float64(classes)) && err == nil {
				err = fmt.Errorf("probe: label %v of example %d: %w: its classes are 0 to %d", v, i, ErrAsk, classes-1)
			}
			if err == nil {
				target[int64(i)*classes+int64(v)] = 1
			}
			i++
		})
		if err != nil {
			return engine.Tensor{}, err
		}
	case size == n*classes && (len(labels.Shape) == 2 || classes == 1 && len(labels.Shape) == 1):
		i := 0
		var err error
		each(labels, func(v float64) {
			if !(v >= 0 && v <= 1) && err == nil {
				err = fmt.Errorf("probe: label %v of example %d: %w: want 0 to 1", v, i/int(classes), ErrAsk)
			}
			target[i] = v
			i++
		})
		if err == nil && loss == CrossEntropy {
			err = distributions(target, int(classes))
		}
		if err != nil {
			return engine.Tensor{}, err
		}
	case loss == CrossEntropy:
		return engine.Tensor{}, wrong("integers [N] or [N, 1], or floats [N, classes]")
	default:
		return engine.Tensor{}, wrong("[N, classes] from 0 to 1")
	}
	return convert(engine.Float64([]int64{n, classes}, target), typ)
}

// sumTolerance is how far from one the probabilities of an example may add up:
// more than rounding to half precision takes away.
const sumTolerance = 1e-2

// distributions checks that the rows are distributions over the classes. Marks of
// labels that do not exclude each other are not.
func distributions(rows []float64, classes int) error {
	for i := range len(rows) / classes {
		sum := 0.0
		for _, p := range rows[i*classes : (i+1)*classes] {
			sum += p
		}
		if math.Abs(sum-1) > sumTolerance {
			return fmt.Errorf("probe: labels of example %d (row %d) add up to %.4g: %w: %s wants class numbers [N] or rows of probabilities that add up to 1; for labels that do not exclude each other take the loss %q", i, i+1, sum, ErrAsk, CrossEntropy, BinaryCrossEntropy)
		}
	}
	return nil
}

// resolve turns Inputs, Weights and names into names, in the graph's order
// where there is one.
func (m *Model) resolve(l *loss, values map[string]onnx.Value, asked []string) ([]string, error) {
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, what := range asked {
		before := len(names)
		switch what {
		case Inputs:
			for _, v := range m.inputs() {
				if isFloat(v.Type) {
					add(v.Name)
				}
			}
		case Weights:
			reached := influences(l, values)
			settings := settings(m.Graph.Graph)
			for _, w := range m.Graph.Graph.Initializers {
				if isFloat(w.Type) && reached[w.Name] && !settings[w.Name] {
					add(w.Name)
				}
			}
		default:
			v, known := values[what]
			if !known {
				return nil, fmt.Errorf("probe: gradient with respect to %q: %w: no tensor has that name; inputs are %s, %q and %q stand for all inputs and all weights", what, ErrAsk, list(m.inputs()), Inputs, Weights)
			}
			if !isFloat(v.Type) {
				return nil, fmt.Errorf("probe: gradient with respect to %q: %w: it is %v; gradients exist for floats only", what, ErrAsk, v)
			}
			add(what)
		}
		if len(names) == before && (what == Inputs || what == Weights) {
			return nil, fmt.Errorf("probe: gradient with respect to %s: %w: it has none of a floating-point type that the loss depends on", what, ErrAsk)
		}
	}
	return names, nil
}

// influences are the tensors from which a path of floats leads to the loss.
func influences(l *loss, values map[string]onnx.Value) map[string]bool {
	reached := map[string]bool{l.total: true}
	nodes := l.model.Graph.Nodes
	for i := len(nodes) - 1; i >= 0; i-- {
		if !slices.ContainsFunc(nodes[i].Outputs, func(out string) bool { return reached[out] }) || nodes[i].OpType == "Shape" || nodes[i].OpType == "Size" {
			continue
		}
		for _, in := range nodes[i].Inputs {
			if v, known := values[in]; !known || isFloat(v.Type) {
				reached[in] = true
			}
		}
	}
	return reached
}

// settingInputs are the operands that parametrise an operator: floats, but no
// weights.
var settingInputs = map[string][]int{
	"BatchNormalization": {3, 4}, // running mean and variance
	"Clip":               {1, 2},
	"Dropout":            {1},
	"Pad":                {2},
	"Resize":             {1, 2},
	"Upsample":           {1},
	"OneHot":             {2},
	"Range":              {0, 1, 2},
	"QuantizeLinear":     {1},
	"DequantizeLinear":   {1},
}

// settings are the constants that are used as settings and nothing else.
func settings(g *onnx.Graph) map[string]bool {
	found, other := map[string]bool{}, map[string]bool{}
	for _, n := range g.Nodes {
		for i, in := range n.Inputs {
			if slices.Contains(settingInputs[n.OpType], i) {
				found[in] = true
			} else {
				other[in] = true
			}
		}
	}
	maps.DeleteFunc(found, func(name string, _ bool) bool { return other[name] })
	return found
}
