package attack

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// The names that are added to a graph.
const (
	pixelsName    = "attack/pixels"
	logitsName    = "attack/logits"
	weightsName   = "attack/weights"
	logSumExpName = "attack/log-sum-exp"
	withoutName   = "attack/without" // what the classes get before the sum: 0, or far below
	objectiveName = "attack/objective"
)

// prepared is a graph from pixels to logits of at least two classes.
type prepared struct {
	model   *onnx.Model
	input   string // of pixels, [N, shape…]
	shape   []int64
	batch   onnx.Dim // of the input
	classes int
	notes   []string // how the logits were found, for people
	watched []watched
}

// watched is an inner tensor that is shown, flat.
type watched struct {
	name string
	size int // numbers of an example
}

func watchName(k int) string { return fmt.Sprintf("attack/inside%d", k) }
func slopeName(k int) string { return fmt.Sprintf("attack/slope%d", k) }

// kept are the outputs that a gradient's graph has beside it.
func (p *prepared) kept() []string {
	names := []string{logitsName}
	for k := range p.watched {
		names = append(names, watchName(k))
	}
	return names
}

// prepare puts what makes pixels the model's input before the graph and what
// makes its output logits of classes behind it.
func prepare(m *onnx.Model, o NetworkOptions) (*prepared, error) {
	if m == nil || m.Graph == nil {
		return nil, fmt.Errorf("a model without a graph: %w", onnx.ErrInvalid)
	}
	if err := m.CheckWeights(); err != nil {
		return nil, err
	}
	p := &prepared{model: m.Clone()}
	in, err := p.onlyInput()
	if err != nil {
		return nil, err
	}
	p.batch = onnx.Dim{Value: -1, Param: "attack/batch"}
	if in.Shape[0].Known() {
		p.batch = in.Shape[0]
	} else if in.Shape[0].Param != "" {
		p.batch = in.Shape[0]
	}
	if err := p.before(in, o); err != nil {
		return nil, err
	}
	return p, p.behind(o)
}

// onlyInput finds the input and takes initializers off the list of inputs, on
// which old exporters put them.
func (p *prepared) onlyInput() (onnx.Value, error) {
	g := p.model.Graph
	g.Inputs = slices.DeleteFunc(g.Inputs, func(v onnx.Value) bool { return g.Initializer(v.Name) != nil })
	if len(g.Inputs) != 1 {
		return onnx.Value{}, fmt.Errorf("the model has %d inputs: %w: a model with one input is wanted; make the others constants", len(g.Inputs), ErrAsk)
	}
	in := g.Inputs[0]
	if in.Type != onnx.Float || len(in.Shape) < 2 {
		return onnx.Value{}, fmt.Errorf("input %q is %v: %w: want floats [N, …]; gradients do not pass whole numbers", in.Name, in, ErrAsk)
	}
	return in, nil
}

// before adds the way from pixels to the input in.
func (p *prepared) before(in onnx.Value, o NetworkOptions) error {
	shape := slices.Clone(o.Shape)
	if shape == nil && o.Manifest != nil {
		shape = []int64{1, int64(o.Manifest.Input.Rows), int64(o.Manifest.Input.Columns)}
	}
	if shape == nil {
		for _, d := range in.Shape[1:] {
			if !d.Known() {
				return fmt.Errorf("input %q is %v: %w: its size is open; say the shape of an example", in.Name, in, ErrAsk)
			}
			shape = append(shape, d.Value)
		}
	}
	for _, d := range shape {
		if d < 1 || d > 1<<20 {
			return fmt.Errorf("examples of shape %v: %w: want positive sizes", shape, ErrAsk)
		}
	}
	p.shape, p.input = shape, pixelsName
	g := p.model.Graph
	g.Inputs, g.ValueInfo = nil, nil // what an exporter noted of shapes is inferred
	first := len(g.Nodes)
	b := onnx.Extend(p.model)
	x := b.Input(pixelsName, onnx.Float, append([]onnx.Dim{p.batch}, onnx.Fixed(shape...)...)...)
	var err error
	if o.Manifest != nil {
		x, err = manifestPath(b, x, shape, &o.Manifest.Input)
	} else {
		x, err = barePath(b, x, shape, in, o)
	}
	if err != nil {
		return err
	}
	b.Node(&onnx.Node{OpType: "Identity", Inputs: []string{x}, Outputs: []string{in.Name}}, 1)
	// The builder appends; the way leads to the graph's first node.
	g.Nodes = slices.Concat(g.Nodes[first:], g.Nodes[:first])
	if _, err := b.Build(); err != nil {
		return fmt.Errorf("putting pixels before the graph: %w", err)
	}
	return nil
}

