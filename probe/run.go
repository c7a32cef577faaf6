package probe

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// Figures describe a tensor, to compare at a glance. Those of a tensor without
// elements are zero; NaN and infinity are counted and left out of the others.
type Figures struct {
	Name     string  `json:"name"`
	Type     string  `json:"type"`
	Shape    []int64 `json:"shape"`
	Norm     float64 `json:"l2_norm"`
	Mean     float64 `json:"mean"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	Unusable int     `json:"nan_or_infinite"`
}

// Answer is the result of Run.
type Answer struct {
	Model    string                   `json:"model"`
	Outputs  []Figures                `json:"outputs"`
	Duration time.Duration            `json:"ns"` // of the run alone
	Warnings []string                 `json:"warnings"`
	Tensors  map[string]engine.Tensor `json:"-"`
}

// Run computes the named outputs, all of them if none is named, from inputs as
// Model.Inputs gives them. Inner tensors can be asked for as well.
func (m *Model) Run(ctx context.Context, inputs map[string]engine.Tensor, outputs ...string) (*Answer, error) {
	bound, values, err := m.bound(inputs)
	if err != nil {
		return nil, err
	}
	if len(outputs) == 0 {
		for _, v := range m.Graph.Graph.Outputs {
			outputs = append(outputs, v.Name)
		}
	} else if err := expose(bound, values, outputs); err != nil {
		return nil, err
	}
	session, err := engine.Open(bound, engine.Options{Outputs: outputs})
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	defer session.Close()
	answer := &Answer{Model: m.Path, Warnings: append([]string{}, m.Warnings...)}
	needed := map[string]engine.Tensor{}
	for _, v := range session.Inputs() {
		needed[v.Name] = inputs[v.Name]
	}
	start := time.Now()
	answer.Tensors, err = session.Run(ctx, needed, outputs...)
	if err != nil {
		return nil, fmt.Errorf("probe: running %s: %w", m.Path, err)
	}
	answer.Duration = time.Since(start)
	for _, name := range outputs {
		f := figures(name, answer.Tensors[name])
		if f.Unusable > 0 {
			answer.Warnings = append(answer.Warnings, fmt.Sprintf("output %q has %d elements that are NaN or infinite", name, f.Unusable))
		}
		answer.Outputs = append(answer.Outputs, f)
	}
	return answer, nil
}

// expose makes inner tensors of a bound model outputs where they are asked for.
func expose(m *onnx.Model, values map[string]onnx.Value, names []string) error {
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("probe: output %q is asked for twice", name)
		}
		if slices.ContainsFunc(m.Graph.Outputs, func(v onnx.Value) bool { return v.Name == name }) {
			continue
		}
		v, inner := values[name]
		if node, _ := m.Graph.Producer(name); node == nil || !inner {
			return fmt.Errorf("probe: output %q: %w: its outputs are %s, and it computes no inner tensor of that name", name, ErrAsk, list(m.Graph.Outputs))
		}
		v.Name = name
		m.Graph.Outputs = append(m.Graph.Outputs, v)
	}
	return nil
}

func figures(name string, t engine.Tensor) Figures {
	f := Figures{Name: name, Type: t.Type().String(), Shape: append([]int64{}, t.Shape...)}
	count := 0
	each(t, func(v float64) {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			f.Unusable++
			return
		}
		if count == 0 || v < f.Min {
			f.Min = v
		}
		if count == 0 || v > f.Max {
			f.Max = v
		}
		f.Mean += v
		f.Norm += v * v
		count++
	})
	f.Mean /= float64(max(1, count))
	f.Norm = math.Sqrt(f.Norm)
	return f
}

// each visits the elements as float64, truth values as 0 and 1.
func each(t engine.Tensor, visit func(float64)) {
	switch data := t.Data.(type) {
	case []float32:
		visitAll(data, visit)
	case []float64:
		visitAll(data, visit)
	case []int64:
		visitAll(data, visit)
	case []int32:
		visitAll(data, visit)
	case []uint8:
		visitAll(data, visit)
	case []int8:
		visitAll(data, visit)
	case []bool:
		for _, v := range data {
			if v {
				visit(1)
			} else {
				visit(0)
			}
		}
	}
}

func visitAll[T number](data []T, visit func(float64)) {
	for _, v := range data {
		visit(float64(v))
	}
}
