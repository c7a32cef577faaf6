#!/usr/bin/python3
"""Golden gradients of whole architectures, exported to ONNX by PyTorch.

Run with Debian's python3-torch and python3-onnx from this directory:
    /usr/bin/python3 exported.py [NAME…]
Each network has the structure of the one it is named after, down to the way its
authors write it (which decides the graph), with tiny widths. It gives
exported/NAME.onnx, the exporter's own graph, and exported/NAME.json: inputs,
target, loss, and the gradients in double precision, stored as base64 of
little-endian float32.
"""
import base64, io, json, math, os, sys
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F, onnx

# --- convolutional ---------------------------------------------------------

class Bottleneck(nn.Module):
    def __init__(s, i, mid, out, stride):
        super().__init__()
        s.a, s.na = nn.Conv2d(i, mid, 1, bias=False), nn.BatchNorm2d(mid)
        s.b, s.nb = nn.Conv2d(mid, mid, 3, stride, 1, bias=False), nn.BatchNorm2d(mid)
        s.c, s.nc = nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out)
        s.down = nn.Sequential(nn.Conv2d(i, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride != 1 or i != out else None
    def forward(s, x):
        y = s.nc(s.c(F.relu(s.nb(s.b(F.relu(s.na(s.a(x))))))))
        return F.relu(y + (x if s.down is None else s.down(x)))

def resnet():
    return nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        Bottleneck(4, 3, 8, 1), Bottleneck(8, 3, 8, 1), Bottleneck(8, 4, 10, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 3))

class DenseNet(nn.Module):
    def __init__(s):
        super().__init__()
        s.stem = nn.Conv2d(1, 6, 3, 2, 1, bias=False); c = 6
        s.layers = nn.ModuleList()
        for _ in range(3):
            s.layers.append(nn.ModuleList([nn.BatchNorm2d(c), nn.Conv2d(c, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)])); c += 4
        s.nt, s.transition = nn.BatchNorm2d(c), nn.Conv2d(c, c // 2, 1, bias=False)
        s.last, s.head = nn.BatchNorm2d(c // 2), nn.Linear(c // 2, 3)
    def forward(s, x):
        features = [s.stem(x)]
        for n1, c1, n2, c2 in s.layers:
            features.append(c2(F.relu(n2(c1(F.relu(n1(torch.cat(features, 1))))))))
        x = F.avg_pool2d(s.transition(F.relu(s.nt(torch.cat(features, 1)))), 2, 2)
        return s.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(s.last(x)), (1, 1)), 1))

class MBConv(nn.Module):
    """EfficientNet's block, and MobileNetV3's with its other activations."""
    def __init__(s, i, out, k, stride, act, gate):
        super().__init__()
        mid = 2 * i; s.act, s.gate, s.same = act, gate, stride == 1 and i == out
        s.a, s.na = nn.Conv2d(i, mid, 1, bias=False), nn.BatchNorm2d(mid, eps=1e-3)
        s.b, s.nb = nn.Conv2d(mid, mid, k, stride, k // 2, groups=mid, bias=False), nn.BatchNorm2d(mid, eps=1e-3)
        s.squeeze, s.excite = nn.Conv2d(mid, 2, 1), nn.Conv2d(2, mid, 1)
        s.c, s.nc = nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out, eps=1e-3)
    def forward(s, x):
        y = s.act(s.nb(s.b(s.act(s.na(s.a(x))))))
        y = y * s.gate(s.excite(s.act(s.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = s.nc(s.c(y))
        return x + y if s.same else y

def efficientnet():
    block = lambda *a: MBConv(*a, F.silu, torch.sigmoid)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU(), block(4, 4, 3, 1), block(4, 6, 5, 2),
        nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3))

def mobilenet():
    block = lambda *a: MBConv(*a, F.hardswish, F.hardsigmoid)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Hardswish(), block(4, 4, 3, 1), block(4, 6, 5, 2),
        nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.Hardswish(), nn.Linear(8, 3))

class Permuted(nn.Module):
    """LayerNorm over the channels of [N, C, H, W]."""
    def __init__(s, c):
        super().__init__(); s.norm = nn.LayerNorm(c, eps=1e-6)
    def forward(s, x): return s.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

