"""The zoo's architectures as PyTorch modules, written from their papers with the
parameter names of torchvision and timm. Run as

    reference.py FOLDER NAME...

For each NAME it loads FOLDER/NAME.weights.safetensors into a module, strictly,
runs FOLDER/NAME.input.safetensors through it in double precision, in training
mode if NAME has @trains and with SiLU for ReLU if it has @smooth, and writes FOLDER/NAME.want.safetensors: the logits
and, for the mean cross-entropy of the labels 0, 1, 0, ... the loss and the
gradients of the input and every weight.
"""
import json, struct, sys
import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

torch.set_num_threads(1)


def load(path):
    raw = open(path, "rb").read()
    n, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    return {k: torch.from_numpy(np.frombuffer(raw[8 + n + e["data_offsets"][0]:8 + n + e["data_offsets"][1]], "<f4").reshape(e["shape"]).copy())
            for k, e in header.items() if k != "__metadata__"}


def save(path, tensors):
    header, data = {}, []
    at = 0
    for name, t in tensors.items():
        raw = t.detach().float().contiguous().numpy().tobytes()
        header[name] = dict(dtype="F32", shape=list(t.shape), data_offsets=[at, at + len(raw)])
        data.append(raw)
        at += len(raw)
    header = json.dumps(header).encode()
    open(path, "wb").write(struct.pack("<Q", len(header)) + header + b"".join(data))


def group_norm(c):
    return nn.GroupNorm(int(np.gcd(c, 32)), c)


class Block(nn.Module):
    def __init__(self, cin, width, stride, norm, expansion):
        super().__init__()
        cout = width * expansion
        if expansion == 1:
            self.conv1, self.bn1 = nn.Conv2d(cin, width, 3, stride, 1, bias=False), norm(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        else:
            self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), norm(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), norm(width)
            self.conv3, self.bn3 = nn.Conv2d(width, cout, 1, bias=False), norm(cout)
        self.wide = expansion > 1
        self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), norm(cout)) if stride > 1 or cin != cout else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.wide:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, counts, classes, channels, norm, expansion=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), norm(64)
        cin = 64
        for s, count in enumerate(counts):
            width, blocks = 64 << s, []
            for i in range(count):
                blocks.append(Block(cin, width, 2 if s and not i else 1, norm, expansion))
                cin = width * expansion
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(cin, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, cin, norm):
        super().__init__()
        self.norm1, self.conv1 = norm(cin), nn.Conv2d(cin, 128, 1, bias=False)
        self.norm2, self.conv2 = norm(128), nn.Conv2d(128, 32, 3, 1, 1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))], 1)


class DenseNet(nn.Module):
    def __init__(self, classes, channels, norm):
        super().__init__()
        f = self.features = nn.Module()
        f.conv0, f.norm0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), norm(64)
        c = 64
        for s, count in enumerate((6, 12, 24, 16)):
            if s:
                t = nn.Module()
                t.norm, t.conv = norm(c), nn.Conv2d(c, c // 2, 1, bias=False)
                setattr(f, f"transition{s}", t)
                c //= 2
            block = nn.Module()
            for i in range(count):
                setattr(block, f"denselayer{i + 1}", DenseLayer(c, norm))
                c += 32
            setattr(f, f"denseblock{s + 1}", block)
        f.norm5 = norm(c)
        self.classifier = nn.Linear(c, classes)

    def forward(self, x):
        f = self.features
        x = F.max_pool2d(F.relu(f.norm0(f.conv0(x))), 3, 2, 1)
        for s in range(4):
            if s:
                t = getattr(f, f"transition{s}")
                x = F.avg_pool2d(t.conv(F.relu(t.norm(x))), 2, 2)
            for layer in getattr(f, f"denseblock{s + 1}").children():
                x = layer(x)
        return self.classifier(F.relu(f.norm5(x)).mean((2, 3)))


class ConvNorm(nn.Sequential):
    def __init__(self, cin, cout, k, stride, norm, groups=1, act=True):
        super().__init__(nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False), norm(cout), *([nn.SiLU()] if act else []))


