#!/usr/bin/python3
"""Makes the goldens that package explain is held against: run with PyTorch 1.13
and NumPy, it writes cnn.onnx, transformer.onnx and golden.json beside itself.

Grad-CAM, Grad-CAM++, integrated gradients and rollout are written down here a
second time, from the papers, over PyTorch's own derivatives in float64.
"""
import json
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

here = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(7)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, padding=1, stride=2)
        self.head = nn.Linear(5 * 4, 3)

    def features(self, x):
        return torch.relu(self.second(torch.tanh(self.first(x))))

    def top(self, a):
        return self.head(F.avg_pool2d(a, 2).flatten(1))

    def forward(self, x):
        return self.top(self.features(x))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        self.weights = torch.softmax(q @ k.transpose(-2, -1) * (w // self.heads) ** -0.5, dim=-1)
        if self.weights.requires_grad:
            self.weights.retain_grad()
        return self.out((self.weights @ v).transpose(1, 2).reshape(n, t, w))


class Transformer(nn.Module):
    """Patches of 3, a class token, two layers."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.patch = nn.Conv2d(1, width, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 7, width))
        self.attention = nn.ModuleList([Attention(width, heads) for _ in range(2)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)) for _ in range(2)])
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
        for a, m in zip(self.attention, self.mlp):
            x = x + a(x)
            x = x + m(x)
        return self.head(x[:, 0])


def relevance(cam):
    cam = np.maximum(cam, 0)
    return cam / cam.max() if cam.max() > 0 else cam


def cams(net, x, c):
    a = net.features(x).detach().requires_grad_(True)
    g, = torch.autograd.grad(net.top(a)[0, c], a)
    a, g = a.detach().numpy()[0], g.numpy()[0]
    plain = relevance((g.mean((1, 2))[:, None, None] * a).sum(0))
    alpha = np.zeros_like(g)
    for k in range(g.shape[0]):
        for i in np.ndindex(g.shape[1:]):
            below = 2 * g[k][i] ** 2 + g[k][i] ** 3 * a[k].sum()
            alpha[k][i] = g[k][i] ** 2 / below if below != 0 else 0
    weights = (alpha * np.maximum(g, 0)).sum((1, 2))
    return plain, relevance((weights[:, None, None] * a).sum(0))


def integrated(net, x, base, c, steps=4000):
    total = torch.zeros_like(x)
    parts = (torch.arange(steps, dtype=x.dtype) + 0.5) / steps  # midpoints: another rule than ours
    for chunk in parts.split(500):
        z = (base + chunk[:, None, None, None] * (x - base)).requires_grad_(True)
        g, = torch.autograd.grad(net(z)[:, c].sum(), z)
        total += g.sum(0, keepdim=True) / steps
    return ((x - base) * total)[0].sum(0).numpy()


def rollouts(net, x, c):
    net(x)[0, c].backward()
    plain, weighted = np.eye(7), np.eye(7)
    for layer in net.attention:
        a, g = layer.weights.detach().numpy()[0], layer.weights.grad.numpy()[0]
        step = 0.5 * a.mean(0) + 0.5 * np.eye(7)
        plain = step @ plain
        weighted = weighted + np.maximum(a * g, 0).mean(0) @ weighted
    return relevance(plain[0, 1:]), relevance((weighted - np.eye(7))[0, 1:])


def export(net, x, name):
    torch.onnx.export(net, x, os.path.join(here, name), input_names=["x"], output_names=["logits"],
                      dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}}, opset_version=14)


golden = {}
net = CNN()
x = torch.randn(1, 2, 8, 8)
base = 0.3 * torch.randn(1, 2, 8, 8)
export(net, x, "cnn.onnx")
net, X, B = net.double(), x.double(), base.double()
c = 2
plain, plus = cams(net, X, c)
X.requires_grad_(True)
gradient, = torch.autograd.grad(net(X)[0, c], X)
log_odds = lambda z: z[0, c] - torch.logsumexp(torch.cat([z[0, :c], z[0, c + 1:]]), 0)
odds, = torch.autograd.grad(log_odds(net(X)), X)
probability, = torch.autograd.grad(torch.softmax(net(X), 1)[0, c], X)
X = X.detach()


def largest(g):
    g = g[0].numpy()
    return np.take_along_axis(g, np.abs(g).argmax(0)[None], 0)[0]


golden["cnn"] = {
    "x": x.flatten().tolist(), "base": base.flatten().tolist(), "class": c,
    "logits": net(X)[0].tolist(), "gradcam": plain.flatten().tolist(), "gradcam++": plus.flatten().tolist(),
    "gradient": largest(gradient).flatten().tolist(), "gradient log-odds": largest(odds).flatten().tolist(),
    "gradient probability": largest(probability).flatten().tolist(),
    "integrated-gradients": integrated(net, X, B, c).flatten().tolist(),
}

net = Transformer()
x = torch.randn(1, 1, 6, 9)
export(net, x, "transformer.onnx")
net = net.double()
plain, weighted = rollouts(net, x.double(), 1)
golden["transformer"] = {"x": x.flatten().tolist(), "class": 1, "rollout": plain.tolist(), "gradient-rollout": weighted.tolist()}


def rank(v):
    v = np.asarray(v, float)
    return np.array([(np.sum(v < a) + np.sum(v <= a) - 1) / 2 for a in v])


def ssim(a, b):
    reach = 5
    k = np.exp(-np.arange(-reach, reach + 1) ** 2 / (2 * 1.5 ** 2))
    k /= k.sum()

    def blur(v):
        p = np.pad(v, reach, mode="edge")
        return np.array([[(k[:, None] * k[None] * p[i:i + 11, j:j + 11]).sum() for j in range(v.shape[1])] for i in range(v.shape[0])])

    a, b = [(v - v.min()) / (v.max() - v.min()) for v in (np.abs(a), np.abs(b))]
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma ** 2, blur(b * b) - mb ** 2, blur(a * b) - ma * mb
    return np.mean((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma ** 2 + mb ** 2 + 1e-4) * (va + vb + 9e-4)))


rng = np.random.default_rng(3)
a = np.round(rng.normal(size=(9, 13)), 1)  # rounded: ties
b = np.round(0.6 * a + rng.normal(size=(9, 13)), 1)
golden["similarity"] = {
    "a": a.flatten().tolist(), "b": b.flatten().tolist(), "rows": 9, "columns": 13,
    "rank": np.corrcoef(rank(a.flatten()), rank(b.flatten()))[0, 1],
    "abs_rank": np.corrcoef(rank(np.abs(a.flatten())), rank(np.abs(b.flatten())))[0, 1],
    "ssim": ssim(a, b),
}
with open(os.path.join(here, "golden.json"), "w") as f:
    json.dump(golden, f, indent=0)
    f.write("\n")
