package train

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/zoo"
)

// member builds a small member of the zoo.
func member(t testing.TB, name string, o zoo.Options) *zoo.Network {
	t.Helper()
	n, err := zoo.Build(name, o, rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The zoo knows what it trains; Import finds the same from the graph alone.
func TestImportFindsTheWeightsThatTheBuilderTrains(t *testing.T) {
	for name, input := range map[string][]int64{
		"resnet18": {3, 32, 32}, "densenet121": {3, 32, 32}, "efficientnet-b0": {3, 32, 32},
		"vit-ti16": {3, 32, 32}, "attention-mil": {5, 16}, "dna-transformer": {4, 64}, "tabular-mlp": {13},
	} {
		for _, norm := range []string{zoo.BatchNorm, zoo.GroupNorm} {
			o := zoo.Options{Input: input, Classes: 3, Norm: norm}
			if len(input) == 3 {
				o.Mean, o.Deviation = make([]float32, input[0]), make([]float32, input[0])
				for i := range o.Deviation {
					o.Mean[i], o.Deviation[i] = 0.5, 0.25
				}
			}
			built := member(t, name, o)
			data, err := built.Model.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			m, err := onnx.Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			n, err := Import(m, ImportOptions{Output: built.Logits})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want, got := slices.Sorted(slices.Values(built.Weights)), slices.Sorted(slices.Values(n.Weights))
			if !slices.Equal(want, got) {
				missing := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(got, s) })
				extra := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return slices.Contains(want, s) })
				t.Errorf("%s with %s norm: missing %v, taken for weights %v", name, norm, missing, extra)
			}
			if n.Input != built.Input || n.Logits != built.Logits {
				t.Errorf("%s: input %q, logits %q", name, n.Input, n.Logits)
			}
		}
	}
}

