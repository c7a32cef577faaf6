package zoo_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/onnx/zoo"
)

// training is the network with its batch normalisations in training mode.
func training(n *zoo.Network) *onnx.Model {
	m := n.Model.Clone()
	for _, node := range m.Graph.Nodes {
		if node.OpType == "BatchNormalization" {
			node.Set(onnx.IntAttribute("training_mode", 1))
			node.Outputs = append(node.Outputs[:1:1], node.Outputs[0]+"/mean", node.Outputs[0]+"/variance")
		}
	}
	return m
}

// size is the largest element, NaN if there is one.
func size(t testing.TB, x engine.Tensor) float64 {
	t.Helper()
	values, err := engine.Values[float32](x)
	if err != nil {
		t.Fatal(err)
	}
	largest := 0.0
	for _, v := range values {
		largest = max(largest, math.Abs(float64(v)))
	}
	return largest
}

// squared appends the loss Σ logits² of each example.
func squared(t testing.TB, m *onnx.Model, logits string, axes ...int64) (*onnx.Model, string) {
	t.Helper()
	b := onnx.Extend(m.Clone())
	loss := b.Op("ReduceSum", []string{b.Op("Mul", []string{logits, logits}), b.Ints("loss", axes...)}, onnx.IntAttribute("keepdims", 0))
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out, loss
}

func TestCheckpointingGivesTheSameGradientsOfEveryMember(t *testing.T) {
	for _, a := range zoo.Architectures() {
		if strings.HasPrefix(a.Name, "resnet") || a.Name == "vit-s16" {
			continue // more of the same as densenet121 and vit-ti16
		}
		t.Run(a.Name, func(t *testing.T) {
			o := zoo.Options{Input: small(a), Classes: 3}
			axes := []int64{1}
			switch a.Name {
			case "attention-mil":
				o.Input = []int64{5, 24}
			case "unet":
				axes = []int64{1, 2, 3}
			}
			n := build(t, a.Name, o)
			m, loss := squared(t, training(n), n.Logits, axes...)
			request := autodiff.Request{Loss: loss, WithRespectTo: append([]string{n.Input}, n.Weights...), Batch: 2, Keep: []string{n.Logits}}
			plain, err := autodiff.Gradient(m, request)
			if err != nil {
				t.Fatal(err)
			}
			request.Checkpoint = true
			again, err := autodiff.Gradient(m, request)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Model.Check(); err != nil {
				t.Fatal(err)
			}
			repeated := 0
			for _, node := range again.Model.Graph.Nodes {
				if strings.HasPrefix(node.Name, "d/again/") {
					repeated++
				}
			}
			if repeated == 0 && a.Name != "attention-mil" { // which has nothing but its first layer to forget
				t.Error("nothing is computed again")
			}
			want, got := run(t, plain.Model, input(n, 2)), run(t, again.Model, input(n, 2))
			if len(want) != len(got) || len(want) != len(n.Weights)+2 {
				t.Fatalf("%d outputs, want %d", len(got), len(want))
			}
			// A gradient that is zero but for rounding, such as that of a shift
			// before a normalisation, is measured by the largest of all.
			largest := 0.0
			for _, tensor := range want {
				largest = max(largest, size(t, tensor))
			}
			for name := range want {
				// The runtime may fuse the same nodes differently, and then
				// round differently.
				off := distance(t, got[name], want[name])
				if s := size(t, want[name]); s < 1e-5*largest {
					off *= s / largest
				}
				if !(off < 1e-5) {
					t.Errorf("%s differs by %.1e", name, off)
				}
			}
		})
	}
}

// peakOf is the environment variable that has the test binary run one gradient
// and print its peak memory: VmHWM counts for a process's whole life.
const peakOf = "VIGIE_ZOO_PEAK_OF"

func TestCheckpointingTakesMuchLessMemoryForADeepNetwork(t *testing.T) {
	if mode := os.Getenv(peakOf); mode != "" {
		printPeak(t, mode)
		return
	}
	if testing.Short() {
		t.Skip("three processes that each compute a large gradient: not in short mode")
	}
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: this system does not tell a process's peak memory: %v", err)
	}
	if err := engine.Ready(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	peak := func(mode string) float64 {
		command := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		command.Env = append(os.Environ(), peakOf+"="+mode)
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		_, rest, _ := strings.Cut(string(out), "peak ")
		kilobytes, err := strconv.ParseFloat(strings.Fields(rest + " none")[0], 64)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return kilobytes / 1024
	}
	start, plain, again := peak("start"), peak("plain"), peak("checkpoint")
	t.Logf("MiB: %.0f before the gradient, %.0f with it, %.0f with checkpoints", start, plain, again)
	if plain-start < 100 {
		t.Fatalf("the gradient takes %.0f MiB only: too little to tell", plain-start)
	}
	if again-start > 0.65*(plain-start) {
		t.Errorf("%.0f MiB with checkpoints, %.0f without: want at most 0.65 of it", again-start, plain-start)
	}
}

