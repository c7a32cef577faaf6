package zoo_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/onnx/zoo"
)

func build(t testing.TB, name string, o zoo.Options) *zoo.Network {
	t.Helper()
	n, err := zoo.Build(name, o, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// built keeps what variants share: nobody changes it.
var built = map[string]*zoo.Network{}

// shared is build for networks that several tests look at.
func shared(t testing.TB, name string, o zoo.Options) *zoo.Network {
	key := fmt.Sprint(name, o)
	if built[key] == nil {
		built[key] = build(t, name, o)
	}
	return built[key]
}

// small is an input of each architecture that a test can afford.
func small(a zoo.Architecture) []int64 {
	switch {
	case len(a.Usual) == 3:
		return []int64{1, 40, 33}
	case a.Name == "attention-mil":
		return []int64{0, 24}
	case a.Name == "dna-transformer":
		return []int64{4, 64}
	}
	return []int64{11}
}

// variants calls f with each architecture under both normalisations.
func variants(t *testing.T, f func(t *testing.T, a zoo.Architecture, o zoo.Options)) {
	for _, a := range zoo.Architectures() {
		for _, norm := range []string{zoo.BatchNorm, zoo.GroupNorm} {
			t.Run(a.Name+"/"+norm, func(t *testing.T) {
				o := zoo.Options{Input: small(a), Classes: 3, Norm: norm}
				if len(a.Usual) == 3 {
					o.Mean, o.Deviation = []float32{0.5}, []float32{0.25}
				}
				f(t, a, o)
			})
		}
	}
}

// The first six counts are those that torchvision 0.15 and timm 0.9 publish for
// 3×224×224 and 1000 classes; that of the U-Net is published with PyTorch Hub's
// mateuszbuda_brain-segmentation-pytorch_unet (3 channels, 1 class, 32 features).
func TestTheNumberOfParametersIsThePublishedOne(t *testing.T) {
	for name, c := range map[string]struct {
		classes int
		want    int64
	}{
		"resnet18": {1000, 11_689_512}, "resnet50": {1000, 25_557_032}, "densenet121": {1000, 7_978_856},
		"efficientnet-b0": {1000, 5_288_548}, "vit-ti16": {1000, 5_717_416}, "vit-s16": {1000, 22_050_664},
		"unet": {1, 7_763_041},
	} {
		input := []int64{3, 224, 224}
		for _, norm := range []string{zoo.BatchNorm, zoo.GroupNorm} {
			if norm == zoo.GroupNorm && name != "densenet121" {
				continue // both have a scale and a shift for each channel; one is enough to show it
			}
			if got := build(t, name, zoo.Options{Input: input, Classes: c.classes, Norm: norm}).Parameters(); got != c.want {
				t.Errorf("%s, %s norm: %d parameters, want %d", name, norm, got, c.want)
			}
		}
	}
}

func TestEveryMemberIsSoundAndItsShapesAreKnown(t *testing.T) {
	variants(t, func(t *testing.T, a zoo.Architecture, o zoo.Options) {
		n := shared(t, a.Name, o)
		if err := n.Model.Check(); err != nil {
			t.Fatal(err)
		}
		values, err := onnx.InferShapes(n.Model, map[string]int64{"batch": 2, "instances": 5})
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range n.Model.Graph.Nodes {
			for _, out := range node.Outputs {
				if _, static := values[out].Static(); !static {
					t.Errorf("%v is inferred as %v", node, values[out])
				}
			}
		}
		want := []int64{2, 3}
		if a.Name == "unet" {
			want = append(want, o.Input[1:]...)
		}
		if got, _ := values[n.Logits].Static(); !slices.Equal(got, want) {
			t.Errorf("logits %v, want %v", got, want)
		}
		if n.Layer != "" {
			if _, ok := values[n.Layer]; !ok {
				t.Errorf("the feature map %q does not exist", n.Layer)
			}
		}
		data, err := n.Model.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := onnx.Parse(data); err != nil {
			t.Error(err)
		}
		again, err := build(t, a.Name, o).Model.Marshal()
		if err != nil || string(again) != string(data) {
			t.Errorf("the same seed gives another network (%v)", err)
		}
	})
}

// input returns random values of a network's input.
func input(n *zoo.Network, batch int64) map[string]engine.Tensor {
	rng := rand.New(rand.NewPCG(5, 6))
	shape := []int64{batch}
	for _, d := range n.Model.Graph.Inputs[0].Shape[1:] {
		if !d.Known() {
			d.Value = 5
		}
		shape = append(shape, d.Value)
	}
	count := int64(1)
	for _, d := range shape {
		count *= d
	}
	x := make([]float32, count)
	for i := range x {
		x[i] = rng.Float32()
	}
	return map[string]engine.Tensor{n.Input: engine.Float32(shape, x)}
}

func run(t *testing.T, m *onnx.Model, inputs map[string]engine.Tensor, outputs ...string) map[string]engine.Tensor {
	t.Helper()
	session, err := engine.Open(m, engine.Options{Threads: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	out, err := session.Run(context.Background(), inputs, outputs...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryMemberAnswersFiniteLogitsThatDependOnTheInput(t *testing.T) {
	variants(t, func(t *testing.T, a zoo.Architecture, o zoo.Options) {
		n := shared(t, a.Name, o)
		logits, err := engine.Values[float32](run(t, n.Model, input(n, 2), n.Logits)[n.Logits])
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range logits {
			if math.IsNaN(float64(v)) || math.Abs(float64(v)) > 1e3 {
				t.Fatalf("logit %d is %v", i, v)
			}
		}
		half := len(logits) / 2
		if slices.Equal(logits[:half], logits[half:]) {
			t.Error("two different examples get the same answer")
		}
	})
}

// The gradient graph of every member builds, with respect to all weights and
// the input; with respect to each example too. What is missing is listed here,
// so that a gap is a decision; the list is empty.
func TestEveryMemberCanBeDifferentiated(t *testing.T) {
	missing := map[string]string{}
	variants(t, func(t *testing.T, a zoo.Architecture, o zoo.Options) {
		if a.Name == "attention-mil" {
			o.Input = []int64{5, 24}
		}
		n := shared(t, a.Name, o)
		b := onnx.Extend(n.Model.Clone())
		axes := []int64{1}
		if a.Name == "unet" {
			axes = []int64{1, 2, 3}
		}
		loss := b.Op("ReduceSum", []string{b.Op("Mul", []string{n.Logits, n.Logits}), b.Ints("loss", axes...)}, onnx.IntAttribute("keepdims", 0))
		m, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		var failures []string
		for _, perExample := range []bool{false, true} {
			g, err := autodiff.Gradient(m, autodiff.Request{Loss: loss, WithRespectTo: append(slices.Clone(n.Weights), n.Input), Batch: 2, PerExample: perExample})
			if err != nil {
				failures = append(failures, err.Error())
				continue
			}
			if perExample { // the values are held against PyTorch in torch_test.go
				continue
			}
			for name, tensor := range run(t, g.Model, input(n, 2)) {
				values, err := engine.Values[float32](tensor)
				if err != nil {
					t.Fatal(err)
				}
				if slices.ContainsFunc(values, func(v float32) bool { return math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) }) {
					t.Errorf("%s is not finite", name)
				}
			}
		}
		if got := strings.Join(failures, "; "); (got == "") != (missing[a.Name] == "") || !strings.Contains(got, missing[a.Name]) {
			t.Errorf("gradient: %q, the known gap is %q", got, missing[a.Name])
		}
	})
}

func TestWhatCannotBeBuiltIsRefusedWithWhatItNeeds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	image := []int64{1, 64, 64}
	for name, c := range map[string]struct {
		architecture string
		options      zoo.Options
		says         string
	}{
		"name":       {"resnet19", zoo.Options{Input: image, Classes: 2}, "resnet18"},
		"rank":       {"resnet18", zoo.Options{Input: image[1:], Classes: 2}, "channels x rows x columns"},
		"zero":       {"resnet18", zoo.Options{Input: []int64{1, 0, 64}, Classes: 2}, "from 1"},
		"negative":   {"unet", zoo.Options{Input: []int64{1, -5, 64}, Classes: 2}, "from 1"},
		"huge":       {"vit-ti16", zoo.Options{Input: []int64{1, 1 << 40, 64}, Classes: 2}, "from 1"},
		"classes":    {"resnet18", zoo.Options{Input: image}, "0 classes"},
		"norm":       {"resnet18", zoo.Options{Input: image, Classes: 2, Norm: "layer"}, `"layer"`},
		"groups":     {"resnet18", zoo.Options{Input: image, Classes: 2, Groups: -1}, "-1 groups"},
		"bases":      {"dna-transformer", zoo.Options{Input: []int64{5, 64}, Classes: 2}, "each base"},
		"positions":  {"vit-s16", zoo.Options{Input: []int64{1, 1 << 16, 1 << 16}, Classes: 2}, "an ONNX file holds"},
		"outputs":    {"densenet121", zoo.Options{Input: image, Classes: 1 << 20}, "an ONNX file holds"},
		"means":      {"resnet18", zoo.Options{Input: image, Classes: 2, Mean: []float32{0, 0}, Deviation: []float32{1, 1}}, "each channel"},
		"deviation":  {"resnet18", zoo.Options{Input: image, Classes: 2, Mean: []float32{0}, Deviation: []float32{0}}, "deviation 0"},
		"labels":     {"resnet18", zoo.Options{Input: image, Classes: 2, Labels: []string{"a"}}, "1 labels for 2"},
		"label":      {"resnet18", zoo.Options{Input: image, Classes: 2, Labels: []string{"a", "b, c"}}, `"b, c"`},
		"same label": {"resnet18", zoo.Options{Input: image, Classes: 2, Labels: []string{"a", "a"}}, "once"},
		"no columns": {"tabular-mlp", zoo.Options{Input: []int64{0}, Classes: 2}, "columns"},
	} {
		_, err := zoo.Build(c.architecture, c.options, rng)
		if err == nil || !strings.Contains(err.Error(), c.says) || c.architecture != "resnet19" && !errors.Is(err, zoo.ErrOptions) {
			t.Errorf("%s: got %v, want %q in it", name, err, c.says)
		}
	}
}

func TestTheShapeOfAnExampleIsReadFromText(t *testing.T) {
	if got, err := zoo.ParseInput("1x224x200"); err != nil || !slices.Equal(got, []int64{1, 224, 200}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "1x", "224,224", "1xax3", "1x99999999999999999999"} {
		if _, err := zoo.ParseInput(text); !errors.Is(err, zoo.ErrOptions) {
			t.Errorf("%q: %v, want ErrOptions", text, err)
		}
	}
}

func TestNoSizeOfInputIsTooSmallOrTooOdd(t *testing.T) {
	for _, a := range zoo.Architectures() {
		sizes := [][]int64{{1}, {7}}
		switch {
		case len(a.Usual) == 3:
			sizes = [][]int64{{1, 1, 1}, {5, 37, 61}, {2, 3, 100}}
		case a.Name == "attention-mil":
			sizes = [][]int64{{1, 1}, {3, 17}}
		case a.Name == "dna-transformer":
			sizes = [][]int64{{4, 1}, {4, 131}}
		}
		for _, size := range sizes {
			n := build(t, a.Name, zoo.Options{Input: size, Classes: 2})
			logits := run(t, n.Model, input(n, 1), n.Logits)[n.Logits]
			want := []int64{1, 2}
			if a.Name == "unet" {
				want = append(want, size[1:]...)
			}
			if !slices.Equal(logits.Shape, want) {
				t.Errorf("%s of %v: logits %v, want %v", a.Name, size, logits.Shape, want)
			}
		}
	}
}

// Where the initial weights come from: He et al. 2015 (normal, kept forwards or
// backwards), Glorot and Bengio 2010, and for transformers a normal distribution
// of deviation 0.02 cut off at two deviations, which leaves 0.8796 of it.
func TestInitialWeightsHaveTheDistributionThatTheirLayersAskFor(t *testing.T) {
	const cut = 0.8796
	uniform := math.Sqrt(3) // a uniform distribution ends at √3 deviations
	for _, c := range []struct {
		network, weight string
		input           []int64
		deviation, most float64 // most: 0 where nothing bounds it
	}{
		{"resnet18", "layer3.0.conv1.weight", []int64{1, 32, 32}, math.Sqrt(2.0 / (256 * 9)), 0},
		{"resnet50", "layer4.0.conv3.weight", []int64{1, 32, 32}, math.Sqrt(2.0 / 2048), 0},
		{"densenet121", "features.denseblock3.denselayer9.conv2.weight", []int64{1, 32, 32}, math.Sqrt(2.0 / (128 * 9)), 0},
		{"efficientnet-b0", "features.6.1.block.1.0.weight", []int64{1, 32, 32}, math.Sqrt(2.0 / 25), 0}, // depthwise 5×5
		{"unet", "decoder3.conv1.weight", []int64{1, 32, 32}, math.Sqrt(2.0 / (256 * 9)), 0},
		{"vit-ti16", "blocks.3.mlp.fc1.weight", []int64{1, 32, 32}, cut * 0.02, 0.04},
		{"vit-s16", "blocks.11.attn.qkv.weight", []int64{1, 32, 32}, cut * 0.02, 0.04},
		{"vit-ti16", "patch_embed.proj.weight", []int64{3, 32, 32}, cut / math.Sqrt(3*256), 2 / math.Sqrt(3*256)},
		{"dna-transformer", "stem.1.conv.weight", []int64{4, 64}, math.Sqrt(2.0 / (64 * 5)), 0},
		{"attention-mil", "embed.weight", []int64{0, 300}, math.Sqrt(2.0 / 812), uniform * math.Sqrt(2.0/812)},
		{"attention-mil", "attention.v.weight", []int64{0, 300}, math.Sqrt(2.0 / 768), uniform * math.Sqrt(2.0/768)},
		{"tabular-mlp", "hidden2.weight", []int64{30}, math.Sqrt(2.0 / 128), 0},
	} {
		n := shared(t, c.network, zoo.Options{Input: c.input, Classes: 2})
		values, err := onnx.Values[float32](n.Model.Graph.Initializer(c.weight))
		if err != nil {
			t.Fatalf("%s %s: %v", c.network, c.weight, err)
		}
		mean, squares, fourth, most := 0.0, 0.0, 0.0, 0.0
		for _, v := range values {
			mean += float64(v)
			squares += float64(v) * float64(v)
			most = max(most, math.Abs(float64(v)))
		}
		count := float64(len(values))
		mean, squares = mean/count, squares/count
		for _, v := range values {
			fourth += math.Pow(float64(v), 4) / count
		}
		d := math.Sqrt(squares)
		// Five standard errors of the mean and of the deviation.
		if error := 5 * d / math.Sqrt(count); math.Abs(mean) > error {
			t.Errorf("%s %s: mean %v, want 0 ± %v", c.network, c.weight, mean, error)
		}
		if error := 5 * d * math.Sqrt((fourth/(squares*squares)-1)/(4*count)); math.Abs(d-c.deviation) > error {
			t.Errorf("%s %s: deviation %v, want %v ± %v", c.network, c.weight, d, c.deviation, error)
		}
		if c.most > 0 && (most > c.most*(1+1e-6) || most < 0.97*c.most) {
			t.Errorf("%s %s: the largest is %v, want it just below %v", c.network, c.weight, most, c.most)
		}
		if c.most == 0 && fourth/(squares*squares) < 2.5 {
			t.Errorf("%s %s: a kurtosis of %v, want the normal distribution's 3", c.network, c.weight, fourth/(squares*squares))
		}
	}
}

func TestGainsStartAtOneAndShiftsAtZero(t *testing.T) {
	variants(t, func(t *testing.T, a zoo.Architecture, o zoo.Options) {
		n := shared(t, a.Name, o)
		gains, shifts := 0, 0
		for _, name := range n.Weights {
			w := n.Model.Graph.Initializer(name)
			values, err := onnx.Values[float32](w)
			if err != nil {
				t.Fatal(err)
			}
			want := float32(0)
			switch {
			case strings.HasSuffix(name, ".bias"):
				shifts++
			case strings.HasSuffix(name, ".weight") && len(values) == int(slices.Max(w.Dims)) && !strings.HasPrefix(name, "head"):
				if strings.Contains(name, "attention.w") { // a matrix of one column
					continue
				}
				gains, want = gains+1, 1
			default:
				continue
			}
			if slices.ContainsFunc(values, func(v float32) bool { return v != want }) {
				t.Errorf("%s is not %v throughout", name, want)
			}
		}
		if shifts == 0 || gains == 0 && a.Name != "attention-mil" {
			t.Errorf("%d gains and %d shifts were looked at", gains, shifts)
		}
	})
}

func ExampleBuild() {
	n, err := zoo.Build("resnet18", zoo.Options{Input: []int64{1, 64, 64}, Classes: 2, Norm: zoo.GroupNorm}, rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(n.Parameters(), n.Model.Graph.Inputs[0], n.Logits)
	// Output: 11171266 float[batch,1,64,64] logits
}
