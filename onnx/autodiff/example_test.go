package autodiff_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

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

// The clipped sum that DP-SGD adds its noise to: each row's gradient is at most
// as long as the bound, and no row's gradient is ever alone in memory.
func ExampleClip() {
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "n"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2, 1}, []float32{1, 1})
	y := b.Op("MatMul", []string{x, w})
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{y, b.Ints("axes", 1)}, Outputs: []string{"loss"},
		Attributes: []onnx.Attribute{onnx.IntAttribute("keepdims", 0)}}, 1)
	b.Output("loss", onnx.Float, n)
	model, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	clip, err := autodiff.Clip(model, autodiff.ClipRequest{Loss: "loss", Weights: []string{"w"}, Batch: 3})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("inputs:", len(clip.Model.Graph.Inputs), "sum in:", clip.Of["w"], "norms in:", clip.Norms)
	// Output: inputs: 3 sum in: gradient/w norms in: gradient norms
}

// Every example's own gradient, of a weight that is shared: x is [N, 2], the
// loss of an example Σ w·x, so that its gradient is x itself.
func ExampleGradient_perExample() {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2, 1}, []float32{1, 10})
	y := b.Op("MatMul", []string{x, w})
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 1})
	model, err := b.Build()
	if err != nil {
		panic(err)
	}
	g, err := autodiff.Gradient(model, autodiff.Request{Loss: y, WithRespectTo: []string{"w"}, Batch: 2, PerExample: true})
	if err != nil {
		panic(err)
	}
	fmt.Println(g.Model.Graph.Outputs[0])
	// Output: float[2,2,1]
}

// What a model uses, and what can be done with it.
func ExampleInspect() {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 4})
	w := b.Weight("w", []int64{4, 3}, make([]float32, 12))
	y := b.Op("Hardmax", []string{b.Op("MatMul", []string{x, w})})
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 3})
	model, err := b.Build()
	if err != nil {
		panic(err)
	}
	in, err := autodiff.Inspect(model, nil) // a function that opens a session tries the runtime
	if err != nil {
		panic(err)
	}
	for _, u := range in.Uses {
		fmt.Println(strings.TrimSpace(fmt.Sprint(u.Operator, " ", u.MACs, " ", u.Gradient, " ", u.Reason)))
	}
	// Output:
	// MatMul 12 rule
	// Hardmax 0 refused its result jumps from one value to another: a gradient of zero would hide that nothing is learnt
}

// An operator without a gradient is an error that names the node.
func ExampleDifferentiable() {
	err := autodiff.Differentiable(&onnx.Node{Name: "tokens", OpType: "Unique", Outputs: []string{"y"}}, map[string]int64{"": 17})
	fmt.Println(errors.Is(err, autodiff.ErrNotDifferentiable))
	fmt.Println(err)
	// Output:
	// true
	// autodiff: node "tokens" (Unique): operator is not differentiable here: the size of its result depends on the elements: mask instead
}
