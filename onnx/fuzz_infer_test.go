package onnx_test

import (
	"encoding/binary"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// FuzzInferShapes puts hostile numbers wherever a drawn graph has one: in
// attributes, in constants of integers, in dimensions.
func FuzzInferShapes(f *testing.F) {
	graphs, err := draw(4, 2, 11, 18)
	if err != nil {
		f.Fatal(err)
	}
	for i := range graphs {
		f.Add(uint16(i), uint16(0), int64(-1))
		f.Add(uint16(i), uint16(1), int64(1<<62))
		f.Add(uint16(i), uint16(2), int64(-1<<63))
	}
	f.Fuzz(func(t *testing.T, which, where uint16, value int64) {
		m := graphs[int(which)%len(graphs)].model.Clone()
		var places []func()
		for _, n := range m.Graph.Nodes {
			for i := range n.Attributes {
				a := &n.Attributes[i]
				places = append(places, func() { a.Int = value })
				for j := range a.Ints {
					places = append(places, func() { a.Ints[j] = value })
				}
			}
		}
		for _, c := range m.Graph.Initializers {
			for at := 0; c.Type == onnx.Int64 && at < len(c.Raw); at += 8 {
				places = append(places, func() { binary.LittleEndian.PutUint64(c.Raw[at:], uint64(value)) })
			}
		}
		for _, v := range m.Graph.Inputs {
			for i := range v.Shape {
				places = append(places, func() { v.Shape[i].Value = value })
			}
		}
		if len(places) == 0 {
			return
		}
		places[int(where)%len(places)]()
		for i := range m.Graph.Outputs {
			m.Graph.Outputs[i].Type, m.Graph.Outputs[i].Shape = onnx.Undefined, nil
		}
		values, err := onnx.InferShapes(m, nil)
		if err != nil {
			return
		}
		for name, v := range values {
			if len(v.Shape) > onnx.MaxRank {
				t.Errorf("%s has %d dimensions", name, len(v.Shape))
			}
			for _, d := range v.Shape {
				if d.Value < -1 {
					t.Errorf("%s is %v: a dimension of %d", name, v, d.Value)
				}
			}
		}
	})
}
