package explain_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/onnx/zoo"
)

func TestWhatDoesNotFitIsRefusedBeforeTheModelRuns(t *testing.T) {
	m := linear(t, 3, 2, make([]float32, 6), make([]float32, 2))
	requireRuntime(t)
	zero := explain.Constant(0)
	cnn := load(t, "testdata/cnn.onnx")
	for _, c := range []struct {
		name   string
		method explain.Method
		model  *onnx.Model
		o      explain.Options
		want   error
		text   string
	}{
		{"an unknown method", "voodoo", m, explain.Options{}, nil, "choose one of gradcam"},
		{"no background", explain.IntegratedGradients, m, explain.Options{}, explain.ErrNoBackground, "Options.Background"},
		{"a table for Grad-CAM", explain.GradCAM, m, explain.Options{}, explain.ErrNoLayer, "no places"},
		{"no attention", explain.Rollout, cnn, explain.Options{}, explain.ErrNoAttention, "Softmax"},
		{"an unknown layer", explain.GradCAM, cnn, explain.Options{Layer: "nothing"}, nil, "nothing"},
		{"a layer that is no feature map", explain.GradCAM, cnn, explain.Options{Layer: cnn.Graph.Nodes[len(cnn.Graph.Nodes)-1].Inputs[0]}, explain.ErrNoLayer, ""},
		{"an unknown output", explain.Gradient, m, explain.Options{Logits: "z"}, explain.ErrInput, "z"},
		{"an unknown input", explain.Gradient, m, explain.Options{Input: "image"}, explain.ErrInput, "image"},
		{"a wrong shape", explain.Gradient, m, explain.Options{Shape: []int64{4}}, explain.ErrInput, "Shape"},
		{"an unknown score", explain.Gradient, m, explain.Options{Score: "luck"}, nil, "log-odds"},
		{"negative samples", explain.LIME, m, explain.Options{Background: zero, Samples: -1}, nil, "Samples"},
		{"noise that is no number", explain.SmoothGrad, m, explain.Options{Noise: math.NaN()}, nil, "noise"},
		{"a model without a graph", explain.Gradient, &onnx.Model{}, explain.Options{}, onnx.ErrInvalid, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := explain.New(c.method, c.model, c.o)
			if err == nil {
				e.Close()
				t.Fatal("it was accepted")
			}
			if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error is %q", err)
			}
		})
	}
	x := engine.Float32([]int64{1, 3}, []float32{1, 2, 3})
	for _, c := range []struct {
		name   string
		method explain.Method
		o      explain.Options
		input  engine.Tensor
		class  int
		text   string
	}{
		{"class 2 of 2", explain.Gradient, explain.Options{}, x, 2, "classes 0 to 1"},
		{"class -1", explain.Gradient, explain.Options{}, x, -1, "classes 0 to 1"},
		{"another width", explain.Gradient, explain.Options{}, engine.Float32([]int64{1, 4}, make([]float32, 4)), 0, "[1 4]"},
		{"two examples", explain.Gradient, explain.Options{}, engine.Float32([]int64{2, 3}, make([]float32, 6)), 0, "[2 3]"},
		{"too little data", explain.Gradient, explain.Options{}, engine.Float32([]int64{1, 3}, make([]float32, 2)), 0, "elements"},
		{"other elements", explain.Gradient, explain.Options{}, engine.Int64([]int64{1, 3}, make([]int64, 3)), 0, "int64"},
		{"NaN", explain.Gradient, explain.Options{}, engine.Float32([]int64{1, 3}, []float32{0, float32(math.NaN()), 0}), 0, "element 1"},
		{"infinity", explain.Gradient, explain.Options{}, engine.Float32([]int64{1, 3}, []float32{float32(math.Inf(1)), 0, 0}), 0, "element 0"},
		{"too few coalitions", explain.KernelSHAP, explain.Options{Background: zero, Samples: 5}, x, 0, "at least 6"},
		{"too few samples", explain.LIME, explain.Options{Background: zero, Samples: 5}, x, 0, "at least 6"},
		{"groups of another size", explain.KernelSHAP, explain.Options{Background: zero, Groups: []int{0, 1}}, x, 0, "groups"},
		{"groups with a gap", explain.KernelSHAP, explain.Options{Background: zero, Groups: []int{0, 2, 2}}, x, 0, "piece 1"},
		{"a negative group", explain.KernelSHAP, explain.Options{Background: zero, Groups: []int{0, -1, 1}}, x, 0, "number them"},
		{"a background of another width", explain.Occlusion, explain.Options{Background: explain.References(engine.Float32([]int64{1, 2}, make([]float32, 2)))}, x, 0, "background 0"},
		{"an empty background", explain.Occlusion, explain.Options{Background: explain.References()}, x, 0, "no inputs"},
		{"a blurred table", explain.Occlusion, explain.Options{Background: explain.Blur(2)}, x, 0, "image"},
		{"the mean of a table's row", explain.Occlusion, explain.Options{Background: explain.Mean()}, x, 0, "image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := explain.New(c.method, m, c.o)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			if _, err := e.Explain(t.Context(), c.input, c.class); err == nil || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), string(c.method)) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestAModelWhoseAnswerIsNotANumberIsNotExplained(t *testing.T) {
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "N"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 2})
	b.Output(b.Op("Log", []string{x}), onnx.Float, n, onnx.Dim{Value: 2})
	m := built(t, b)
	requireRuntime(t)
	for _, method := range []explain.Method{explain.Gradient, explain.IntegratedGradients, explain.KernelSHAP, explain.Occlusion} {
		e, err := explain.New(method, m, explain.Options{Background: explain.Constant(1)})
		if err != nil {
			t.Fatal(err)
		}
		if made, err := e.Explain(t.Context(), engine.Float32([]int64{1, 2}, []float32{-1, 1}), 0); err == nil || !strings.Contains(err.Error(), "NaN") {
			t.Errorf("%s: map %v, error %v", method, made, err)
		}
		e.Close()
	}
}

