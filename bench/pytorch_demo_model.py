#!/usr/bin/python3
"""A forward and backward pass of the demo model in PyTorch, batch 32: the peer
of `go test ./train -run - -bench DemoStep`.

    OPENBLAS_NUM_THREADS=1 /usr/bin/python3 bench/pytorch_demo_model.py

Prints the median of 200 passes in milliseconds, for one thread and for all
cores, contiguous and channels_last; the peer's figure is the best of the two.
"""
import json, os, statistics, time
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import torch, torch.nn as nn, torch.nn.functional as F


class Demo(nn.Module):
    """The layers of train.DemoCNN."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 1
        for stage in ((16, 16), (32, 32), (64,)):
            for out in stage:
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.GroupNorm(out // 4, out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.hidden, self.head = nn.Linear(64 * 3 * 3, 64), nn.Linear(64, 2)

    def forward(self, x):
        x = self.features((x - 0.5719) / 0.1684).flatten(1)
        return self.head(F.relu(self.hidden(x)))


def measure(threads, layout, passes=200):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = Demo().to(memory_format=layout)
    x = torch.rand(32, 1, 28, 28).contiguous(memory_format=layout)
    target = torch.randint(0, 2, (32,))
    times = []
    for i in range(passes + 20):
        start = time.perf_counter()
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), target).backward()
        if i >= 20:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


result = {}
for threads in (1, os.cpu_count()):
    ways = {name: measure(threads, layout) for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last))}
    result[f"{threads} threads"] = {"median_ms": round(min(ways.values()), 3), **{k: round(v, 3) for k, v in ways.items()}}
print(json.dumps({"pytorch": torch.__version__, "batch": 32, **result}))
