// Package probe asks a model questions from the outside, so that anyone can
// compare this engine with another framework: what it answers (Run), the loss
// and its gradients (Gradient), and how good it is on labelled images
// (Evaluate). The model is any ONNX file or a model package; data comes from
// NumPy and safetensors files and leaves in them.
//
//	m, err := probe.Open("network.onnx")
//	inputs, err := m.Inputs("image=x.npy")
//	g, err := m.Gradient(ctx, inputs, probe.Request{Loss: probe.CrossEntropy, Labels: y, WithRespectTo: []string{probe.Weights}})
//	err = probe.Save("gradients.safetensors", g.Tensors, nil)
//
// Numbers are taken as they are: nothing is scaled, normalised or resized,
// except by Evaluate, which says what it does.
package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// ErrAsk says that what was asked does not fit the model: an input or output
// that it does not have, labels outside its classes, a loss that its output is
// not made for. The message says what would fit.
var ErrAsk = errors.New("does not fit the model")

// Model is a model to ask.
type Model struct {
	Path    string
	Graph   *onnx.Model
	Package *model.Package // nil for a bare ONNX file
	// Warnings are findings that make every answer doubtful, such as weights
	// that are not numbers.
	Warnings []string
}

// Open opens an ONNX file, or a model package if path is a folder, in which
// case the package is verified first.
func Open(path string) (*Model, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("probe: opening a model: %w", err)
	}
	m := &Model{Path: path}
	if info.IsDir() {
		if m.Package, err = model.Open(path); err != nil {
			return nil, err
		}
		m.Graph = m.Package.Graph
	} else {
		if m.Graph, err = onnx.Load(path); err != nil {
			return nil, fmt.Errorf("probe: opening %s: %w", path, err)
		}
		if err := m.Graph.Check(); err != nil {
			return nil, fmt.Errorf("probe: opening %s: %w", path, err)
		}
	}
	m.Warnings = doubtfulWeights(m.Graph)
	return m, nil
}

// doubtfulWeights lists the constants that hold NaN or infinity.
func doubtfulWeights(m *onnx.Model) []string {
	var warnings []string
	for _, w := range m.Graph.Initializers {
		bad := 0
		switch w.Type {
		case onnx.Float:
			for raw := w.Raw; len(raw) >= 4; raw = raw[4:] {
				if binary.LittleEndian.Uint32(raw)&0x7f800000 == 0x7f800000 {
					bad++
				}
			}
		case onnx.Double:
			for raw := w.Raw; len(raw) >= 8; raw = raw[8:] {
				if v := math.Float64frombits(binary.LittleEndian.Uint64(raw)); math.IsNaN(v) || math.IsInf(v, 0) {
					bad++
				}
			}
		}
		if bad > 0 {
			warnings = append(warnings, fmt.Sprintf("weight %q has %d elements that are NaN or infinite", w.Name, bad))
		}
	}
	return warnings
}

// inputs are the graph's inputs that a caller must give: old exporters list the
// weights among them.
func (m *Model) inputs() []onnx.Value {
	weights := map[string]bool{}
	for _, w := range m.Graph.Graph.Initializers {
		weights[w.Name] = true
	}
	return slices.DeleteFunc(slices.Clone(m.Graph.Graph.Inputs), func(v onnx.Value) bool { return weights[v.Name] })
}

// output returns the output of that name, or the only one if name is empty.
func (m *Model) output(name string) (onnx.Value, error) {
	outputs := m.Graph.Graph.Outputs
	if name == "" && m.Package != nil {
		name = m.Package.Manifest.Output.Name
	}
	if name == "" && len(outputs) == 1 {
		return outputs[0], nil
	}
	for _, v := range outputs {
		if v.Name == name {
			return v, nil
		}
	}
	if name == "" {
		return onnx.Value{}, fmt.Errorf("probe: %s has %d outputs: %w: choose one of %s", m.Path, len(outputs), ErrAsk, list(outputs))
	}
	return onnx.Value{}, fmt.Errorf("probe: output %q: %w: it has %s", name, ErrAsk, list(outputs))
}

func list(values []onnx.Value) string {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = v.Name + " " + v.String()
	}
	return strings.Join(names, ", ")
}

// bound is the model with the inputs' shapes fixed to those of the tensors, so
// that every shape that depends on them can be known, and all of its values.
func (m *Model) bound(inputs map[string]engine.Tensor) (*onnx.Model, map[string]onnx.Value, error) {
	graph := *m.Graph.Graph
	graph.Inputs, graph.Outputs = slices.Clone(graph.Inputs), slices.Clone(graph.Outputs)
	sizes := map[string]int64{}
	for i, v := range graph.Inputs {
		t, given := inputs[v.Name]
		if !given {
			continue
		}
		for j, d := range v.Shape {
			if d.Param == "" {
				continue
			}
			if size, known := sizes[d.Param]; known && size != t.Shape[j] {
				return nil, nil, fmt.Errorf("probe: input %q: %w: dimension %q is %d here and %d in another input", v.Name, ErrAsk, d.Param, t.Shape[j], size)
			}
			sizes[d.Param] = t.Shape[j]
		}
		graph.Inputs[i].Shape = onnx.Fixed(t.Shape...)
	}
	static := *m.Graph
	static.Graph = &graph
	values, err := onnx.InferShapes(&static, sizes)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return nil, nil, fmt.Errorf("probe: following the shapes of the inputs through %s: %w", m.Path, err)
	}
	for i, v := range graph.Outputs { // the declared names of dimensions no longer mean anything
		if found, ok := values[v.Name]; ok {
			graph.Outputs[i].Shape = found.Shape
		}
	}
	return &static, values, nil
}

// format returns a file's format by its name: ".npy", ".npz" or ".safetensors".
func format(path string) (string, error) {
	extension := strings.ToLower(filepath.Ext(path))
	switch extension {
	case ".npy", ".npz", ".safetensors":
		return extension, nil
	}
	return "", fmt.Errorf("probe: %s: name it .npy, .npz or .safetensors", path)
}
