"""Golden values for TestDistancesAreThoseOfScikitLearn: python3 mahalanobis.py > mahalanobis.json"""
import json
import numpy as np
from sklearn.covariance import LedoitWolf

rng = np.random.default_rng(20261128)
out = []
for n, p in ((30, 3), (60, 8), (40, 12)):
    mix = rng.normal(size=(p, p))
    cls = (np.arange(n) % 3 == 0).astype(int)
    rows = np.round(rng.normal(size=(n, p)) @ mix + 2.0 * cls[:, None], 6)
    means = np.stack([rows[cls == c].mean(0) for c in (0, 1)])
    lw = LedoitWolf(assume_centered=True).fit(rows - means[cls])
    inverse = np.linalg.inv(lw.covariance_)
    query = np.round(rng.normal(size=(4, p)) * 3, 6)
    distances = [[float((q - m) @ inverse @ (q - m)) for m in means] for q in query]
    out.append(dict(rows=rows.tolist(), **{"class": cls.tolist()}, query=query.tolist(), shrinkage=float(lw.shrinkage_),
                    covariance=lw.covariance_.tolist(), distances=distances))
print(json.dumps(out))
