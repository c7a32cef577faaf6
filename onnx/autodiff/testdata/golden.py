#!/usr/bin/python3
"""Golden gradients: small networks exported to ONNX, and what PyTorch says of
their loss, every weight's gradient, and the input's.

Run with Debian's python3-torch and python3-onnx from this directory:
    /usr/bin/python3 golden.py
Each network gives NAME.onnx (the exporter's own graph, weights inside) and
NAME.json (input, target, loss, gradients in double precision, because Relu's
sign flips make float32 disagree with itself). Weights are drawn in steps of
1/64, so that the files stay small; inputs are not, so that no maximum ties.
"""
import io, json
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F, onnx

class Block(nn.Module):
    """Residual block with group normalisation and a strided shortcut."""
    def __init__(s):
        super().__init__()
        s.a = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False); s.na = nn.GroupNorm(3, 6)
        s.b = nn.Conv2d(6, 6, 3, padding=1, groups=2); s.short = nn.Conv2d(4, 6, 1, stride=2)
    def forward(s, x):
        return F.relu(s.b(F.relu(s.na(s.a(x)))) + s.short(x))

class Attention(nn.Module):
    """One pre-norm transformer encoder layer over patches, as a ViT has."""
    def __init__(s, d=8, heads=2):
        super().__init__()
        s.patch = nn.Conv2d(1, d, 4, stride=4); s.position = nn.Parameter(torch.zeros(1, 4, d))
        s.n1, s.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        s.qkv, s.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        s.up, s.down, s.head = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Linear(d, 3)
        s.heads, s.d = heads, d
    def forward(s, x):
        t = s.patch(x).flatten(2).transpose(1, 2) + s.position
        q, k, v = s.qkv(s.n1(t)).reshape(-1, 4, 3, s.heads, s.d // s.heads).permute(2, 0, 3, 1, 4).unbind(0)
        w = torch.softmax(q @ k.transpose(-2, -1) / (s.d // s.heads) ** 0.5, -1)
        t = t + s.out((w @ v).transpose(1, 2).reshape(-1, 4, s.d))
        t = t + s.down(F.gelu(s.up(s.n2(t))))
        return s.head(t.mean(1))

class Mobile(nn.Module):
    """Depthwise-separable convolutions, frozen batch norm, hard-swish, squeeze-excitation."""
    def __init__(s):
        super().__init__()
        s.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False); s.bn = nn.BatchNorm2d(4)
        s.deep = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4); s.point = nn.Conv2d(4, 6, 1)
        s.squeeze, s.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1); s.head = nn.Linear(6, 2)
        s.bn.running_mean.copy_(torch.tensor([.1, -.2, .3, 0])); s.bn.running_var.copy_(torch.tensor([1., .5, 2, 1.5]))
    def forward(s, x):
        x = F.hardswish(s.bn(s.stem(x)))
        x = F.silu(s.point(s.deep(x)))
        x = x * torch.sigmoid(s.excite(F.relu(s.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return s.head(x.mean((2, 3)))

def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
        nn.Linear(6 * 9, 5), nn.ReLU(), nn.Linear(5, 3))

def residual():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(3, 2, 1), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))

def one_dimensional():
    return nn.Sequential(nn.Conv1d(3, 4, 5, stride=2, padding=2), nn.ELU(), nn.Conv1d(4, 4, 3, padding=2, dilation=2), nn.Tanh(),
        nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(48, 2))

def make(name, net, shape, classes, opset=17):
    rng = np.random.default_rng(len(name))
    for p in net.parameters():
        scale = 24 if p.dim() > 1 else 16
        p.data = torch.tensor(np.round(rng.normal(size=tuple(p.shape)) * scale) / 64).double()
    net = net.double().eval()
    x = torch.tensor(rng.normal(size=shape).astype(np.float32)).double().requires_grad_(True)
    target = rng.dirichlet(np.ones(classes), size=shape[0]).round(3)
    target[:, -1] = 1 - target[:, :-1].sum(1)
    loss = -(F.log_softmax(net(x), -1) * torch.tensor(target)).sum(-1).mean()
    loss.backward()
    flat = lambda t: [float("%.9g" % v) for v in t.reshape(-1).tolist()]
    named = dict(net.named_parameters())
    data = dict(loss=loss.item(), shape=list(shape), input=flat(x.detach()), classes=classes, target=flat(torch.tensor(target)),
        input_gradient=flat(x.grad), gradients={k: flat(p.grad) for k, p in named.items()})
    buffer = io.BytesIO()
    torch.onnx.export(net.float(), x.detach().float(), buffer, opset_version=opset, input_names=["x"], output_names=["logits"],
        dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}}, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE)
    model = onnx.load_from_string(buffer.getvalue())
    for n in model.graph.node: n.doc_string = ""
    onnx.save(model, name + ".onnx")
    missing = set(named) - {i.name for i in model.graph.initializer}
    assert not missing, missing
    json.dump(data, open(name + ".json", "w"))
    print(name, loss.item(), len(model.graph.node), sorted({n.op_type for n in model.graph.node}))

torch.manual_seed(0)
make("cnn", cnn(), (3, 1, 11, 11), 3)
make("residual", residual(), (2, 3, 9, 8), 2)
make("mobile", Mobile(), (2, 2, 6, 6), 2)
make("one_dimensional", one_dimensional(), (2, 3, 15), 2)
make("attention", Attention(), (2, 1, 8, 8), 3)
