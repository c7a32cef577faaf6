package tabular

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Network builds a network for rows of so many numbers: logistic regression,
// which begins at 0, or with hidden layers of so many units and Relu between, with
// He-normal initial weights drawn from rng.
func Network(width, classes int, hidden []int, rng *rand.Rand) (*train.Network, error) {
	if width < 1 || classes < 2 {
		return nil, fmt.Errorf("tabular: building a network for rows of %d numbers and %d classes: want at least 1 and 2", width, classes)
	}
	b := onnx.NewBuilder(17)
	b.Name("vigie-tabular")
	open := onnx.Dim{Value: -1, Param: "batch"}
	x := b.Input("row", onnx.Float, open, onnx.Dim{Value: int64(width)})
	n := &train.Network{Input: "row", Logits: "logits"}
	dense := func(name, x string, in, out int, deviation float64, output string) string {
		weights := make([]float32, in*out)
		for i := range weights {
			if deviation > 0 {
				weights[i] = float32(deviation * rng.NormFloat64())
			}
		}
		n.Weights = append(n.Weights, name+".weight", name+".bias")
		node := &onnx.Node{OpType: "Gemm", Attributes: []onnx.Attribute{onnx.IntAttribute("transB", 1)}, Inputs: []string{
			x, b.Weight(name+".weight", []int64{int64(out), int64(in)}, weights), b.Weight(name+".bias", []int64{int64(out)}, make([]float32, out)),
		}}
		if output != "" {
			node.Outputs = []string{output}
		}
		return b.Node(node, 1)[0]
	}
	for i, units := range hidden {
		if units < 1 || units > 1<<16 {
			return nil, fmt.Errorf("tabular: building a network with a hidden layer of %d units: want 1 to 65,536", units)
		}
		x = b.Op("Relu", []string{dense(fmt.Sprintf("hidden%d", i+1), x, width, units, math.Sqrt(2/float64(width)), "")})
		width = units
	}
	deviation := 0.0
	if len(hidden) > 0 {
		deviation = math.Sqrt(1 / float64(width))
	}
	dense("head", x, width, classes, deviation, "logits")
	b.Output("logits", onnx.Float, open, onnx.Dim{Value: int64(classes)})
	var err error
	if n.Model, err = b.Build(); err != nil {
		return nil, fmt.Errorf("tabular: building a network: %w", err)
	}
	return n, nil
}