func TestPatternsFreezeWeightsByName(t *testing.T) {
	built := member(t, "resnet18", zoo.Options{Input: []int64{1, 32, 32}, Classes: 2})
	n, err := Import(built.Model, ImportOptions{Freeze: []string{"layer[123].*", "conv1*", "bn1*"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range n.Weights {
		if !strings.HasPrefix(name, "layer4.") && !strings.HasPrefix(name, "fc.") {
			t.Errorf("%s is still trained", name)
		}
	}
	if len(n.Weights) == 0 {
		t.Error("nothing is trained")
	}
	for says, patterns := range map[string][]string{"no weight has such a name": {"stem.*"}, "nothing is left": {"*"}, "syntax error": {"["}} {
		if _, err := Import(built.Model, ImportOptions{Freeze: patterns}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
}

// columns is an easy table of four columns: the sum of two decides.
func columns(n int, seed uint64) *Set {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := &Set{Name: "columns", Shape: []int64{4}, Classes: 2}
	for range n {
		row := make([]float32, 4)
		for i := range row {
			row[i] = float32(rng.NormFloat64())
		}
		s.Values = append(s.Values, row...)
		label := 0
		if row[0]+row[2] > 0 {
			label = 1
		}
		s.Labels = append(s.Labels, label)
	}
	return s
}

func TestWhatIsFrozenDoesNotMove(t *testing.T) {
	built := member(t, "tabular-mlp", zoo.Options{Input: []int64{4}, Classes: 2})
	n, err := Import(built.Model, ImportOptions{Freeze: []string{"hidden1.*"}})
	if err != nil {
		t.Fatal(err)
	}
	result := train(t, Config{Network: n, Train: columns(128, 1), Validation: columns(64, 2), Recipe: Recipe{Epochs: 2, Batch: 16, Rate: 1e-2, Average: 0.9, Seed: 1}})
	for _, w := range built.Model.Graph.Initializers {
		if w.Type != onnx.Float {
			continue
		}
		same := string(w.Raw) == string(result.Model.Graph.Initializer(w.Name).Raw)
		if frozen := strings.HasPrefix(w.Name, "hidden1."); frozen != same {
			t.Errorf("%s: frozen is %v, unchanged is %v", w.Name, frozen, same)
		}
	}
}

func TestANewHeadHasTheNewClassesAndIsTrained(t *testing.T) {
	for _, name := range []string{"resnet18", "vit-ti16", "tabular-mlp"} {
		o := zoo.Options{Input: []int64{1, 32, 32}, Classes: 1000}
		if name == "tabular-mlp" {
			o.Input = []int64{4}
		}
		built := member(t, name, o)
		m := built.Model.Clone()
		added, err := ReplaceHead(m, built.Logits, 3, rand.New(rand.NewPCG(1, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if len(added) != 2 || len(m.Graph.Initializers) != len(built.Model.Graph.Initializers) {
			t.Errorf("%s: new weights %v; %d constants, were %d", name, added, len(m.Graph.Initializers), len(built.Model.Graph.Initializers))
		}
		n, err := Import(m, ImportOptions{Output: built.Logits})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(n.Weights, added[0]) || len(n.Weights) != len(built.Weights) {
			t.Errorf("%s: the new head %v is not trained: %v", name, added, n.Weights)
		}
		shapes, err := onnx.InferShapes(n.Model, map[string]int64{"batch": 5})
		if s, ok := shapes[n.Logits].Static(); err != nil || !ok || !slices.Equal(s, []int64{5, 3}) {
			t.Errorf("%s: logits are %v, %v", name, shapes[n.Logits], err)
		}
		w, err := onnx.Values[float32](m.Graph.Initializer(added[0]))
		if err != nil {
			t.Fatal(err)
		}
		squares := 0.0
		for _, v := range w {
			squares += float64(v) * float64(v)
		}
		if math.Abs(squares/3-1) > 0.4 {
			t.Errorf("%s: the squares of a class's weights sum to %g, want about 1", name, squares/3)
		}
	}
}

func TestGraphsWithoutAHeadToReplaceAreRefused(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 4})
	y := b.Op("Sin", []string{x})
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 4})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReplaceHead(m, y, 2, rand.New(rand.NewPCG(1, 1))); err == nil || !strings.Contains(err.Error(), "Sin") {
		t.Errorf("error is %v", err)
	}
	if _, err := Import(m, ImportOptions{}); err == nil || !strings.Contains(err.Error(), "no weights") {
		t.Errorf("error is %v", err)
	}
}

// exported imitates what exporters do to a small network: a fixed batch, equal
// biases merged through Identity, a constant in a node, Softmax.
func exported(t *testing.T) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Fixed(1, 4)...)
	first := b.Weight("bias1", []int64{4}, make([]float32, 4))
	second := b.Op("Identity", []string{first})
	w := make([]float32, 16)
	for i := range w {
		w[i] = float32(i%5) - 2
	}
	w1 := b.Weight("w1", []int64{4, 4}, w)
	constant := b.Op("Constant", nil, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{4, 2}, w[:8])))
	h := b.Op("Relu", []string{b.Op("Add", []string{b.Op("MatMul", []string{x, w1}), first})})
	h = b.Op("Add", []string{b.Op("MatMul", []string{h, w1}), second})
	p := b.Op("Softmax", []string{b.Op("MatMul", []string{h, constant})}, onnx.IntAttribute("axis", -1))
	b.Output(p, onnx.Float, onnx.Fixed(1, 2)...)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWhatExportersDoIsUndone(t *testing.T) {
	m := exported(t)
	before := bytesOf(t, m)
	n, err := Import(m, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if bytesOf(t, m) != before {
		t.Error("Import changed its argument")
	}
	if len(n.Weights) != 4 { // w1, two biases, the constant
		t.Errorf("weights are %v", n.Weights)
	}
	result := train(t, Config{Network: n, Train: columns(64, 1), Validation: columns(64, 2), Recipe: Recipe{Epochs: 3, Batch: 16, Rate: 1e-2, Seed: 1}})
	if producer, _ := result.Model.Graph.Producer(n.Logits); producer == nil || producer.OpType != "MatMul" {
		t.Errorf("the logits come from %v", producer)
	}
	biases := map[string]bool{}
	for _, name := range n.Weights {
		if w := result.Model.Graph.Initializer(name); len(w.Dims) == 1 {
			biases[string(w.Raw)] = true
		}
	}
	if len(biases) != 2 {
		t.Error("two biases that were equal at first are still one")
	}
}

func TestNetworksAndDataThatDoNotFitAreRefused(t *testing.T) {
	vit := member(t, "vit-ti16", zoo.Options{Input: []int64{3, 32, 32}, Classes: 2})
	unet := member(t, "unet", zoo.Options{Input: []int64{1, 12, 12}, Classes: 2})
	good := func() Config {
		return Config{Network: tiny(t, 1), Train: corners(64, 1), Validation: corners(32, 2), Recipe: quick}
	}
	for says, change := range map[string]func(*Config){
		"do not fit the input": func(c *Config) {
			c.Network = &Network{Model: vit.Model, Input: vit.Input, Logits: vit.Logits, Weights: vit.Weights}
		},
		"want logits float[N, classes]": func(c *Config) {
			c.Network = &Network{Model: unet.Model, Input: unet.Input, Logits: unet.Logits, Weights: unet.Weights}
		},
		"new head": func(c *Config) {
			s := noise(64, 12, 3, 1)
			c.Train, c.Validation = s, s
		},
		"element 2 of weight \"conv1.weight\" is NaN": func(c *Config) {
			n, m := *c.Network, c.Network.Model.Clone()
			old := m.Graph.Initializer("conv1.weight")
			w, _ := onnx.Values[float32](old)
			w[2] = float32(math.NaN())
			*old = *onnx.NewTensor("conv1.weight", old.Dims, w)
			n.Model = m
			c.Network = &n
		},
		"value 1 of example 3 is NaN": func(c *Config) {
			c.Train = columns(64, 1)
			c.Train.Values[13] = float32(math.NaN())
		},
		"augmentation is for images": func(c *Config) { c.Train, c.Validation = columns(64, 1), columns(64, 2) },
		"takes batches of 1 only": func(c *Config) {
			m := exported(t)
			m.Graph.Nodes[len(m.Graph.Nodes)-1].OpType = "LogSoftmax"
			c.Network = &Network{Model: m, Input: "x", Logits: m.Graph.Outputs[0].Name, Weights: []string{"w1"}}
			c.Train, c.Validation, c.Augmentation = columns(64, 1), columns(64, 2), Augmentation{}
		},
		"NoSuchOperator": func(c *Config) {
			n, m := *c.Network, c.Network.Model.Clone()
			m.Graph.Nodes[3].OpType = "NoSuchOperator"
			n.Model = m
			c.Network = &n
		},
	} {
		c := good()
		change(&c)
		tr, err := newTrainerOf(c)
		if err == nil {
			tr.close()
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
	err := CheckPatients(&Set{Name: "train", Patients: []string{"a", "b"}}, &Set{Name: "val", Patients: []string{"b"}})
	if !errors.Is(err, ErrLeak) || !strings.Contains(err.Error(), "b (train and val)") {
		t.Errorf("error is %v", err)
	}
}

// newTrainerOf is what Run does before the first step.
func newTrainerOf(c Config) (*trainer, error) {
	c.Recipe = c.Recipe.orDefault()
	if err := c.check(); err != nil {
		return nil, err
	}
	return newTrainer(c)
}
