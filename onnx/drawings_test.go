package onnx_test

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// networkDrawings are the layers of image networks.
var networkDrawings = map[string]drawing{
	"Conv": {from: 11, draw: func(r *random) []string {
		n := int(r.between(1, 3))
		group := r.between(1, 2)
		c := group * r.between(1, 2)
		x := r.input(onnx.Float, append([]int64{r.between(1, 2), c}, r.dims(n, 4, 8)...))
		w := r.floats(append([]int64{group * r.between(1, 2), c / group}, r.dims(n, 1, 3)...)...)
		return r.op("Conv", []string{x, w}, append(r.window(n, true), onnx.IntAttribute("group", group))...)
	}},
	"ConvTranspose": {from: 11, draw: func(r *random) []string {
		n := int(r.between(1, 2))
		group := r.between(1, 2)
		c := group * r.between(1, 2)
		x := r.input(onnx.Float, append([]int64{r.between(1, 2), c}, r.dims(n, 2, 5)...))
		w := r.floats(append([]int64{c, r.between(1, 3)}, r.dims(n, 2, 3)...)...)
		attributes := []onnx.Attribute{onnx.IntAttribute("group", group)}
		if r.coin() {
			attributes = append(attributes, onnx.IntsAttribute("strides", r.dims(n, 2, 3)...), onnx.IntsAttribute("output_padding", r.dims(n, 0, 1)...))
		}
		if r.coin() {
			attributes = append(attributes, onnx.IntsAttribute("pads", r.dims(2*n, 0, 1)...))
		}
		return r.op("ConvTranspose", []string{x, w}, attributes...)
	}},
	"MaxPool": {from: 11, draw: func(r *random) []string {
		n := int(r.between(1, 3))
		x := r.input(onnx.Float, append([]int64{r.between(1, 2), 2}, r.dims(n, 4, 9)...))
		attributes := append(r.window(n, true), onnx.IntsAttribute("kernel_shape", r.dims(n, 2, 3)...))
		if !slices.ContainsFunc(attributes, func(a onnx.Attribute) bool { return a.Name == "auto_pad" }) {
			attributes = append(attributes, onnx.IntAttribute("ceil_mode", int64(r.IntN(2))))
		}
		return r.ops("MaxPool", 1+r.IntN(2), []string{x}, attributes...)
	}},
	"AveragePool": {from: 11, draw: func(r *random) []string {
		n := int(r.between(1, 3))
		x := r.input(onnx.Float, append([]int64{r.between(1, 2), 2}, r.dims(n, 4, 9)...))
		attributes := append(r.window(n, r.opset >= 19), onnx.IntsAttribute("kernel_shape", r.dims(n, 2, 3)...))
		if !slices.ContainsFunc(attributes, func(a onnx.Attribute) bool { return a.Name == "auto_pad" }) {
			attributes = append(attributes, onnx.IntAttribute("ceil_mode", int64(r.IntN(2))))
		}
		return r.op("AveragePool", []string{x}, attributes...)
	}},
	"LpPool": {from: 11, draw: func(r *random) []string {
		n := int(r.between(1, 3))
		x := r.input(onnx.Float, append([]int64{r.between(1, 2), 2}, r.dims(n, 4, 9)...))
		return r.op("LpPool", []string{x}, append(r.window(n, false), onnx.IntsAttribute("kernel_shape", r.dims(n, 2, 3)...))...)
	}},
	"GlobalLpPool": {from: 11, draw: func(r *random) []string {
		return r.op("GlobalLpPool", []string{r.input(onnx.Float, r.dims(int(r.between(3, 5)), 1, 4))})
	}},
	"RMSNormalization": {from: 23, draw: func(r *random) []string {
		dims := r.dims(3, 1, 4)
		return r.op("RMSNormalization", []string{r.input(onnx.Float, dims), r.floats(dims[2])})
	}},
	"Swish": unaryDrawing("Swish", 24),
	"Hardmax": {from: 13, draw: func(r *random) []string {
		return r.op("Hardmax", []string{r.input(onnx.Float, r.dims(3, 1, 4))}, onnx.IntAttribute("axis", r.axis(3)))
	}},
	"LpNormalization": {from: 11, draw: func(r *random) []string {
		return r.op("LpNormalization", []string{r.input(onnx.Float, r.dims(3, 1, 4))}, onnx.IntAttribute("axis", r.axis(3)))
	}},
	"MeanVarianceNormalization": {from: 13, draw: func(r *random) []string {
		return r.op("MeanVarianceNormalization", []string{r.input(onnx.Float, r.dims(4, 1, 4))})
	}},
	"com.microsoft.FusedMatMul": {from: 18, draw: func(r *random) []string {
		m, k, n := r.between(1, 4), r.between(1, 4), r.between(1, 4)
		a, b := []int64{2, m, k}, []int64{2, k, n}
		transA, transB := int64(r.IntN(2)), int64(r.IntN(2))
		if transA == 1 {
			slices.Reverse(a[1:])
		}
		if transB == 1 {
			slices.Reverse(b[1:])
		}
		return r.microsoft("FusedMatMul", []string{r.input(onnx.Float, a), r.floats(b...)},
			onnx.IntAttribute("transA", transA), onnx.IntAttribute("transB", transB), onnx.FloatAttribute("alpha", 0.5))
	}},
	"com.microsoft.FusedConv": {from: 18, draw: func(r *random) []string {
		return r.microsoft("FusedConv", []string{r.input(onnx.Float, []int64{1, 2, r.between(4, 7), r.between(4, 7)}), r.floats(3, 2, 3, 3)},
			append(r.window(2, false), onnx.TextAttribute("activation", "Relu"))...)
	}},
	"com.microsoft.FusedGemm": {from: 18, draw: func(r *random) []string {
		m, k, n := r.between(1, 4), r.between(1, 4), r.between(1, 4)
		return r.microsoft("FusedGemm", []string{r.input(onnx.Float, []int64{m, k}), r.floats(k, n), r.floats(n)}, onnx.TextAttribute("activation", "Relu"))
	}},
	"com.microsoft.BiasGelu": {from: 18, draw: func(r *random) []string {
		dims := r.dims(3, 1, 4)
		return r.microsoft("BiasGelu", []string{r.input(onnx.Float, dims), r.floats(dims[2])})
	}},
	"GlobalAveragePool": {from: 11, draw: func(r *random) []string {
		return r.op("GlobalAveragePool", []string{r.input(onnx.Float, r.dims(int(r.between(3, 5)), 1, 4))})
	}},
	"GlobalMaxPool": {from: 11, draw: func(r *random) []string {
		return r.op("GlobalMaxPool", []string{r.input(onnx.Float, r.dims(int(r.between(3, 5)), 1, 4))})
	}},
	"BatchNormalization": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(2, 4)), 1, 4)
		inputs := []string{r.input(onnx.Float, dims)}
		for range 4 {
			inputs = append(inputs, r.floats(dims[1]))
		}
		return r.op("BatchNormalization", inputs)
	}},
	"InstanceNormalization": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(3, 4)), 1, 4)
		return r.op("InstanceNormalization", []string{r.input(onnx.Float, dims), r.floats(dims[1]), r.floats(dims[1])})
	}},
	"GroupNormalization": {from: 21, draw: func(r *random) []string {
		dims := append([]int64{r.between(1, 3), 4}, r.dims(2, 1, 4)...)
		return r.op("GroupNormalization", []string{r.input(onnx.Float, dims), r.floats(4), r.floats(4)}, onnx.IntAttribute("num_groups", 2))
	}},
	"LayerNormalization": {from: 17, draw: func(r *random) []string {
		dims := r.dims(int(r.between(2, 4)), 2, 4)
		at := r.IntN(len(dims))
		return r.ops("LayerNormalization", int(r.between(1, 3)), []string{r.input(onnx.Float, dims), r.floats(dims[at:]...)}, onnx.IntAttribute("axis", int64(at)))
	}},
	"Softmax": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(1, 4)), 1, 4)
		return r.op("Softmax", []string{r.input(onnx.Float, dims)}, onnx.IntAttribute("axis", r.axis(len(dims))))
	}},
	"LogSoftmax": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(1, 4)), 1, 4)
		return r.op("LogSoftmax", []string{r.input(onnx.Float, dims)}, onnx.IntAttribute("axis", r.axis(len(dims))))
	}},
	"LRN": {from: 11, draw: func(r *random) []string {
		return r.op("LRN", []string{r.input(onnx.Float, r.dims(4, 1, 4))}, onnx.IntAttribute("size", 3))
	}},
	"Dropout": {from: 11, draw: func(r *random) []string {
		return r.ops("Dropout", 1+r.IntN(2), []string{r.input(onnx.Float, r.dims(r.IntN(4), 1, 4))})
	}},
	"Gemm": {from: 11, draw: func(r *random) []string {
		m, k, n := r.between(1, 4), r.between(1, 4), r.between(1, 4)
		a, b := []int64{m, k}, []int64{k, n}
		transA, transB := int64(r.IntN(2)), int64(r.IntN(2))
		if transA == 1 {
			slices.Reverse(a)
		}
		if transB == 1 {
			slices.Reverse(b)
		}
		inputs := []string{r.input(onnx.Float, a), r.floats(b...)}
		switch r.IntN(4) {
		case 0:
			inputs = append(inputs, r.floats(n))
		case 1:
			inputs = append(inputs, r.floats(m, 1))
		case 2:
			inputs = append(inputs, r.floats())
		}
		return r.op("Gemm", inputs, onnx.IntAttribute("transA", transA), onnx.IntAttribute("transB", transB))
	}},
	"MatMul": {from: 11, draw: func(r *random) []string {
		k := r.between(1, 4)
		a, b := r.stretchable()
		switch r.IntN(4) {
		case 0:
			return r.op("MatMul", []string{r.input(onnx.Float, []int64{k}), r.floats(append(b, k, r.between(1, 3))...)})
		case 1:
			return r.op("MatMul", []string{r.input(onnx.Float, append(a, r.between(1, 3), k)), r.floats(k)})
		}
		return r.op("MatMul", []string{r.input(onnx.Float, append(a, r.between(1, 3), k)), r.floats(append(b, k, r.between(1, 3))...)})
	}},
	"Resize": {from: 11, draw: func(r *random) []string {
		dims := r.dims(4, 1, 5)
		x := r.input(onnx.Float, dims)
		none := r.b.Weight("none", []int64{0}, nil)
		if r.opset >= 13 {
			none = ""
		}
		mode := onnx.TextAttribute("mode", []string{"nearest", "linear"}[r.IntN(2)])
		if r.coin() {
			scales := []float32{1, 1, 0.5 + 2*r.Float32(), 0.5 + 2*r.Float32()}
			return r.op("Resize", []string{x, none, r.b.Weight("scales", []int64{4}, scales)}, mode)
		}
		scales := none
		sizes := r.b.Ints("sizes", dims[0], dims[1], r.between(1, 9), r.between(1, 9))
		if r.opset >= 18 && r.coin() {
			return r.op("Resize", []string{x, none, scales, r.b.Ints("sizes", r.between(1, 9), r.between(1, 9))}, mode, onnx.IntsAttribute("axes", 2, 3),
				onnx.TextAttribute("keep_aspect_ratio_policy", []string{"stretch", "not_larger", "not_smaller"}[r.IntN(3)]))
		}
		return r.op("Resize", []string{x, none, scales, sizes}, mode)
	}},
}