func printPeak(t *testing.T, mode string) {
	n := build(t, "densenet121", zoo.Options{Input: []int64{1, 128, 128}, Classes: 2})
	m, loss := squared(t, training(n), n.Logits, 1)
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: loss, WithRespectTo: n.Weights, Batch: 6, Checkpoint: mode == "checkpoint"})
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(g.Model, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if mode != "start" {
		if _, err := session.Run(context.Background(), input(n, 6)); err != nil {
			t.Fatal(err)
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Println("peak", strings.Fields(rest + " none")[0])
}

// count is the nodes of a gradient graph with respect to the given tensors.
func count(t *testing.T, m *onnx.Model, loss string, keep []string, names ...string) (int, *onnx.Model) {
	t.Helper()
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: loss, WithRespectTo: names, Batch: 2, Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	return len(g.Model.Graph.Nodes), g.Model
}

func TestAGradientComputesOnlyWhatIsAskedFor(t *testing.T) {
	n := build(t, "resnet18", zoo.Options{Input: []int64{1, 32, 32}, Classes: 2})
	m, loss := squared(t, n.Model, n.Logits, 1)
	both, _ := count(t, m, loss, nil, append([]string{n.Input}, n.Weights...)...)
	weights, _ := count(t, m, loss, nil, n.Weights...)
	inputs, _ := count(t, m, loss, nil, n.Input)
	inner, innerModel := count(t, m, loss, nil, n.Layer)
	head, headModel := count(t, m, loss, nil, "fc.weight", "fc.bias")
	forward := len(m.Graph.Nodes)
	t.Logf("nodes: %d forward; gradient of inputs and weights %d, weights %d, inputs %d, the last feature map %d, the head %d", forward, both, weights, inputs, inner, head)
	if !(weights < both && inputs < weights && inner < inputs && head < inner+10) {
		t.Error("asking for less does not make the graph smaller")
	}
	// Below the feature map and the head there is nothing but the network itself.
	if inner > forward+15 || head > forward+15 {
		t.Errorf("the gradients of the last feature map and of the head take %d and %d nodes beyond the %d of the network", inner-forward, head-forward, forward)
	}
	for _, m := range []*onnx.Model{innerModel, headModel} {
		for _, node := range m.Graph.Nodes {
			if strings.HasPrefix(node.Name, "d/") && (node.OpType == "Conv" || node.OpType == "ConvTranspose" || node.OpType == "FusedMatMul") {
				t.Errorf("%v belongs to the gradient of an earlier layer", node)
			}
		}
	}

	// A branch that the loss does not read is not even run forwards.
	b := onnx.Extend(m.Clone())
	dead := b.Op("Conv", []string{n.Input, "conv1.weight"}, onnx.IntsAttribute("kernel_shape", 7, 7))
	b.Output(dead, onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: 64}, onnx.Dim{Value: 26}, onnx.Dim{Value: 26})
	branched, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := count(t, branched, loss, nil, n.Weights...); got != weights {
		t.Errorf("%d nodes with a branch that the loss does not need, %d without", got, weights)
	}
}

// With equal sizes the cut points fall √n apart, as in Chen et al. 2016: a chain
// of 64 layers keeps about 8 and computes 8 at a time.
func TestACheckpointedChainKeepsTheSquareRootOfItsLayers(t *testing.T) {
	const layers = 64
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: 4}, onnx.Dim{Value: 16})
	w := b.Weight("w", []int64{16, 16}, make([]float32, 256))
	for range layers {
		x = b.Op("Tanh", []string{b.Op("MatMul", []string{x, w})})
	}
	b.Output(x, onnx.Float, onnx.Dim{Value: 4}, onnx.Dim{Value: 16})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: x, WithRespectTo: []string{"w"}, Checkpoint: true})
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]bool{} // by the first pass
	for _, node := range m.Graph.Nodes {
		made[node.Outputs[0]] = true
	}
	kept := map[string]bool{}
	repeated := 0
	for _, node := range g.Model.Graph.Nodes {
		if made[node.Outputs[0]] {
			continue
		}
		if strings.HasPrefix(node.Name, "d/again/") && node.OpType == "Tanh" || node.OpType == "MatMul" && strings.HasPrefix(node.Name, "d/again/") {
			repeated++
		}
		for _, in := range node.Inputs {
			if made[in] {
				kept[in] = true
			}
		}
	}
	t.Logf("%d tensors are kept, %d nodes are computed again", len(kept), repeated)
	if len(kept) > 4*int(math.Sqrt(layers)) || repeated < layers {
		t.Errorf("of %d layers, %d tensors are kept and %d nodes computed again", layers, len(kept), repeated)
	}
}

// Random numbers drawn a second time would be others.
func TestDropoutIsNotDrawnAgain(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: 4}, onnx.Dim{Value: 16})
	w := b.Weight("w", []int64{16, 16}, make([]float32, 256))
	on := b.Op("Constant", nil, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{}, []bool{true})))
	for range 12 {
		ratio := b.Op("Constant", nil, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{}, []float32{0.5})))
		x = b.Node(&onnx.Node{OpType: "Dropout", Inputs: []string{b.Op("Tanh", []string{b.Op("MatMul", []string{x, w})}), ratio, on}}, 2)[0]
	}
	b.Output(x, onnx.Float, onnx.Dim{Value: 4}, onnx.Dim{Value: 16})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: x, WithRespectTo: []string{"w"}, Checkpoint: true})
	if err != nil {
		t.Fatal(err)
	}
	drawn, repeated := 0, 0
	for _, node := range g.Model.Graph.Nodes {
		switch {
		case node.OpType == "Dropout":
			drawn++
		case strings.HasPrefix(node.Name, "d/again/") && node.OpType == "Tanh":
			repeated++
		}
	}
	if drawn != 12 || repeated == 0 {
		t.Errorf("%d dropouts for 12, %d layers computed again", drawn, repeated)
	}
}
