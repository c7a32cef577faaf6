package zoo

import (
	"fmt"
	"math"

	"github.com/vigie/vigie/onnx"
)

// unet gives logits [N, classes, rows, columns]. Four times the size is halved
// and doubled again; an image that does not divide by 16 is filled up with
// zeros and the answer cut to size.
func unet(b *builder) {
	const base, depth = 32, 4
	in := b.image()
	x := b.fillUp(in, 1<<depth)
	var skips []tensor
	for i := range depth {
		x = b.doubleConv(fmt.Sprintf("encoder%d", i+1), x, base<<i)
		skips = append(skips, x)
		x = b.pool("MaxPool", x, 2, 2, 0)
	}
	x = b.doubleConv("bottleneck", x, base<<depth)
	for i := depth - 1; i >= 0; i-- {
		x = b.double(fmt.Sprintf("upconv%d", i+1), x, base<<i)
		x = b.doubleConv(fmt.Sprintf("decoder%d", i+1), b.join(x, skips[i]), base<<i)
	}
	b.layer = x.name
	x = b.conv("conv", x, int64(b.options.Classes), kernel{size: 1, stride: 1, bias: true, fanIn: true})
	if x.shape[1] != in.shape[1] || x.shape[2] != in.shape[2] {
		x.shape = []int64{x.channels(), in.shape[1], in.shape[2]}
		x.name = b.Op("Slice", []string{x.name, b.Ints("from", 0, 0), b.Ints("to", x.shape[1:]...), b.Ints("axes", 2, 3)})
	}
	b.output(x)
}

func (b *builder) doubleConv(name string, x tensor, out int64) tensor {
	x = b.relu(b.norm(name+".norm1", b.conv(name+".conv1", x, out, kernel{size: 3, stride: 1, fanIn: true})))
	return b.relu(b.norm(name+".norm2", b.conv(name+".conv2", x, out, kernel{size: 3, stride: 1, fanIn: true})))
}

// double is a transposed 2×2 convolution of stride 2: every pixel becomes four.
func (b *builder) double(name string, x tensor, out int64) tensor {
	dims := []int64{x.channels(), out, 2, 2}
	y := b.Op("ConvTranspose", []string{x.name,
		b.trained(name+".weight", dims, b.normal(1/math.Sqrt(float64(x.channels())))), b.trained(name+".bias", []int64{out}, always(0)),
	}, onnx.IntsAttribute("kernel_shape", 2, 2), onnx.IntsAttribute("strides", 2, 2))
	return tensor{y, []int64{out, 2 * x.shape[1], 2 * x.shape[2]}}
}
