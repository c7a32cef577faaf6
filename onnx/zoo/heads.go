package zoo

import (
	"fmt"
	"math"

	"github.com/vigie/vigie/onnx"
)

// attentionMIL judges a bag of feature vectors, such as the tiles of a slide:
// each is embedded, a gated attention weighs them, and their weighted mean is
// classified (Ilse et al. 2018, equation 9). The weights, which sum to one over
// the bag, are the output "attention" [N, instances].
func attentionMIL(b *builder) {
	const width, hidden = 512, 256
	x := b.input("features")
	instances := x.shape[0]
	in := x.shape[1]
	project := func(name, from string, in, out int64) string {
		y := b.Op("MatMul", []string{from, b.trained(name+".weight", []int64{in, out}, b.uniform(math.Sqrt(6/float64(in+out))))}) // Glorot and Bengio 2010
		return b.Op("Add", []string{y, b.trained(name+".bias", []int64{out}, always(0))})
	}
	embedded := b.Op("Relu", []string{project("embed", x.name, in, width)})
	gate := b.Op("Mul", []string{
		b.Op("Tanh", []string{project("attention.v", embedded, width, hidden)}),
		b.Op("Sigmoid", []string{project("attention.u", embedded, width, hidden)}),
	})
	score := b.Op("Transpose", []string{project("attention.w", gate, hidden, 1)}, onnx.IntsAttribute("perm", 0, 2, 1))
	weights := b.Op("Softmax", []string{score}, onnx.IntAttribute("axis", -1))
	bag := b.Op("Reshape", []string{b.Op("MatMul", []string{weights, embedded}), b.Ints("bag", 0, width)})
	b.head("head", tensor{bag, []int64{width}})

	name := b.Node(&onnx.Node{OpType: "Squeeze", Inputs: []string{weights, b.Ints("row", 1)}, Outputs: []string{"attention"}}, 1)[0]
	count := onnx.Dim{Value: instances}
	if instances == 0 {
		count = onnx.Dim{Value: -1, Param: "instances"}
	}
	b.Output(name, onnx.Float, open(), count)
}

// tabularMLP is two hidden layers of 128 units, each normalised.
func tabularMLP(b *builder) {
	const width = 128
	x := b.input("columns")
	for i := range 2 {
		name := fmt.Sprintf("hidden%d", i+1)
		x = b.dense(name, x, width, b.normal(math.Sqrt(2/float64(x.shape[0]))))
		x = b.relu(b.norm(name+".norm", x))
	}
	b.head("head", x)
}
