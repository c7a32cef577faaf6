package onnx

// microsoft are the operators of ONNX Runtime's own domain that its optimizer
// and its transformer exporter leave in files.
var microsoft = merged(
	each1(keep, 1, "com.microsoft.Gelu", "com.microsoft.FastGelu", "com.microsoft.QuickGelu", "com.microsoft.BiasGelu",
		"com.microsoft.RotaryEmbedding"),
	family{
		"com.microsoft.FusedConv":                        {1, convolution},
		"com.microsoft.FusedMatMul":                      {1, matmul},
		"com.microsoft.FusedGemm":                        {1, gemm},
		"com.microsoft.SkipLayerNormalization":           {1, skipNormalization},
		"com.microsoft.SkipSimplifiedLayerNormalization": {1, skipNormalization},
	},
)

// skipNormalization normalizes the sum of inputs 0 and 1; output 3 is that sum.
func skipNormalization(o *op) error {
	if err := o.need(3); err != nil {
		return err
	}
	x, skip := o.x(0), o.x(1)
	shape, err := broadcast(x.shape, skip.shape)
	if err != nil {
		return err
	}
	if x.shape != nil && len(x.shape) == len(shape) {
		shape = x.shape
	}
	o.set(0, x.typ, shape)
	o.set(3, x.typ, shape)
	if len(shape) > 0 {
		statistics := append([]Dim{}, shape...)
		statistics[len(statistics)-1] = Dim{Value: 1}
		o.set(1, Float, statistics)
		o.set(2, Float, statistics)
	}
	return nil
}
