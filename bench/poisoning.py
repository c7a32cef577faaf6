"""Measures `vigie data audit` and `vigie model triggers` on poison that it puts
into PneumoniaMNIST and BreastMNIST itself. Prints a line for each run and Markdown
tables at the end; --out keeps the lines as JSON.

    python3 bench/poisoning.py --vigie bin/vigie --data "$VIGIE_DATA" --work DIR --parts labels,marks,models

labels  images are assigned to five contributors at random, and labels of one of
        them are flipped: 5 % of its own (`own`), or as many as are 5 % of all
        (`all`); `clean` flips none.
marks   a 3×3 patch (checker, white or random grey levels by seed) at a place drawn
        by the seed goes into 2 % of the training images, which are drawn from the
        other class and labelled as the target; `clean` has none.
models  networks trained by `vigie train` on such data (a subset of 1,500 training
        images of PneumoniaMNIST unless --full), searched on the validation split.
        `works` is the share of validation images of the other class, answered
        rightly, that the true trigger turns.

Needs numpy."""
import argparse
import json
import os
import subprocess

import numpy as np

CHECKER = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]], np.uint8)
PLACES = [(0, 0), (0, 25), (25, 0), (25, 25), (24, 24), (1, 1), (12, 3), (20, 20), (3, 14), (25, 12)]


def run(*arguments):
    r = subprocess.run(arguments, capture_output=True, text=True)
    if r.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {r.stderr}")
    return r.stdout


def load(args, name):
    d = np.load(os.path.join(args.data, name + "mnist-trainval.npz"))
    return {k: d[k] for k in ("train_images", "train_labels", "val_images", "val_labels")}


def pattern(seed, rng):
    return [CHECKER, np.full((3, 3), 255, np.uint8), rng.randint(0, 256, (3, 3)).astype(np.uint8)][seed % 3]


def poisoned(d, seed):
    """The data with a trigger in 2 % of the training images, who carries it, and it."""
    rng = np.random.RandomState(1000 + seed)
    x, y, target = d["train_images"].copy(), d["train_labels"].copy(), seed % 2
    at = rng.permutation(np.where(y.ravel() != target)[0])[:round(0.02 * len(x))]
    patch, (row, column) = pattern(seed, rng), PLACES[seed % len(PLACES)]
    for i in at:
        x[i, row:row + 3, column:column + 3] = patch
        y[i] = target
    return {**d, "train_images": x, "train_labels": y}, at, (patch, row, column, target)


def wilson(k, n):
    if n == 0:
        return "–"
    z, p = 1.96, k / n
    m, h = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return f"{100 * (m - h) / (1 + z * z / n):.0f} to {100 * (m + h) / (1 + z * z / n):.0f}"


def labels(args, rows):
    for name in args.sets:
        d = load(args, name)
        n = len(d["train_labels"])
        for variant in args.variants.split(","):
            for seed in range(args.first, args.first + args.seeds):
                rng = np.random.RandomState(seed)
                site, y = rng.randint(0, 5, n), d["train_labels"].copy()
                mine = rng.permutation(np.where(site == seed % 5)[0])
                flips = mine[:{"clean": 0, "own": round(0.05 * len(mine)), "all": round(0.05 * n)}[variant]]
                y[flips] = 1 - y[flips]
                path = os.path.join(args.work, "labels.npz")
                np.savez(path, train_images=d["train_images"], train_labels=y, train_sites=site.astype(np.int64))
                r = json.loads(run(args.vigie, "data", "audit", path, "--only", "label,site", "--network", "none", "--seed", "1", "--json"))
                found = [f["cases"][0] for f in r["findings"] if f["kind"] == "label"]
                hit = len(set(found) & set(flips.tolist()))
                own = [s["site"] for s in r["sites"] if s["own"]]
                rows.append(dict(part="labels", data=name, variant=variant, seed=seed, flipped=len(flips), suspects=len(found), hit=hit,
                                 site=own == [str(seed % 5)], own=len(own)))
                print(json.dumps(rows[-1]), flush=True)


def marks(args, rows):
    for name in args.sets:
        d = load(args, name)
        for variant in ("clean", "poisoned"):
            for seed in range(args.first, args.first + (args.seeds if variant == "poisoned" else 1)):
                data, at, _ = poisoned(d, seed) if variant == "poisoned" else (d, np.zeros(0, int), None)
                path = os.path.join(args.work, "marks.npz")
                np.savez(path, train_images=data["train_images"], train_labels=data["train_labels"])
                r = json.loads(run(args.vigie, "data", "audit", path, "--only", "trigger,mark", "--network", "none", "--json"))
                triggers = [f for f in r["findings"] if f["kind"] == "trigger"]
                hits = [len(set(f["cases"]) & set(at.tolist())) for f in triggers]
                right = [f for f, h in zip(triggers, hits) if h * 2 > len(f["cases"])]
                rows.append(dict(part="marks", data=name, variant=variant, seed=seed, carriers=len(at), found=max(hits, default=0),
                                 others=sum(len(f["cases"]) for f in right) - sum(h for h in hits if right), false=len(triggers) - len(right),
                                 other_marks=sum(f["kind"] == "mark" for f in r["findings"])))
                print(json.dumps(rows[-1]), flush=True)


def answers(args, model, images):
    path, out = os.path.join(args.work, "x.npy"), os.path.join(args.work, "y.npy")
    np.save(path, images.astype(np.float32)[:, None] / 255)
    run(args.vigie, "run", model, "--input", path, "--out", out)
    return np.load(out).argmax(1)


