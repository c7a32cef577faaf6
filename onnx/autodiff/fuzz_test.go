package autodiff_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// FuzzGradient puts hostile numbers wherever an exported network has one. The
// answer is a graph that is legal, or an error; never a panic.
func FuzzGradient(f *testing.F) {
	all := loadExported(f)
	var losses []*autodiff.Loss
	for i, e := range all {
		l, err := autodiff.SoftmaxCrossEntropy(e.model, "logits")
		if err != nil {
			f.Fatal(err)
		}
		losses = append(losses, l)
		f.Add(uint8(i), uint16(7*i), int64(-1), true)
		f.Add(uint8(i), uint16(31*i+3), int64(1<<62), false)
		f.Add(uint8(i), uint16(11*i+1), int64(0), false)
	}
	f.Fuzz(func(t *testing.T, which uint8, where uint16, number int64, perExample bool) {
		// Between them lies what is legal and takes its time, and Go ends a fuzzing
		// process whose input takes ten seconds, however busy the machine.
		if 1<<18 < number && number < 1<<32 {
			t.Skip()
		}
		e, l := all[int(which)%len(all)], losses[int(which)%len(all)]
		m := l.Model.Clone()
		var places []func()
		constant := func(w *onnx.Tensor) {
			if w != nil && w.Type == onnx.Int64 {
				for at := 0; at+8 <= len(w.Raw); at += 8 {
					places = append(places, func() { w.Raw = bytes.Clone(w.Raw); binary.LittleEndian.PutUint64(w.Raw[at:], uint64(number)) })
				}
			}
		}
		for _, n := range m.Graph.Nodes {
			for i := range n.Attributes {
				a := &n.Attributes[i]
				places = append(places, func() { a.Int = number })
				constant(a.Tensor)
				for j := range a.Ints {
					places = append(places, func() { a.Ints[j] = number })
				}
			}
			for i := range n.Inputs {
				places = append(places, func() { n.Inputs[i] = "" })
			}
		}
		for _, w := range m.Graph.Initializers {
			constant(w)
			for i := range w.Dims {
				places = append(places, func() { w.Dims[i] = number })
			}
		}
		places[int(where)%len(places)]()
		weights, _ := e.asked()
		request := autodiff.Request{Loss: l.Total, WithRespectTo: weights, Batch: e.batch(), PerExample: perExample}
		if perExample {
			request.Loss = l.Each
		}
		g, err := autodiff.Gradient(m, request)
		if err != nil && strings.Contains(err.Error(), "internal:") {
			t.Errorf("a rule met what it did not expect: %v", err)
		}
		if err != nil || m.Check() != nil {
			return
		}
		if err := g.Model.Check(); err != nil {
			t.Errorf("the gradient of a legal graph is not legal: %v", err)
		}
	})
}
