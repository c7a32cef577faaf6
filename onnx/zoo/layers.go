package zoo

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/onnx"
)

// opset of built graphs: what PyTorch 1.13 to 2.x export, every runtime of the
// last years reads, and the first with LayerNormalization.
const opset = 17

// builder adds layers and remembers what is trained.
type builder struct {
	*onnx.Builder
	options Options
	rng     *rand.Rand
	weights []string
	layer   string
	numbers int64 // in all weights so far
	err     error // the first thing that cannot be built
}

// tensor is a value with the shape of one example.
type tensor struct {
	name  string
	shape []int64 // without the batch
}

func (t tensor) channels() int64 { return t.shape[0] }

func (b *builder) fail(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf("%w: "+format, append([]any{ErrOptions}, args...)...)
	}
}

// open is the batch dimension.
func open() onnx.Dim { return onnx.Dim{Value: -1, Param: "batch"} }

// input declares the input.
func (b *builder) input(name string) tensor {
	shape := []onnx.Dim{open()}
	for _, d := range b.options.Input {
		if d == 0 {
			shape = append(shape, onnx.Dim{Value: -1, Param: "instances"})
		} else {
			shape = append(shape, onnx.Dim{Value: d})
		}
	}
	return tensor{b.Input(name, onnx.Float, shape...), b.options.Input}
}

// image declares an image input, normalised if the options say so.
func (b *builder) image() tensor {
	x := b.input("image")
	if len(b.options.Mean) == 0 {
		return x
	}
	per := []int64{x.channels(), 1, 1}
	x.name = b.Op("Sub", []string{x.name, b.Weight("pixel.mean", per, b.options.Mean)})
	x.name = b.Op("Div", []string{x.name, b.Weight("pixel.deviation", per, b.options.Deviation)})
	return x
}

// output names a value logits and declares it, and returns it.
func (b *builder) output(x tensor) {
	name := b.Node(&onnx.Node{OpType: "Identity", Inputs: []string{x.name}, Outputs: []string{"logits"}}, 1)[0]
	b.Output(name, onnx.Float, append([]onnx.Dim{open()}, onnx.Fixed(x.shape...)...)...)
}

func product(dims []int64) int64 {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	return n
}

// trained adds a weight whose elements draw gives.
func (b *builder) trained(name string, dims []int64, draw func() float64) string {
	b.weights = append(b.weights, name)
	return b.constant(name, dims, draw)
}

// mostNumbers is what fits a file: protocol buffers end at 2 GiB.
const mostNumbers = 1<<29 - 1<<20

func (b *builder) constant(name string, dims []int64, draw func() float64) string {
	if b.numbers += product(dims); b.numbers > mostNumbers {
		b.fail("the weights, up to %q, would be %d numbers, and an ONNX file holds %d: want a smaller input or fewer classes", name, b.numbers, int64(mostNumbers))
	}
	if b.err != nil { // sizes may make no sense
		dims = []int64{0}
	}
	values := make([]float32, product(dims))
	for i := range values {
		values[i] = float32(draw())
	}
	return b.Weight(name, dims, values)
}

func always(v float64) func() float64 { return func() float64 { return v } }

// normal draws from a normal distribution.
func (b *builder) normal(deviation float64) func() float64 {
	return func() float64 { return b.rng.NormFloat64() * deviation }
}

// truncated draws from a normal distribution cut off at two deviations.
func (b *builder) truncated(deviation float64) func() float64 {
	return func() float64 {
		for {
			if v := b.rng.NormFloat64(); math.Abs(v) <= 2 {
				return v * deviation
			}
		}
	}
}

// uniform draws between -bound and bound.
func (b *builder) uniform(bound float64) func() float64 {
	return func() float64 { return (2*b.rng.Float64() - 1) * bound }
}

// kernel describes a convolution.
type kernel struct {
	size, stride int64
	groups       int64 // 0 means 1
	bias         bool
	fanIn        bool // variance kept forwards instead of backwards
}

// conv is a convolution of "same" padding over one or two axes, drawn as He et
// al. 2015 do.
func (b *builder) conv(name string, x tensor, out int64, k kernel) tensor {
	k.groups = max(1, k.groups)
	axes := len(x.shape) - 1
	dims := []int64{out, x.channels() / k.groups}
	shape := []int64{out}
	var sizes, strides, pads []int64
	for i := range axes {
		dims = append(dims, k.size)
		sizes, strides, pads = append(sizes, k.size), append(strides, k.stride), append(pads, k.size/2)
		shape = append(shape, (x.shape[1+i]+2*(k.size/2)-k.size)/k.stride+1)
	}
	fan := out / k.groups
	if k.fanIn {
		fan = dims[1]
	}
	inputs := []string{x.name, b.trained(name+".weight", dims, b.normal(math.Sqrt(2/float64(fan*product(sizes)))))}
	if k.bias {
		inputs = append(inputs, b.trained(name+".bias", []int64{out}, always(0)))
	}
	attributes := []onnx.Attribute{onnx.IntsAttribute("kernel_shape", sizes...), onnx.IntsAttribute("strides", strides...), onnx.IntsAttribute("pads", append(pads, pads...)...)}
	if k.groups > 1 {
		attributes = append(attributes, onnx.IntAttribute("group", k.groups))
	}
	return tensor{b.Op("Conv", inputs, attributes...), shape}
}

