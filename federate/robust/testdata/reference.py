"""Writes golden.json: the rules of package robust in NumPy, straight from their
papers, on seeded rows. python3 reference.py > golden.json"""
import json
import numpy as np

def mean(x, w, f, g): return np.average(x, 0, w)
def norm_bound(x, w, f, g):
    l = np.linalg.norm(x, axis=1); return (x * (w * np.minimum(1, np.median(l) / l))[:, None]).sum(0) / w.sum()
def cosine(x, w, f, g):
    l = np.linalg.norm(x, axis=1); b = np.median(l); keep = x @ np.median(x, 0) > 0
    return (x * (w * np.minimum(1, b / l))[:, None])[keep].sum(0) / w[keep].sum()
def median(x, w, f, g): return np.median(x, 0)
def trimmed_mean(x, w, f, g): return np.sort(x, 0)[f:len(x) - f].mean(0)
def scores(x, f):
    d = ((x[:, None] - x[None]) ** 2).sum(2); n = len(x)
    return np.array([np.sort(np.delete(d[i], i))[:max(1, n - f - 2)].sum() for i in range(n)])
def multi_krum(x, w, f, g): return x[np.argsort(scores(x, f), kind="stable")[:len(x) - f]].mean(0)
def bulyan(x, w, f, g):
    rest, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        chosen.append(rest.pop(int(np.argmin(scores(x[rest], f)))))
    y = x[chosen]; d = np.abs(y - np.median(y, 0)); at = np.argsort(d, 0, kind="stable")[:len(y) - 2 * f]
    return np.take_along_axis(y, at, 0).mean(0)
def fltrust(x, w, f, g):
    l = np.linalg.norm(x, axis=1); t = np.maximum(0, x @ g / (l * np.linalg.norm(g)))
    return (x * (t * np.linalg.norm(g) / l)[:, None]).sum(0) / t.sum()
def flame(x, w, f, g):
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist
    z = linkage(pdist(x, "cosine"), "single")
    for d in z[:, 2]:
        c = fcluster(z, d, "distance"); c0 = np.bincount(c).argmax()
        if (c == c0).sum() > len(x) / 2: break
    keep = c == c0; l = np.linalg.norm(x, axis=1)
    return (x * np.minimum(1, np.median(l) / l)[:, None])[keep].mean(0)

out = []
for seed, (n, f) in enumerate([(15, 3), (11, 2), (8, 1), (7, 1)]):
    r = np.random.default_rng(seed); base = r.normal(size=12)
    x = (base + 0.7 * r.normal(size=(n, 12))).astype(np.float32)
    x[:f] = (-4 * base + r.normal(size=(f, 12))).astype(np.float32)
    w = r.integers(1, 9, n).astype(float); g = (base + 0.1 * r.normal(size=12)).astype(np.float32)
    out.append(dict(rows=x.tolist(), weights=w.tolist(), bad=f, reference=g.tolist(), updates={
        k.__name__.replace("_", "-"): k(x.astype(float), w, f, g.astype(float)).tolist()
        for k in (mean, norm_bound, cosine, median, trimmed_mean, multi_krum, bulyan, fltrust, flame)}))
print(json.dumps(out))
