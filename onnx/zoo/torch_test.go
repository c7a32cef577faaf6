package zoo_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/probe"
)

const python = "/usr/bin/python3"

const (
	answers = "answers"
	trains  = "trains"
	// smooth has SiLU in the place of Relu on both sides. A unit that lies
	// within rounding of Relu's kink may count as on here and as off there, and
	// its whole gradient with it: among the millions of units of the deepest
	// networks some always do, and the runtime has no convolution in double
	// precision to avoid it with.
	smooth = "smooth"
)

// examplesCompared is how many examples a batch has. Statistics of few examples
// are steep: of two, they divide by the difference.
func examplesCompared(name string) int64 {
	if strings.Contains(name, trains) {
		return 6
	}
	return 3
}

// compared are held against the PyTorch modules of testdata/reference.py: as
// they answer, or with batch normalisation as it is while training.
var compared = []struct {
	name  string
	norm  string
	input []int64
	mode  string
}{
	{"resnet18", zoo.BatchNorm, []int64{1, 64, 64}, answers},
	{"resnet18", zoo.GroupNorm, []int64{1, 48, 40}, answers},
	{"resnet50", zoo.BatchNorm, []int64{3, 33, 47}, answers},
	{"densenet121", zoo.BatchNorm, []int64{1, 64, 64}, answers},
	{"densenet121", zoo.GroupNorm, []int64{1, 64, 64}, answers + "@" + smooth},
	{"efficientnet-b0", zoo.BatchNorm, []int64{3, 64, 64}, answers},
	{"efficientnet-b0", zoo.GroupNorm, []int64{3, 64, 64}, answers},
	{"vit-ti16", zoo.BatchNorm, []int64{1, 64, 48}, answers},
	{"vit-s16", zoo.BatchNorm, []int64{3, 32, 48}, answers},
	{"resnet18", zoo.BatchNorm, []int64{1, 64, 64}, trains},
	{"resnet50", zoo.BatchNorm, []int64{3, 64, 64}, trains + "@" + smooth},
	{"densenet121", zoo.BatchNorm, []int64{1, 64, 64}, trains + "@" + smooth},
	{"efficientnet-b0", zoo.BatchNorm, []int64{1, 64, 64}, trains},
	{"unet", zoo.BatchNorm, []int64{1, 32, 32}, trains + "@" + smooth},
	{"unet", zoo.GroupNorm, []int64{1, 36, 40}, answers + "@" + smooth},
	{"dna-transformer", zoo.BatchNorm, []int64{4, 64}, trains},
	{"tabular-mlp", zoo.BatchNorm, []int64{11}, trains},
	{"tabular-mlp", zoo.GroupNorm, []int64{11}, answers},
	{"unet", zoo.BatchNorm, []int64{1, 36, 40}, answers},
	{"attention-mil", zoo.BatchNorm, []int64{0, 24}, answers},
	{"dna-transformer", zoo.BatchNorm, []int64{4, 64}, answers},
	{"dna-transformer", zoo.GroupNorm, []int64{4, 75}, answers},
	{"tabular-mlp", zoo.BatchNorm, []int64{11}, answers},
}

// smoothed is m with SiLU in the place of Relu.
func smoothed(m *onnx.Model) *onnx.Model {
	m = m.Clone()
	var nodes []*onnx.Node
	for _, node := range m.Graph.Nodes {
		if node.OpType == "Relu" {
			gate := node.Outputs[0] + "/gate"
			nodes = append(nodes, &onnx.Node{Name: gate, OpType: "Sigmoid", Inputs: node.Inputs, Outputs: []string{gate}})
			node.OpType, node.Inputs = "Mul", []string{node.Inputs[0], gate}
		}
		nodes = append(nodes, node)
	}
	m.Graph.Nodes = nodes
	return m
}

// disturb moves scales, shifts and running statistics away from 1 and 0, where
// a mistake would not show.
func disturb(t *testing.T, m *onnx.Model) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	for i, w := range m.Graph.Initializers {
		if w.Type != onnx.Float || strings.HasSuffix(w.Name, ".one") || strings.HasSuffix(w.Name, ".zero") {
			continue
		}
		values, err := onnx.Values[float32](w)
		if err != nil {
			t.Fatal(err)
		}
		vector := true
		for _, d := range w.Dims {
			vector = vector && (d == 1 || d == int64(len(values)))
		}
		for k := range values {
			switch {
			case strings.HasSuffix(w.Name, "running_var"):
				values[k] = 0.5 + rng.Float32()
			case strings.HasSuffix(w.Name, "running_mean") || strings.HasSuffix(w.Name, ".bias"):
				values[k] = 0.2 * float32(rng.NormFloat64())
			case vector && strings.HasSuffix(w.Name, ".weight"):
				values[k] = 0.75 + 0.5*rng.Float32()
			}
		}
		m.Graph.Initializers[i] = onnx.NewTensor(w.Name, w.Dims, values)
	}
}