// weight adds a constant under a name that is free.
func weight(b *onnx.Builder, prefix string, dims []int64, values []float32) string {
	return b.Weight(b.Fresh(prefix)+"/values", dims, values)
}

// manifestPath is model.Manifest.Prepare as a graph: area average of the window,
// orientation, range, mean and deviation, layout.
func manifestPath(b *onnx.Builder, x string, shape []int64, in *model.Input) (string, error) {
	if len(shape) != 3 || shape[0] != 1 {
		return "", fmt.Errorf("examples of shape %v: %w: a package reads luminance, [1, rows, columns]", shape, ErrAsk)
	}
	rows, columns := int(shape[1]), int(shape[2])
	if rows != in.Rows || columns != in.Columns {
		w := in.Window(rows, columns)
		down := areaMatrix(rows, w.Top, w.Rows, in.Rows, w.InputTop, w.InputRows)
		across := transpose(areaMatrix(columns, w.Left, w.Columns, in.Columns, w.InputLeft, w.InputColumns), in.Columns, columns)
		x = b.Op("MatMul", []string{weight(b, "attack/rows", []int64{int64(in.Rows), int64(rows)}, down), x})
		x = b.Op("MatMul", []string{x, weight(b, "attack/columns", []int64{int64(columns), int64(in.Columns)}, across)})
	}
	scale, shift := make([]float32, in.Channels), make([]float32, in.Channels)
	for c := range in.Channels {
		// As Prepare has it: v·(high-low)/std + (low-mean)/std, of 1-v where inverted.
		k, s := in.Range.High-in.Range.Low, in.Range.Low
		if len(in.Mean) > 0 {
			s -= in.Mean[c]
		}
		if len(in.Std) > 0 {
			k, s = k/in.Std[c], s/in.Std[c]
		}
		if in.Photometric == model.Inverted {
			k, s = -k, s+k
		}
		scale[c], shift[c] = float32(k), float32(s)
	}
	x = affine(b, x, scale, shift)
	if in.Layout == "NHWC" {
		x = b.Op("Transpose", []string{x}, onnx.IntsAttribute("perm", 0, 2, 3, 1))
	}
	return x, nil
}

// affine scales and shifts channels of [N, 1 or channels, rows, columns].
func affine(b *onnx.Builder, x string, scale, shift []float32) string {
	channels := int64(len(scale))
	identity := channels == 1
	for c := range scale {
		identity = identity && scale[c] == 1 && shift[c] == 0
	}
	if identity {
		return x
	}
	x = b.Op("Mul", []string{x, weight(b, "attack/scale", []int64{1, channels, 1, 1}, scale)})
	return b.Op("Add", []string{x, weight(b, "attack/shift", []int64{1, channels, 1, 1}, shift)})
}

// areaMatrix is the weights, [to, from], of the area average that package model
// computes: the window of size cells from first on becomes wide cells from at
// on, the rest is black.
func areaMatrix(from, first, size, to, at, wide int) []float32 {
	m := make([]float32, to*from)
	for t := range wide {
		// In units of 1/(size·wide): source cell s is [s·wide, (s+1)·wide).
		start, end := t*size, (t+1)*size
		for s := start / wide; s <= (end-1)/wide; s++ {
			covered := min((s+1)*wide, end) - max(s*wide, start)
			m[(at+t)*from+first+s] = float32(float64(covered) / float64(size))
		}
	}
	return m
}