const epsilon = 1e-5

// norm is the batch or group normalisation that the options choose.
func (b *builder) norm(name string, x tensor) tensor {
	c := x.channels()
	per := []int64{c}
	if b.options.Norm == BatchNorm {
		return tensor{b.Op("BatchNormalization", []string{
			x.name, b.trained(name+".weight", per, always(1)), b.trained(name+".bias", per, always(0)),
			b.constant(name+".running_mean", per, always(0)), b.constant(name+".running_var", per, always(1)),
		}, onnx.FloatAttribute("epsilon", epsilon)), x.shape}
	}
	// Group normalisation as InstanceNormalization of grouped channels: the
	// form that exporters use, which every runtime has.
	groups := divisor(c, b.options.Groups)
	one := b.constant(name+".one", []int64{groups}, always(1))
	zero := b.constant(name+".zero", []int64{groups}, always(0))
	grouped := b.Op("Reshape", []string{x.name, b.Ints(name+".grouped", 0, groups, -1)})
	y := b.Op("InstanceNormalization", []string{grouped, one, zero}, onnx.FloatAttribute("epsilon", epsilon))
	y = b.Op("Reshape", []string{y, b.Ints(name+".shape", append([]int64{0}, x.shape...)...)})
	for range x.shape[1:] {
		per = append(per, 1)
	}
	y = b.Op("Mul", []string{y, b.trained(name+".weight", per, always(1))})
	return tensor{b.Op("Add", []string{y, b.trained(name+".bias", per, always(0))}), x.shape}
}

func divisor(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (b *builder) unary(op string, x tensor) tensor {
	return tensor{b.Op(op, []string{x.name}), x.shape}
}

func (b *builder) relu(x tensor) tensor { return b.unary("Relu", x) }

// silu is x·sigmoid(x).
func (b *builder) silu(x tensor) tensor {
	return tensor{b.Op("Mul", []string{x.name, b.Op("Sigmoid", []string{x.name})}), x.shape}
}

// gelu is x·Φ(x), exactly (Hendrycks and Gimpel 2016).
func (b *builder) gelu(x tensor) tensor {
	erf := b.Op("Erf", []string{b.Op("Div", []string{x.name, b.scalar(math.Sqrt2)})})
	half := b.Op("Mul", []string{x.name, b.Op("Add", []string{erf, b.scalar(1)})})
	return tensor{b.Op("Mul", []string{half, b.scalar(0.5)}), x.shape}
}

// scalar is a constant of no dimensions.
func (b *builder) scalar(v float64) string {
	return b.Op("Constant", nil, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{}, []float32{float32(v)})))
}

// add joins two branches.
func (b *builder) add(x, y tensor) tensor {
	return tensor{b.Op("Add", []string{x.name, y.name}), x.shape}
}

// pool is a pooling of the given size and stride over every spatial axis; an
// axis shorter than the window is pooled whole.
func (b *builder) pool(op string, x tensor, size, stride, padding int64) tensor {
	shape := []int64{x.channels()}
	var sizes, strides, pads []int64
	for _, d := range x.shape[1:] {
		window := min(size, d+2*padding)
		sizes, strides, pads = append(sizes, window), append(strides, stride), append(pads, padding)
		shape = append(shape, (d+2*padding-window)/stride+1)
	}
	return tensor{b.Op(op, []string{x.name}, onnx.IntsAttribute("kernel_shape", sizes...), onnx.IntsAttribute("strides", strides...), onnx.IntsAttribute("pads", append(pads, pads...)...)), shape}
}

// average is the mean of each channel.
func (b *builder) average(x tensor) tensor {
	return tensor{b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{x.name})}), x.shape[:1]}
}

// dense is a fully connected layer over [N, features] with PyTorch's layout
// [out, in]; draw gives the elements of its matrix.
func (b *builder) dense(name string, x tensor, out int64, draw func() float64) tensor {
	return tensor{b.Op("Gemm", []string{
		x.name, b.trained(name+".weight", []int64{out, x.shape[0]}, draw), b.trained(name+".bias", []int64{out}, always(0)),
	}, onnx.IntAttribute("transB", 1)), []int64{out}}
}

// head classifies [N, features].
func (b *builder) head(name string, x tensor) {
	b.output(b.dense(name, x, int64(b.options.Classes), b.uniform(1/math.Sqrt(float64(x.shape[0])))))
}
