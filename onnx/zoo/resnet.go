package zoo

import "fmt"

// Residual networks as torchvision builds and names them.

func resnet18(b *builder) { b.resnet([]int{2, 2, 2, 2}, b.basicBlock, 1) }
func resnet50(b *builder) { b.resnet([]int{3, 4, 6, 3}, b.bottleneck, 4) }

// resnet stacks stages of blocks, whose output has expansion times the width of
// their 3×3 convolutions.
func (b *builder) resnet(stages []int, block func(name string, x tensor, width, stride int64) tensor, expansion int64) {
	x := b.relu(b.norm("bn1", b.conv("conv1", b.image(), 64, kernel{size: 7, stride: 2})))
	x = b.pool("MaxPool", x, 3, 2, 1)
	for s, blocks := range stages {
		width := int64(64) << s
		for i := range blocks {
			stride := int64(1)
			if i == 0 && s > 0 {
				stride = 2
			}
			name := fmt.Sprintf("layer%d.%d", s+1, i)
			shortcut := x
			y := block(name, x, width, stride)
			if stride > 1 || x.channels() != width*expansion {
				shortcut = b.norm(name+".downsample.1", b.conv(name+".downsample.0", x, width*expansion, kernel{size: 1, stride: stride}))
			}
			x = b.relu(b.add(y, shortcut))
		}
	}
	b.layer = x.name
	b.head("fc", b.average(x))
}

func (b *builder) basicBlock(name string, x tensor, width, stride int64) tensor {
	x = b.relu(b.norm(name+".bn1", b.conv(name+".conv1", x, width, kernel{size: 3, stride: stride})))
	return b.norm(name+".bn2", b.conv(name+".conv2", x, width, kernel{size: 3, stride: 1}))
}

func (b *builder) bottleneck(name string, x tensor, width, stride int64) tensor {
	x = b.relu(b.norm(name+".bn1", b.conv(name+".conv1", x, width, kernel{size: 1, stride: 1})))
	x = b.relu(b.norm(name+".bn2", b.conv(name+".conv2", x, width, kernel{size: 3, stride: stride})))
	return b.norm(name+".bn3", b.conv(name+".conv3", x, 4*width, kernel{size: 1, stride: 1}))
}
