#!/usr/bin/python3
"""PyTorch's side of the engine measurements: one row of `go run ./bench -parts engine`.

    OPENBLAS_NUM_THREADS=1 /usr/bin/python3 bench/engine.py '{"kind": "train", "network": "resnet18", …}'

The modules are those of onnx/zoo/testdata/reference.py, which the zoo's tests
hold against the zoo's graphs, with activations in place as torchvision has
them. What can be chosen (memory layout, the optimiser's foreach, how many
examples functorch takes at once) is tried first, and the fastest is kept.
Then every line of standard input is a number of steps to run, answered by one
line of JSON with the wall and processor seconds of each.
"""
import json
import os
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "onnx", "zoo", "testdata"))
import reference


class SmallCNN(nn.Module):
    """train.CNN with the stages 32, 64, 128 and a hidden layer of 128."""

    def __init__(self, channels, rows, columns, classes):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(channels, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1)])
        self.hidden, self.head = nn.Linear(128 * (rows // 8) * (columns // 8), 128), nn.Linear(128, classes)

    def forward(self, x):
        x = (x - 0.5) / 0.25
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class Demo(nn.Module):
    """The layers of train.DemoCNN."""

    def __init__(self, classes):
        super().__init__()
        layers, channels = [], 1
        for stage in ((16, 16), (32, 32), (64,)):
            for out in stage:
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.GroupNorm(out // 4, out), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.hidden, self.head = nn.Linear(64 * 3 * 3, 64), nn.Linear(64, classes)

    def forward(self, x):
        x = self.features((x - 0.5) / 0.25).flatten(1)
        return self.head(F.relu(self.hidden(x)))


def build(spec):
    torch.manual_seed(1)
    shape = spec["input"]
    if spec["network"] == "small-cnn":
        return SmallCNN(*shape, spec["classes"])
    if spec["network"] == "demo":
        return Demo(spec["classes"])
    return reference.module(spec["network"], torch.empty(1, *shape), spec["classes"], spec["norm"])


def data(spec, layout):
    torch.manual_seed(2)
    x = torch.rand(spec["batch"], *spec["input"])
    return x.contiguous(memory_format=layout) if x.dim() == 4 else x, torch.arange(spec["batch"]) % spec["classes"]


def train(spec, layout, foreach):
    net = build(spec).to(memory_format=layout).train()
    x, y = data(spec, layout)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, foreach=foreach)

    def step():
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    return step


def private(spec, chunk):
    """DP-SGD: per-example gradients, clipped by their norm over all weights,
    summed, noised, divided by the batch, given to AdamW."""
    import functorch
    net = build(spec).train()
    x, y = data(spec, torch.contiguous_format)
    function, parameters, buffers = functorch.make_functional_with_buffers(net)
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)

    def loss(p, image, label):
        return F.cross_entropy(function(p, buffers, image.unsqueeze(0)), label.unsqueeze(0))
    gradients = functorch.vmap(functorch.grad(loss), in_dims=(None, 0, 0))

    def step():
        total = [torch.zeros_like(p) for p in parameters]
        for k in range(0, len(x), chunk):
            each = gradients(parameters, x[k:k + chunk], y[k:k + chunk])
            norm = torch.stack([g.flatten(1).norm(dim=1) for g in each], 1).norm(dim=1)
            scale = (1 / (norm + 1e-6)).clamp(max=1)
            for t, g in zip(total, each):
                t += torch.einsum("n,n...->...", scale, g)
        for p, t in zip(parameters, total):
            p.grad = (t + torch.randn_like(t)) / len(x)
        optimiser.step()
    return step


def input_gradient(spec, layout):
    net = build(spec).to(memory_format=layout).eval().requires_grad_(False)
    x, y = data(spec, layout)
    x.requires_grad_(True)

    def step():
        x.grad = None
        F.cross_entropy(net(x), y).backward()
    return step


def ways(spec):
    """What to try, in rounds: the best of a round decides what the next tries.
    Each is a function of the best so far to names and how to make their steps."""
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    if spec["kind"] == "train":
        yield lambda _: {n: lambda l=l: train(spec, l, False) for n, l in layouts.items()}
        yield lambda best: {best + ", foreach": lambda: train(spec, layouts[best], True)}
    elif spec["kind"] == "dp":
        yield lambda _: {f"functorch, {c} at once": lambda c=c: private(spec, c) for c in sorted({8, spec["batch"]})}
    else:
        yield lambda _: {n: lambda l=l: input_gradient(spec, l) for n, l in layouts.items()}


def fastest(spec):
    """The fastest way and its step; or, where one is asked for, that of the first round."""
    best, name, step = None, None, None
    for attempt in ways(spec):
        candidates = attempt(name)
        if "way" in spec:
            return spec["way"], candidates[spec["way"]]()
        for candidate, make in candidates.items():
            trial = make()
            timed(trial)
            times = [timed(trial)[0]]
            while sum(times) < 0.5 and len(times) < 30:
                times.append(timed(trial)[0])
            if best is None or min(times) < best:
                best, name, step = min(times), candidate, trial
    return name, step


def peak():
    """The most memory this process has held, in bytes. getrusage's ru_maxrss
    would begin with what the process that started us held."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024


def timed(step):
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    if spec["kind"] != "dp":
        F.relu = lambda x, inplace=True: torch.relu_(x)  # torchvision's nn.ReLU(inplace=True)
    chosen, step = fastest(spec)
    print(json.dumps({"version": torch.__version__, "way": chosen}), flush=True)
    for line in sys.stdin:
        times = [timed(step) for _ in range(int(line))]
        print(json.dumps({"wall": [t[0] for t in times], "cpu": [t[1] for t in times],
                          "peak": peak()}), flush=True)


if __name__ == "__main__":
    main()
