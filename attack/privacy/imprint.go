package privacy

import (
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// bins read images off a layer whose units all measure the same of an image, its
// mean, each with a threshold of its own: the difference of neighbouring units'
// gradients holds only the images between their thresholds, and most of the time
// that is one (Fowl et al. 2022, Robbing the Fed). How a unit goes on into the
// model may have a sign; then so have the gradients.
type bins struct {
	share []float32 // by how much each unit moves what follows
}

// signs alternate such that what the units add to the model nearly cancels,
// whatever the image, while each unit's own gradient is as large as its share: the
// answers stay as they are, and the gradients rise above rounding and bounds.
func signs(n int, size float32) bins {
	b := bins{make([]float32, n)}
	for i := range b.share {
		if b.share[i] = size; i%4 == 1 || i%4 == 2 {
			b.share[i] = -size
		}
	}
	return b
}

// thresholds are quantiles of the images' means, as a normal distribution has them.
func thresholds(n int, mean, deviation float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		share := 1e-3 + (1-2e-3)*float64(i)/float64(n-1)
		out[i] = mean + deviation*math.Sqrt2*math.Erfinv(2*share-1)
	}
	return out
}

// differences of neighbouring units' gradients, weights [units, inputs] and bias
// [units]. Thresholds rise with the unit, so that a unit's gradient holds all
// brighter images, the last one's what is brighter than all thresholds.
func (b bins) differences(weights, bias []float32) (dw, db []float32) {
	if len(bias) < 2 || len(weights)%len(bias) != 0 || len(bias) != len(b.share) {
		return nil, nil
	}
	size := len(weights) / len(bias)
	dw, db = make([]float32, len(weights)), make([]float32, len(bias))
	most := float32(0)
	for i, share := range b.share {
		if share == 0 {
			continue
		}
		db[i] = bias[i] / share
		most = max(most, float32(math.Abs(float64(db[i]))))
		for j, w := range weights[i*size : (i+1)*size] {
			dw[i*size+j] = w / share
		}
	}
	for i := range len(bias) - 1 {
		db[i] -= db[i+1]
		for j := range size {
			dw[i*size+j] -= dw[(i+1)*size+j]
		}
	}
	for i := range db {
		if math.Abs(float64(db[i])) < 1e-7*float64(most) { // rounding of the sums; what is little above it matches nothing
			db[i] = 0
		}
	}
	return dw, db
}

// Imprint is a layer of such units that a malicious server puts before a model.
type Imprint struct {
	Model *onnx.Model // with the layer in front
	// Weight and Bias are the layer's, [bins, inputs] and [bins].
	Weight, Bias string
	bins         bins
}

// ImprintShare is by how much a unit of an inserted layer moves every pixel for an
// answer to stay as it is; all together move it by about a hundredth of that.
const ImprintShare = 0.02

// NewImprint puts such a layer before a model. mean and deviation are those of the
// images' means, which the server knows from other images of the kind; low to high
// is the range of a pixel. The sum of the layer's units, with alternating signs, is
// added to every pixel: with a share of ImprintShare too little to change an answer.
// The larger the share, the larger are the layer's gradients.
func NewImprint(m *onnx.Model, input string, count int, mean, deviation, share float64) (*Imprint, error) {
	if count < 2 || count > 1<<16 || !(deviation > 0) || !(share > 0) {
		return nil, fmt.Errorf("privacy: an imprint of %d bins over a deviation of %v with a share of %v: %w: want 2 to %d, and more than 0", count, deviation, share, ErrAsk, 1<<16)
	}
	m = m.Clone()
	g := m.Graph
	at := slices.IndexFunc(g.Inputs, func(v onnx.Value) bool { return v.Name == input })
	if at < 0 {
		return nil, fmt.Errorf("privacy: an imprint before %q: %w: the model has no such input", input, ErrAsk)
	}
	size := int64(1)
	for _, d := range g.Inputs[at].Shape[1:] {
		if !d.Known() {
			return nil, fmt.Errorf("privacy: an imprint before %v: %w: want examples of one size", g.Inputs[at], ErrAsk)
		}
		size *= d.Value
	}
	for _, n := range g.Nodes {
		for i, in := range n.Inputs {
			if in == input {
				n.Inputs[i] = imprintedName
			}
		}
	}
	before := len(g.Nodes)
	b := onnx.Extend(m)
	weights, bias := make([]float32, int64(count)*size), make([]float32, count)
	for i := range weights {
		weights[i] = 1 / float32(size)
	}
	for i, t := range thresholds(count, mean, deviation) {
		bias[i] = -float32(t)
	}
	p := &Imprint{Model: m, Weight: "privacy/imprint/weight", Bias: "privacy/imprint/bias", bins: signs(count, float32(share))}
	w := b.Weight(p.Weight, []int64{int64(count), size}, weights)
	c := b.Weight(p.Bias, []int64{int64(count)}, bias)
	flat := b.Op("Flatten", []string{input}, onnx.IntAttribute("axis", 1))
	h := b.Op("Relu", []string{b.Op("Gemm", []string{flat, w, c}, onnx.IntAttribute("transB", 1))})
	little := b.Op("MatMul", []string{h, b.Weight("privacy/little", []int64{int64(count), 1}, p.bins.share)})
	shape := make([]int64, len(g.Inputs[at].Shape)) // [N, 1, 1, …]
	for i := range shape {
		shape[i] = 1
	}
	shape[0] = -1
	added := b.Op("Reshape", []string{little, b.Ints("privacy/each-pixel", shape...)})
	b.Node(&onnx.Node{OpType: "Add", Inputs: []string{input, added}, Outputs: []string{imprintedName}}, 1)
	g.Nodes = append(slices.Clone(g.Nodes[before:]), g.Nodes[:before]...)
	if _, err := b.Build(); err != nil {
		return nil, fmt.Errorf("privacy: an imprint: %w", err)
	}
	return p, nil
}