class ConvNeXtBlock(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.deep, s.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, eps=1e-6)
        s.up, s.down, s.gamma = nn.Linear(c, 3 * c), nn.Linear(3 * c, c), nn.Parameter(torch.ones(c))
    def forward(s, x):
        y = s.norm(s.deep(x).permute(0, 2, 3, 1))
        return x + (s.gamma * s.down(F.gelu(s.up(y)))).permute(0, 3, 1, 2)

def convnext():
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), Permuted(4), ConvNeXtBlock(4), Permuted(4), nn.Conv2d(4, 6, 2, 2), ConvNeXtBlock(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 3))

class UNet(nn.Module):
    def __init__(s, up):
        super().__init__()
        double = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(2, o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU())
        s.a, s.b, s.c, s.head = double(1, 4), double(4, 6), double(10, 4), nn.Conv2d(4, 3, 1)
        s.up, s.transposed = up, nn.ConvTranspose2d(6, 6, 2, 2) if up == "transposed" else None
    def forward(s, x):
        a = s.a(x); b = s.b(F.max_pool2d(a, 2))
        if s.transposed is not None: b = s.transposed(b)
        elif s.up == "nearest": b = F.interpolate(b, scale_factor=2, mode="nearest")
        else: b = F.interpolate(b, size=a.shape[2:], mode=s.up, align_corners=s.up == "bilinear")
        dy = a.size(2) - b.size(2)
        b = F.pad(b, [0, 0, dy // 2, dy - dy // 2])
        return torch.logsumexp(s.head(s.c(torch.cat([a, b], 1))), dim=(2, 3))

# --- attention -------------------------------------------------------------

class TimmAttention(nn.Module):
    def __init__(s, d, heads):
        super().__init__(); s.qkv, s.proj, s.heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads
    def forward(s, x):
        B, N, C = x.shape
        q, k, v = s.qkv(x).reshape(B, N, 3, s.heads, C // s.heads).permute(2, 0, 3, 1, 4).unbind(0)
        w = (q * (C // s.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return s.proj((w @ v).transpose(1, 2).reshape(B, N, C))

class ViT(nn.Module):
    """timm's vision transformer; position embeddings resized to the input, as for another image size."""
    def __init__(s, torch_attention=False, d=8):
        super().__init__()
        s.patch, s.token = nn.Conv2d(1, d, 4, 4), nn.Parameter(torch.zeros(1, 1, d))
        s.position = nn.Parameter(torch.zeros(1, d, 2, 2)); s.own = torch_attention
        s.layers = nn.ModuleList()
        for _ in range(2):
            attention = nn.MultiheadAttention(d, 2, batch_first=True) if torch_attention else TimmAttention(d, 2)
            s.layers.append(nn.ModuleList([nn.LayerNorm(d), attention, nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)]))
        s.norm, s.head = nn.LayerNorm(d), nn.Linear(d, 3)
    def forward(s, x):
        x = s.patch(x); p = F.interpolate(s.position, size=(3, 3), mode="bicubic", align_corners=False)
        x = (x + p).flatten(2).transpose(1, 2)
        x = torch.cat([s.token.expand(x.shape[0], -1, -1), x], 1)
        for n1, attention, n2, up, down in s.layers:
            y = n1(x)
            x = x + (attention(y, y, y, need_weights=False)[0] if s.own else attention(y))
            x = x + down(F.gelu(up(n2(x))))
        return s.head(s.norm(x)[:, 0])

class SwinBlock(nn.Module):
    def __init__(s, d, heads, size, window, shift):
        super().__init__()
        s.heads, s.size, s.window, s.shift = heads, size, window, shift
        s.n1, s.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        s.qkv, s.proj, s.up, s.down = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        s.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        rel = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + window - 1
        s.register_buffer("index", rel[..., 0] * (2 * window - 1) + rel[..., 1])
        mask = None
        if shift:
            label = torch.zeros(1, size, size, 1)
            for i, h in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                for j, w in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))): label[:, h, w] = 3 * i + j
            windows = s.partition(label).squeeze(-1)
            mask = (windows[:, None] - windows[:, :, None] != 0).double() * -100.0
        s.register_buffer("mask", mask)
    def partition(s, x):
        B, H, W, C = x.shape; w = s.window
        return x.view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, w * w, C)
    def forward(s, x):
        H = W = s.size; w = s.window; B, L, C = x.shape
        y = s.n1(x).view(B, H, W, C)
        if s.shift: y = torch.roll(y, (-s.shift, -s.shift), (1, 2))
        y = s.partition(y); Bw, N, _ = y.shape
        qkv = s.qkv(y).reshape(Bw, N, 3, s.heads, C // s.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        a = q * (C // s.heads) ** -0.5 @ k.transpose(-2, -1)
        a = a + s.table[s.index.view(-1)].view(N, N, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if s.mask is not None:
            nW = s.mask.shape[0]
            a = (a.view(Bw // nW, nW, s.heads, N, N) + s.mask.to(a.dtype).unsqueeze(1).unsqueeze(0)).view(-1, s.heads, N, N)
        y = s.proj((a.softmax(-1) @ v).transpose(1, 2).reshape(Bw, N, C))
        y = y.view(-1, H // w, W // w, w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, H, W, C)
        if s.shift: y = torch.roll(y, (s.shift, s.shift), (1, 2))
        x = x + y.view(B, H * W, C)
        return x + s.down(F.gelu(s.up(s.n2(x))))

class Swin(nn.Module):
    def __init__(s, d=4):
        super().__init__()
        s.patch, s.norm = nn.Conv2d(1, d, 2, 2), nn.LayerNorm(d)
        s.blocks = nn.Sequential(SwinBlock(d, 2, 4, 2, 0), SwinBlock(d, 2, 4, 2, 1))
        s.merge, s.nm = nn.Linear(4 * d, 2 * d, bias=False), nn.LayerNorm(4 * d)
        s.last, s.head = SwinBlock(2 * d, 2, 2, 2, 0), nn.Linear(2 * d, 3)
    def forward(s, x):
        x = s.blocks(s.norm(s.patch(x).flatten(2).transpose(1, 2)))
        B, L, C = x.shape; x = x.view(B, 4, 4, C)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1).view(B, -1, 4 * C)
        return s.head(s.last(s.merge(s.nm(x))).transpose(1, 2).mean(2))

class MIL(nn.Module):
    """Gated attention over a bag of tiles (Ilse et al. 2018)."""
    def __init__(s):
        super().__init__()
        s.encoder = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 6))
        s.v, s.u, s.w, s.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 1), nn.Linear(6, 3)
    def forward(s, x):
        B, T = x.shape[:2]
        h = s.encoder(x.reshape(-1, *x.shape[2:])).view(B, T, -1)
        a = torch.softmax(s.w(torch.tanh(s.v(h)) * torch.sigmoid(s.u(h))), 1)
        return s.head(torch.bmm(a.transpose(1, 2), h).squeeze(1))

class BERT(nn.Module):
    """Embeddings and one layer as transformers writes them, with a mask of the padding."""
    def __init__(s, d=8, vocabulary=11):
        super().__init__()
        s.word, s.place, s.kind = nn.Embedding(vocabulary, d, padding_idx=0), nn.Embedding(6, d), nn.Embedding(2, d)
        s.norm, s.n1, s.n2 = nn.LayerNorm(d, eps=1e-12), nn.LayerNorm(d, eps=1e-12), nn.LayerNorm(d, eps=1e-12)
        s.q, s.k, s.v, s.out = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        s.up, s.down, s.pool, s.head = nn.Linear(d, 16), nn.Linear(16, d), nn.Linear(d, d), nn.Linear(d, 3)
        s.register_buffer("positions", torch.arange(6).expand((1, -1)))
    def forward(s, ids, mask):
        B, L = ids.shape
        x = s.norm(s.word(ids) + s.kind(torch.zeros_like(ids)) + s.place(s.positions[:, :L]))
        far = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(torch.float32).min
        heads = lambda t: t.view(t.size()[:-1] + (2, 4)).permute(0, 2, 1, 3)
        w = torch.matmul(heads(s.q(x)), heads(s.k(x)).transpose(-1, -2)) / math.sqrt(4) + far
        y = torch.matmul(F.softmax(w, -1), heads(s.v(x))).permute(0, 2, 1, 3).contiguous()
        x = s.n1(s.out(y.view(y.size()[:-2] + (8,))) + x)
        x = s.n2(s.down(F.gelu(s.up(x))) + x)
        return s.head(torch.tanh(s.pool(x[:, 0])))

class GPT(nn.Module):
    """A decoder layer with a causal mask, rotary positions, RMS norm and a gated feed-forward (Llama), tied head."""
    def __init__(s, d=8, vocabulary=5):
        super().__init__()
        s.word = nn.Embedding(vocabulary, d); s.g1, s.g2, s.g3 = (nn.Parameter(torch.ones(d)) for _ in range(3))
        s.q, s.k, s.v, s.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        s.gate, s.up, s.down = nn.Linear(d, 12, bias=False), nn.Linear(d, 12, bias=False), nn.Linear(12, d, bias=False)
        s.register_buffer("frequency", 1.0 / (10000 ** (torch.arange(0, 4, 2).double() / 4)))
    def rms(s, x, g): return g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
    def forward(s, ids):
        B, L = ids.shape; x = s.word(ids)
        angle = torch.einsum("i,j->ij", torch.arange(L, device=ids.device).to(s.frequency.dtype), s.frequency)
        angle = torch.cat((angle, angle), -1); cos, sin = angle.cos()[None, None], angle.sin()[None, None]
        def turn(t):
            a, b = t[..., : t.shape[-1] // 2], t[..., t.shape[-1] // 2 :]
            return t * cos + torch.cat((-b, a), -1) * sin
        y = s.rms(x, s.g1); heads = lambda t: t.view(B, L, 2, 4).transpose(1, 2)
        q, k, v = turn(heads(s.q(y))), turn(heads(s.k(y))), heads(s.v(y))
        causal = torch.tril(torch.ones(L, L, dtype=torch.bool, device=ids.device))
        w = (q @ k.transpose(2, 3) / math.sqrt(4)).masked_fill(~causal, float("-inf"))
        x = x + s.out((w.softmax(-1) @ v).transpose(1, 2).reshape(B, L, -1))
        y = s.rms(x, s.g2); x = x + s.down(F.silu(s.gate(y)) * s.up(y))
        return (s.rms(x, s.g3) @ s.word.weight.t())[:, -1]

class GPT2(nn.Module):
    """A block as GPT-2 has it: Conv1D weights, split, bias buffer for the mask, the tanh form of GELU."""
    def __init__(s, d=8):
        super().__init__()
        s.word, s.place = nn.Embedding(7, d), nn.Embedding(6, d); s.n1, s.n2, s.nf = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        s.w1, s.b1, s.w2, s.b2 = (nn.Parameter(torch.zeros(a)) for a in ((d, 3 * d), (3 * d,), (d, d), (d,)))
        s.w3, s.b3, s.w4, s.b4 = (nn.Parameter(torch.zeros(a)) for a in ((d, 2 * d), (2 * d,), (2 * d, d), (d,)))
        s.head = nn.Linear(d, 3, bias=False)
        s.register_buffer("mask", torch.tril(torch.ones(6, 6, dtype=torch.uint8)).view(1, 1, 6, 6).bool())
    def conv1d(s, x, w, b):
        return torch.addmm(b, x.view(-1, x.size(-1)), w).view(x.size()[:-1] + (w.shape[1],))
    def forward(s, ids):
        L = ids.shape[-1]
        x = s.word(ids) + s.place(torch.arange(L, device=ids.device).unsqueeze(0))
        q, k, v = (t.view(t.size()[:-1] + (2, 4)).permute(0, 2, 1, 3) for t in s.conv1d(s.n1(x), s.w1, s.b1).split(8, dim=2))
        w = torch.matmul(q, k.transpose(-1, -2)) / (v.size(-1) ** 0.5)
        w = torch.where(s.mask[:, :, :L, :L], w, torch.full([], torch.finfo(torch.float32).min, dtype=w.dtype))
        y = torch.matmul(F.softmax(w, -1), v).permute(0, 2, 1, 3).contiguous()
        x = x + s.conv1d(y.view(y.size()[:-2] + (8,)), s.w2, s.b2)
        h = s.conv1d(s.n2(x), s.w3, s.b3)
        h = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0))))
        return s.head(s.nf(x + s.conv1d(h, s.w4, s.b4))[:, -1])

