package autodiff_test

import (
	"github.com/vigie/vigie/onnx"
)

// microsoft builds one node of ONNX Runtime's own domain.
func microsoft(opType string, attributes ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		b.Import("com.microsoft", 1)
		return b.Node(&onnx.Node{OpType: opType, Domain: "com.microsoft", Inputs: in, Attributes: attributes}, 1)[0]
	}
}

var microsoftClaims = []claim{
	{name: "com.microsoft Gelu", smooth: true, inputs: []operand{tensor(4, 5)}, build: microsoft("Gelu")},
	{name: "com.microsoft FastGelu", smooth: true, inputs: []operand{tensor(4, 5), tensor(5)}, build: microsoft("FastGelu")},
	{name: "com.microsoft QuickGelu", smooth: true, inputs: []operand{tensor(4, 5)}, build: microsoft("QuickGelu")},
	{name: "com.microsoft BiasGelu", smooth: true, inputs: []operand{tensor(4, 5), tensor(5)}, build: microsoft("BiasGelu")},
	{name: "com.microsoft FusedMatMul", single: true, inputs: []operand{tensor(2, 4, 3), tensor(2, 5, 4)}, build: microsoft("FusedMatMul", i("transA", 1), i("transB", 1), f("alpha", 0.5))},
	{name: "com.microsoft FusedGemm", smooth: true, inputs: []operand{tensor(3, 4), tensor(4, 2), tensor(2)}, build: microsoft("FusedGemm", txt("activation", "LeakyRelu"), f("activation_alpha", 0.2))},
	{name: "com.microsoft FusedConv", smooth: true, inputs: []operand{tensor(1, 2, 4, 4), tensor(3, 2, 3, 3), tensor(3)}, build: microsoft("FusedConv", txt("activation", "Tanh"), is("pads", 1, 1, 1, 1))},
	{name: "com.microsoft SkipLayerNormalization", smooth: true, inputs: []operand{tensor(2, 3, 4), tensor(2, 3, 4), tensor(4), tensor(4), tensor(4)}, build: microsoft("SkipLayerNormalization", f("epsilon", 1e-5))},
	{name: "com.microsoft SkipSimplifiedLayerNormalization", smooth: true, inputs: []operand{tensor(2, 3, 4), tensor(2, 3, 4), tensor(4)}, build: microsoft("SkipSimplifiedLayerNormalization", f("epsilon", 1e-5))},
	{name: "SimplifiedLayerNormalization", smooth: true, inputs: []operand{tensor(2, 3, 5), tensor(5)}, build: op("SimplifiedLayerNormalization", f("epsilon", 1e-5))},
	{name: "LayerNormalization before opset 17", opset: 14, smooth: true, inputs: []operand{tensor(2, 3, 5), tensor(5), tensor(5)}, build: op("LayerNormalization")},
}
