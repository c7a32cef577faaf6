"""Runs `vigie fed simulate` with malicious sites, each attack at a strong setting,
beside the same run without them, and prints a Markdown table: AUC after the last
round, what is lost against the run without malicious sites, after how many rounds
each malicious site was named, and how many honest ones were.

    python3 bench/malicious.py --vigie bin/vigie --data FILE.npz --out DIR
    python3 bench/malicious.py --vigie bin/vigie --data FILE.npz --out DIR --attacks honest --seeds 1,2,3,4,5,6,7,8,9,10

Reports that are in DIR already are not made again, so that a run that was ended
goes on. Needs nothing but Python."""
import argparse
import json
import os
import subprocess

ATTACKS = {
    "honest": "",
    "label-flip": "3:label-flip:10",
    "sign-flip": "3:sign-flip:40",
    "gaussian": "3:gaussian:40",
    "alie": "3:alie:1.5",
    "ipm": "3:ipm:4",
    "min-max": "3:min-max",
    "min-sum": "3:min-sum",
    "backdoor": "3:backdoor:10",
    "free-rider": "3:free-rider",
    "replay": "3:replay:10",
}


def simulate(args, attack, seed):
    path = os.path.join(args.out, f"{attack}-{seed}.json")
    if not os.path.exists(path):
        command = [args.vigie, "fed", "simulate", "--data", args.data, "--eval-split", "val", "--sites", "15", "--dirichlet", "0.5",
                   "--group-size", "3", "--rule", "median", "--bad-groups", "2", "--max-examples", "100", "--bound", str(args.bound),
                   "--naming", args.naming, "--trusted", str(args.trusted), "--rounds", str(args.rounds), "--seed", str(seed), "--json"]
        if args.naming == "off":
            command = [c for c in command if c not in ("--trusted", str(args.trusted))]
        if ATTACKS[attack]:
            command += ["--malicious", ATTACKS[attack]]
        r = subprocess.run(command, capture_output=True, text=True)
        if r.returncode:
            raise SystemExit(f"{' '.join(command)}: {r.stderr}")
        with open(path + ".part", "w") as f:
            f.write(r.stdout)
        os.rename(path + ".part", path)
    with open(path) as f:
        return json.load(f)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vigie", default="bin/vigie")
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--attacks", default=",".join(ATTACKS))
    p.add_argument("--seeds", default="1")
    p.add_argument("--rounds", type=int, default=30)
    p.add_argument("--bound", type=float, default=1)
    p.add_argument("--trusted", type=int, default=200)
    p.add_argument("--naming", default="exclude")
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    print("| attack | seed | AUC | lost, points | malicious sites named after round | honest sites named |")
    print("| --- | --- | --- | --- | --- | --- |")
    wrong = 0
    for seed in args.seeds.split(","):
        honest = simulate(args, "honest", seed)["auc"]["value"]
        for attack in args.attacks.split(","):
            r = simulate(args, attack, seed)
            named = [str(s.get("named_after", "–")) for s in r["sites"] if s.get("malicious")]
            false = sum(1 for s in r["sites"] if s.get("named") and not s.get("malicious"))
            wrong += false
            what = ATTACKS[attack][2:] or "none"
            if r.get("triggered"):
                what += f" ({100 * r['triggered']['value']:.0f} % of marked images taken for the mark's class, {100 * r['untriggered']['value']:.0f} % of unmarked)"
            auc = r["auc"]
            print(f"| {what} | {seed} | {auc['value']:.4f} ({auc['low']:.4f} to {auc['high']:.4f}) | {100 * (honest - auc['value']):.1f} | {', '.join(named)} | {false} |", flush=True)
    print(f"\n{wrong} honest sites were named in all")


main()
