package privacy

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// Linear reads inputs off the gradients of a linear layer y = Wx + b with a bias:
// where one example alone moves unit i, the gradient of row i of W is its input
// times that of b_i, so that the quotient is the input, exactly (Phong et al. 2018;
// Geiping et al. 2020, proposition 3.1). weights[units, inputs], bias[units];
// whatever falls outside low..high is cut off. Units that nothing moved give none.
func Linear(weights, bias []float32, low, high float64) [][]float32 {
	if len(bias) == 0 || len(weights)%len(bias) != 0 {
		return nil
	}
	size := len(weights) / len(bias)
	most := 0.0
	for _, v := range bias {
		most = max(most, math.Abs(float64(v)))
	}
	var found [][]float32
	for i, b := range bias {
		// Below this, the quotient is rounding.
		if math.Abs(float64(b)) <= 1e-7*most || b == 0 {
			continue
		}
		image := make([]float32, size)
		for j, w := range weights[i*size : (i+1)*size] {
			image[j] = float32(max(low, min(high, float64(w)/float64(b))))
		}
		found = append(found, image)
	}
	return found
}

// Layer is a linear layer that sees the input itself.
type Layer struct {
	Weight, Bias string // initializers
	Transposed   bool   // the weight is [inputs, units]
	// Share is by how much each unit moves the log-odds of two classes, where the
	// layer is followed by Relu and a linear layer that gives them; nil where not.
	// With it, what one image alone adds to a unit's gradient can be told from the
	// difference of two units'.
	Share []float32
	// Scale and Shift undo what the graph does to each number before the layer, such
	// as the normalisation of pixels: x = Scale·u + Shift.
	Scale, Shift []float32

	head       string // the linear layer after Relu, where Share is known
	headTurned bool   // its weight is [classes, units]
	classes    int
}

// FirstLayer finds the linear layer at the beginning of a graph. One that begins
// otherwise, for example with a convolution, is ErrAsk.
func FirstLayer(ctx context.Context, m *onnx.Model, input string) (*Layer, error) {
	l, at, err := firstLayer(m.Graph, input)
	if err != nil {
		return nil, fmt.Errorf("privacy: looking for a linear layer at the input: %w", err)
	}
	if err := l.undo(ctx, m, input, at); err != nil {
		return nil, fmt.Errorf("privacy: undoing what precedes the layer of %s: %w", l.Weight, err)
	}
	l.shares(m.Graph)
	return l, nil
}

// Head is the weight of the linear layer that follows, where Share is known; empty
// where not.
func (l *Layer) Head() string { return l.head }

// shares finds what each unit of the first layer adds to the log-odds of two
// classes; nothing if the graph is not linear, Relu, linear, two classes.
func (l *Layer) shares(g *onnx.Graph) {
	only := func(value string) *onnx.Node {
		var found *onnx.Node
		for _, n := range g.Nodes {
			if slices.Contains(n.Inputs, value) {
				if found != nil || n.Domain != "" {
					return nil
				}
				found = n
			}
		}
		return found
	}
	n := only(l.Weight)
	for n != nil && n.OpType != "Relu" { // the layer, and the addition of its bias
		if n.OpType != "Gemm" && n.OpType != "MatMul" && n.OpType != "Add" {
			return
		}
		n = only(n.Output(0))
	}
	if n == nil {
		return
	}
	head := only(n.Output(0))
	if head == nil || head.OpType != "Gemm" && head.OpType != "MatMul" || head.Input(0) != n.Output(0) || head.Int("transA", 0) != 0 {
		return
	}
	w := g.Initializer(head.Input(1))
	if w == nil || len(w.Dims) != 2 {
		return
	}
	v, err := onnx.Values[float32](w)
	if err != nil {
		return
	}
	units, classes := int(w.Dims[0]), int(w.Dims[1])
	at := func(unit, class int) float32 { return v[unit*classes+class] }
	if head.Int("transB", 0) != 0 {
		units, classes = classes, units
		at = func(unit, class int) float32 { return v[class*units+unit] }
	}
	if classes > 2 {
		return
	}
	l.head, l.headTurned, l.classes = head.Input(1), head.Int("transB", 0) != 0, classes
	l.Share = make([]float32, units)
	for i := range l.Share {
		if l.Share[i] = at(i, classes-1); classes == 2 {
			l.Share[i] -= at(i, 0)
		}
	}
}

