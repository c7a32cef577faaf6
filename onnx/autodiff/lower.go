package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Lowering: an operator that is a composition of simpler ones is replaced by
// them before anything is differentiated, so that its gradient, its behaviour
// per example, and its correctness are theirs. The forward pass of a gradient
// graph then runs the composition too.

// lowering returns the outputs that the node has, computed by emitted
// operators; the zero value for one that it leaves out.
type lowering func(o *operation) []value

// lowerings by operator key. Every family has its own file.
var lowerings = map[string]lowering{
	// recurrent.go
	"RNN":  lowerRNN,
	"GRU":  lowerGRU,
	"LSTM": lowerLSTM,

	// microsoft.go
	"com.microsoft.FusedMatMul":                      lowerFusedMatMul,
	"com.microsoft.FusedGemm":                        lowerFusedActivation("Gemm"),
	"com.microsoft.FusedConv":                        lowerFusedActivation("Conv"),
	"com.microsoft.BiasGelu":                         lowerBiasGelu,
	"com.microsoft.SkipLayerNormalization":           lowerSkipNormalization("LayerNormalization"),
	"com.microsoft.SkipSimplifiedLayerNormalization": lowerSkipNormalization("SimplifiedLayerNormalization"),

	// below
	"DepthToSpace":              lowerDepthToSpace,
	"SpaceToDepth":              lowerSpaceToDepth,
	"MeanVarianceNormalization": lowerMeanVariance,
	"LRN":                       lowerLRN,
}

// lower replaces the nodes between what is asked for and the loss that have a
// lowering, and gives others the outputs that their gradients need.
func (t *tape) lower() {
	var nodes []*onnx.Node
	for _, n := range t.graph.Nodes {
		switch f := lowerings[operatorKey(n)]; {
		case !slices.ContainsFunc(n.Inputs, func(in string) bool { return t.needs[in] }):
			nodes = append(nodes, n)
		case f != nil:
			nodes = append(nodes, t.lowered(n, f)...)
		case n.OpType == "Dropout" && isDefault(n.Domain) && n.Input(2) != "" && n.Output(1) == "":
			n = n.Clone()
			mask := t.fresh("mask")
			n.Outputs = append(n.Outputs[:1], mask)
			t.values[mask] = value{mask, onnx.Bool, t.values[n.Outputs[0]].shape}
			nodes = append(nodes, n)
		default:
			nodes = append(nodes, n)
		}
	}
	t.graph.Nodes = nodes
	t.index()
}

func (t *tape) lowered(n *onnx.Node, f lowering) []*onnx.Node {
	defer nameNode(n)
	o := &operation{tape: t, node: n}
	for _, name := range n.Inputs {
		o.inputs = append(o.inputs, t.lookup(name))
	}
	for _, name := range n.Outputs {
		o.outputs = append(o.outputs, t.values[name])
	}
	before := t.nodes
	t.nodes = nil
	results := f(o)
	made := t.nodes
	t.nodes = before
	for i, out := range n.Outputs {
		if out == "" {
			continue
		}
		if i >= len(results) || results[i].none() {
			if t.needs[out] {
				failf("output %d, %q, is not computed: %w", i, out, ErrNotDifferentiable)
			}
			continue
		}
		v := t.lookup(out)
		if !slices.Equal(v.shape, results[i].shape) {
			failf("internal: lowered output %d has shape %v, want %v", i, results[i].shape, v.shape)
		}
		made = append(made, &onnx.Node{Name: out, OpType: "Identity", Inputs: []string{results[i].name}, Outputs: []string{out}})
	}
	return made
}

// blocks are the sizes that DepthToSpace and SpaceToDepth exchange.
func blockPermutation(columnsFirst bool) []int64 {
	if columnsFirst { // mode CRD: [N, C, b, b, H, W]
		return []int64{0, 1, 4, 2, 5, 3}
	}
	return []int64{0, 3, 4, 1, 5, 2} // mode DCR: [N, b, b, C, H, W]
}

func lowerDepthToSpace(o *operation) []value {
	x, b := o.in(0), o.node.Int("blocksize", 1)
	n, c, h, w := x.shape[0], x.shape[1]/(b*b), x.shape[2], x.shape[3]
	crd := o.node.Text("mode", "DCR") == "CRD"
	apart := []int64{n, b, b, c, h, w}
	if crd {
		apart = []int64{n, c, b, b, h, w}
	}
	y := o.transpose(o.reshape(x, apart...), blockPermutation(crd)...)
	return []value{o.reshape(y, n, c, h*b, w*b)}
}

func lowerSpaceToDepth(o *operation) []value {
	x, b := o.in(0), o.node.Int("blocksize", 1)
	n, c, h, w := x.shape[0], x.shape[1], x.shape[2]/b, x.shape[3]/b
	y := o.transpose(o.reshape(x, n, c, h, b, w, b), 0, 3, 5, 1, 2, 4)
	return []value{o.reshape(y, n, c*b*b, h, w)}
}

// lowerMeanVariance: (x - mean)/√(mean of squares - square of mean), with the
// 1e-9 that the operator's function body adds to the deviation.
func lowerMeanVariance(o *operation) []value {
	x := o.in(0)
	axes := o.intsAttr("axes", []int64{0, 2, 3})
	for i := range axes {
		axes[i] = axis(axes[i], x.rank())
	}
	centred := o.sub(x, o.mean(x, axes, true))
	deviation := o.unary("Sqrt", o.mean(o.mul(centred, centred), axes, true))
	return []value{o.div(centred, o.shift(deviation, 1e-9))}
}

// lowerLRN: y = x/(bias + α/size·Σ x²)^β over a window of channels, whose sum
// is an average pool over the channel axis.
func lowerLRN(o *operation) []value {
	x, size := o.in(0), o.node.Int("size", 1)
	n, c, m := x.shape[0], x.shape[1], product(x.shape[2:])
	before := (size - 1) / 2
	squares := o.reshape(o.mul(x, x), n, 1, c, m)
	mean := o.op("AveragePool", x.typ, squares.shape, []value{squares},
		onnx.IntsAttribute("kernel_shape", size, 1), onnx.IntsAttribute("pads", before, 0, size-1-before, 0), onnx.IntAttribute("count_include_pad", 1))
	base := o.shift(o.scale(mean, o.floatAttr("alpha", 1e-4)), o.floatAttr("bias", 1))
	root := o.binary("Pow", base, o.scalar(x.typ, -o.floatAttr("beta", 0.75)))
	return []value{o.mul(x, o.reshape(root, x.shape...))}
}
