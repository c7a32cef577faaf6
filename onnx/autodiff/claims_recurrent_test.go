package autodiff_test

import (
	"github.com/vigie/vigie/onnx"
)

var recurrentClaims = []claim{
	{name: "RNN", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 5, 4), tensor(1, 5, 5), tensor(1, 10)}, build: recurrent("RNN", 5)},
	{name: "RNN backwards without bias", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 5, 4), tensor(1, 5, 5)}, build: recurrent("RNN", 5, txt("direction", "reverse"))},
	{name: "GRU", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 9, 4), tensor(1, 9, 3), tensor(1, 18)}, build: recurrent("GRU", 3)},
	{name: "GRU of PyTorch, both ways, with a first state", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(2, 9, 4), tensor(2, 9, 3), tensor(2, 18), tensor(2, 2, 3)}, build: recurrent("GRU", 3, txt("direction", "bidirectional"), i("linear_before_reset", 1))},
	{name: "LSTM", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 12, 4), tensor(1, 12, 3), tensor(1, 24)}, build: recurrent("LSTM", 3)},
	{name: "LSTM both ways, with first states", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(2, 12, 4), tensor(2, 12, 3), tensor(2, 24), tensor(2, 2, 3), tensor(2, 2, 3)}, build: recurrent("LSTM", 3, txt("direction", "bidirectional"))},
	{name: "LSTM's last state and cell", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 12, 4), tensor(1, 12, 3)}, build: func(b *onnx.Builder, in []string) string {
		out := b.Node(&onnx.Node{OpType: "LSTM", Inputs: in, Attributes: attrs{i("hidden_size", 3)}}, 3)
		return b.Op("Mul", []string{out[1], out[2]})
	}},
}

// recurrent puts first states behind the lengths of the sequences, which are
// left out.
func recurrent(opType string, hidden int64, attributes ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		if len(in) > 4 {
			in = append(append(append([]string{}, in[:4]...), ""), in[4:]...)
		}
		return b.Node(&onnx.Node{OpType: opType, Inputs: in, Attributes: append(attributes, i("hidden_size", hidden))}, 2)[0]
	}
}