// layoutDrawings are the operators that move elements.
var layoutDrawings = map[string]drawing{
	"Reshape": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, []int64{2, 3, 4})
		to := [][]int64{{-1}, {0, -1}, {0, 0, 4}, {6, -1}, {4, 3, 2}, {2, 1, 0, 3, 1}, {24, 1}, {-1, 2, 2}, {5, -1}, {0, 0, 0, 1}, {2, 3}}[r.IntN(11)]
		return r.op("Reshape", []string{x, r.b.Ints("to", to...)})
	}},
	"Flatten": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(1, 4)), 1, 4)
		return r.op("Flatten", []string{r.input(onnx.Float, dims)}, onnx.IntAttribute("axis", r.between(-len(dims), len(dims))))
	}},
	"Transpose": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(1, 4)), 1, 4)
		x := r.input(onnx.Float, dims)
		if r.coin() {
			return r.op("Transpose", []string{x})
		}
		order := []int64{}
		for _, a := range r.Perm(len(dims)) {
			order = append(order, int64(a))
		}
		return r.op("Transpose", []string{x}, onnx.IntsAttribute("perm", order...))
	}},
	"Squeeze": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, []int64{1, r.between(1, 2), 1, 3})
		axes := [][]int64{{0}, {-2}, {0, 2}, {1}}[r.IntN(4)]
		switch {
		case r.IntN(4) == 0:
			return r.op("Squeeze", []string{x})
		case r.opset < 13:
			return r.op("Squeeze", []string{x}, onnx.IntsAttribute("axes", axes...))
		}
		return r.op("Squeeze", []string{x, r.b.Ints("axes", axes...)})
	}},
	"Unsqueeze": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, r.dims(r.IntN(3), 2, 4))
		axes := [][]int64{{0}, {-1}, {0, 1}, {1, 0}, {2}}[r.IntN(5)]
		if r.opset < 13 {
			return r.op("Unsqueeze", []string{x}, onnx.IntsAttribute("axes", axes...))
		}
		return r.op("Unsqueeze", []string{x, r.b.Ints("axes", axes...)})
	}},
	"Concat": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(1, 4)), 1, 4)
		at := r.axis(len(dims))
		place := int(at+int64(len(dims))) % len(dims)
		inputs := []string{}
		for range r.between(1, 3) {
			part := slices.Clone(dims)
			part[place] = r.between(0, 4)
			inputs = append(inputs, r.input(onnx.Float, part))
		}
		return r.op("Concat", inputs, onnx.IntAttribute("axis", at))
	}},
	"Split": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, []int64{2, r.between(6, 7)})
		parts := []int64{1, 2, 3 + int64(r.IntN(2))}
		at := onnx.IntAttribute("axis", 1-2*int64(r.IntN(2)))
		switch {
		case r.coin() && r.opset >= 18:
			return r.ops("Split", 3, []string{x}, at, onnx.IntAttribute("num_outputs", 3))
		case r.coin():
			return r.ops("Split", 3, []string{x}, at)
		case r.opset < 13:
			return r.ops("Split", 3, []string{x}, at, onnx.IntsAttribute("split", parts...))
		}
		return r.ops("Split", 3, []string{x, r.b.Ints("parts", parts...)}, at)
	}},
	"Expand": {from: 11, draw: func(r *random) []string {
		a, b := r.stretchable()
		return r.op("Expand", []string{r.input(onnx.Float, a), r.b.Ints("to", b...)})
	}},
	"Tile": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(1, 4)), 1, 4)
		return r.op("Tile", []string{r.input(onnx.Float, dims), r.b.Ints("repeats", r.dims(len(dims), 0, 3)...)})
	}},
	"Pad": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, []int64{3, 4, 5})
		if r.opset >= 18 && r.coin() {
			axes := r.some(3)
			return r.op("Pad", []string{x, r.b.Ints("pads", r.dims(2*len(axes), -1, 2)...), "", r.b.Ints("axes", axes...)})
		}
		return r.op("Pad", []string{x, r.b.Ints("pads", r.dims(6, -1, 2)...)})
	}},
	"DepthToSpace": {from: 11, draw: func(r *random) []string {
		return r.op("DepthToSpace", []string{r.input(onnx.Float, []int64{1, 4 * r.between(1, 2), 2, 3})}, onnx.IntAttribute("blocksize", 2))
	}},
	"SpaceToDepth": {from: 11, draw: func(r *random) []string {
		return r.op("SpaceToDepth", []string{r.input(onnx.Float, []int64{1, 2, 2 * r.between(1, 3), 4})}, onnx.IntAttribute("blocksize", 2))
	}},
	"RandomNormal": {from: 11, draw: func(r *random) []string {
		return []string{r.b.Op("RandomNormal", nil, onnx.IntsAttribute("shape", r.dims(3, 1, 4)...)), r.b.Op("Relu", []string{r.input(onnx.Float, []int64{1})})}
	}},
	"RandomUniform": {from: 11, draw: func(r *random) []string {
		return []string{r.b.Op("RandomUniform", nil, onnx.IntsAttribute("shape", r.dims(3, 1, 4)...)), r.b.Op("Relu", []string{r.input(onnx.Float, []int64{1})})}
	}},
	"RandomNormalLike": {from: 11, draw: func(r *random) []string {
		return r.op("RandomNormalLike", []string{r.input(onnx.Float, r.dims(3, 1, 4))})
	}},
	"RandomUniformLike": {from: 11, draw: func(r *random) []string {
		return r.op("RandomUniformLike", []string{r.input(onnx.Float, r.dims(3, 1, 4))})
	}},
	"Bernoulli": {from: 15, draw: func(r *random) []string {
		return r.op("Bernoulli", []string{r.input(onnx.Float, r.dims(3, 1, 4))})
	}},
	"BitShift": {from: 11, draw: func(r *random) []string {
		a, b := r.stretchable()
		return r.op("BitShift", []string{r.input(onnx.Uint8, a), r.input(onnx.Uint8, b)}, onnx.TextAttribute("direction", "LEFT"))
	}},
	"BitwiseNot": {from: 18, draw: func(r *random) []string {
		return r.op("BitwiseNot", []string{r.input(onnx.Int32, r.dims(2, 1, 3))})
	}},
	"Trilu": {from: 14, draw: func(r *random) []string {
		return r.op("Trilu", []string{r.input(onnx.Float, r.dims(3, 1, 4))})
	}},
}

