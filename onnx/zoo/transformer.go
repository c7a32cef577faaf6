package zoo

import (
	"fmt"
	"math"

	"github.com/vigie/vigie/onnx"
)

// Transformers over [N, tokens, width], pre-norm, with learned positions. The
// batch stays the first axis throughout, so that examples can be told apart.

// linear multiplies the last axis by a matrix [in, out].
func (b *builder) linear(name string, x tensor, out int64) tensor {
	in := x.shape[len(x.shape)-1]
	y := b.Op("MatMul", []string{x.name, b.trained(name+".weight", []int64{in, out}, b.truncated(0.02))})
	shape := append(append([]int64{}, x.shape[:len(x.shape)-1]...), out)
	return tensor{b.Op("Add", []string{y, b.trained(name+".bias", []int64{out}, always(0))}), shape}
}

func (b *builder) layerNorm(name string, x tensor) tensor {
	per := x.shape[len(x.shape)-1:]
	return tensor{b.Op("LayerNormalization", []string{x.name, b.trained(name+".weight", per, always(1)), b.trained(name+".bias", per, always(0))},
		onnx.IntAttribute("axis", -1), onnx.FloatAttribute("epsilon", 1e-6)), x.shape}
}

// attention is multi-head self-attention (Vaswani et al. 2017).
func (b *builder) attention(name string, x tensor, heads int64) tensor {
	tokens, width := x.shape[0], x.shape[1]
	qkv := b.linear(name+".qkv", x, 3*width)
	parts := b.Node(&onnx.Node{OpType: "Split", Inputs: []string{qkv.name, b.Ints(name+".split", width, width, width)}, Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 2)}}, 3)
	split := func(part string, order ...int64) string {
		part = b.Op("Reshape", []string{part, b.Ints(name+".heads", 0, tokens, heads, width/heads)})
		return b.Op("Transpose", []string{part}, onnx.IntsAttribute("perm", order...))
	}
	query, key, value := split(parts[0], 0, 2, 1, 3), split(parts[1], 0, 2, 3, 1), split(parts[2], 0, 2, 1, 3)
	query = b.Op("Mul", []string{query, b.scalar(1 / math.Sqrt(float64(width/heads)))})
	weights := b.Op("Softmax", []string{b.Op("MatMul", []string{query, key})}, onnx.IntAttribute("axis", -1))
	mixed := b.Op("Transpose", []string{b.Op("MatMul", []string{weights, value})}, onnx.IntsAttribute("perm", 0, 2, 1, 3))
	mixed = b.Op("Reshape", []string{mixed, b.Ints(name+".tokens", 0, tokens, width)})
	return b.linear(name+".proj", tensor{mixed, x.shape}, width)
}

func (b *builder) transformerBlock(name string, x tensor, heads int64) tensor {
	x = b.add(x, b.attention(name+".attn", b.layerNorm(name+".norm1", x), heads))
	y := b.gelu(b.linear(name+".mlp.fc1", b.layerNorm(name+".norm2", x), 4*x.shape[1]))
	return b.add(x, b.linear(name+".mlp.fc2", y, x.shape[1]))
}

