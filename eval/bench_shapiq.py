"""The estimators of shapiq 1.8 on the same complete games and counts as `bench_short_games.py` judges amplify's by.

shapiq 1.8 needs Python 3.12, so this runs in an environment of its own, without amplify:

    python3.12 -m venv rivals && rivals/bin/pip install shapiq==1.8.0 xgboost lightgbm
    rivals/bin/python eval/bench_shapiq.py --games GAMES.json --half held --out eval/results/bench_shapiq.json

Every estimator is used with its defaults (ShaplEIG needs the extra shapiq[shapleig]). Distinct coalitions asked are
counted; an estimator that asks more than the budget shows it in "calls".
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import shapiq

HALVES: dict[str, tuple[int, ...]] = {"development": (0,), "held": (1,), "all": (0, 1)}

RIVALS: dict[str, Callable[[int, int], Any]] = {
    "KernelSHAP": lambda n, seed: shapiq.KernelSHAP(n, random_state=seed),
    "KernelSHAP, paired": lambda n, seed: shapiq.KernelSHAP(n, pairing_trick=True, random_state=seed),
    "LeverageSHAP": lambda n, seed: shapiq.approximator.LeverageSHAP(n, random_state=seed),
    "OddSHAP": lambda n, seed: shapiq.approximator.OddSHAP(n, random_state=seed),
    "PolySHAP": lambda n, seed: shapiq.approximator.PolySHAP(n, random_state=seed),
    "RegressionMSR": lambda n, seed: shapiq.approximator.RegressionMSR(n, "SV", random_state=seed),
    "ProxySHAP": lambda n, seed: shapiq.approximator.ProxySHAP(n, max_order=1, index="SV", random_state=seed),
    "ShaplEIG": lambda n, seed: shapiq.approximator.ShaplEIG(n, random_state=seed),
}


def exact(values: np.ndarray, n: int) -> np.ndarray:
    """Shapley values by their definition; coalition k holds the sources whose bits k has."""
    every = np.arange(2**n)
    size = np.array([bin(k).count("1") for k in every])
    found = np.zeros(n)
    for i in range(n):
        without = every[(every >> i) & 1 == 0]
        weight = np.array([1.0 / (n * comb(n - 1, s)) for s in size[without]])
        found[i] = weight @ (values[without | 1 << i] - values[without])
    return found


def judge(name: str, values: np.ndarray, budget: int, seed: int) -> dict[str, Any]:
    """Error and overlap of one run."""
    n = int(np.log2(len(values)))
    asked: set[int] = set()

    def game(coalitions: np.ndarray) -> np.ndarray:
        rows = np.atleast_2d(np.asarray(coalitions, dtype=bool)) @ (1 << np.arange(n))
        asked.update(rows.tolist())
        return values[rows]

    begun = time.perf_counter()
    found = RIVALS[name](n, seed).approximate(budget=budget, game=game)
    seconds = time.perf_counter() - begun
    scores, truth = np.asarray(found.get_n_order_values(1), dtype=float), exact(values, n)
    top = {*np.argsort(-scores)[:3].tolist()} & {*np.argsort(-truth)[:3].tolist()}
    return {
        "nmse": float(((scores - truth) ** 2).sum() / (truth**2).sum()),
        "top3": len(top) / 3,
        "calls": len(asked),
        "seconds": round(seconds, 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=Path, required=True, help="JSON of short_games.py")
    parser.add_argument("--half", choices=HALVES, default="development")
    parser.add_argument("--estimators", help=f"only these, separated by semicolons, of: {'; '.join(RIVALS)}")
    parser.add_argument("--budgets", default="32,64,128")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    games = json.loads(args.games.read_text())["games"]
    games = {name: g for name, g in games.items() if int(name.rpartition("-")[2]) % 2 in HALVES[args.half]}
    rows, failed = [], {}
    for name in args.estimators.split(";") if args.estimators else RIVALS:
        for budget in map(int, args.budgets.split(",")):
            for game, stored in games.items():
                for seed in range(args.seeds):
                    try:
                        run = judge(name, np.array(stored["values"], dtype=float), budget, seed)
                    except (ImportError, TypeError, ValueError, RuntimeError) as error:
                        failed.setdefault(name, f"{type(error).__name__}: {error}"[:200])
                        continue
                    rows.append({"estimator": name, "budget": budget, "game": game, "seed": seed} | run)
            done = [r["nmse"] for r in rows if (r["estimator"], r["budget"]) == (name, budget)]
            print(name, budget, f"{np.median(done):.4f}" if done else failed.get(name), flush=True)
    packages = ("shapiq", "numpy", "scikit-learn", "xgboost", "lightgbm")
    versions = {p: importlib.metadata.version(p) for p in packages if _there(p)}
    report = {
        "command": " ".join(["python", "eval/bench_shapiq.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": versions,
        "failed": failed,
        "games": list(games),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, separators=(",", ":")) + "\n")


def _there(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
