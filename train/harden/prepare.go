package harden

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// preparation is what turns a pixel of 0..1 into what a graph wants: a factor and
// an offset for each channel, or one for all.
type preparation struct{ scale, shift []float32 }

// none says that the graph takes pixels as they are.
func (p preparation) none() bool {
	not := func(v []float32, want float32) bool {
		return slices.ContainsFunc(v, func(x float32) bool { return x != want })
	}
	return !not(p.scale, 1) && !not(p.shift, 0)
}

// prepared is that of a package's manifest.
func prepared(in model.Input) preparation {
	p := preparation{make([]float32, max(1, in.Channels)), make([]float32, max(1, in.Channels))}
	for c := range p.scale {
		mean, deviation := 0.0, 1.0
		if c < len(in.Mean) {
			mean = in.Mean[c]
		}
		if c < len(in.Std) {
			deviation = in.Std[c]
		}
		p.scale[c] = float32((in.Range.High - in.Range.Low) / deviation)
		p.shift[c] = float32((in.Range.Low - mean) / deviation)
	}
	return p
}

// normalised is that of a bare graph whose input is less mean, by std.
func normalised(mean, std []float64) (preparation, error) {
	n := max(1, len(mean), len(std))
	p := preparation{make([]float32, n), make([]float32, n)}
	at := func(v []float64, c int, otherwise float64) (float64, error) {
		switch len(v) {
		case 0:
			return otherwise, nil
		case 1:
			return v[0], nil
		case n:
			return v[c], nil
		}
		return 0, fmt.Errorf("harden: %d means and %d deviations: %w: want one of each, or one for each channel", len(mean), len(std), ErrAsk)
	}
	for c := range n {
		m, err := at(mean, c, 0)
		if err != nil {
			return p, err
		}
		s, err := at(std, c, 1)
		if err != nil {
			return p, err
		}
		if !(s > 0) {
			return p, fmt.Errorf("harden: a deviation of %v: %w: want more than 0", s, ErrAsk)
		}
		p.scale[c], p.shift[c] = float32(1/s), float32(-m/s)
	}
	return p, nil
}

// pixels is the input of a graph that prepares its pixels itself.
const pixels = "pixels"

// within puts the preparation into the graph, whose input is pixels of 0..1 then.
func (p preparation) within(m *onnx.Model) (*onnx.Model, error) {
	m = m.Clone()
	g := m.Graph
	at := -1
	for i, v := range g.Inputs {
		if g.Initializer(v.Name) == nil {
			at = i
		}
	}
	if at < 0 || len(g.Inputs[at].Shape) != 4 || g.Inputs[at].Type != onnx.Float {
		return nil, fmt.Errorf("harden: a preparation for a graph without an input of float images [N, channels, rows, columns]: %w", ErrAsk)
	}
	in := g.Inputs[at]
	if c := in.Shape[1]; len(p.scale) > 1 && c.Known() && c.Value != int64(len(p.scale)) {
		return nil, fmt.Errorf("harden: a preparation of %d channels for %v: %w", len(p.scale), in, ErrAsk)
	}
	name := pixels
	for taken(g, name) {
		name += "_"
	}
	g.Inputs[at] = onnx.Value{Name: name, Type: in.Type, Shape: in.Shape}
	dims := []int64{int64(len(p.scale)), 1, 1}
	g.Initializers = append(g.Initializers, onnx.NewTensor(name+"/scale", dims, p.scale), onnx.NewTensor(name+"/shift", dims, p.shift))
	g.Nodes = append([]*onnx.Node{
		{Name: name + "/scaled", OpType: "Mul", Inputs: []string{name, name + "/scale"}, Outputs: []string{name + "/scaled"}},
		{Name: name + "/shifted", OpType: "Add", Inputs: []string{name + "/scaled", name + "/shift"}, Outputs: []string{in.Name}},
	}, g.Nodes...)
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("harden: putting the preparation into the graph: %w", err)
	}
	return m, nil
}

func taken(g *onnx.Graph, name string) bool {
	if g.Initializer(name) != nil || slices.ContainsFunc(g.Inputs, func(v onnx.Value) bool { return v.Name == name }) {
		return true
	}
	return slices.ContainsFunc(g.Nodes, func(n *onnx.Node) bool { return slices.Contains(n.Outputs, name) })
}