// A model whose answer depends on the rest of the batch would give perturbed
// inputs each other's answers.
func TestAModelThatMixesExamplesIsFoundOut(t *testing.T) {
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "N"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 3})
	mean := b.Op("ReduceMean", []string{x}, onnx.IntsAttribute("axes", 0), onnx.IntAttribute("keepdims", 1))
	b.Output(b.Op("Sub", []string{x, mean}), onnx.Float, n, onnx.Dim{Value: 3})
	m := built(t, b)
	requireRuntime(t)
	input := engine.Float32([]int64{1, 3}, []float32{1, 2, 3})
	o := explain.Options{Background: explain.Constant(0)}
	for _, method := range []explain.Method{explain.KernelSHAP, explain.LIME, explain.Occlusion} {
		e, err := explain.New(method, m, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Explain(t.Context(), input, 0); !errors.Is(err, explain.ErrInput) || !strings.Contains(err.Error(), "Batch to 1") {
			t.Errorf("%s: %v", method, err)
		}
		e.Close()
		one := o
		one.Batch = 1
		explained(t, method, m, one, input, 0)
	}
	// Gradients notice by themselves and go one by one: alone, x less its mean is 0.
	for _, v := range explained(t, explain.IntegratedGradients, m, o, input, 0).Values {
		if v != 0 {
			t.Errorf("a contribution is %v to an answer that is always 0", v)
		}
	}
}

// Exporters often fix the batch: the map is that of the same model left open.
func TestAFixedBatchGivesTheSameMap(t *testing.T) {
	g := readGoldens(t).CNN
	open := load(t, "testdata/cnn.onnx")
	shape := []int64{1, 2, 8, 8}
	o := explain.Options{Background: explain.References(engine.Float32(shape, g.Base)), Samples: 100, Segments: 12, Seed: 3}
	for _, size := range []int64{1, 3} {
		fixed := open.Clone()
		fixed.Graph.Inputs[0].Shape[0] = onnx.Dim{Value: size}
		fixed.Graph.Outputs[0].Shape[0] = onnx.Dim{Value: size}
		for _, d := range explain.Methods() {
			if d.Method == explain.Rollout || d.Method == explain.GradientRollout {
				continue
			}
			want := explained(t, d.Method, open, o, engine.Float32(shape, g.X), 0)
			got := explained(t, d.Method, fixed, o, engine.Float32(shape, g.X), 0)
			wide := make([]float64, len(want.Values))
			for i, v := range want.Values {
				wide[i] = float64(v)
			}
			near(t, string(d.Method), got.Values, wide, 1e-4)
			if len(got.Logits) != 3 {
				t.Errorf("%s: %d logits of a batch of %d", d.Method, len(got.Logits), size)
			}
		}
	}
}

