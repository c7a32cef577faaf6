// Package zoo builds known architectures as ONNX graphs with fresh weights, for
// any size of input and any number of classes.
//
//	rng := rand.New(rand.NewPCG(1, 0))
//	n, err := zoo.Build("resnet18", zoo.Options{Input: []int64{1, 224, 224}, Classes: 2}, rng)
//	err = n.Model.Save("model.onnx")
//
// The graphs are ordinary inference graphs of operator set 17 with an open
// batch dimension. Weights have the names and, but for the matrices of
// transformers, the layout that torchvision and timm give them, so that those
// libraries' weights fit. A matrix of a transformer is stored [in, out], as
// exporters store it, because that is what MatMul takes.
//
// With batch normalisation the running statistics are constants of mean 0 and
// variance 1 until something trains them. Group normalisation (Wu and He 2018)
// needs none, works with batches of one, and is what training with differential
// privacy needs.
//
// Nothing here runs or trains a graph.
package zoo

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vigie/vigie/onnx"
)

// ErrOptions says that an architecture cannot be built as asked; the message
// says what it needs.
var ErrOptions = errors.New("cannot be built like this")

// The normalisations. Transformers use layer normalisation whatever is chosen.
const (
	BatchNorm = "batch"
	GroupNorm = "group"
)

// Options says what to build.
type Options struct {
	// Input is the shape of one example: channels, rows, columns of an image;
	// see Architecture.Input for the others. 0 leaves the number of instances
	// of attention-mil open.
	Input   []int64
	Classes int
	// Labels names the classes, if not empty: one for each, kept in the model's
	// metadata under LabelsKey, where a package made from it finds them.
	Labels []string
	Norm   string // BatchNorm (the default) or GroupNorm
	// Groups is the most groups of a group normalisation [32]. A layer has the
	// greatest common divisor of it and its channels.
	Groups int64
	// Mean and Deviation, one for each channel, normalise the input within the
	// graph. None leaves it as it is.
	Mean, Deviation []float32
}

// LabelsKey is the metadata that names the classes, separated by commas.
const LabelsKey = "labels"

var labelForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ParseInput reads the shape of an example, such as "1x224x224".
func ParseInput(text string) ([]int64, error) {
	var shape []int64
	for part := range strings.SplitSeq(text, "x") {
		d, err := strconv.ParseInt(part, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("zoo: input %q: %w: want sizes such as 1x224x224", text, ErrOptions)
		}
		shape = append(shape, d)
	}
	return shape, nil
}

// Network is what was built.
type Network struct {
	Model   *onnx.Model
	Input   string   // name of the input
	Logits  string   // name of the output
	Weights []string // initializers to train, in the order they are used
	Layer   string   // activation after the last convolution, for Grad-CAM; empty where there is none
}

// Parameters is the number of trained numbers.
func (n *Network) Parameters() int64 {
	trained := map[string]bool{}
	for _, name := range n.Weights {
		trained[name] = true
	}
	total := int64(0)
	for _, w := range n.Model.Graph.Initializers {
		if trained[w.Name] {
			count := int64(1)
			for _, d := range w.Dims {
				count *= d
			}
			total += count
		}
	}
	return total
}

// Architecture is a member of the zoo.
type Architecture struct {
	Name  string
	About string // what it is, with its source
	Input string // what Options.Input holds, such as "channels x rows x columns"
	Usual []int64
	build func(*builder)
}

// architectures is the whole table; each family has its own file.
var architectures = map[string]Architecture{
	"resnet18":        {About: "residual network, 18 layers (He et al. 2016)", Input: image, Usual: []int64{3, 224, 224}, build: resnet18},
	"resnet50":        {About: "residual network, 50 layers, stride in the 3×3 (He et al. 2016)", Input: image, Usual: []int64{3, 224, 224}, build: resnet50},
	"densenet121":     {About: "densely connected network (Huang et al. 2017)", Input: image, Usual: []int64{3, 224, 224}, build: densenet121},
	"efficientnet-b0": {About: "mobile inverted bottlenecks with squeeze and excitation (Tan and Le 2019)", Input: image, Usual: []int64{3, 224, 224}, build: efficientnetB0},
	"vit-ti16":        {About: "vision transformer, tiny, patches of 16 (Touvron et al. 2021)", Input: image, Usual: []int64{3, 224, 224}, build: visionTransformer(192, 12, 3)},
	"vit-s16":         {About: "vision transformer, small, patches of 16 (Touvron et al. 2021)", Input: image, Usual: []int64{3, 224, 224}, build: visionTransformer(384, 12, 6)},
	"unet":            {About: "U-Net with 32 to 512 channels: a class for each pixel (Ronneberger et al. 2015)", Input: image, Usual: []int64{3, 256, 256}, build: unet},
	"attention-mil":   {About: "gated attention over a bag of feature vectors (Ilse et al. 2018)", Input: "instances x features, 0 for any number of instances", Usual: []int64{0, 1024}, build: attentionMIL},
	"dna-transformer": {About: "convolutions, then a transformer, over one-hot DNA (after Avsec et al. 2021)", Input: "4 x bases", Usual: []int64{4, 1024}, build: dnaTransformer},
	"tabular-mlp":     {About: "three layers over standardised columns", Input: "columns", Usual: []int64{30}, build: tabularMLP},
}

