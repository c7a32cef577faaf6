package train

import (
	"fmt"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// The inputs of the graph of TRADES: the clean images, and those that are compared
// with them.
const (
	cleanInput     = "trades/clean"
	perturbedInput = "trades/perturbed"
)

// tradesLoss is a model, with its batch of n clean images and the n perturbed
// ones of perturbedInput, and behind it TRADES: for each example the loss at the
// clean image plus beta times the divergence KL(clean ‖ perturbed) of the
// answers (Zhang et al. 2019, equation 5; gradients go through both). Both halves
// go through the network together, so that batch normalisation sees all of them.
func (l Loss) tradesLoss(m *onnx.Model, input string, logits []string, shape []int64, width int, beta float64, n int64) (*autodiff.Loss, error) {
	m = m.Clone()
	for i, in := range m.Graph.Inputs {
		if in.Name == input {
			m.Graph.Inputs[i] = onnx.Value{Name: cleanInput, Type: in.Type, Shape: onnx.Fixed(append([]int64{n}, shape...)...)}
		}
	}
	m.Graph.ValueInfo = nil
	for i, out := range m.Graph.Outputs { // twice as many as the inputs have
		if len(out.Shape) > 0 && !out.Shape[0].Known() {
			m.Graph.Outputs[i].Shape = append(onnx.Fixed(2*n), out.Shape[1:]...)
		}
	}
	both := &onnx.Node{Name: "trades/both", OpType: "Concat", Inputs: []string{cleanInput, perturbedInput}, Outputs: []string{input},
		Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 0)}}
	m.Graph.Nodes = append([]*onnx.Node{both}, m.Graph.Nodes...)
	b := onnx.Extend(m)
	b.Input(perturbedInput, onnx.Float, onnx.Fixed(append([]int64{n}, shape...)...)...)
	out := &autodiff.Loss{Target: "trades/target", Weight: "trades/weight", Total: "trades/total"}
	b.Input(out.Target, onnx.Float, onnx.Fixed(n, int64(width))...)
	b.Input(out.Weight, onnx.Float, onnx.Fixed(n)...)
	weigh := b.Weight("trades/beta", []int64{}, []float32{float32(beta)})
	rowSum := func(x string) string {
		return b.Op("ReduceSum", []string{x, b.Ints("trades/axes", 1)}, onnx.IntAttribute("keepdims", 0))
	}
	for _, z := range logits {
		halves := b.Node(&onnx.Node{OpType: "Split", Inputs: []string{z, b.Ints("trades/halves", n, n)}, Outputs: []string{z + "/clean", z + "/perturbed"},
			Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 0)}}, 2)
		at, near := halves[0], halves[1]
		var loss, divergence string
		if l == BinaryCrossEntropy {
			// log σ(z) = -softplus(-z) and log(1 - σ(z)) = -softplus(z).
			soft := func(z string) string { return b.Op("Softplus", []string{z}) }
			less := func(z string) string { return b.Op("Softplus", []string{b.Op("Neg", []string{z})}) }
			loss = rowSum(b.Op("Sub", []string{soft(at), b.Op("Mul", []string{at, out.Target})}))
			p := b.Op("Sigmoid", []string{at})
			no := b.Op("Sub", []string{b.Weight("trades/one", []int64{}, []float32{1}), p})
			divergence = rowSum(b.Op("Add", []string{
				b.Op("Mul", []string{p, b.Op("Sub", []string{less(near), less(at)})}),
				b.Op("Mul", []string{no, b.Op("Sub", []string{soft(near), soft(at)})}),
			}))
		} else {
			logp := b.Op("LogSoftmax", []string{at}, onnx.IntAttribute("axis", -1))
			logq := b.Op("LogSoftmax", []string{near}, onnx.IntAttribute("axis", -1))
			loss = b.Op("Neg", []string{rowSum(b.Op("Mul", []string{logp, out.Target}))})
			divergence = rowSum(b.Op("Mul", []string{b.Op("Exp", []string{logp}), b.Op("Sub", []string{logp, logq})}))
		}
		each := b.Op("Add", []string{loss, b.Op("Mul", []string{divergence, weigh})})
		if out.Each != "" {
			each = b.Op("Add", []string{out.Each, each})
		}
		out.Each = each
	}
	weighted := b.Op("Mul", []string{out.Each, out.Weight})
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{weighted, b.Ints("trades/examples", 0)}, Outputs: []string{out.Total},
		Attributes: []onnx.Attribute{onnx.IntAttribute("keepdims", 1)}}, 1)
	b.Output(out.Total, onnx.Float, onnx.Fixed(1)...)
	var err error
	if out.Model, err = b.Build(); err != nil {
		return nil, fmt.Errorf("train: appending TRADES to %v: %w", logits, err)
	}
	return out, nil
}
