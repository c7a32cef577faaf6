package autodiff_test

import (
	"github.com/vigie/vigie/onnx"
)

// resized builds Resize by scales, or by sizes where scales is nil.
func resized(scales []float32, sizes []int64, attributes ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		if scales == nil {
			return b.Op("Resize", []string{in[0], "", "", b.Ints("sizes", sizes...)}, attributes...)
		}
		return b.Op("Resize", []string{in[0], "", b.Weight("scales", []int64{int64(len(scales))}, scales)}, attributes...)
	}
}

func mode(name string) onnx.Attribute { return txt("mode", name) }

func coordinates(name string) onnx.Attribute { return txt("coordinate_transformation_mode", name) }

var resizeClaims = []claim{
	{name: "Resize nearest doubles, as a U-Net's decoder", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized([]float32{1, 1, 2, 2}, nil, mode("nearest"), coordinates("asymmetric"), txt("nearest_mode", "floor"))},
	{name: "Resize nearest to odd sizes", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized(nil, []int64{1, 2, 5, 7}, mode("nearest"))},
	{name: "Resize nearest down", single: true, inputs: []operand{tensor(1, 1, 7, 5)}, build: resized(nil, []int64{1, 1, 3, 4}, mode("nearest"), txt("nearest_mode", "ceil"), coordinates("asymmetric"))},
	{name: "Resize nearest rounds half up", single: true, inputs: []operand{tensor(1, 1, 4, 4)}, build: resized([]float32{1, 1, 1.5, 0.5}, nil, mode("nearest"), txt("nearest_mode", "round_prefer_ceil"))},
	{name: "Resize nearest as old TensorFlow", single: true, inputs: []operand{tensor(1, 1, 4, 4)}, build: resized(nil, []int64{1, 1, 7, 3}, mode("nearest"), coordinates("tf_half_pixel_for_nn"), txt("nearest_mode", "floor"))},
	{name: "Resize linear", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized([]float32{1, 1, 2, 2.5}, nil, mode("linear"))},
	{name: "Resize linear as PyTorch", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized(nil, []int64{1, 2, 7, 2}, mode("linear"), coordinates("pytorch_half_pixel"))},
	{name: "Resize linear with aligned corners", single: true, inputs: []operand{tensor(2, 1, 3, 4)}, build: resized(nil, []int64{2, 1, 6, 3}, mode("linear"), coordinates("align_corners"))},
	{name: "Resize linear of one axis", single: true, inputs: []operand{tensor(5, 4)}, build: resized(nil, []int64{5, 9}, mode("linear"), coordinates("asymmetric"))},
	{name: "Resize linear of three axes", single: true, inputs: []operand{tensor(1, 1, 2, 3, 2)}, build: resized(nil, []int64{1, 1, 3, 4, 5}, mode("linear"))},
	{name: "Resize cubic", single: true, inputs: []operand{tensor(1, 2, 4, 5)}, build: resized(nil, []int64{1, 2, 7, 3}, mode("cubic"))},
	{name: "Resize cubic excluding the outside", single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: resized([]float32{1, 1, 1.6, 2}, nil, mode("cubic"), i("exclude_outside", 1), f("cubic_coeff_a", -0.5), coordinates("asymmetric"))},
	{name: "Resize some axes", opset: 18, single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: resized(nil, []int64{6, 3}, mode("linear"), is("axes", 3, 2))},
	{name: "Resize symmetric", opset: 19, single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: resized([]float32{1, 1, 1.3, 0.7}, nil, mode("linear"), coordinates("half_pixel_symmetric"))},
	{name: "Resize a crop", single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: func(b *onnx.Builder, in []string) string {
		roi := b.Weight("roi", []int64{8}, []float32{0, 0, 0.2, -0.3, 1, 1, 0.9, 1.1})
		return b.Op("Resize", []string{in[0], roi, "", b.Ints("sizes", 1, 1, 3, 4)}, mode("linear"), coordinates("tf_crop_and_resize"), f("extrapolation_value", 7))
	}},
}