func TestMapsThatCannotBeMeasuredAreRefused(t *testing.T) {
	m := linear(t, 2, 1, []float32{1, 2}, []float32{0})
	requireRuntime(t)
	x := engine.Float32([]int64{1, 2}, []float32{1, 1})
	zero := explain.Options{Background: explain.Constant(0)}
	for name, c := range map[string]struct {
		made explain.Map
		o    explain.Options
		c    explain.CheckOptions
	}{
		"another size":    {explain.Map{Values: []float32{1}}, zero, explain.CheckOptions{}},
		"NaN":             {explain.Map{Values: []float32{1, float32(math.NaN())}}, zero, explain.CheckOptions{}},
		"segments":        {explain.Map{Values: []float32{1, 2}, Segments: []int{0, 7}}, zero, explain.CheckOptions{}},
		"another class":   {explain.Map{Values: []float32{1, 2}, Class: 1}, zero, explain.CheckOptions{}},
		"no background":   {explain.Map{Values: []float32{1, 2}}, explain.Options{}, explain.CheckOptions{}},
		"negative maps":   {explain.Map{Values: []float32{1, 2}}, zero, explain.CheckOptions{RandomMaps: -1}},
		"one probability": {explain.Map{Values: []float32{1, 2}}, zero, explain.CheckOptions{Score: explain.Probability}},
	} {
		if f, err := explain.Measure(t.Context(), m, x, &c.made, c.o, c.c); err == nil {
			t.Errorf("%s: measured as %+v", name, f)
		}
	}
	if v := explain.Judge(&explain.Map{}, nil, nil); v.Explains || !slices.Contains(v.Failures, explain.Empty) {
		t.Errorf("a map without values: %+v", v)
	}
}

func TestAModelThatCannotBeDifferentiatedCanStillBeAskedByItsAnswers(t *testing.T) {
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "N"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 3})
	first := b.Op("Hardmax", []string{x}, onnx.IntAttribute("axis", 1))
	b.Output(first, onnx.Float, n, onnx.Dim{Value: 3})
	m := built(t, b)
	requireRuntime(t)
	if _, err := explain.New(explain.Gradient, m, explain.Options{}); !errors.Is(err, autodiff.ErrNotDifferentiable) {
		t.Errorf("the gradient of Hardmax: %v", err)
	}
	got := explained(t, explain.KernelSHAP, m, explain.Options{Background: explain.Constant(-2)}, engine.Float32([]int64{1, 3}, []float32{-1, 2, -1}), 1)
	if got.Values[1] < 0.999 {
		t.Errorf("the winning column gets %v of the answer", got.Values)
	}
	if _, err := explain.Randomise(t.Context(), explain.KernelSHAP, m, engine.Float32([]int64{1, 3}, []float32{0, 1, 0}), got, explain.Options{Background: explain.Constant(-2)}, explain.CheckOptions{}); !errors.Is(err, explain.ErrNoWeights) {
		t.Errorf("randomising a model without weights: %v", err)
	}
	r, err := explain.Check(t.Context(), explain.KernelSHAP, m, engine.Float32([]int64{1, 3}, []float32{-1, 2, -1}), 1, explain.Options{Background: explain.Constant(-2)}, explain.CheckOptions{})
	if err != nil || r.Sanity != nil {
		t.Errorf("checking a model without weights: %+v, %v", r, err)
	}
}

func TestAnExplanationCanBeCancelledAtAnyPoint(t *testing.T) {
	m := model(t)
	set, _ := squares(2, 9)
	for _, d := range explain.Methods() {
		if d.Method == explain.Rollout || d.Method == explain.GradientRollout {
			continue
		}
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		o := explain.Options{Background: explain.Constant(0), Samples: 1 << 20, MaxSteps: 1 << 20, Tolerance: 1e-12, Window: 2, Stride: 1, Batch: 8, Threads: 1}
		if d.Method == explain.LIME || d.Method == explain.KernelSHAP {
			o.Samples = 1 << 14
		}
		o.Progress = func(done, total int) {
			if done < 0 || done > total {
				t.Errorf("%s: %d of %d", d.Method, done, total)
			}
			if calls++; calls == 3 {
				cancel()
			}
		}
		e, err := explain.New(d.Method, m, o)
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.Explain(ctx, picture(set, 1), 1)
		single := d.Method == explain.GradCAM || d.Method == explain.GradCAMPlusPlus || d.Method == explain.Gradient
		if single != (err == nil) || !single && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: error is %v", d.Method, err)
		}
		if calls > 3 {
			t.Errorf("%s went on: it told of %d steps, the last %d after it was cancelled", d.Method, calls, calls-3)
		}
		// A context that has ended before stops all of them.
		if _, err := e.Explain(ctx, picture(set, 1), 1); !single && !errors.Is(err, context.Canceled) {
			t.Errorf("%s after the end: %v", d.Method, err)
		}
		cancel()
		if _, err := e.Explain(ctx, picture(set, 1), 1); !errors.Is(err, context.Canceled) {
			t.Errorf("%s after the end: %v", d.Method, err)
		}
		e.Close()
		if _, err := e.Explain(t.Context(), picture(set, 1), 1); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("%s after Close: %v", d.Method, err)
		}
	}
}