// firstLayer follows the input through what changes each number on its own; at is
// what goes into the layer.
func firstLayer(g *onnx.Graph, input string) (*Layer, string, error) {
	at := input
	for range 32 {
		var users []*onnx.Node
		for _, n := range g.Nodes {
			if slices.Contains(n.Inputs, at) {
				users = append(users, n)
			}
		}
		if len(users) != 1 || users[0].Domain != "" {
			return nil, "", fmt.Errorf("%q goes to %d operators: %w: no linear layer sees the input alone", at, len(users), ErrAsk)
		}
		n := users[0]
		switch n.OpType {
		case "Flatten", "Reshape", "Sub", "Div", "Mul", "Add", "Identity", "Squeeze", "Unsqueeze", "Cast":
			at = n.Output(0)
			continue
		case "Gemm":
			if n.Input(0) == at && g.Initializer(n.Input(1)) != nil && g.Initializer(n.Input(2)) != nil && n.Int("transA", 0) == 0 && n.Float("alpha", 1) == 1 && n.Float("beta", 1) == 1 {
				return &Layer{Weight: n.Input(1), Bias: n.Input(2), Transposed: n.Int("transB", 0) == 0}, at, nil
			}
		case "MatMul":
			if n.Input(0) != at || g.Initializer(n.Input(1)) == nil {
				break
			}
			for _, add := range g.Nodes {
				if add.OpType == "Add" && add.Domain == "" && slices.Contains(add.Inputs, n.Output(0)) {
					for _, in := range add.Inputs {
						if b := g.Initializer(in); b != nil {
							return &Layer{Weight: n.Input(1), Bias: in, Transposed: true}, at, nil
						}
					}
				}
			}
		}
		return nil, "", fmt.Errorf("the model begins with %s: %w: only a linear layer with a bias gives its input away by arithmetic; try the methods imprint or optimise", n.OpType, ErrAsk)
	}
	return nil, "", fmt.Errorf("%w: no linear layer within 32 operators of the input", ErrAsk)
}

// undo measures what the graph does to each number before the layer, and checks
// that it is a line for each.
func (l *Layer) undo(ctx context.Context, m *onnx.Model, input, at string) error {
	m = m.Clone()
	g := m.Graph
	g.Inputs = slices.DeleteFunc(g.Inputs, func(v onnx.Value) bool { return g.Initializer(v.Name) != nil })
	var shape []int64
	size := int64(1)
	for _, d := range g.Inputs[0].Shape[1:] {
		if !d.Known() {
			return fmt.Errorf("input %v: %w: want examples of one size", g.Inputs[0], ErrAsk)
		}
		shape = append(shape, d.Value)
		size *= d.Value
	}
	batch := int64(1)
	if d := g.Inputs[0].Shape[0]; d.Known() {
		batch = d.Value
	}
	g.Inputs[0].Shape = onnx.Fixed(append([]int64{batch}, shape...)...)
	l.Scale, l.Shift = make([]float32, size), make([]float32, size)
	if at == input {
		for i := range l.Scale {
			l.Scale[i] = 1
		}
		return nil
	}
	g.Outputs, g.ValueInfo = []onnx.Value{{Name: at, Type: onnx.Float}}, nil
	session, err := engine.Open(m, engine.Options{Outputs: []string{at}, Threads: 1})
	if err != nil {
		return err
	}
	defer session.Close()
	run := func(value func(i int) float32) ([]float32, error) {
		x := make([]float32, batch*size)
		for i := range x {
			x[i] = value(i % int(size))
		}
		out, err := session.Run(ctx, map[string]engine.Tensor{input: engine.Float32(append([]int64{batch}, shape...), x)}, at)
		if err != nil {
			return nil, err
		}
		v, err := engine.Values[float32](out[at])
		if err == nil && int64(len(v)) != batch*size {
			return nil, fmt.Errorf("%w: it changes the number of values", ErrAsk)
		}
		return v, err
	}
	zero, err := run(func(int) float32 { return 0 })
	if err != nil {
		return err
	}
	one, err := run(func(int) float32 { return 1 })
	if err != nil {
		return err
	}
	mixed := func(i int) float32 { return float32((i*7)%11) / 11 }
	check, err := run(mixed)
	if err != nil {
		return err
	}
	for i := range l.Scale {
		slope := one[i] - zero[i]
		if want := zero[i] + slope*mixed(i); slope == 0 || math.Abs(float64(check[i]-want)) > 1e-4*(1+math.Abs(float64(want))) {
			return fmt.Errorf("%w: number %d of the input does not come to the layer as it is", ErrAsk, i)
		}
		l.Scale[i], l.Shift[i] = 1/slope, -zero[i]/slope
	}
	return nil
}

