package onnx_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vigie/vigie/onnx"
)

// A graph is built in the order in which it runs, written, and read back.
func Example() {
	b := onnx.NewBuilder(17)
	b.Name("classifier")
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2, 3}, []float32{1, 2, 3, 4, 5, 6})
	y := b.Op("Softmax", []string{b.Op("MatMul", []string{x, w})}, onnx.IntAttribute("axis", 1))
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 3})
	m, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	folder, err := os.MkdirTemp("", "onnx")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "classifier.onnx")
	if err := m.Save(path); err != nil {
		fmt.Println(err)
		return
	}
	back, err := onnx.Load(path)
	if err == nil {
		err = errors.Join(back.Check(), back.CheckWeights())
	}
	fmt.Println(back.Graph.Name, back.Graph.Inputs[0], err)
	// Output: classifier float[batch,2] <nil>
}

// A model is data: this one's Relu become Gelu.
func ExampleModel_Clone() {
	b := onnx.NewBuilder(20)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: 2})
	b.Output(b.Op("Relu", []string{x}), onnx.Float, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		fmt.Println(err)
		return
	}
	smooth := m.Clone()
	for _, n := range smooth.Graph.Nodes {
		if n.OpType == "Relu" {
			n.OpType = "Gelu"
			n.Set(onnx.TextAttribute("approximate", "tanh"))
		}
	}
	fmt.Println(m.Graph.Nodes[0].OpType, smooth.Graph.Nodes[0].OpType, smooth.Check())
	// Output: Relu Gelu <nil>
}

// A file that nobody vouches for: the error says what kind of trouble it is.
func ExampleParse() {
	_, err := onnx.Parse([]byte("this is not a graph"))
	fmt.Println(errors.Is(err, onnx.ErrCorrupt), errors.Is(err, onnx.ErrLimit))
	// Output: true false
}
