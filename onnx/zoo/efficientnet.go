package zoo

import (
	"fmt"
	"math"
)

// efficientnetB0 is torchvision's EfficientNet-B0. Stochastic depth and dropout
// do nothing in inference and are left out.
func efficientnetB0(b *builder) {
	x := b.silu(b.norm("features.0.1", b.conv("features.0.0", b.image(), 32, kernel{size: 3, stride: 2})))
	for s, stage := range []struct{ expansion, size, stride, out, blocks int64 }{
		{1, 3, 1, 16, 1}, {6, 3, 2, 24, 2}, {6, 5, 2, 40, 2}, {6, 3, 2, 80, 3}, {6, 5, 1, 112, 3}, {6, 5, 2, 192, 4}, {6, 3, 1, 320, 1},
	} {
		for i := range stage.blocks {
			stride := stage.stride
			if i > 0 {
				stride = 1
			}
			x = b.invertedBottleneck(fmt.Sprintf("features.%d.%d.block", s+1, i), x, stage.expansion, stage.size, stride, stage.out)
		}
	}
	x = b.silu(b.norm("features.8.1", b.conv("features.8.0", x, 1280, kernel{size: 1, stride: 1})))
	b.layer = x.name
	x = b.average(x)
	b.output(b.dense("classifier.1", x, int64(b.options.Classes), b.uniform(1/math.Sqrt(float64(b.options.Classes)))))
}

// invertedBottleneck widens, convolves each channel by itself, weighs the
// channels by what they hold (squeeze and excitation), and narrows.
func (b *builder) invertedBottleneck(name string, x tensor, expansion, size, stride, out int64) tensor {
	y, part := x, 0
	next := func() string { part++; return fmt.Sprintf("%s.%d", name, part-1) }
	if expansion > 1 {
		n := next()
		y = b.silu(b.norm(n+".1", b.conv(n+".0", y, expansion*x.channels(), kernel{size: 1, stride: 1})))
	}
	n := next()
	y = b.silu(b.norm(n+".1", b.conv(n+".0", y, y.channels(), kernel{size: size, stride: stride, groups: y.channels()})))

	n = next()
	squeezed := tensor{b.Op("GlobalAveragePool", []string{y.name}), []int64{y.channels(), 1, 1}}
	squeezed = b.silu(b.conv(n+".fc1", squeezed, max(1, x.channels()/4), kernel{size: 1, stride: 1, bias: true}))
	excited := b.unary("Sigmoid", b.conv(n+".fc2", squeezed, y.channels(), kernel{size: 1, stride: 1, bias: true}))
	y.name = b.Op("Mul", []string{y.name, excited.name})

	n = next()
	y = b.norm(n+".1", b.conv(n+".0", y, out, kernel{size: 1, stride: 1}))
	if stride == 1 && x.channels() == out {
		y = b.add(x, y)
	}
	return y
}