const image = "channels x rows x columns"

// Architectures lists the members by name.
func Architectures() []Architecture {
	var list []Architecture
	for _, name := range slices.Sorted(maps.Keys(architectures)) {
		a := architectures[name]
		a.Name = name
		list = append(list, a)
	}
	return list
}

// limits keep a mistyped size from becoming an allocation.
const (
	maxSide    = 1 << 16
	maxClasses = 1 << 20
)

// Build builds a member of the zoo with initial weights drawn from rng: the
// same state gives the same weights. ErrOptions says what cannot be built.
func Build(name string, o Options, rng *rand.Rand) (*Network, error) {
	a, ok := architectures[name]
	if !ok {
		return nil, fmt.Errorf("zoo: architecture %q is not known: choose one of %s", name, strings.Join(slices.Sorted(maps.Keys(architectures)), ", "))
	}
	if o.Norm == "" {
		o.Norm = BatchNorm
	}
	if o.Groups == 0 {
		o.Groups = 32
	}
	if err := o.check(a); err != nil {
		return nil, fmt.Errorf("zoo: building %s: %w", name, err)
	}
	b := &builder{Builder: onnx.NewBuilder(opset), options: o, rng: rng}
	b.Name(name)
	a.build(b)
	if b.err != nil {
		return nil, fmt.Errorf("zoo: building %s for an input of %v: %w", name, o.Input, b.err)
	}
	m, err := b.Build()
	if err != nil {
		return nil, fmt.Errorf("zoo: building %s: %w", name, err)
	}
	if len(o.Labels) > 0 {
		m.Metadata = map[string]string{LabelsKey: strings.Join(o.Labels, ",")}
	}
	return &Network{Model: m, Input: m.Graph.Inputs[0].Name, Logits: m.Graph.Outputs[0].Name, Weights: b.weights, Layer: b.layer}, nil
}

func (o Options) check(a Architecture) error {
	if len(o.Input) != len(a.Usual) {
		return fmt.Errorf("an input of %v: %w: want %s", o.Input, ErrOptions, a.Input)
	}
	for i, d := range o.Input {
		if d < 0 || d > maxSide || d == 0 && a.Usual[i] != 0 {
			return fmt.Errorf("an input of %v: %w: want %s, each from 1 to %d", o.Input, ErrOptions, a.Input, maxSide)
		}
	}
	switch {
	case o.Classes < 1 || o.Classes > maxClasses:
		return fmt.Errorf("%d classes: %w: want 1 to %d", o.Classes, ErrOptions, maxClasses)
	case o.Norm != BatchNorm && o.Norm != GroupNorm:
		return fmt.Errorf("normalisation %q: %w: want %q or %q", o.Norm, ErrOptions, BatchNorm, GroupNorm)
	case o.Groups < 1:
		return fmt.Errorf("%d groups: %w: want at least one", o.Groups, ErrOptions)
	case len(o.Mean) != len(o.Deviation):
		return fmt.Errorf("%d means and %d deviations: %w: want both, one of each for each channel", len(o.Mean), len(o.Deviation), ErrOptions)
	case len(o.Mean) > 0 && (a.Input != image || int64(len(o.Mean)) != o.Input[0]):
		return fmt.Errorf("%d means for an input of %v: %w: want one for each channel of an image", len(o.Mean), o.Input, ErrOptions)
	}
	if len(o.Labels) > 0 && len(o.Labels) != o.Classes {
		return fmt.Errorf("%d labels for %d classes: %w", len(o.Labels), o.Classes, ErrOptions)
	}
	for i, label := range o.Labels {
		if !labelForm.MatchString(label) || slices.Contains(o.Labels[:i], label) {
			return fmt.Errorf("label %q: %w: want letters, digits and -._, each name once", label, ErrOptions)
		}
	}
	for i, d := range o.Deviation {
		if !(d > 0) || math.IsInf(float64(d), 0) || math.IsNaN(float64(o.Mean[i])) || math.IsInf(float64(o.Mean[i]), 0) {
			return fmt.Errorf("mean %v and deviation %v of channel %d: %w: want numbers, the deviation positive", o.Mean[i], d, i, ErrOptions)
		}
	}
	return nil
}