// rows are the layer's weights, or their gradients, as [units, inputs].
func (l *Layer) rows(weights []float32, units int) []float32 {
	if !l.Transposed || units == 0 {
		return weights
	}
	inputs := len(weights) / units
	turned := make([]float32, len(weights))
	for i := range inputs {
		for u := range units {
			turned[u*inputs+i] = weights[i*units+u]
		}
	}
	return turned
}

// Found reads inputs off the layer's gradients, as they were before the graph
// changed them.
func (l *Layer) Found(weights, bias []float32, low, high float64) [][]float32 {
	weights = l.rows(weights, len(bias))
	found := Linear(weights, bias, math.Inf(-1), math.Inf(1))
	for _, image := range found {
		for i, v := range image {
			image[i] = float32(max(low, min(high, float64(l.Scale[i]*v+l.Shift[i]))))
		}
	}
	if len(l.Share) == len(bias) {
		found = append(found, l.pairs(weights, bias, low, high)...)
	}
	return found
}

const mostPairs = 4096 // images that pairs of units may give

// pairs reads images off the differences of two units. Of two classes, a unit's
// gradient over its share is the sum, over the images that are active in it, of the
// same number times each; where two units are active for the same images but one,
// the difference is that one's, and the quotient the image, exactly. Which pairs
// these are is seen from the quotient: every pixel lies within the range, and other
// pairs give the same.
func (l *Layer) pairs(weights, bias []float32, low, high float64) [][]float32 {
	units, size := len(bias), len(weights)/len(bias)
	// A candidate is remembered by a few of its pixels: there are many pairs.
	type candidate struct {
		one, other int
		mean       float64
		size       float64 // of the difference: the larger, the less rounding
		few        [24]float32
	}
	var all []candidate
	gw, gb := make([][]float32, 0, units), make([]float32, 0, units)
	most := 0.0
	for i, share := range l.Share {
		if share == 0 {
			continue
		}
		row := make([]float32, size)
		for j, w := range weights[i*size : (i+1)*size] {
			row[j] = w / share
		}
		gw, gb = append(gw, row), append(gb, bias[i]/share)
		most = max(most, math.Abs(float64(bias[i]/share)))
	}
	const slack = 2e-3
	least, top := float32(low-slack*(high-low)), float32(high+slack*(high-low))
	image := make([]float32, size)
	quotient := func(one, other int) bool {
		d := gb[one] - gb[other]
		for j, w := range gw[one] {
			x := l.Scale[j]*((w-gw[other][j])/d) + l.Shift[j]
			if !(x >= least && x <= top) {
				return false
			}
			image[j] = x
		}
		return true
	}
	for i := range gw {
		for k := range i {
			d := math.Abs(float64(gb[i] - gb[k]))
			if d <= 1e-5*most || !quotient(i, k) {
				continue
			}
			c := candidate{one: i, other: k, size: d}
			for _, x := range image {
				c.mean += float64(x) / float64(size)
			}
			for j := range c.few {
				c.few[j] = image[(2*j+1)*size/(2*len(c.few))]
			}
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		switch {
		case a.mean < b.mean:
			return -1
		case a.mean > b.mean:
			return 1
		}
		return 0
	})
	var found [][]float32
	taken := make([]bool, len(all))
	alike := 1e-6 * (high - low) * (high - low) // mean squared difference
	for i := range all {
		if taken[i] {
			continue
		}
		best, times := i, 0
		for k := i + 1; k < len(all) && all[k].mean-all[i].mean < 1e-4*(high-low); k++ {
			if !taken[k] && squared(all[i].few[:], all[k].few[:]) < alike {
				taken[k] = true
				times++
				if all[k].size > all[best].size {
					best = k
				}
			}
		}
		if times > 0 && len(found) < mostPairs && quotient(all[best].one, all[best].other) {
			found = append(found, slices.Clone(image))
			clip(found[len(found)-1], low, high)
		}
	}
	return found
}
