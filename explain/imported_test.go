package explain_test

import (
	"testing"

	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
)

// Graphs as PyTorch's exporter writes them: the layer is what leaves the last
// convolution's block, whatever it is made of.
func TestTheLastLayerOfImportedGraphsIsFound(t *testing.T) {
	for file, op := range map[string]string{
		"cnn":      "Relu", // Conv, group norm in five nodes, Relu, MaxPool
		"residual": "Relu", // last: the shortcut's convolution, joined by Add, then Relu
		"mobile":   "Conv", // SiLU reads it twice; squeeze-and-excitation's own convolutions see one position
	} {
		m, err := onnx.Load("../onnx/autodiff/testdata/" + file + ".onnx")
		if err != nil {
			t.Fatal(err)
		}
		layer, err := explain.LastLayer(m, "logits")
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		n, _ := m.Graph.Producer(layer)
		if n == nil || n.OpType != op {
			t.Errorf("%s: layer %q is made by %v, want a %s", file, layer, n, op)
		}
	}
}