class Enformer(nn.Module):
    """Convolution tower with attention pooling, then attention with relative positions, their basis and their shift
    (Avsec et al. 2021, as lucidrains' enformer-pytorch writes it)."""
    def __init__(s, d=8, heads=2):
        super().__init__()
        s.stem = nn.Conv1d(4, d, 5, padding=2); s.n1, s.point = nn.BatchNorm1d(d), nn.Conv1d(d, d, 1)
        s.pool = nn.Conv2d(d, d, 1, bias=False); s.n2, s.tower = nn.BatchNorm1d(d), nn.Conv1d(d, d, 5, padding=2)
        s.norm = nn.LayerNorm(d); s.q, s.k, s.v = nn.Linear(d, 8, bias=False), nn.Linear(d, 8, bias=False), nn.Linear(d, d, bias=False)
        s.relative = nn.Linear(4, 8, bias=False); s.content, s.position = nn.Parameter(torch.zeros(1, heads, 1, 4)), nn.Parameter(torch.zeros(1, heads, 1, 4))
        s.out, s.nf, s.up, s.down, s.head = nn.Linear(d, d), nn.LayerNorm(d), nn.Linear(d, 16), nn.Linear(16, d), nn.Linear(d, 3)
        s.heads = heads
        L = 8; at = torch.arange(-L + 1, L).double(); halves = 2.0 ** torch.tensor([1.0, 2.0]).double()
        basis = torch.exp(-math.log(2.0) / halves * at.abs()[:, None])
        s.register_buffer("basis", torch.cat([basis, torch.sign(at)[:, None] * basis], -1))
    def gelu(s, x): return torch.sigmoid(1.702 * x) * x
    def shift(s, x):
        x = torch.cat((torch.zeros_like(x[..., :1]), x), -1); _, h, t1, t2 = x.shape
        x = x.reshape(-1, h, t2, t1)[:, :, 1:, :].reshape(-1, h, t1, t2 - 1)
        return x[..., : (t2 + 1) // 2]
    def forward(s, x):
        x = s.stem(x.transpose(1, 2)); x = x + s.point(s.gelu(s.n1(x)))
        B, D, L = x.shape; x = x.view(B, D, L // 2, 2)
        x = (x * s.pool(x).softmax(-1)).sum(-1)
        x = x + s.tower(s.gelu(s.n2(x))); x = x.transpose(1, 2)
        y = s.norm(x); split = lambda t: t.view(t.shape[0], -1, s.heads, 4).transpose(1, 2)
        q, k, v = split(s.q(y)) * 4 ** -0.5, split(s.k(y)), split(s.v(y))
        content = torch.einsum("bhid,bhjd->bhij", q + s.content, k)
        rel = s.relative(s.basis).view(-1, s.heads, 4).transpose(0, 1)
        place = s.shift(torch.einsum("bhid,hjd->bhij", q + s.position, rel))
        w = (content + place).softmax(-1)
        y = torch.einsum("bhij,bhjd->bhid", w, v).transpose(1, 2).reshape(x.shape)
        x = x + s.out(y); x = x + s.down(F.relu(s.up(s.nf(x))))
        return F.softplus(s.head(s.gelu(x).mean(1)))

# --- and the rest of what exporters write ----------------------------------

class Recurrent(nn.Module):
    def __init__(s):
        super().__init__()
        s.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True); s.gru = nn.GRU(8, 4, batch_first=True)
        s.rnn, s.head = nn.RNN(4, 3), nn.Linear(3, 3)
    def forward(s, x):
        y, _ = s.gru(s.lstm(x)[0]); _, h = s.rnn(y.transpose(0, 1))
        return s.head(h[-1])

class Layers(nn.Module):
    """Paddings, norms, pools and activations that the others do not have. Not circular padding: the exporter of
    PyTorch 1.13 writes another function for it."""
    def __init__(s):
        super().__init__()
        s.a = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"); s.b = nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")
        s.c = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"); s.i, s.p = nn.InstanceNorm2d(4, affine=True), nn.PReLU(4)
        s.shuffle, s.head = nn.PixelShuffle(2), nn.Linear(36, 3)
    def forward(s, x):
        x = F.mish(s.p(s.i(s.a(x)))); x = F.elu(F.celu(s.b(x), 0.7), 0.9) + F.selu(x)
        x = F.avg_pool2d(F.softsign(s.c(x)), 3, 2, 1, ceil_mode=True, count_include_pad=False)
        x = F.max_pool2d(s.shuffle(x), 3, 2, ceil_mode=True)
        x = F.glu(torch.cat([x, x.cumsum(-1)], 1), 1)
        x = F.normalize(x.flatten(1), dim=1) + torch.logsumexp(x, (2, 3)) - x.flatten(1).std(1, keepdim=True)
        return s.head(x)

