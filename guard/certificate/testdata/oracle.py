#!/usr/bin/env python3
"""Double masking (Xiang, Mahloujifar and Mittal 2022, algorithms 1 and 2) in numpy.

Written from the paper, without a look at the Go code: python3 oracle.py > squares.json
A network of two convolutions and a layer, of random weights, on small images: for
each image the answers under each mask, the answer of double masking, and whether
two masks certify it. It also tries every patch position with every content of a
small alphabet and stops if a certified answer is turned.
"""
import itertools
import json
import math
import sys

import numpy as np

ROWS, COLUMNS, CLASSES = 6, 7, 3
PATCH = (2, 1)
K = 3
rng = np.random.default_rng(7)


def net():
    r = lambda *s: np.round(rng.normal(size=s), 3).astype(np.float32)
    return {"first": r(4, 1, 3, 3), "bias": r(4), "second": r(4, 4, 3, 3) * np.float32(0.4), "out": r(4 * ROWS * COLUMNS, CLASSES) * np.float32(0.5)}


def conv(x, w):
    n, c, h, wd = x.shape
    p = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((n, w.shape[0], h, wd))
    for i in range(3):
        for j in range(3):
            out += np.einsum("nchw,oc->nohw", p[:, :, i:i + h, j:j + wd], w[:, :, i, j])
    return out


def logits(w, x):
    x = np.asarray(x, dtype=np.float64).reshape(-1, 1, ROWS, COLUMNS)
    h = np.maximum(conv(x, w["first"]) + w["bias"][None, :, None, None], 0)
    h = np.maximum(conv(h, w["second"]), 0)
    return h.reshape(len(x), -1) @ w["out"]


def answer(w, x):
    return logits(w, x).argmax(1)


def starts(n, p, k):
    stride = math.ceil((n - p + 1) / k)
    size = p + stride - 1
    at = []
    for i in range(k):
        if i * stride <= n - p:
            at.append(min(i * stride, n - size))
    return at, size


def masks():
    tops, h = starts(ROWS, PATCH[0], K)
    lefts, w = starts(COLUMNS, PATCH[1], K)
    out = []
    for t in tops:
        for l in lefts:
            m = np.zeros((ROWS, COLUMNS), bool)
            m[t:t + h, l:l + w] = True
            out.append(m)
    return out


def hide(x, hidden, fill):
    y = x.copy()
    y[hidden] = x[~hidden].mean() if fill == "mean" else {"black": 0.0, "grey": 0.5}[fill]
    return y


def double_masking(w, x, fill):
    m = masks()
    one = answer(w, [hide(x, a, fill) for a in m])
    if len(set(one)) == 1:
        return one, int(one[0])
    values, counts = np.unique(one, return_counts=True)
    majority = values[counts.argmax()]  # the first by name of the most frequent
    for i, a in enumerate(m):
        if one[i] == majority:
            continue
        if (answer(w, [hide(x, a | b, fill) for b in m]) == one[i]).all():
            return one, int(one[i])
    return one, int(majority)


def certified(w, x, fill):
    m = masks()
    all_pairs = answer(w, [hide(x, a | b, fill) for a in m for b in m])
    return len(set(all_pairs)) == 1


def attacked(w, x, fill, proven, agreed, own):
    """Every position, every content of 0, a half and 1: what gets through."""
    through = 0
    alphabet = list(itertools.product([0, 0.5, 1], repeat=PATCH[0] * PATCH[1]))
    for top in range(ROWS - PATCH[0] + 1):
        for left in range(COLUMNS - PATCH[1] + 1):
            for content in alphabet:
                y = x.copy()
                y[top:top + PATCH[0], left:left + PATCH[1]] = np.reshape(content, PATCH)
                one, recovered = double_masking(w, y, fill)
                turned = int(answer(w, [y])[0])
                released = (one == turned).all()
                assert not (proven and recovered != own), "a certified answer was turned"
                assert not (agreed and turned != own and released), "a turned answer was released"
                through += int(turned != own and released)
    return through


def main():
    w = net()
    cases = []
    for fill in ("black", "grey", "mean"):
        for _ in range(14):
            # Images differ in how far the answer is from turning.
            x = np.clip(rng.uniform(0, 1) + rng.uniform(0, 0.6) * rng.normal(size=(ROWS, COLUMNS)), 0, 1).round(3)
            one, recovered = double_masking(w, x, fill)
            own = int(answer(w, [x])[0])
            proven = certified(w, x, fill) and one[0] == own
            agreed = bool((one == own).all())
            z = np.sort(np.vstack([logits(w, [hide(x, a | b, fill) for a in masks() for b in masks()]), logits(w, [x])]), 1)
            if (z[:, -1] - z[:, -2]).min() < 1e-3:
                continue  # float32 may see it otherwise
            cases.append({"fill": fill, "image": x.ravel().tolist(), "own": own, "one": one.tolist(), "recovered": recovered,
                          "certified": bool(proven), "through": attacked(w, x, fill, proven, agreed, own)})
    json.dump({"rows": ROWS, "columns": COLUMNS, "classes": CLASSES, "patch": PATCH, "masks": K,
               "network": {k: [round(float(a), 6) for a in v.ravel()] for k, v in w.items()}, "cases": cases}, sys.stdout)
    print(len(cases), "cases,", sum(c["certified"] for c in cases), "certified,", sum(len(set(c["one"] + [c["own"]])) == 1 for c in cases), "agree,",
          sum(c["through"] > 0 for c in cases), "can be turned and released,", sum(c["recovered"] != max(set(c["one"]), key=c["one"].count) for c in cases), "recovered against the majority", file=sys.stderr)


main()