class Excite(nn.Module):
    def __init__(self, c, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, squeezed, 1), nn.Conv2d(squeezed, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, cin, cout, expansion, k, stride, norm):
        super().__init__()
        wide = cin * expansion
        parts = [ConvNorm(cin, wide, 1, 1, norm)] if expansion > 1 else []
        parts += [ConvNorm(wide, wide, k, stride, norm, groups=wide), Excite(wide, max(1, cin // 4)), ConvNorm(wide, cout, 1, 1, norm, act=False)]
        self.block, self.residual = nn.Sequential(*parts), stride == 1 and cin == cout

    def forward(self, x):
        y = self.block(x)
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    def __init__(self, classes, channels, norm):
        super().__init__()
        stages, cin = [ConvNorm(channels, 32, 3, 2, norm)], 32
        for e, k, s, cout, n in ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)):
            blocks = []
            for i in range(n):
                blocks.append(Inverted(cin, cout, e, k, 1 if i else s, norm))
                cin = cout
            stages.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*stages, ConvNorm(320, 1280, 1, 1, norm))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) * (w // self.heads) ** -0.5).softmax(-1)
        return self.proj((a @ v).transpose(1, 2).reshape(n, t, w))


class TransformerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width, 1e-6), Attention(width, heads), nn.LayerNorm(width, 1e-6)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, classes, channels, tokens, width, heads):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, width, 16, 16)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads) for _ in range(12)])
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Double(nn.Module):
    def __init__(self, cin, cout, norm):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(cin, cout, 3, 1, 1, bias=False), norm(cout)
        self.conv2, self.norm2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), norm(cout)

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class UNet(nn.Module):
    def __init__(self, classes, channels, norm):
        super().__init__()
        c = channels
        for i in range(4):
            setattr(self, f"encoder{i + 1}", Double(c, 32 << i, norm))
            c = 32 << i
        self.bottleneck = Double(c, 512, norm)
        for i in (3, 2, 1, 0):
            setattr(self, f"upconv{i + 1}", nn.ConvTranspose2d(64 << i, 32 << i, 2, 2))
            setattr(self, f"decoder{i + 1}", Double(64 << i, 32 << i, norm))
        self.conv = nn.Conv2d(32, classes, 1)

    def forward(self, x):
        rows, columns = x.shape[2:]
        x = F.pad(x, (0, -columns % 16, 0, -rows % 16))
        skips = []
        for i in range(4):
            x = getattr(self, f"encoder{i + 1}")(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for i in (3, 2, 1, 0):
            x = getattr(self, f"decoder{i + 1}")(torch.cat([getattr(self, f"upconv{i + 1}")(x), skips[i]], 1))
        return self.conv(x)[:, :, :rows, :columns]


class MIL(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.embed = nn.Linear(features, 512)
        self.attention = nn.Module()
        self.attention.v, self.attention.u, self.attention.w = nn.Linear(512, 256), nn.Linear(512, 256), nn.Linear(256, 1)
        self.head = nn.Linear(512, classes)

    def forward(self, x):
        h = F.relu(self.embed(x))
        a = self.attention.w(torch.tanh(self.attention.v(h)) * torch.sigmoid(self.attention.u(h))).softmax(1)
        return self.head((a * h).sum(1))


class DNA(nn.Module):
    def __init__(self, length, classes, norm):
        super().__init__()
        for i, (cin, cout, k) in enumerate(((4, 64, 15), (64, 128, 5))):
            part = nn.Module()
            part.conv, part.norm = nn.Conv1d(cin, cout, k, padding=k // 2, bias=False), norm(cout)
            setattr(self, f"stem{i}", part)
        self.pos_embed = nn.Parameter(torch.zeros(1, -(-length // 16), 128))
        self.blocks = nn.Sequential(*[TransformerBlock(128, 4) for _ in range(4)])
        self.norm, self.head = nn.LayerNorm(128, 1e-6), nn.Linear(128, classes)

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[2] % 16))
        for part in (self.stem0, self.stem1):
            x = F.max_pool1d(F.gelu(part.norm(part.conv(x))), 4)
        return self.head(self.norm(self.blocks(x.transpose(1, 2) + self.pos_embed)).mean(1))


class MLP(nn.Module):
    def __init__(self, columns, classes, norm):
        super().__init__()
        for i, cin in enumerate((columns, 128)):
            layer = nn.Linear(cin, 128)
            layer.norm = norm(128)
            setattr(self, f"hidden{i + 1}", layer)
        self.head = nn.Linear(128, classes)

    def forward(self, x):
        for layer in (self.hidden1, self.hidden2):
            x = F.relu(layer.norm(layer(x)))
        return self.head(x)


# Stored [in, out] in the zoo, [out, in] by PyTorch.
TURNED = ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "embed.weight", "attention.v.weight", "attention.u.weight", "attention.w.weight")


def turned(key, t):
    return t.t() if t.dim() == 2 and key.endswith(TURNED) else t


def module(name, x, classes, norm):
    kind, c = name.split("@")[0], x.shape[1]
    plain = {"batch": nn.BatchNorm2d, "group": group_norm}[norm]
    if kind in ("dna-transformer", "tabular-mlp") and norm == "batch":
        plain = nn.BatchNorm1d
    return {
        "resnet18": lambda: ResNet((2, 2, 2, 2), classes, c, plain),
        "resnet50": lambda: ResNet((3, 4, 6, 3), classes, c, plain, 4),
        "densenet121": lambda: DenseNet(classes, c, plain),
        "efficientnet-b0": lambda: EfficientNet(classes, c, plain),
        "vit-ti16": lambda: ViT(classes, c, x.shape[2] // 16 * (x.shape[3] // 16) + 1, 192, 3),
        "vit-s16": lambda: ViT(classes, c, x.shape[2] // 16 * (x.shape[3] // 16) + 1, 384, 6),
        "unet": lambda: UNet(classes, c, plain),
        "attention-mil": lambda: MIL(x.shape[2], classes),
        "dna-transformer": lambda: DNA(x.shape[2], classes, plain),
        "tabular-mlp": lambda: MLP(c, classes, plain),
    }[kind]()


def main(folder, *names):
    for name in names:
        weights, x = load(f"{folder}/{name}.weights.safetensors"), load(f"{folder}/{name}.input.safetensors")["x"]
        net = module(name, x, 3, name.split("@")[1]).train("@trains" in name)
        key = lambda k: k.replace("stem.0.", "stem0.").replace("stem.1.", "stem1.")
        state = {}
        for k, own in net.state_dict().items():
            if k.endswith("num_batches_tracked"):
                state[k] = own
        for k, w in weights.items():
            own = net.state_dict()[key(k)]
            state[key(k)] = turned(k, w).reshape(own.shape)  # group normalisation is stored [C, 1, 1]
        net.load_state_dict(state, strict=True)
        net, x = net.double(), x.double()
        x.requires_grad_(True)
        F.relu = F.silu if "@smooth" in name else torch.relu
        z = net(x)
        loss = F.cross_entropy(z, torch.arange(len(z)) % 2) if z.dim() == 2 else z.sum()
        loss.backward()
        want = {"logits": z, "loss": loss.reshape(1), "gradient/input": x.grad}
        parameters = dict(net.named_parameters())
        for k, w in weights.items():
            p = parameters.get(key(k))
            if p is not None:
                want["gradient/" + k] = turned(k, p.grad).reshape(w.shape)
        save(f"{folder}/{name}.want.safetensors", want)


if __name__ == "__main__":
    main(*sys.argv[1:])
