package autodiff

import (
	"maps"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Operator is a row of the one table of operators: what package onnx and this
// package know of each.
type Operator struct {
	Name string // "Conv", or "domain.Name" outside the default domain
	// Shapes is the oldest operator set whose meaning the shape rule serves.
	Shapes int64
	// Since is the oldest operator set whose meaning the gradient serves; 0 if
	// there is none.
	Since int64
	// Gradient is how the operator is differentiated: "rule", "lowered" to
	// simpler operators, "none" (its result depends on no element, or is not a
	// floating-point number) or "refused".
	Gradient string
	// PerExample says that gradients for each example pass the operator where
	// it keeps examples apart.
	PerExample bool
	// Reason is why an operator is refused, and what to do about it.
	Reason string
}

// Operators returns the table, by name.
func Operators() []Operator {
	shapes := onnx.Operators()
	all := map[string]bool{}
	for _, names := range []func(func(string) bool){maps.Keys(shapes), maps.Keys(rules), maps.Keys(lowerings), maps.Keys(reasons)} {
		for name := range names {
			all[name] = true
		}
	}
	var table []Operator
	for _, name := range slices.Sorted(maps.Keys(all)) {
		row := Operator{Name: name, Shapes: shapes[name], Gradient: "refused", Reason: reasons[name]}
		switch r, ok := rules[name]; {
		case ok:
			row.Gradient, row.Since, row.PerExample = "rule", max(r.since, oldestOpset), r.examples != nil
			if !isDefaultKey(name) {
				row.Since = r.since
			}
		case lowerings[name] != nil:
			row.Gradient, row.Since, row.PerExample = "lowered", max(row.Shapes, oldestOpset), true
			if !isDefaultKey(name) {
				row.Since = row.Shapes
			}
		case row.Reason == "":
			row.Gradient, row.PerExample = "none", examplesElsewhere[name] != nil || opaque[name] || sources[name]
		}
		table = append(table, row)
	}
	return table
}

func isDefaultKey(name string) bool {
	for _, c := range name {
		if c == '.' {
			return false
		}
	}
	return true
}

// sources have no input that could hold the batch.
var sources = map[string]bool{"Constant": true, "RandomNormal": true, "RandomUniform": true}

const (
	whileRunning = "how often it runs is known only when it runs: export with fixed sizes, so that it is unrolled"
	nonSmooth    = "its result jumps from one value to another: a gradient of zero would hide that nothing is learnt"
	quantised    = "quantised: differentiate the float model that it was made of"
	fusedKernel  = "fused by an optimizer: export the model before optimizing it for one runtime"
	numberOf     = "the size of its result depends on the elements: mask instead"
	listOf       = "its values are not tensors"
	unusual      = "no exporter of the architectures that the table serves emits it: export its formula as simpler operators"
)

// reasons are why operators that are known by name have no gradient. The rest
// of the table without one returns integers, truth values or shapes, on which
// no gradient arrives.
var reasons = map[string]string{
	"Hardmax": nonSmooth,
	"If":      "its condition depends on the input: no branch can be chosen before it runs; with a constant condition it is taken",
	"Loop":    whileRunning, "Scan": whileRunning,
	"Range":   "its size would depend on what is differentiated; of integers and constants it needs no gradient",
	"Scatter": "deprecated: ScatterElements took its place in opset 11", "Upsample": "deprecated: Resize took its place in opset 10",
	"NonZero": numberOf, "Compress": numberOf, "Unique": numberOf, "NonMaxSuppression": numberOf,
	"LpPool": unusual, "GlobalLpPool": unusual, "GridSample": unusual, "AffineGrid": unusual, "RoiAlign": unusual, "MaxRoiPool": unusual,
	"MaxUnpool": unusual, "Det": unusual, "DFT": unusual, "STFT": unusual, "MelWeightMatrix": unusual, "Col2Im": unusual,
	"CenterCropPad": unusual, "ReverseSequence": unusual, "DeformConv": unusual, "TensorScatter": unusual,
	"SoftmaxCrossEntropyLoss": "append a loss with SoftmaxCrossEntropy instead", "NegativeLogLikelihoodLoss": "append a loss with SoftmaxCrossEntropy instead",
	"QuantizeLinear": quantised, "DequantizeLinear": quantised, "DynamicQuantizeLinear": quantised, "QLinearConv": quantised,
	"QLinearMatMul": quantised, "ConvInteger": quantised, "MatMulInteger": quantised,
	"com.microsoft.QLinearAdd": quantised, "com.microsoft.MatMulNBits": quantised, "com.microsoft.DynamicQuantizeMatMul": quantised, "com.microsoft.QGemm": quantised,
	"Attention": fusedKernel, "RotaryEmbedding": fusedKernel,
	"com.microsoft.Attention": fusedKernel, "com.microsoft.MultiHeadAttention": fusedKernel, "com.microsoft.GroupQueryAttention": fusedKernel,
	"com.microsoft.DecoderMaskedMultiHeadAttention": fusedKernel, "com.microsoft.EmbedLayerNormalization": fusedKernel,
	"com.microsoft.RotaryEmbedding": fusedKernel, "com.microsoft.NhwcFusedConv": fusedKernel, "com.microsoft.GroupNorm": fusedKernel,
	"com.microsoft.SkipGroupNorm": fusedKernel, "com.microsoft.BiasSplitGelu": fusedKernel, "com.microsoft.BiasAdd": fusedKernel,
	"com.microsoft.PackedAttention": fusedKernel, "com.microsoft.RemovePadding": fusedKernel, "com.microsoft.RestorePadding": fusedKernel,
	"SequenceConstruct": listOf, "SequenceEmpty": listOf, "SequenceAt": listOf, "SequenceInsert": listOf, "SequenceErase": listOf,
	"SequenceLength": listOf, "SequenceMap": listOf, "SplitToSequence": listOf, "ConcatFromSequence": listOf,
	"Optional": listOf, "OptionalGetElement": listOf, "OptionalHasElement": listOf,
	"StringNormalizer": listOf, "StringConcat": listOf, "StringSplit": listOf, "RegexFullMatch": listOf, "TfIdfVectorizer": listOf,
	"HannWindow": unusual, "HammingWindow": unusual, "BlackmanWindow": unusual, "ImageDecoder": unusual, "Multinomial": nonSmooth,
}