func transpose(m []float32, rows, columns int) []float32 {
	out := make([]float32, len(m))
	for r := range rows {
		for c := range columns {
			out[c*rows+r] = m[r*columns+c]
		}
	}
	return out
}

// barePath is for a graph without a manifest: normalisation if asked for, a grey
// image in every channel, channels last or all in a row where the input wants it.
func barePath(b *onnx.Builder, x string, shape []int64, in onnx.Value, o NetworkOptions) (string, error) {
	refuse := func() (string, error) {
		return "", fmt.Errorf("examples of shape %v for input %q, %v: %w", shape, in.Name, in, ErrAsk)
	}
	fits := func(d onnx.Dim, size int64) bool { return !d.Known() || d.Value == size }
	declared := in.Shape[1:]
	channels := int64(1) // that the model wants
	last := false
	switch {
	case len(shape) == 3 && len(declared) == 3 && fits(declared[1], shape[1]) && fits(declared[2], shape[2]) && wanted(declared[0], shape[0], &channels):
	case len(shape) == 3 && len(declared) == 3 && fits(declared[0], shape[1]) && fits(declared[1], shape[2]) && wanted(declared[2], shape[0], &channels):
		last = true
	case len(declared) == 1 && len(shape) > 1:
		n := int64(1)
		for _, d := range shape {
			n *= d
		}
		if !fits(declared[0], n) {
			return refuse()
		}
		channels = shape[0]
	case len(declared) == len(shape):
		for i, d := range declared {
			if !fits(d, shape[i]) {
				return refuse()
			}
		}
		channels = shape[0]
	default:
		return refuse()
	}
	mean, deviation := o.Mean, o.Std
	if len(mean) > 0 || len(deviation) > 0 || len(shape) == 3 && channels != shape[0] {
		if len(shape) != 3 {
			return "", fmt.Errorf("a mean and deviation for examples of shape %v: %w: want images", shape, ErrAsk)
		}
		scale, shift := make([]float32, channels), make([]float32, channels)
		for c := range scale {
			m, s, err := moments(mean, deviation, c, int(channels))
			if err != nil {
				return "", err
			}
			scale[c], shift[c] = float32(1/s), float32(-m/s)
		}
		x = affine(b, x, scale, shift)
	}
	if last {
		x = b.Op("Transpose", []string{x}, onnx.IntsAttribute("perm", 0, 2, 3, 1))
	}
	if len(declared) == 1 && len(shape) > 1 {
		x = b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1))
	}
	return x, nil
}

// wanted says whether an image of some channels can fill a dimension of the
// model's, and how many channels that is.
func wanted(d onnx.Dim, have int64, channels *int64) bool {
	*channels = have
	if d.Known() {
		*channels = d.Value
	}
	return *channels == have || have == 1 && *channels == 3
}

func moments(mean, deviation []float64, c, channels int) (float64, float64, error) {
	at := func(list []float64, otherwise float64) (float64, error) {
		switch len(list) {
		case 0:
			return otherwise, nil
		case 1:
			return list[0], nil
		case channels:
			return list[c], nil
		}
		return 0, fmt.Errorf("%d numbers for %d channels: %w: want one, or one for each channel", len(list), channels, ErrAsk)
	}
	m, err := at(mean, 0)
	s, err2 := at(deviation, 1)
	if err = errors.Join(err, err2); err == nil && !(s > 0) {
		err = fmt.Errorf("deviation %v: %w: want more than 0", s, ErrAsk)
	}
	return m, s, err
}