// visionTransformer is timm's, with a class token.
func visionTransformer(width, depth, heads int64) func(*builder) {
	const patch = 16
	return func(b *builder) {
		x := b.image()
		x = b.fillUp(x, patch)
		rows, columns := x.shape[1]/patch, x.shape[2]/patch
		dims := []int64{width, x.channels(), patch, patch}
		x.name = b.Op("Conv", []string{x.name,
			b.trained("patch_embed.proj.weight", dims, b.truncated(1/math.Sqrt(float64(product(dims[1:]))))),
			b.trained("patch_embed.proj.bias", []int64{width}, always(0)),
		}, onnx.IntsAttribute("kernel_shape", patch, patch), onnx.IntsAttribute("strides", patch, patch))
		x.name = b.Op("Reshape", []string{x.name, b.Ints("patch_embed.shape", 0, width, rows*columns)})
		x.name = b.Op("Transpose", []string{x.name}, onnx.IntsAttribute("perm", 0, 2, 1))

		// The class token once for each example.
		batch := b.Op("Slice", []string{b.Op("Shape", []string{x.name}), b.Ints("first", 0), b.Ints("second", 1)})
		shape := b.Op("Concat", []string{batch, b.Ints("token", 1, width)}, onnx.IntAttribute("axis", 0))
		token := b.Op("Expand", []string{b.trained("cls_token", []int64{1, 1, width}, b.normal(1e-6)), shape})
		x.name = b.Op("Concat", []string{token, x.name}, onnx.IntAttribute("axis", 1))
		x.shape = []int64{rows*columns + 1, width}
		x.name = b.Op("Add", []string{x.name, b.trained("pos_embed", []int64{1, x.shape[0], width}, b.truncated(0.02))})

		for i := range depth {
			x = b.transformerBlock(fmt.Sprintf("blocks.%d", i), x, heads)
		}
		x = b.layerNorm("norm", x)
		first := b.Op("Slice", []string{x.name, b.Ints("from", 0), b.Ints("to", 1), b.Ints("axis", 1)})
		x = tensor{b.Op("Reshape", []string{first, b.Ints("class", 0, width)}), []int64{width}}
		b.output(b.dense("head", x, int64(b.options.Classes), b.truncated(0.02)))
	}
}

// fillUp pads the axes behind the channels with zeros, at their ends, to
// multiples.
func (b *builder) fillUp(x tensor, multiple int64) tensor {
	shape := []int64{x.channels()}
	pads := make([]int64, 2*(len(x.shape)+1)) // before each axis with the batch, then behind
	whole := true
	for i, d := range x.shape[1:] {
		fill := (multiple - d%multiple) % multiple
		pads[len(x.shape)+1+2+i] = fill
		shape = append(shape, d+fill)
		whole = whole && fill == 0
	}
	if whole {
		return x
	}
	return tensor{b.Op("Pad", []string{x.name, b.Ints("fill", pads...)}), shape}
}

// dnaTransformer reads one-hot bases [4, length]: a convolution stem that
// quarters the length twice, four transformer blocks, and the mean over
// positions. It is Enformer's plan at a hundredth of the size. A length that
// does not divide by 16 is filled up with unknown bases, which are zero.
func dnaTransformer(b *builder) {
	const width, heads, depth = 128, 4, 4
	x := b.input("sequence")
	if x.channels() != 4 {
		b.fail("want 4 channels, one for each base")
		return
	}
	x = b.fillUp(x, 16)
	x = b.gelu(b.norm("stem.0.norm", b.conv("stem.0.conv", x, 64, kernel{size: 15, stride: 1, fanIn: true})))
	x = b.pool("MaxPool", x, 4, 4, 0)
	x = b.gelu(b.norm("stem.1.norm", b.conv("stem.1.conv", x, width, kernel{size: 5, stride: 1, fanIn: true})))
	b.layer = x.name
	x = b.pool("MaxPool", x, 4, 4, 0)
	x = tensor{b.Op("Transpose", []string{x.name}, onnx.IntsAttribute("perm", 0, 2, 1)), []int64{x.shape[1], width}}
	x.name = b.Op("Add", []string{x.name, b.trained("pos_embed", []int64{1, x.shape[0], width}, b.truncated(0.02))})
	for i := range depth {
		x = b.transformerBlock(fmt.Sprintf("blocks.%d", i), x, heads)
	}
	x = b.layerNorm("norm", x)
	mean := b.Op("ReduceMean", []string{x.name}, onnx.IntsAttribute("axes", 1), onnx.IntAttribute("keepdims", 0))
	b.output(b.dense("head", tensor{mean, []int64{width}}, int64(b.options.Classes), b.truncated(0.02)))
}