func TestExplainersServeManyGoroutinesWithTheSameResult(t *testing.T) {
	m := model(t)
	set, _ := squares(2, 9)
	for _, method := range []explain.Method{explain.GradCAM, explain.SmoothGrad, explain.KernelSHAP} {
		e, err := explain.New(method, m, explain.Options{Background: explain.Constant(0), Samples: 200, Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		want, err := e.Explain(t.Context(), picture(set, 1), 1)
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for range 3 {
					got, err := e.Explain(t.Context(), picture(set, 1), 1)
					if err != nil || !slices.Equal(got.Values, want.Values) {
						t.Errorf("%s: another map beside others (error %v)", method, err)
					}
				}
			})
		}
		group.Wait()
	}
}

// The same network with channels last gives the same map.
func TestChannelsLastIsOnlyAnotherLayout(t *testing.T) {
	g := readGoldens(t).CNN
	first := load(t, "testdata/cnn.onnx")
	last := first.Clone()
	in := &last.Graph.Inputs[0]
	transposed := &onnx.Node{Name: "to_first", OpType: "Transpose", Inputs: []string{"x_last"}, Outputs: []string{in.Name}, Attributes: []onnx.Attribute{onnx.IntsAttribute("perm", 0, 3, 1, 2)}}
	last.Graph.Nodes = append([]*onnx.Node{transposed}, last.Graph.Nodes...)
	*in = onnx.Value{Name: "x_last", Type: onnx.Float, Shape: []onnx.Dim{in.Shape[0], {Value: 8}, {Value: 8}, {Value: 2}}}
	moved := func(values []float32) engine.Tensor {
		out := make([]float32, len(values))
		for p := range 64 {
			out[2*p], out[2*p+1] = values[p], values[64+p]
		}
		return engine.Float32([]int64{1, 8, 8, 2}, out)
	}
	shape := []int64{1, 2, 8, 8}
	for _, d := range explain.Methods() {
		if d.Method == explain.Rollout || d.Method == explain.GradientRollout {
			continue
		}
		o := explain.Options{Background: explain.References(engine.Float32(shape, g.Base)), Samples: 300, Segments: 12}
		want := explained(t, d.Method, first, o, engine.Float32(shape, g.X), 1)
		o.Background, o.ChannelsLast = explain.References(moved(g.Base)), true
		got := explained(t, d.Method, last, o, moved(g.X), 1)
		if d.Method == explain.SmoothGrad { // its noise falls on other numbers
			continue
		}
		wide := make([]float64, len(want.Values))
		for i, v := range want.Values {
			wide[i] = float64(v)
		}
		near(t, string(d.Method), got.Values, wide, 1e-5)
	}
}

// Every architecture of the zoo that answers with one row of logits can be
// explained by the methods that suit it.
func TestTheZooCanBeExplained(t *testing.T) {
	requireRuntime(t)
	for name, c := range map[string]struct {
		input   []int64
		methods []explain.Method
	}{
		"resnet18":        {[]int64{1, 32, 32}, []explain.Method{explain.GradCAM, explain.GradCAMPlusPlus, explain.SmoothGrad, explain.Occlusion}},
		"vit-ti16":        {[]int64{1, 40, 48}, []explain.Method{explain.Rollout, explain.GradientRollout, explain.Gradient}},
		"tabular-mlp":     {[]int64{9}, []explain.Method{explain.IntegratedGradients, explain.GradientSHAP, explain.KernelSHAP, explain.LIME, explain.Occlusion}},
		"dna-transformer": {[]int64{4, 256}, []explain.Method{explain.GradCAM, explain.Rollout, explain.GradientRollout, explain.KernelSHAP}},
	} {
		rng := rand.New(rand.NewPCG(1, 0))
		n, err := zoo.Build(name, zoo.Options{Input: c.input, Classes: 3}, rng)
		if err != nil {
			t.Fatal(err)
		}
		elements := 1
		for _, d := range c.input {
			elements *= int(d)
		}
		shape := append([]int64{1}, c.input...)
		x := engine.Float32(shape, normals(elements, rng))
		o := explain.Options{Background: explain.Constant(0), Samples: 120, Segments: 20, MaxSteps: 32, Threads: 1, Batch: 4}
		if name == "tabular-mlp" {
			o.Samples = 600
		}
		for _, method := range c.methods {
			got := explained(t, method, n.Model, o, x, 2)
			places := int(c.input[len(c.input)-1])
			if len(c.input) == 3 {
				places *= int(c.input[1])
			}
			if len(got.Values) != places || got.Rows*got.Columns != places || len(got.Logits) != 3 {
				t.Errorf("%s of %s: %d values for %d places, %d logits", method, name, len(got.Values), places, len(got.Logits))
			}
			if slices.Max(got.Values) == slices.Min(got.Values) {
				t.Errorf("%s of %s is the same everywhere", method, name)
			}
			if slices.ContainsFunc(got.Values, func(v float32) bool { return math.IsNaN(float64(v)) }) {
				t.Errorf("%s of %s holds NaN", method, name)
			}
		}
	}
}
