package train

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/onnx"
)

// CNN describes a small convolutional network for images of a few dozen pixels:
// stages of 3×3 convolutions, each followed by group normalisation and Relu,
// with 2×2 max pooling between stages, then average pooling over the last
// feature map (or, with Hidden, pooling once more and one hidden layer).
//
// Normalisation of pixels by Mean and Deviation is part of the graph. Group
// normalisation (Wu and He 2018) is written as InstanceNormalization on grouped
// channels, the form that exporters use and every runtime has.
type CNN struct {
	Channels  int     `json:"channels"`
	Rows      int     `json:"rows"`
	Columns   int     `json:"columns"`
	Classes   int     `json:"classes"`
	Stages    [][]int `json:"stages"`     // output channels of each convolution, by stage
	GroupSize int     `json:"group_size"` // channels of a group; 0 means no normalisation
	Hidden    int     `json:"hidden"`     // units of the hidden layer; 0 means average pooling
	// Residual adds what a convolution reads to what it gives, where both have as
	// many channels, and normalises the sum again: ScaleNorm (Klause et al. 2022),
	// which lets private training converge faster.
	Residual  bool    `json:"residual,omitempty"`
	Mean      float32 `json:"mean"` // of pixel values 0..1
	Deviation float32 `json:"deviation"`
	// Members is how many such networks answer together, each with initial
	// weights of its own; 0 and 1 mean one alone. See Ensemble.
	Members int `json:"members,omitempty"`

	// Shrink, if more than 1, averages pixels over squares of so many a side before
	// the stages.
	Shrink int `json:"shrink,omitempty"`
	// Orientations, if not 0, puts a fixed histogram of so many gradient
	// directions before the stages, over cells of Cell pixels a side [2].
	Orientations int `json:"orientations,omitempty"`
	Cell         int `json:"cell,omitempty"`
}

// opset of built networks: 17 is what PyTorch 1.13 to 2.x export and every
// runtime of the last years reads.
const networkOpset = 17

// Build makes the network with He-normal initial weights drawn from rng.
func (c CNN) Build(rng *rand.Rand) (*Network, error) {
	if c.Members > 1 {
		one := c
		one.Members = 0
		return EnsembleOf(c.Members, func() (*Network, error) { return one.Build(rng) })
	}
	if c.Residual && c.GroupSize <= 0 {
		return nil, errors.New("train: building a CNN: residual sums are normalised, so a group size is needed")
	}
	if c.Channels <= 0 || c.Rows <= 0 || c.Columns <= 0 || c.Classes < 2 || len(c.Stages) == 0 || c.Deviation <= 0 {
		return nil, fmt.Errorf("train: building a CNN: channels %d, rows %d, columns %d, classes %d, %d stages, deviation %g: all must be positive, and at least two classes", c.Channels, c.Rows, c.Columns, c.Classes, len(c.Stages), c.Deviation)
	}
	n := &builder{Builder: onnx.NewBuilder(networkOpset), rng: rng}
	n.Name("vigie-cnn")
	batch := onnx.Dim{Value: -1, Param: "batch"}
	fixed := func(v int) onnx.Dim { return onnx.Dim{Value: int64(v)} }
	x := n.Input("image", onnx.Float, batch, fixed(c.Channels), fixed(c.Rows), fixed(c.Columns))
	x = n.Op("Sub", []string{x, n.Weight("pixel.mean", []int64{}, []float32{c.Mean})})
	x = n.Op("Div", []string{x, n.Weight("pixel.deviation", []int64{}, []float32{c.Deviation})})
	channels, rows, columns := c.Channels, c.Rows, c.Columns
	if c.Orientations > 0 {
		cell := c.Cell
		if cell == 0 {
			cell = 2
		}
		if c.Orientations > 64 || cell < 2 || cell > min(rows, columns) {
			return nil, fmt.Errorf("train: building a CNN: %d orientations over cells of %d pixels; want at most 64, and cells of 2 pixels to the image's %d", c.Orientations, cell, min(rows, columns))
		}
		x = n.orientations(x, channels, c.Orientations, cell)
		channels, rows, columns = channels*c.Orientations, rows/cell, columns/cell
	}
	if c.Shrink > 1 {
		if c.Shrink > min(rows, columns) {
			return nil, fmt.Errorf("train: building a CNN: %d×%d values shrunk by %d: want at most the smaller side", rows, columns, c.Shrink)
		}
		side := int64(c.Shrink)
		x = n.Op("AveragePool", []string{x}, onnx.IntsAttribute("kernel_shape", side, side), onnx.IntsAttribute("strides", side, side))
		rows, columns = rows/c.Shrink, columns/c.Shrink
	}
	layer := 0
	for s, stage := range c.Stages {
		if s > 0 {
			x = n.pool(x)
			rows, columns = rows/2, columns/2
		}
		for _, out := range stage {
			layer++
			before := x
			name := fmt.Sprintf("conv%d", layer)
			x = n.conv(name, x, channels, out, c.GroupSize == 0)
			if c.GroupSize > 0 {
				if out%c.GroupSize != 0 {
					return nil, fmt.Errorf("train: building a CNN: %d channels do not divide into groups of %d", out, c.GroupSize)
				}
				x = n.groupNorm(fmt.Sprintf("norm%d", layer), x, out, out/c.GroupSize, rows, columns)
			}
			x = n.Node(&onnx.Node{OpType: "Relu", Inputs: []string{x}, Outputs: []string{fmt.Sprintf("relu%d", layer)}}, 1)[0]
			if c.Residual && out == channels {
				x = n.Op("Add", []string{x, before})
				x = n.groupNorm(fmt.Sprintf("scale%d", layer), x, out, out/c.GroupSize, rows, columns)
			}
			channels = out
		}
	}
	if rows == 0 || columns == 0 {
		return nil, fmt.Errorf("train: building a CNN: %d stages leave nothing of %d×%d pixels", len(c.Stages), c.Rows, c.Columns)
	}
	last := x
	features := channels
	if c.Hidden > 0 {
		x = n.pool(x)
		features = channels * (rows / 2) * (columns / 2)
		x = n.Op("Flatten", []string{x})
		x = n.Op("Relu", []string{n.dense("hidden", x, features, c.Hidden, math.Sqrt(2), "")})
		features = c.Hidden
	} else {
		x = n.Op("Flatten", []string{n.Op("GlobalAveragePool", []string{x})})
	}
	n.dense("head", x, features, c.Classes, 1, "logits")
	n.Output("logits", onnx.Float, batch, fixed(c.Classes))
	m, err := n.Build()
	if err != nil {
		return nil, fmt.Errorf("train: building a CNN: %w", err)
	}
	return &Network{Model: m, Input: "image", Logits: "logits", Weights: n.weights, Layer: last}, nil
}