// behind finds the logits and makes them [N, classes] with at least two classes.
func (p *prepared) behind(o NetworkOptions) error {
	g := p.model.Graph
	name := o.Output
	if name == "" && o.Manifest != nil {
		name = o.Manifest.Output.Name
	}
	if name == "" {
		if len(g.Outputs) != 1 {
			return fmt.Errorf("the model has %d outputs: %w: name the one that holds the classes", len(g.Outputs), ErrAsk)
		}
		name = g.Outputs[0].Name
	}
	if !slices.ContainsFunc(g.Outputs, func(v onnx.Value) bool { return v.Name == name }) {
		return fmt.Errorf("output %q: %w: the model has no such output", name, ErrAsk)
	}
	values, err := onnx.InferShapes(p.model, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return err
	}
	width, err := columns(values[name])
	if err != nil {
		return fmt.Errorf("output %q is %v: %w", name, values[name], err)
	}
	z, kind := logitsBelow(g, values, name, width)
	b := onnx.Extend(p.model)
	g.Outputs = nil
	if len(values[z].Shape) != 2 {
		z = b.Op("Reshape", []string{z, b.Ints("attack/rows-of", -1, width)})
	}
	if kind == "" && o.Probabilities {
		z = logOf(b, z, width)
		kind = "logarithms of the output, which holds probabilities that no Softmax or Sigmoid of the graph makes"
	}
	if kind != "" {
		p.notes = append(p.notes, "the objective is of the "+kind)
	}
	if o.Label != nil {
		if *o.Label < 0 || int64(*o.Label) >= width {
			return fmt.Errorf("label %d: %w: the output has %d", *o.Label, ErrAsk, width)
		}
		if width > 1 {
			z = b.Op("Gather", []string{z, b.Ints("attack/label", int64(*o.Label))}, onnx.IntAttribute("axis", 1))
			width = 1
		}
	}
	if width == 1 { // one logit: class 1 against class 0, whose logit is 0
		zero := b.Op("Mul", []string{z, weight(b, "attack/zero", []int64{1, 1}, []float32{0})})
		z = b.Op("Concat", []string{zero, z}, onnx.IntAttribute("axis", 1))
		width = 2
		p.notes = append(p.notes, "one output: class 1 where it is positive, else class 0")
	}
	if o.Bias != nil {
		if int64(len(o.Bias)) != width {
			return fmt.Errorf("%d thresholds for %d classes: %w", len(o.Bias), width, ErrAsk)
		}
		bias := make([]float32, width)
		for i, v := range o.Bias {
			bias[i] = float32(v)
		}
		z = b.Op("Add", []string{z, weight(b, "attack/bias", []int64{1, width}, bias)})
	}
	b.Node(&onnx.Node{OpType: "Identity", Inputs: []string{z}, Outputs: []string{logitsName}}, 1)
	b.Output(logitsName, onnx.Float, p.batch, onnx.Dim{Value: width})
	p.classes = int(width)
	if err := p.watch(b, values, o.Watch); err != nil {
		return err
	}
	_, err = b.Build()
	return err
}

// watch shows inner tensors.
func (p *prepared) watch(b *onnx.Builder, values map[string]onnx.Value, names []string) error {
	for k, name := range names {
		v, ok := values[name]
		size := int64(1)
		for _, d := range v.Shape[min(1, len(v.Shape)):] {
			if !d.Known() || d.Value < 1 || size*d.Value > 1<<28 {
				size = 0
				break
			}
			size *= d.Value
		}
		if !ok || v.Type != onnx.Float || len(v.Shape) < 2 || size == 0 {
			return fmt.Errorf("inner tensor %q is %v: %w: want floats [N, …] of known size", name, v, ErrAsk)
		}
		b.Node(&onnx.Node{OpType: "Flatten", Inputs: []string{name}, Outputs: []string{watchName(k)}, Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 1)}}, 1)
		b.Output(watchName(k), onnx.Float, p.batch, onnx.Dim{Value: size})
		p.watched = append(p.watched, watched{name, int(size)})
	}
	return nil
}

// columns is the number of logits of an example: the output's elements without
// the batch.
func columns(v onnx.Value) (int64, error) {
	if v.Type != onnx.Float || len(v.Shape) < 1 {
		return 0, fmt.Errorf("%w: want floats [N, classes]", ErrAsk)
	}
	wide := int64(1)
	for _, d := range v.Shape[1:] {
		if !d.Known() || d.Value < 1 || wide > 1 && d.Value > 1 {
			return 0, fmt.Errorf("%w: want one number for each class", ErrAsk)
		}
		wide *= d.Value
	}
	if wide > 1<<16 {
		return 0, fmt.Errorf("%w: more than %d classes", ErrAsk, 1<<16)
	}
	return wide, nil
}

