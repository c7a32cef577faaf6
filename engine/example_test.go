package engine_test

import (
	"context"
	"fmt"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// Example runs a graph that was built a moment ago; a model from a file is read
// by onnx.Load.
func Example() {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2, 1}, []float32{10, 1})
	b.Node(&onnx.Node{OpType: "MatMul", Inputs: []string{x, w}, Outputs: []string{"y"}}, 1)
	b.Output("y", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 1})
	m, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	session, err := engine.Open(m, engine.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer session.Close()
	out, err := session.Run(context.Background(), map[string]engine.Tensor{
		"x": engine.Float32([]int64{2, 2}, []float32{1, 2, 3, 4}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	y, err := engine.Values[float32](out["y"])
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(out["y"].Shape, y)
	// Output: [2 1] [12 34]
}
