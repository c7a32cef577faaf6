package train

import (
	"math"

	"github.com/vigie/vigie/onnx"
)

// orientations appends a histogram of oriented gradients (Dalal and Triggs 2005):
// of x [N, channels, rows, columns], for each channel and direction the slope of
// the brightness that way (central differences; 0 where it falls, and along the
// border), averaged over square cells of so many pixels a side. The histogram of
// an image is divided by its root mean square, so that neither gain nor offset
// changes it. None of it is trained: it cannot fit a few images by heart, and
// costs no privacy. It returns [N, channels·directions, rows/cell, columns/cell].
func (b *builder) orientations(x string, channels, directions, cell int) string {
	kernels := make([]float32, 0, channels*directions*9)
	for range channels {
		for d := range directions {
			sin, cos := math.Sincos(2 * math.Pi * float64(d) / float64(directions))
			dy, dx := float32(sin/2), float32(cos/2)
			kernels = append(kernels, 0, -dy, 0, -dx, 0, dx, 0, dy, 0)
		}
	}
	w := b.Weight("orientations.kernel", []int64{int64(channels * directions), 1, 3, 3}, kernels)
	x = b.Op("Relu", []string{b.Op("Conv", []string{x, w}, onnx.IntsAttribute("kernel_shape", 3, 3), onnx.IntAttribute("group", int64(channels)))})
	side := int64(cell)
	x = b.Op("AveragePool", []string{x}, onnx.IntsAttribute("kernel_shape", side, side), onnx.IntsAttribute("strides", side, side),
		onnx.IntsAttribute("pads", 1, 1, 1, 1), onnx.IntAttribute("count_include_pad", 1))
	square := b.Op("ReduceMean", []string{b.Op("Mul", []string{x, x})}, onnx.IntsAttribute("axes", 1, 2, 3), onnx.IntAttribute("keepdims", 1))
	root := b.Op("Sqrt", []string{b.Op("Add", []string{square, b.Weight("orientations.floor", []int64{}, []float32{1e-6})})})
	return b.Op("Div", []string{x, root})
}