// logitsBelow follows an output down through what changes no order to the final
// Softmax, LogSoftmax or Sigmoid, whose derivative vanishes where the model is
// sure, and returns what goes into it; the output itself if there is none.
func logitsBelow(g *onnx.Graph, values map[string]onnx.Value, output string, width int64) (string, string) {
	at := output
	for range 16 {
		n, i := g.Producer(at)
		if n == nil || i != 0 || n.Domain != "" || len(n.Inputs) == 0 {
			break
		}
		below, err := columns(values[n.Inputs[0]])
		if err != nil || below != width {
			break
		}
		switch n.OpType {
		case "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast":
			at = n.Inputs[0]
			continue
		case "Softmax", "LogSoftmax":
			if width == 1 {
				return output, ""
			}
			return n.Inputs[0], "input of the final " + n.OpType
		case "Sigmoid":
			return n.Inputs[0], "input of the final Sigmoid"
		}
		break
	}
	return output, ""
}

// logOf makes logits of probabilities: log p, or log p/(1-p) of a single one.
func logOf(b *onnx.Builder, p string, width int64) string {
	clip := func(v string) string {
		low := weight(b, "attack/least", []int64{}, []float32{1e-30})
		high := weight(b, "attack/most", []int64{}, []float32{1})
		return b.Op("Clip", []string{v, low, high})
	}
	z := b.Op("Log", []string{clip(p)})
	if width > 1 {
		return z
	}
	one := weight(b, "attack/one", []int64{1, 1}, []float32{1})
	return b.Op("Sub", []string{z, b.Op("Log", []string{clip(b.Op("Sub", []string{one, p}))})})
}

// withObjective appends the objective, whose weights become inputs: one graph
// for every loss.
func (p *prepared) withObjective() (*onnx.Model, error) {
	m := *p.model
	graph := *p.model.Graph
	graph.Nodes, graph.Inputs, graph.Outputs = slices.Clone(graph.Nodes), slices.Clone(graph.Inputs), slices.Clone(graph.Outputs)
	graph.Initializers = slices.Clone(graph.Initializers)
	m.Graph = &graph
	b := onnx.Extend(&m)
	weights := b.Input(weightsName, onnx.Float, p.batch, onnx.Dim{Value: int64(p.classes)})
	factor := b.Input(logSumExpName, onnx.Float, p.batch, onnx.Dim{Value: 1})
	without := b.Input(withoutName, onnx.Float, p.batch, onnx.Dim{Value: int64(p.classes)})
	axes, attributes := []string{b.Op("Add", []string{logitsName, without})}, []onnx.Attribute{onnx.IntAttribute("keepdims", 1)}
	if max(m.Opsets[""], m.Opsets["ai.onnx"]) >= 18 {
		axes = append(axes, b.Ints("attack/classes", 1))
	} else {
		attributes = append(attributes, onnx.IntsAttribute("axes", 1))
	}
	whole := b.Op("Mul", []string{factor, b.Op("ReduceLogSumExp", axes, attributes...)})
	parts := []string{b.Op("Mul", []string{logitsName, weights}), whole}
	for k, w := range p.watched {
		parts = append(parts, b.Op("Mul", []string{watchName(k), b.Input(slopeName(k), onnx.Float, p.batch, onnx.Dim{Value: int64(w.size)})}))
	}
	terms := b.Op("Concat", parts, onnx.IntAttribute("axis", 1))
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{terms, b.Ints("attack/terms", 1)}, Outputs: []string{objectiveName},
		Attributes: []onnx.Attribute{onnx.IntAttribute("keepdims", 0)}}, 1)
	b.Output(objectiveName, onnx.Float, p.batch)
	return b.Build()
}