class Indexing(nn.Module):
    """A router that sends tokens to their best experts, and scatters; the assignment becomes a ScatterND whose
    indices name the example, which is refused per example."""
    def __init__(s, d=4):
        super().__init__()
        s.router, s.experts, s.head = nn.Linear(d, 3), nn.Parameter(torch.zeros(3, d, d)), nn.Linear(d, 3)
    def forward(s, x):
        p = s.router(x).softmax(-1); top, at = p.topk(2, -1)
        weight = torch.zeros_like(p).scatter(-1, at, top / top.sum(-1, keepdim=True))
        y = torch.einsum("btd,edf,bte->btf", x, s.experts, weight)
        y = torch.gather(y, 1, torch.tensor([[[2], [0]]]).expand(x.shape[0], 2, 4))
        y = y.clone(); y[:, 0, 1] = y[:, 1, 0] * 2
        y = y * F.one_hot(torch.tensor([1, 2]), 4).to(y.dtype) + torch.triu(y)
        return s.head(y.sum(1).clamp(-3, 3)) + y.max(1)[0][:, :3] + y.amin((1, 2))[:, None] + (y + 3).prod(1)[:, 1:]

class Functions(nn.Module):
    """One call of each function that no architecture above has."""
    def __init__(s):
        super().__init__(); s.first, s.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(8, 3)
    def forward(s, x):
        x = torch.tanh(s.first(x)); small = x * 0.9
        y = torch.acos(small) + torch.asin(small) * torch.atan(x) + torch.tan(x) + torch.sin(x) * torch.cos(x)
        y = y + torch.exp(x) * torch.log(x + 2) + torch.reciprocal(x + 3) + torch.floor(4 * x) * x + torch.ceil(3 * x) * x + torch.round(5 * x) * x
        y = y + torch.sign(x) * torch.min(x, 2 * x * x) + torch.max(x, x * x) + torch.fmod(3 * x, 1.1) + F.threshold(x, 0, 0) + F.hardshrink(x, 0.2)
        y = y + F.local_response_norm(x, 3, alpha=0.3) + torch.norm(x, 1, 1, keepdim=True).repeat(1, 4, 1, 1) / 4 + F.log_softmax(x, 1) + F.softmin(x, 2)
        y = y + torch.log1p(x * x) + F.logsigmoid(x) + F.relu6(4 * x) + F.leaky_relu(x, 0.2) + torch.rsqrt(x + 2) + F.hardtanh(2 * x) + torch.square(x)
        rows = y[:, torch.tensor([0, 2, 3, 3]), torch.tensor([1, 0, 1, 2])] # [N, 4, W]
        return s.head(torch.cat([F.adaptive_max_pool2d(y, 1).flatten(1), torch.tanh(rows).prod(-1)], 1) / 8) + torch.var(y, (1, 2, 3), keepdim=True).flatten(1).sqrt()

