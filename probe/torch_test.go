package probe_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
	"github.com/vigie/vigie/probe"
)

const python = "/usr/bin/python3"

// reference has PyTorch export a CNN and an MLP, and write inputs, labels, and
// what it computes itself: losses, gradients, and gradients example by example.
// Its own few lines write safetensors files, because Debian has no module.
const reference = `
import json, struct, sys, warnings
warnings.filterwarnings("ignore")
import numpy as np, torch
from torch import nn
import torch.nn.functional as F
folder = sys.argv[1]
torch.manual_seed(3)
torch.set_num_threads(1)

def save(path, tensors):
    header, data = {}, b""
    for name, t in tensors.items():
        raw = t.detach().contiguous().numpy().tobytes()
        header[name] = dict(dtype={torch.float32: "F32", torch.float64: "F64"}[t.dtype], shape=list(t.shape), data_offsets=[len(data), len(data) + len(raw)])
        data += raw
    header = json.dumps(header).encode()
    open(path, "wb").write(struct.pack("<Q", len(header)) + header + data)

class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.GroupNorm(3, 6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, groups=2, bias=False)
        self.fc = nn.Linear(8 * 4, 3)
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 3, stride=2, padding=1)
        x = F.adaptive_avg_pool2d(F.silu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))

class BNNet(nn.Module): # folded away by no one: exported as it trains, evaluated with running statistics
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return self.fc(x.mean((2, 3)))

mlp = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))

def losses(kind, z, y):
    if kind == "cross-entropy": return F.cross_entropy(z, y, reduction="none")
    if kind == "bce": return F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)
    return z.sum(1)

def case(name, net, x, kind, y):
    net = net.eval()
    torch.onnx.export(net, x[:1], f"{folder}/{name}.onnx", opset_version=17 if "mlp" in name else 14, input_names=["x"], output_names=["z"],
        dynamic_axes={"x": {0: "batch"}, "z": {0: "batch"}}, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    np.save(f"{folder}/{name}.x.npy", x.detach().numpy())
    if y is not None: np.save(f"{folder}/{name}.y.npy", y.numpy())
    x.requires_grad_(True)
    z = net(x)
    each = losses(kind, z, y)
    total = each.sum() if kind == "sum" else each.mean()
    total.backward()
    want = {"loss": total.reshape(1), "each": each, "z": z, "gradient/x": x.grad.clone()}
    for k, p in net.named_parameters(): want["gradient/" + k] = p.grad.clone()
    alone = {k: [] for k, _ in net.named_parameters()}
    alone["x"] = []
    for i in range(len(x)):
        net.zero_grad()
        xi = x[i:i+1].detach().requires_grad_(True)
        losses(kind, net(xi), y if y is None else y[i:i+1]).sum().backward()
        alone["x"].append(xi.grad[0].clone())
        for k, p in net.named_parameters(): alone[k].append(p.grad.clone())
    for k, l in alone.items(): want["example/" + k] = torch.stack(l)
    save(f"{folder}/{name}.safetensors", want)

bn = BNNet()
bn.bn.running_mean.normal_(); bn.bn.running_var.uniform_(0.5, 2)
case("cnn", CNN(), torch.randn(5, 2, 17, 18), "cross-entropy", torch.tensor([0, 2, 1, 1, 0]))
case("bn", bn, torch.randn(4, 2, 8, 8), "bce", torch.rand(4, 3))
case("mlp", mlp, torch.randn(6, 5), "cross-entropy", torch.tensor([2, 2, 1, 0, 1, 0]))
case("mlpsum", nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)).double(), torch.randn(3, 4).double(), "sum", None)
`

// torch runs the reference program, or skips the test loudly.
func torch(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(python, "-c", "import torch, numpy").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no torch package (Debian python3-torch): %v %s", python, err, out)
	}
	command := exec.Command(python, append([]string{"-c", program}, args...)...)
	command.Env = append(os.Environ(), "OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func tensors(t *testing.T, path string) map[string]engine.Tensor {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Read(bytes.NewReader(raw), int64(len(raw)), safetensors.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return f.Tensors
}

