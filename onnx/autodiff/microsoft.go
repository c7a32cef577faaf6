package autodiff

import (
	"github.com/vigie/vigie/onnx"
)

// ONNX Runtime's own operators, which its optimizer and its transformer tools
// leave in files (docs/ContribOperators.md of ONNX Runtime).

// lowerFusedMatMul: α·A'·B' with the last two axes of either side transposed.
func lowerFusedMatMul(o *operation) []value {
	if o.node.Int("transBatchA", 0) != 0 || o.node.Int("transBatchB", 0) != 0 {
		failf("transBatchA and transBatchB: %w", ErrNotDifferentiable)
	}
	a, b := o.in(0), o.in(1)
	if o.node.Int("transA", 0) != 0 && a.rank() > 1 {
		a = o.swapLast(a)
	}
	if o.node.Int("transB", 0) != 0 && b.rank() > 1 {
		b = o.swapLast(b)
	}
	y := o.op("MatMul", a.typ, o.out(0).shape, []value{a, b})
	return []value{o.scale(y, o.floatAttr("alpha", 1))}
}

// lowerFusedActivation: a convolution or product followed by an activation;
// FusedConv may add input 3 before it.
func lowerFusedActivation(opType string) lowering {
	return func(o *operation) []value {
		inputs := o.inputs
		var sum value
		if opType == "Conv" && len(inputs) > 3 {
			inputs, sum = inputs[:3], inputs[3]
		}
		var attributes []onnx.Attribute
		for _, a := range o.node.Attributes {
			switch a.Name {
			case "activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma":
			default:
				attributes = append(attributes, a)
			}
		}
		y := o.op(opType, o.in(0).typ, o.out(0).shape, inputs, attributes...)
		if !sum.none() {
			y = o.add(y, sum)
		}
		var parameters []onnx.Attribute
		list := o.node.Floats("activation_params")
		parameter := func(i int, name string, def float64) {
			v := o.floatAttr("activation_"+name, def)
			if i < len(list) {
				v = float64(list[i])
			}
			parameters = append(parameters, onnx.FloatAttribute(name, float32(v)))
		}
		switch activation := o.node.Text("activation", ""); activation {
		case "":
			return []value{y}
		case "Relu", "Sigmoid", "Tanh":
		case "LeakyRelu":
			parameter(0, "alpha", 0.01)
		case "HardSigmoid":
			parameter(0, "alpha", 0.2)
			parameter(1, "beta", 0.5)
		case "Clip":
			if len(list) != 2 {
				failf("activation Clip with %d parameters", len(list))
			}
			return []value{o.op("Clip", y.typ, y.shape, []value{y, o.scalar(y.typ, float64(list[0])), o.scalar(y.typ, float64(list[1]))})}
		default:
			failf("activation %q: %w", activation, ErrNotDifferentiable)
		}
		return []value{o.op(o.node.Text("activation", ""), y.typ, y.shape, []value{y}, parameters...)}
	}
}

func lowerBiasGelu(o *operation) []value {
	x := o.add(o.in(0), o.in(1))
	return []value{o.opIn(fusedDomain, "Gelu", x.typ, x.shape, []value{x})}
}

// lowerSkipNormalization: the normalisation of input + skip (+ bias). Inputs
// are input, skip, gamma, then beta unless simplified, then bias.
func lowerSkipNormalization(opType string) lowering {
	return func(o *operation) []value {
		parameters := []value{o.in(2)}
		bias := o.in(3)
		if opType == "LayerNormalization" {
			if o.has(3) {
				parameters = append(parameters, o.in(3))
			}
			bias = o.in(4)
		}
		x := o.add(o.in(0), o.in(1))
		if !bias.none() {
			x = o.add(x, bias)
		}
		y := o.op(opType, x.typ, x.shape, append([]value{x}, parameters...),
			onnx.FloatAttribute("epsilon", o.node.Float("epsilon", 1e-12)), onnx.IntAttribute("axis", -1))
		return []value{y, {}, {}, x}
	}
}

// fastGeluRule: the tanh form of Gelu, of x + bias.
func fastGeluRule(o *operation) {
	x := o.in(0)
	if o.has(1) {
		x = o.add(x, o.in(1))
	}
	d := o.mul(o.dy(), o.geluTanhSlope(x))
	o.settle(0, d)
	if o.wants(1) {
		o.settle(1, d)
	}
}

// sigmoidWeighted: y = x·σ(αx), which is SiLU for α = 1.
func sigmoidWeighted(alpha func(*operation) float64) slope {
	return func(o *operation, x, _ value) value {
		a := alpha(o)
		s := o.unary("Sigmoid", o.scale(x, a))
		return o.add(s, o.mul(o.scale(x, a), sigmoidSlope(o, x, s)))
	}
}