# --- making the files ------------------------------------------------------

pack = lambda t: base64.b64encode(np.asarray(t.detach().numpy(), "<f4").tobytes()).decode()

def make(name, net, inputs, classes, opset, training=False):
    torch.manual_seed(0)
    rng = np.random.default_rng(sum(map(ord, name)))
    for n, p in net.named_parameters():
        # about the gain that keeps activations near one, around one for the scales of norms
        fan = p[0].numel() if p.dim() > 1 else 16
        v = rng.normal(size=tuple(p.shape)) / math.sqrt(fan)
        if p.dim() == 1 and n.endswith("weight") or n.startswith("g") and p.dim() == 1: v = 1 + v
        p.data = torch.tensor(np.round(v * 256) / 256).double()
    for n, b in net.named_buffers():
        if n.endswith("running_mean"): b.copy_(torch.tensor(np.round(rng.normal(size=b.shape) * 16) / 64))
        if n.endswith("running_var"): b.copy_(torch.tensor(1 + np.round(rng.uniform(size=b.shape) * 16) / 32))
    net = net.double()
    net.train(training)
    for m in net.modules():
        # attention outside training would be traced as one opaque kernel; without dropout both are the same
        if isinstance(m, nn.MultiheadAttention): m.train()
    feeds, names = [], []
    for key, v in inputs(rng).items():
        t = torch.tensor(v)
        feeds.append(t.double().requires_grad_(True) if t.is_floating_point() else t); names.append(key)
    n = feeds[0].shape[0]
    target = rng.dirichlet(np.ones(classes), size=n).round(3); target[:, -1] = 1 - target[:, :-1].sum(1)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    loss = -(F.log_softmax(net(*feeds), -1) * torch.tensor(target)).sum(-1).mean()
    loss.backward()
    net.load_state_dict(state) # running statistics as they were
    parameters = dict(net.named_parameters())
    data = dict(loss=loss.item(), classes=classes, target=pack(torch.tensor(target)), per_example=not training and name != "indexing",
        inputs=[dict(name=k, shape=list(t.shape), floats=pack(t) if t.is_floating_point() else None,
            ints=None if t.is_floating_point() else t.reshape(-1).tolist(), gradient=pack(t.grad) if t.is_floating_point() else None) for k, t in zip(names, feeds)],
        gradients={k: pack(p.grad) for k, p in parameters.items()})
    buffer = io.BytesIO()
    net = net.float()
    torch.onnx.export(net, tuple(t.detach().float() if t.is_floating_point() else t for t in feeds), buffer, opset_version=opset, input_names=names,
        output_names=["logits"], dynamic_axes={k: {0: "n"} for k in names + ["logits"]}, do_constant_folding=False,
        training=torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.PRESERVE)
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node: node.doc_string = ""
    known = {i.name for i in model.graph.initializer}
    data["gradients"] = {k: v for k, v in data["gradients"].items() if k in known}
    lost = [k for k in parameters if k not in known]
    assert name == "recurrent" or not lost, (name, lost)
    onnx.save(model, f"exported/{name}.onnx")
    json.dump(data, open(f"exported/{name}.json", "w"))
    print(name, f"opset {opset} loss {loss.item():.5f}", os.path.getsize(f"exported/{name}.onnx"), os.path.getsize(f"exported/{name}.json"),
        len(model.graph.node), sorted({x.op_type for x in model.graph.node}), lost)

