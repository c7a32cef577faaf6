package engine_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// export has PyTorch write a network as ONNX, with a named batch, and print an
// input of batch 3 and what it computes itself.
const export = `
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
from torch import nn
import torch.nn.functional as F
torch.manual_seed(1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.n = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.g = nn.GroupNorm(4, 8)
        self.u = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.t = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
        self.l = nn.Linear(16, 16)
        self.o = nn.Linear(16 * 4, 3)
    def forward(self, x):
        x = F.relu(self.n(self.a(x)))
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        x = F.silu(self.g(self.b(x)))
        x = self.u(x)
        x = F.pad(x, (1, 2, 0, 1))
        x = F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=False)
        x = F.avg_pool2d(x[:, :, :16, -16:], 4)
        x = x.view(x.size(0), x.size(1), -1)
        x = x + self.l(x).mean(-1, keepdim=True).expand(-1, -1, 16)
        x = torch.cat([x[:, 1:], x[:, :1]], 1)
        x = self.t(x) + x.permute(0, 2, 1).reshape(x.shape[0], 4, 16)
        return F.log_softmax(self.o(x.flatten(1)), -1)

class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, image):
        return self.net(image)

net = Wrapped(Net()).eval()
for m in net.modules():
    if isinstance(m, nn.BatchNorm2d):
        m.running_mean.normal_(); m.running_var.uniform_(0.5, 2)
x = torch.randn(3, 1, 21, 21)
net.net.t.train(); net.net.t.dropout.p = 0.0; net.net.t.dropout1.p = 0.0; net.net.t.dropout2.p = 0.0; net.net.t.self_attn.dropout = 0.0
torch.onnx.export(net, x[:1], sys.argv[1], opset_version=int(sys.argv[2]), input_names=["image"], output_names=["logits"],
    dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, do_constant_folding=sys.argv[3] == "fold", training=torch.onnx.TrainingMode.PRESERVE)
with torch.no_grad():
    json.dump({"x": x.flatten().tolist(), "y": net(x).flatten().tolist()}, sys.stdout)
`

func TestAPyTorchNetworkGivesPyTorchsAnswer(t *testing.T) {
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import torch").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no torch package (Debian python3-torch): %v %s", python, err, out)
	}
	folder := t.TempDir()
	program, file := filepath.Join(folder, "export.py"), filepath.Join(folder, "net.onnx")
	if err := os.WriteFile(program, []byte(export), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, variant := range [][2]string{{"11", "fold"}, {"16", "as is"}} {
		command := exec.Command(python, program, file, variant[0], variant[1])
		command.Env = append(os.Environ(), "OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1")
		var complaints strings.Builder
		command.Stderr = &complaints
		out, err := command.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, &complaints)
		}
		if i := strings.IndexByte(string(out), '{'); i > 0 {
			out = out[i:] // the exporter chats on standard output
		}
		var want struct{ X, Y []float32 }
		if err := json.Unmarshal(out, &want); err != nil {
			t.Fatalf("%v in %.300s", err, out)
		}
		m, err := onnx.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		values, err := onnx.InferShapes(m, map[string]int64{"batch": 3})
		if err != nil {
			t.Fatalf("operator set %s: %v", variant[0], err)
		}
		unknown := 0
		for _, n := range m.Graph.Nodes {
			for _, name := range n.Outputs {
				if _, ok := values[name].Static(); !ok {
					unknown++
					t.Errorf("operator set %s, %s: %v is inferred as %v", variant[0], variant[1], n, values[name])
				}
			}
		}
		t.Logf("operator set %s, %s: %d nodes, every shape known but %d", variant[0], variant[1], len(m.Graph.Nodes), unknown)
		s := open(t, m, engine.Options{})
		result, err := s.Run(context.Background(), map[string]engine.Tensor{"image": engine.Float32([]int64{3, 1, 21, 21}, want.X)})
		if err != nil {
			t.Fatal(err)
		}
		y, err := engine.Values[float32](result["logits"])
		if err != nil || len(y) != len(want.Y) {
			t.Fatalf("%v: %v, want %v", err, y, want.Y)
		}
		for i := range y {
			if math.Abs(float64(y[i]-want.Y[i])) > 1e-4 {
				t.Errorf("operator set %s: logit %d is %v, PyTorch says %v", variant[0], i, y[i], want.Y[i])
			}
		}
	}
}