func TestLogitsAndGradientsAreThoseOfPyTorchWithTheSameWeights(t *testing.T) {
	if out, err := exec.Command(python, "-c", "import torch, numpy").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no torch package (Debian python3-torch): %v %s", python, err, out)
	}
	if err := engine.Ready(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	folder := t.TempDir()
	var names []string
	for _, c := range compared {
		name := c.name + "@" + c.norm + "@" + c.mode
		n := build(t, c.name, zoo.Options{Input: c.input, Classes: 3, Norm: c.norm})
		disturb(t, n.Model)
		weights := map[string]engine.Tensor{}
		for _, w := range n.Model.Graph.Initializers {
			if w.Type != onnx.Float || strings.HasSuffix(w.Name, ".one") || strings.HasSuffix(w.Name, ".zero") {
				continue
			}
			var err error
			if weights[w.Name], err = engine.FromONNX(w); err != nil {
				t.Fatal(err)
			}
		}
		if err := probe.Save(filepath.Join(folder, name+".weights.safetensors"), weights, nil); err != nil {
			t.Fatal(err)
		}
		m := n.Model
		if strings.HasPrefix(c.mode, trains) {
			m = training(n)
		}
		if strings.HasSuffix(c.mode, smooth) {
			m = smoothed(m)
		}
		if err := m.Save(filepath.Join(folder, name+".onnx")); err != nil {
			t.Fatal(err)
		}
		writeInput(t, folder, name, input(n, examplesCompared(name))[n.Input])
		names = append(names, name)
	}
	reference(t, folder, names...)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			// A unit may lie within rounding of its kink, see smooth. A mistake
			// would show with every input.
			for attempt := range 3 {
				worst, where := compareWithTorch(t, folder, name)
				if worst <= 1e-4 {
					return
				}
				if attempt == 2 {
					t.Fatalf("the gradient of %s is off by %.2g, and so it was with two other inputs", where, worst)
				}
				t.Logf("the gradient of %s is off by %.2g: trying another input", where, worst)
				x := read(t, filepath.Join(folder, name+".input.safetensors"))["x"]
				values := x.Data.([]float32)
				for i := range values {
					values[i] = 1 - values[i]*values[i]
				}
				writeInput(t, folder, name, x)
				reference(t, folder, name)
			}
		})
	}
}

func writeInput(t *testing.T, folder, name string, x engine.Tensor) {
	t.Helper()
	if err := probe.Save(filepath.Join(folder, name+".input.safetensors"), map[string]engine.Tensor{"x": x}, nil); err != nil {
		t.Fatal(err)
	}
}

// reference has PyTorch compute what is wanted.
func reference(t *testing.T, folder string, names ...string) {
	t.Helper()
	command := exec.Command(python, append([]string{"-B", "testdata/reference.py", folder}, names...)...)
	command.Env = append(os.Environ(), "OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// compareWithTorch fails for logits and losses that differ, and returns the
// gradient that differs most.
func compareWithTorch(t *testing.T, folder, name string) (worst float64, where string) {
	want := read(t, filepath.Join(folder, name+".want.safetensors"))
	m, err := probe.Open(filepath.Join(folder, name+".onnx"))
	if err != nil {
		t.Fatal(err)
	}
	input := m.Graph.Graph.Inputs[0].Name
	inputs := map[string]engine.Tensor{input: read(t, filepath.Join(folder, name+".input.safetensors"))["x"]}
	answer, err := m.Run(t.Context(), inputs, "logits")
	if err != nil {
		t.Fatal(err)
	}
	logits := distance(t, answer.Tensors["logits"], want["logits"])
	if logits > 1e-4 {
		t.Errorf("logits are off by %.2g of the largest", logits)
	}
	batch := examplesCompared(name)
	labels := make([]int64, batch)
	for i := range labels {
		labels[i] = int64(i % 2)
	}
	request := probe.Request{Loss: probe.CrossEntropy, Labels: &engine.Tensor{Shape: []int64{batch}, Data: labels}, WithRespectTo: []string{probe.Inputs}, Output: "logits"}
	if strings.HasPrefix(name, "unet") {
		request.Loss, request.Labels = probe.Sum, nil
	}
	for key := range want {
		if weight, ok := strings.CutPrefix(key, "gradient/"); ok && weight != "input" {
			request.WithRespectTo = append(request.WithRespectTo, weight)
		}
	}
	g, err := m.Gradient(t.Context(), inputs, request)
	if err != nil {
		t.Fatal(err)
	}
	if loss := float64(want["loss"].Data.([]float32)[0]); math.Abs(g.Value-loss) > 1e-4*math.Abs(loss) {
		t.Errorf("loss %v, PyTorch says %v", g.Value, loss)
	}
	// A gradient that is zero but for rounding, such as that of a bias before
	// a normalisation, is measured by the largest of all.
	largest := 0.0
	for key, w := range want {
		if strings.HasPrefix(key, "gradient/") {
			largest = max(largest, size(t, w))
		}
	}
	for _, f := range g.Gradients {
		key := "gradient/" + f.Name
		if f.Name == input {
			key = "gradient/input"
		}
		off := distance(t, g.Tensors[f.Name], want[key])
		if s := size(t, want[key]); s < 1e-5*largest {
			off *= max(s, 1e-30) / largest // distance divides by no less than 1e-30
		}
		if off > worst {
			worst, where = off, f.Name
		}
	}
	t.Logf("logits within %.1e, %d gradients within %.1e (%s)", logits, len(g.Gradients), worst, where)
	return worst, where
}

func read(t *testing.T, path string) map[string]engine.Tensor {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	file, err := safetensors.Read(f, info.Size(), safetensors.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return file.Tensors
}

// distance is the largest difference over the largest value wanted.
func distance(t *testing.T, got, want engine.Tensor) float64 {
	t.Helper()
	a, err := engine.Values[float32](got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := engine.Values[float32](want)
	if err != nil || fmt.Sprint(got.Shape) != fmt.Sprint(want.Shape) {
		t.Fatalf("%v, want %v (%v)", got, want, err)
	}
	largest, off := 1e-30, 0.0
	for i := range b {
		largest, off = max(largest, math.Abs(float64(b[i]))), max(off, math.Abs(float64(a[i])-float64(b[i])))
		if math.IsNaN(float64(a[i])) {
			return math.Inf(1)
		}
	}
	return off / largest
}