func floats(t *testing.T, x engine.Tensor) []float64 {
	t.Helper()
	switch d := x.Data.(type) {
	case []float64:
		return d
	case []float32:
		out := make([]float64, len(d))
		for i, v := range d {
			out[i] = float64(v)
		}
		return out
	}
	t.Fatalf("%v holds no floats", x)
	return nil
}

// distance is the largest difference over the largest value wanted.
func distance(t *testing.T, got, want engine.Tensor) float64 {
	t.Helper()
	if fmt.Sprint(got.Shape) != fmt.Sprint(want.Shape) {
		t.Errorf("shape %v, want %v", got.Shape, want.Shape)
		return math.Inf(1)
	}
	a, b := floats(t, got), floats(t, want)
	largest, off := 1e-12, 0.0
	for i := range b {
		largest = max(largest, math.Abs(b[i]))
		off = max(off, math.Abs(a[i]-b[i]))
		if math.IsNaN(a[i]) {
			return math.Inf(1)
		}
	}
	return off / largest
}

func skipWithoutRuntime(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestLossesAndGradientsOfExportedNetworksAreThoseOfPyTorch(t *testing.T) {
	folder := t.TempDir()
	torch(t, reference, folder)
	for _, c := range []struct{ name, loss string }{{"cnn", probe.CrossEntropy}, {"bn", probe.BinaryCrossEntropy}, {"mlp", probe.CrossEntropy}, {"mlpsum", probe.Sum}} {
		t.Run(c.name, func(t *testing.T) {
			path := func(suffix string) string { return filepath.Join(folder, c.name+suffix) }
			want := tensors(t, path(".safetensors"))
			m, err := probe.Open(path(".onnx"))
			if err != nil {
				t.Fatal(err)
			}
			inputs, err := m.Inputs(path(".x.npy"))
			if err != nil {
				t.Fatal(err)
			}
			request := probe.Request{Loss: c.loss, WithRespectTo: []string{probe.Inputs, probe.Weights}}
			if c.loss != probe.Sum {
				labels, err := probe.ReadArray(path(".y.npy"))
				if err != nil {
					t.Fatal(err)
				}
				request.Labels = &labels
			}
			answer, err := m.Run(t.Context(), inputs)
			skipWithoutRuntime(t, err)
			worst := distance(t, answer.Tensors["z"], want["z"])
			for _, kind := range []string{"gradient/", "example/"} {
				request.PerExample = kind == "example/"
				g, err := m.Gradient(t.Context(), inputs, request)
				if err != nil {
					t.Fatal(err)
				}
				loss := floats(t, want["loss"])[0]
				if off := math.Abs(g.Value-loss) / math.Abs(loss); off > 1e-4 {
					t.Errorf("loss %v, PyTorch says %v", g.Value, loss)
				}
				if off := distance(t, engine.Float64([]int64{int64(len(g.Each))}, g.Each), want["each"]); off > 1e-4 {
					t.Errorf("losses of the examples %v, PyTorch says %v", g.Each, want["each"].Data)
				}
				file := path(kind[:4] + ".out.safetensors")
				if err := probe.Save(file, g.Tensors, g.Metadata()); err != nil {
					t.Fatal(err)
				}
				written := tensors(t, file)
				compared := 0
				for name, w := range want {
					if len(name) < len(kind) || name[:len(kind)] != kind {
						continue
					}
					compared++
					got, ok := written[name[len(kind):]]
					if !ok {
						t.Errorf("no %s; there are %v", name, g.Gradients)
						continue
					}
					off := distance(t, got, w)
					worst = max(worst, off)
					if off > 1e-4 {
						t.Errorf("%s is off by %.2g of its largest value", name, off)
					}
				}
				if compared != len(written) || compared < 4 {
					t.Errorf("%s: %d gradients compared, %d written: weights and nothing else are wanted", kind, compared, len(written))
				}
			}
			t.Logf("%s: output and all gradients within %.2g of PyTorch's", c.name, worst)
		})
	}
}
