package autodiff_test

import (
	"math"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// Dropout's mask differs from run to run, so no central difference exists; but
// y = x·mask/(1-ratio), so dy/dx is y/x.
func TestDropoutInTrainingPassesTheGradientThroughItsMask(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Fixed(4, 50)...)
	training := b.Input("training", onnx.Bool)
	y := b.Op("Dropout", []string{x, b.Weight("ratio", nil, []float32{0.3}), training}, i("seed", 7))
	b.Output(y, onnx.Float, onnx.Fixed(4, 50)...)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: y, WithRespectTo: []string{"x"}, Keep: []string{y}})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]float64, 200)
	for k := range data {
		data[k] = float64(k%7) + 1
	}
	s := open(t, g.Model)
	for _, mode := range []bool{true, false} {
		out := run(t, s, map[string]engine.Tensor{"x": numbers(onnx.Float, []int64{4, 50}, data), "training": {Shape: []int64{}, Data: []bool{mode}}})
		zeros := 0
		for k, got := range elements(out[g.Of["x"]]) {
			if want := elements(out[y])[k] / data[k]; math.Abs(got-want) > 1e-6 {
				t.Errorf("training %v: gradient %d is %g, want %g", mode, k, got, want)
			}
			if got == 0 {
				zeros++
			}
		}
		if mode && (zeros < 30 || zeros > 90) || !mode && zeros > 0 {
			t.Errorf("training %v: %d of 200 gradients are 0", mode, zeros)
		}
	}
}
