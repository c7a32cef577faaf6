package onnx_test

import (
	"fmt"
	"testing"

	"github.com/vigie/vigie/onnx"
)

func TestASummaryCountsParametersAndWork(t *testing.T) {
	b := onnx.NewBuilder(17)
	b.Name("net")
	x := b.Input("x", onnx.Float, batch, number(1), number(8), number(8))
	y := b.Op("Conv", []string{x, b.Weight("w", []int64{4, 1, 3, 3}, make([]float32, 36)), b.Weight("b", []int64{4}, make([]float32, 4))})
	y = b.Op("Flatten", []string{b.Op("Relu", []string{y})})
	y = b.Op("Gemm", []string{y, b.Weight("v", []int64{2, 144}, make([]float32, 288))}, onnx.IntAttribute("transB", 1))
	b.Output(y, onnx.Float, batch, number(2))
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	s, err := onnx.Inspect(m)
	if err != nil {
		t.Fatal(err)
	}
	if s.Parameters != 36+4+288 || s.Bytes != 4*(36+4+288) {
		t.Errorf("%d parameters of %d bytes", s.Parameters, s.Bytes)
	}
	// 4·6·6 places of 9 taps, then 2 rows of 144.
	if want := int64(4*6*6*9 + 2*144); s.MACs != want {
		t.Errorf("%d multiply-accumulates, want %d", s.MACs, want)
	}
	if s.Operators["Conv"] != 1 || s.Nodes != 4 || len(s.Unknown) != 0 || s.Problem != "" {
		t.Errorf("summary %+v", s)
	}
}

func ExampleInspect() {
	b := onnx.NewBuilder(17)
	b.Name("example")
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2, 3}, []float32{1, 2, 3, 4, 5, 6})
	b.Output(b.Op("Relu", []string{b.Op("MatMul", []string{x, w})}), onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 3})
	m, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := onnx.Inspect(m)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(s)
	// Output:
	// graph       example (IR version 8, by vigie)
	// opset       ai.onnx 17
	// input       x float[batch,2]
	// output      Relu float[batch,3]
	// parameters  6 (constants of 24 bytes)
	// work        6 multiply-accumulates a run
	// operators   2 nodes: MatMul ×1, Relu ×1
}

func ExampleInferShapes() {
	b := onnx.NewBuilder(17)
	x := b.Input("image", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 1}, onnx.Dim{Value: 28}, onnx.Dim{Value: 28})
	w := b.Weight("w", []int64{8, 1, 3, 3}, make([]float32, 72))
	y := b.Op("Conv", []string{x, w}, onnx.IntsAttribute("strides", 2, 2), onnx.IntsAttribute("pads", 1, 1, 1, 1))
	b.Output(b.Op("Flatten", []string{y}), onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 1568})
	m, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	values, err := onnx.InferShapes(m, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(values[y])
	values, err = onnx.InferShapes(m, map[string]int64{"batch": 4})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(values[y], values["Flatten"])
	// Output:
	// float[batch,8,14,14]
	// float[4,8,14,14] float[4,1568]
}