// indexDrawings are the operators that choose, convert and make elements.
var indexDrawings = map[string]drawing{
	"Slice": {from: 11, draw: func(r *random) []string {
		dims := r.dims(3, 1, 5)
		axes := r.some(3)
		n := len(axes)
		steps := make([]int64, n)
		for i := range steps {
			steps[i] = []int64{1, 2, -1, -2}[r.IntN(4)]
		}
		inputs := []string{r.input(onnx.Float, dims), r.b.Ints("starts", r.dims(n, -7, 7)...), r.b.Ints("ends", r.dims(n, -7, 7)...), r.b.Ints("axes", axes...)}
		if r.coin() {
			inputs = append(inputs, r.b.Ints("steps", steps...))
		}
		return r.op("Slice", inputs)
	}},
	"Gather": {from: 11, draw: func(r *random) []string {
		dims := r.dims(int(r.between(1, 3)), 2, 4)
		x, at := r.input(onnx.Float, dims), onnx.IntAttribute("axis", r.axis(len(dims)))
		return r.op("Gather", []string{x, []string{r.scalar(1), r.b.Ints("i", 0, 1, -1)}[r.IntN(2)]}, at)
	}},
	"GatherElements": {from: 11, draw: func(r *random) []string {
		return r.op("GatherElements", []string{r.input(onnx.Float, []int64{3, 4}),
			r.b.Constant(onnx.NewTensor("i", []int64{2, 4}, make([]int64, 8)))}, onnx.IntAttribute("axis", r.axis(1)))
	}},
	"GatherND": {from: 12, draw: func(r *random) []string {
		k := r.between(1, 3)
		return r.op("GatherND", []string{r.input(onnx.Float, []int64{2, 3, 4}), r.b.Constant(onnx.NewTensor("i", []int64{5, k}, make([]int64, 5*k)))})
	}},
	"ScatterElements": {from: 11, draw: func(r *random) []string {
		return r.op("ScatterElements", []string{r.input(onnx.Float, []int64{3, 4}),
			r.b.Constant(onnx.NewTensor("i", []int64{1, 2}, []int64{0, 1})), r.floats(1, 2)}, onnx.IntAttribute("axis", 1))
	}},
	"ScatterND": {from: 11, draw: func(r *random) []string {
		return r.op("ScatterND", []string{r.input(onnx.Float, []int64{3, 4}),
			r.b.Constant(onnx.NewTensor("i", []int64{1, 1}, []int64{2})), r.floats(1, 4)})
	}},
	"OneHot": {from: 11, draw: func(r *random) []string {
		return r.op("OneHot", []string{r.input(onnx.Int64, r.dims(2, 1, 3)), r.scalar(5), r.floats(2)}, onnx.IntAttribute("axis", r.axis(3)))
	}},
	"TopK": {from: 11, draw: func(r *random) []string {
		return r.ops("TopK", 2, []string{r.input(onnx.Float, r.dims(3, 3, 5)), r.b.Ints("k", r.between(1, 3))}, onnx.IntAttribute("axis", r.axis(3)))
	}},
	"ArgMax": {from: 11, draw: func(r *random) []string {
		return r.op("ArgMax", []string{r.input(onnx.Float, r.dims(3, 1, 4))}, onnx.IntAttribute("axis", r.axis(3)), onnx.IntAttribute("keepdims", int64(r.IntN(2))))
	}},
	"ArgMin": {from: 11, draw: func(r *random) []string {
		return r.op("ArgMin", []string{r.input(onnx.Float, r.dims(3, 1, 4))}, onnx.IntAttribute("axis", r.axis(3)), onnx.IntAttribute("keepdims", int64(r.IntN(2))))
	}},
	"CumSum": {from: 11, draw: func(r *random) []string {
		return r.op("CumSum", []string{r.input(onnx.Float, r.dims(3, 1, 4)), r.scalar(r.axis(3))})
	}},
	"Not": {from: 11, draw: func(r *random) []string {
		return r.op("Not", []string{r.input(onnx.Bool, r.dims(2, 0, 3))})
	}},
	"Where": {from: 11, draw: func(r *random) []string {
		a, b := r.stretchable()
		return r.op("Where", []string{r.input(onnx.Bool, a), r.input(onnx.Float, b), r.floats()})
	}},
	"Cast": {from: 11, draw: func(r *random) []string {
		to := []onnx.DataType{onnx.Int64, onnx.Int32, onnx.Double, onnx.Bool, onnx.Uint8}[r.IntN(5)]
		return r.op("Cast", []string{r.input(onnx.Float, r.dims(r.IntN(3), 1, 3))}, onnx.IntAttribute("to", int64(to)))
	}},
	"CastLike": {from: 15, draw: func(r *random) []string {
		return r.op("CastLike", []string{r.input(onnx.Float, r.dims(2, 1, 3)), r.scalar(1)})
	}},
	"PRelu": {from: 11, draw: func(r *random) []string {
		dims := r.dims(3, 1, 4)
		return r.op("PRelu", []string{r.input(onnx.Float, dims), r.floats(dims[1], 1)})
	}},
	"Shape": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, r.dims(r.IntN(4), 0, 4))
		if r.opset >= 15 && r.coin() {
			return r.op("Shape", []string{x}, onnx.IntAttribute("start", r.between(-4, 4)), onnx.IntAttribute("end", r.between(-4, 4)))
		}
		return r.op("Shape", []string{x})
	}},
	"Size": {from: 11, draw: func(r *random) []string {
		return r.op("Size", []string{r.input(onnx.Float, r.dims(r.IntN(4), 0, 4))})
	}},
	"ConstantOfShape": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, r.dims(r.IntN(4), 0, 4))
		return r.op("ConstantOfShape", []string{r.b.Op("Shape", []string{x})})
	}},
	"Range": {from: 11, draw: func(r *random) []string {
		x := r.input(onnx.Float, []int64{2})
		step := []int64{1, 2, 3, -1, -2}[r.IntN(5)]
		count := r.b.Op("Range", []string{r.scalar(r.between(-5, 5)), r.scalar(r.between(-5, 5)), r.scalar(step)})
		return []string{count, r.b.Op("Relu", []string{x})}
	}},
	"EyeLike": {from: 11, draw: func(r *random) []string {
		return r.op("EyeLike", []string{r.input(onnx.Float, r.dims(2, 1, 3))})
	}},
	"NonZero": {from: 13, draw: func(r *random) []string {
		return r.op("NonZero", []string{r.input(onnx.Float, r.dims(2, 1, 3))})
	}},
	"Constant": {from: 13, draw: func(r *random) []string {
		x := r.input(onnx.Float, []int64{2})
		value := []onnx.Attribute{
			onnx.FloatsAttribute("value_floats", 1, 2, 3), onnx.FloatAttribute("value_float", 1), onnx.IntAttribute("value_int", 1),
			onnx.IntsAttribute("value_ints", 1, 2), onnx.TensorAttribute("value", onnx.NewTensor("", []int64{1, 2}, []float64{1, 2})),
		}[r.IntN(5)]
		return []string{r.b.Op("Constant", nil, value), r.b.Op("Relu", []string{x})}
	}},
}
