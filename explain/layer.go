package explain

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// LastLayer finds the activation that Grad-CAM explains by unless told
// otherwise: the tensor that leaves the last convolution's block (convolution,
// normalisation, bias, Relu or another elementwise activation) before it is
// pooled, flattened or joined with others. Convolutions of a single position,
// as squeeze-and-excitation has them, show no place and are passed over.
func LastLayer(m *onnx.Model, logits string) (string, error) {
	shapes, err := onnx.InferShapes(m, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return "", err
	}
	reaches := map[string]bool{logits: true}
	for _, n := range slices.Backward(m.Graph.Nodes) {
		if !slices.ContainsFunc(n.Outputs, func(out string) bool { return out != "" && reaches[out] }) {
			continue
		}
		if n.OpType == "Conv" && hasPlaces(shapes[n.Outputs[0]]) {
			return follow(m, shapes, n.Outputs[0]), nil
		}
		for _, in := range n.Inputs {
			reaches[in] = true
		}
	}
	return "", fmt.Errorf("the model has no convolution before %q: %w; name a layer in Options.Layer", logits, ErrNoLayer)
}

// hasPlaces says whether a tensor is an image or a sequence of more than one
// position, as far as its shape is known.
func hasPlaces(v onnx.Value) bool {
	return len(v.Shape) > 2 && slices.ContainsFunc(v.Shape[2:], func(d onnx.Dim) bool { return d.Value != 1 })
}

// follow walks from a convolution's output through its block: nodes that are
// its value's only reader and keep or only regroup its elements. The last value
// of the same places on the way is the layer.
func follow(m *onnx.Model, shapes map[string]onnx.Value, from string) string {
	readers := map[string][]*onnx.Node{}
	for _, n := range m.Graph.Nodes {
		for _, in := range n.Inputs {
			if n.OpType != "Shape" { // reads no element
				readers[in] = append(readers[in], n)
			}
		}
	}
	layer := from
	for at := from; ; {
		next := readers[at]
		if len(next) != 1 || !blockOperators[next[0].OpType] {
			return layer
		}
		at = next[0].Outputs[0]
		if v, ok := shapes[at]; ok && samePlaces(v, shapes[from]) {
			layer = at
		}
	}
}

func samePlaces(a, b onnx.Value) bool {
	return len(a.Shape) == len(b.Shape) && slices.Equal(a.Shape[2:], b.Shape[2:])
}

// blockOperators continue a convolution's block.
var blockOperators = map[string]bool{
	"BatchNormalization": true, "InstanceNormalization": true, "GroupNormalization": true, "Reshape": true,
	"Add": true, "Mul": true, "Relu": true, "LeakyRelu": true, "PRelu": true, "Elu": true, "Clip": true, "Gelu": true,
	"HardSwish": true, "Mish": true, "Softplus": true, "Tanh": true, "Identity": true, "Dropout": true, "Cast": true,
}