// builder adds layers with initial weights and remembers what is trained.
type builder struct {
	*onnx.Builder
	rng     *rand.Rand
	weights []string
}

func (b *builder) trained(name string, dims []int64, values []float32) string {
	b.weights = append(b.weights, name)
	return b.Weight(name, dims, values)
}

// normal draws weights whose outputs keep their variance through a layer of
// fan inputs, times gain (√2 before Relu; He et al. 2015).
func (b *builder) normal(fan, n int, gain float64) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(b.rng.NormFloat64() * gain / math.Sqrt(float64(fan)))
	}
	return v
}

func constant(n int, v float32) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func (b *builder) conv(name, x string, in, out int, bias bool) string {
	inputs := []string{x, b.trained(name+".weight", []int64{int64(out), int64(in), 3, 3}, b.normal(9*in, out*in*9, math.Sqrt2))}
	if bias {
		inputs = append(inputs, b.trained(name+".bias", []int64{int64(out)}, constant(out, 0)))
	}
	return b.Op("Conv", inputs, onnx.IntsAttribute("kernel_shape", 3, 3), onnx.IntsAttribute("pads", 1, 1, 1, 1))
}

func (b *builder) groupNorm(name, x string, channels, groups, rows, columns int) string {
	one := b.Weight(name+".one", []int64{int64(groups)}, constant(groups, 1))
	zero := b.Weight(name+".zero", []int64{int64(groups)}, constant(groups, 0))
	grouped := b.Op("Reshape", []string{x, b.Ints(name+".grouped", 0, int64(groups), -1)})
	normal := b.Op("InstanceNormalization", []string{grouped, one, zero}, onnx.FloatAttribute("epsilon", 1e-5))
	x = b.Op("Reshape", []string{normal, b.Ints(name+".shape", 0, int64(channels), int64(rows), int64(columns))})
	per := []int64{int64(channels), 1, 1}
	x = b.Op("Mul", []string{x, b.trained(name+".scale", per, constant(channels, 1))})
	return b.Op("Add", []string{x, b.trained(name+".shift", per, constant(channels, 0))})
}

func (b *builder) pool(x string) string {
	return b.Op("MaxPool", []string{x}, onnx.IntsAttribute("kernel_shape", 2, 2), onnx.IntsAttribute("strides", 2, 2))
}

func (b *builder) dense(name, x string, in, out int, gain float64, output string) string {
	node := &onnx.Node{OpType: "Gemm", Attributes: []onnx.Attribute{onnx.IntAttribute("transB", 1)}, Inputs: []string{
		x,
		b.trained(name+".weight", []int64{int64(out), int64(in)}, b.normal(in, out*in, gain)),
		b.trained(name+".bias", []int64{int64(out)}, constant(out, 0)),
	}}
	if output != "" {
		node.Outputs = []string{output}
	}
	return b.Node(node, 1)[0]
}