// Found reads images off the layer's gradients, [bins, inputs] and [bins].
func (p *Imprint) Found(weights, bias []float32, low, high float64) [][]float32 {
	dw, db := p.bins.differences(weights, bias)
	return Linear(dw, db, low, high)
}

// Implant is an imprint in a model's own first layer: its weights are changed and
// nothing else is, so that whoever checks the architecture alone sees nothing.
type Implant struct {
	Model *onnx.Model // with the weights changed
	Layer *Layer      // that reads the images
	bins  bins
}

// Implant changes the weights of a model whose first layer is linear, followed by
// Relu and a linear layer that gives the logits of two classes; any other is ErrAsk.
// mean and deviation are those of the images' means, strength is the size of the
// second layer's weights, and so of the first one's gradients.
func (l *Layer) Implant(m *onnx.Model, mean, deviation, strength float64) (*Implant, error) {
	fail := func(format string, arguments ...any) (*Implant, error) {
		return nil, fmt.Errorf("privacy: implanting an imprint in %s: %w: %s", l.Weight, ErrAsk, fmt.Sprintf(format, arguments...))
	}
	units := len(l.Share)
	if units < 2 {
		return fail("want a linear layer, Relu, and a linear layer that gives the logits of two classes")
	}
	if !(deviation > 0) || !(strength > 0) {
		return fail("a deviation of %v and a strength of %v: want more than 0", deviation, strength)
	}
	m = m.Clone()
	p := &Implant{Model: m, bins: signs(units, float32(strength))}
	layer := *l
	layer.Share = nil // pairs of units are not what these give
	p.Layer = &layer
	size := len(l.Scale)
	shift := 0.0
	for _, s := range l.Shift {
		shift += float64(s) / float64(size)
	}
	weights, bias := make([]float32, units*size), make([]float32, units)
	for i := range units {
		for j := range size {
			at := i*size + j
			if l.Transposed {
				at = j*units + i
			}
			weights[at] = l.Scale[j] / float32(size)
		}
	}
	for i, t := range thresholds(units, mean, deviation) {
		bias[i] = float32(shift - t)
	}
	second := make([]float32, units*l.classes)
	for i, share := range p.bins.share {
		for c := range l.classes {
			v := share
			if l.classes == 2 {
				if v /= 2; c == 0 {
					v = -v
				}
			}
			at := i*l.classes + c
			if l.headTurned {
				at = c*units + i
			}
			second[at] = v
		}
	}
	for name, values := range map[string][]float32{l.Weight: weights, l.Bias: bias, l.head: second} {
		w := m.Graph.Initializer(name)
		if w == nil {
			return fail("the model has no weight %q", name)
		}
		old, err := onnx.Values[float32](w)
		if err != nil || len(old) != len(values) {
			return fail("weight %q has %d numbers, want %d", name, len(old), len(values))
		}
		*w = *onnx.NewTensor(name, w.Dims, values)
	}
	return p, nil
}

// Found reads images off the layer's gradients.
func (p *Implant) Found(weights, bias []float32, low, high float64) [][]float32 {
	dw, db := p.bins.differences(p.Layer.rows(weights, len(bias)), bias)
	if dw == nil {
		return nil
	}
	straight := *p.Layer
	straight.Transposed = false
	return straight.Found(dw, db, low, high)
}