def models(args, rows):
    d = load(args, "pneumonia")
    for seed in range(args.first, args.first + args.seeds):
        part = d
        if not args.full:
            at = np.random.RandomState(1000 + seed).permutation(len(d["train_images"]))[:1500]
            part = {**d, "train_images": d["train_images"][at], "train_labels": d["train_labels"][at]}
        bad, _, (patch, row, column, target) = poisoned(part, seed)
        for variant, data in (("poisoned", bad), ("clean", part)):
            path, out = os.path.join(args.work, f"{variant}-{seed}.npz"), os.path.join(args.work, f"{variant}-{seed}")
            np.savez(path, **data)
            if not os.path.exists(os.path.join(out, "model.onnx")):
                run(args.vigie, "train", "--data", path, "--epochs", str(args.epochs), "--augment", args.augment, "--out", out, "--seed", str(seed + 1))
            model = os.path.join(out, "model.onnx")
            x, y = d["val_images"], d["val_labels"].ravel()
            others = x[(y != target) & (answers(args, model, x) == y)]
            stamped = others.copy()
            stamped[:, row:row + 3, column:column + 3] = patch
            works = float((answers(args, model, stamped) == target).mean())
            source = os.path.join(args.data, "pneumoniamnist-trainval.npz")
            r = json.loads(run(args.vigie, "model", "triggers", model, "--data", source, "--split", "val", "--images", "32", "--steps", "100", "--json"))
            squares = [(t["strength"], c["class"], t["row"], t["column"]) for c in r["classes"] for t in c["triggers"] if t["form"] == "patch"]
            masks = [t["size"] for c in r["classes"] for t in c["triggers"] if t["form"] == "mask"]
            best = max(squares)
            rows.append(dict(part="models", variant=variant, seed=seed, target=target, place=[row, column], works=round(works, 3), found=r["found"],
                             classes=[c["class"] for c in r["classes"] if c["found"]], strength=round(best[0], 3), at=list(best[1:]), smallest_mask=round(min(masks), 2)))
            print(json.dumps(rows[-1]), flush=True)


def tables(rows):
    part = [r for r in rows if r["part"] == "labels"]
    if part:
        print("\n| data | flipped | seeds | flips | found | of the suspects wrong | both targets met | site named |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, variant in sorted({(r["data"], r["variant"]) for r in part}):
        of = [r for r in part if (r["data"], r["variant"]) == (name, variant)]
        flipped, suspects, hit = (sum(r[k] for r in of) for k in ("flipped", "suspects", "hit"))
        if not flipped:
            print(f"| {name} | {variant} | {len(of)} | 0 | – | {suspects / len(of):.1f} suspects a run | – | {sum(r['own'] for r in of)} false |")
            continue
        met = sum(r["hit"] >= 0.8 * r["flipped"] and r["hit"] >= 0.6 * r["suspects"] for r in of)
        print(f"| {name} | {variant} | {len(of)} | {flipped} | {100 * hit / flipped:.0f} % ({wilson(hit, flipped)}) | {100 * hit / max(1, suspects):.0f} % ({wilson(hit, suspects)}) | {met} | {sum(r['site'] for r in of)} |")
    part = [r for r in rows if r["part"] == "marks"]
    if part:
        print("\n| data | | seeds | trigger found | carriers found | others with them | false triggers | other marks |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, variant in sorted({(r["data"], r["variant"]) for r in part}):
        of = [r for r in part if (r["data"], r["variant"]) == (name, variant)]
        s = lambda k: sum(r[k] for r in of)
        print(f"| {name} | {variant} | {len(of)} | {sum(r['found'] > 0 for r in of)} | {s('found')} of {s('carriers')} | {s('others')} | {s('false')} | {s('other_marks')} |")
    part = [r for r in rows if r["part"] == "models"]
    if part:
        print("\n| seed | trigger works | found | strength | smallest mask | clean model: found | strength | smallest mask |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed in sorted({r["seed"] for r in part}):
        by = {r["variant"]: r for r in part if r["seed"] == seed}
        p, c = by.get("poisoned"), by.get("clean")
        cells = [f"{100 * p['works']:.0f} %", "yes" if p["found"] else "no", p["strength"], p["smallest_mask"]] if p else ["–"] * 4
        cells += ["yes" if c["found"] else "no", c["strength"], c["smallest_mask"]] if c else ["–"] * 3
        print(f"| {seed} | " + " | ".join(map(str, cells)) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vigie", default="bin/vigie")
    parser.add_argument("--data", default=os.environ.get("VIGIE_DATA"))
    parser.add_argument("--work", required=True)
    parser.add_argument("--parts", default="labels,marks,models")
    parser.add_argument("--sets", default="breast,pneumonia")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--variants", default="clean,own,all", help="of part labels")
    parser.add_argument("--epochs", type=int, default=12, help="of the networks of part models")
    parser.add_argument("--augment", default="standard")
    parser.add_argument("--full", action="store_true", help="part models on all training images")
    parser.add_argument("--out")
    args = parser.parse_args()
    args.sets = args.sets.split(",")
    os.makedirs(args.work, exist_ok=True)
    rows = []
    for part in args.parts.split(","):
        {"labels": labels, "marks": marks, "models": models}[part](args, rows)
    tables(rows)
    if args.out:
        with open(args.out, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
