package zoo

import (
	"fmt"

	"github.com/vigie/vigie/onnx"
)

// densenet121 is torchvision's DenseNet-121: growth 32, bottlenecks of 4 times
// the growth, channels halved between blocks.
func densenet121(b *builder) {
	const growth = 32
	x := b.relu(b.norm("features.norm0", b.conv("features.conv0", b.image(), 64, kernel{size: 7, stride: 2, fanIn: true})))
	x = b.pool("MaxPool", x, 3, 2, 1)
	for s, layers := range []int{6, 12, 24, 16} {
		if s > 0 {
			name := fmt.Sprintf("features.transition%d", s)
			x = b.relu(b.norm(name+".norm", x))
			x = b.conv(name+".conv", x, x.channels()/2, kernel{size: 1, stride: 1, fanIn: true})
			x = b.pool("AveragePool", x, 2, 2, 0)
		}
		for i := range layers {
			name := fmt.Sprintf("features.denseblock%d.denselayer%d", s+1, i+1)
			y := b.relu(b.norm(name+".norm1", x))
			y = b.conv(name+".conv1", y, 4*growth, kernel{size: 1, stride: 1, fanIn: true})
			y = b.relu(b.norm(name+".norm2", y))
			y = b.conv(name+".conv2", y, growth, kernel{size: 3, stride: 1, fanIn: true})
			x = b.join(x, y)
		}
	}
	x = b.relu(b.norm("features.norm5", x))
	b.layer = x.name
	b.head("classifier", b.average(x))
}

// join puts the channels of y behind those of x.
func (b *builder) join(x, y tensor) tensor {
	shape := append([]int64{x.channels() + y.channels()}, x.shape[1:]...)
	return tensor{b.Op("Concat", []string{x.name, y.name}, onnx.IntAttribute("axis", 1)), shape}
}