image = lambda *shape: lambda rng: {"x": rng.normal(size=shape).astype(np.float32)}
ids = lambda rng: {"ids": rng.integers(1, 5, size=(2, 5))}
masked = lambda rng: {"ids": np.array([[3, 1, 4, 9, 5], [2, 7, 1, 0, 0]]), "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
dna = lambda rng: {"x": np.eye(4, dtype=np.float32)[rng.integers(0, 4, size=(2, 16))] + rng.normal(size=(2, 16, 4)).astype(np.float32) / 8}
all = {
    "resnet": (resnet, image(2, 3, 20, 20), 3, 13), "resnet_training": (resnet, image(3, 3, 20, 20), 3, 14, True),
    "resnet_training_13": (resnet, image(3, 3, 20, 20), 3, 13, True),
    "densenet": (DenseNet, image(2, 1, 12, 12), 3, 14), "efficientnet": (efficientnet, image(2, 3, 12, 12), 3, 15),
    "mobilenet": (mobilenet, image(2, 3, 12, 12), 3, 14), "convnext": (convnext, image(2, 3, 16, 16), 3, 17),
    "unet_nearest": (lambda: UNet("nearest"), image(2, 1, 9, 8), 3, 13), "unet_bilinear": (lambda: UNet("bilinear"), image(2, 1, 9, 8), 3, 15),
    "unet_bicubic": (lambda: UNet("bicubic"), image(2, 1, 9, 8), 3, 16), "unet_transposed": (lambda: UNet("transposed"), image(2, 1, 9, 8), 3, 17),
    "vit": (ViT, image(2, 1, 12, 12), 3, 16), "vit_torch": (lambda: ViT(True), image(2, 1, 12, 12), 3, 17), "swin": (Swin, image(2, 1, 8, 8), 3, 13),
    "mil": (MIL, image(2, 3, 1, 8, 8), 3, 15), "bert": (BERT, masked, 3, 14), "gpt": (GPT, ids, 5, 17), "gpt2": (GPT2, ids, 3, 13),
    "enformer": (Enformer, dna, 3, 16), "recurrent": (Recurrent, image(2, 4, 3), 3, 14), "layers": (Layers, image(2, 2, 10, 10), 3, 17),
    "functions": (Functions, image(2, 1, 4, 4), 3, 15), "indexing": (Indexing, image(2, 3, 4), 3, 16),
}
os.makedirs("exported", exist_ok=True)
for name, (net, *rest) in all.items():
    if len(sys.argv) < 2 or name in sys.argv[1:]: make(name, net(), *rest)
