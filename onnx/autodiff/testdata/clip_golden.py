#!/usr/bin/python3
"""Golden clipped sums: what functorch's vmap(grad) says of gradients per record.

Run with Debian's python3-torch (with functorch) and python3-onnx from this directory:
    /usr/bin/python3 clip_golden.py
Each network gives clip_NAME.onnx and clip_NAME.json: input (views of a record
in consecutive rows), target, norms of every record's gradient over all weights
and for each weight, and the clipped sums, flat and per layer, in double
precision. Weights are drawn in steps of 1/64, so that the files stay small.
"""
import io, json
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F, onnx
from functorch import make_functional, vmap, grad

class Tokens(nn.Module):
    """A table of rows that are looked up, some of them twice, and a small head."""
    def __init__(s):
        super().__init__()
        s.table = nn.Embedding(40, 6); s.norm = nn.LayerNorm(6); s.mix = nn.Linear(6, 9); s.head = nn.Linear(9, 3)
    def forward(s, x):
        return s.head(torch.tanh(s.mix(s.norm(s.table(x)))).mean(1))

def convolutions():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ELU(), nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Tanh(), nn.Conv2d(8, 24, 3, padding=0), nn.ELU(), nn.Conv2d(24, 24, 1, groups=4), nn.Flatten(), nn.Linear(24 * 4, 3))

def make(name, net, x, classes, views):
    rng = np.random.default_rng(len(name))
    for p in net.parameters():
        p.data = torch.tensor(np.round(rng.normal(size=tuple(p.shape)) * (24 if p.dim() > 1 else 16)) / 64).double()
    net = net.double().eval()
    records = x.shape[0] // views
    target = torch.tensor(rng.dirichlet(np.ones(classes), size=x.shape[0]))
    function, weights = make_functional(net)
    def loss(w, x, t):  # of one record: the mean over its views
        return -(F.log_softmax(function(w, x), -1) * t).sum(-1).mean()
    each = vmap(grad(loss), (None, 0, 0))(weights, x.reshape(records, views, *x.shape[1:]), target.reshape(records, views, -1))
    names = [k for k, _ in net.named_parameters()]
    layer = torch.stack([g.reshape(records, -1).norm(dim=1) for g in each], 1)
    whole = layer.norm(dim=1)
    flat_bound, bounds = whole.median().item(), (layer.median(0).values * 0.9).tolist()
    total = lambda factor, g: torch.einsum("r,r...->...", factor, g)
    flat = [total((flat_bound / whole).clamp(max=1), g) for g in each]
    per = [total((b / layer[:, i]).clamp(max=1), g) for i, (g, b) in enumerate(zip(each, bounds))]
    plain = lambda t: [float("%.9g" % v) for v in t.reshape(-1).tolist()]
    json.dump(dict(shape=list(x.shape), integer=not x.is_floating_point(), input=plain(x), classes=classes, target=plain(target), views=views,
        weights=names, norms=plain(whole), layer_norms=plain(layer), bound=flat_bound, bounds=bounds,
        flat={k: plain(g) for k, g in zip(names, flat)}, layers={k: plain(g) for k, g in zip(names, per)}),
        open("clip_%s.json" % name, "w"))
    buffer = io.BytesIO()
    torch.onnx.export(net.float(), x.float() if x.is_floating_point() else x, buffer, opset_version=17, input_names=["x"], output_names=["logits"],
        dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}}, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE)
    model = onnx.load_from_string(buffer.getvalue())
    for n in model.graph.node: n.doc_string = ""
    onnx.save(model, "clip_%s.onnx" % name)
    print(name, "norms", whole.tolist(), sorted({n.op_type for n in model.graph.node}))

rng = np.random.default_rng(5)
image = torch.tensor(rng.normal(size=(8, 2, 8, 8)).astype(np.float32)).double()
make("convolutions", convolutions(), image, 3, 1)
make("views", convolutions(), image, 3, 2)
make("tokens", Tokens(), torch.tensor(rng.integers(0, 40, size=(6, 4)) // 3 * 3), 3, 2)
