"""Judge the estimators on complete games: error, ranking, fit and interval coverage at equal numbers of evaluations.

    python eval/bench_estimators.py --games eval/results/hotpotqa_games.json --out eval/results/bench_estimators.json

Every estimator asks the same table of values, and every distinct coalition it asks is counted. Per game the median over
seeds is taken, then the median over games with its 95 % bootstrap interval over games.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from amplify.textgenshap import ESTIMATORS, CachedValue, all_coalitions, estimate, exact_scores

Scores = np.ndarray
Run = Callable[[Any, int, int, int, int], tuple[Scores, Scores, Scores, int]]  # value, n, tokens, budget, seed


def ours(name: str) -> Run:
    """One of amplify's estimators."""

    def run(value: Any, n: int, tokens: int, budget: int, seed: int) -> tuple[Scores, Scores, Scores, int]:
        found = estimate(value, n, estimator=name, budget=budget, seed=seed)
        return found.scores, found.low, found.high, found.calls

    return run


def lasso(value: Any, n: int, tokens: int, budget: int, seed: int) -> tuple[Scores, Scores, Scores, int]:
    """LASSO with ContextCite's penalty, which is per response token."""
    found = estimate(lambda s: value(s) / tokens, n, estimator="lasso", budget=budget, seed=seed)
    return found.scores * tokens, found.low * tokens, found.high * tokens, found.calls


def shapiq_kernel_shap(value: Any, n: int, tokens: int, budget: int, seed: int) -> tuple[Scores, Scores, Scores, int]:
    """shapiq's KernelSHAP with the pairing trick."""
    import shapiq

    game = CachedValue(value, n)
    solver = shapiq.KernelSHAP(n=n, pairing_trick=True, random_state=seed)
    found = solver.approximate(budget=budget, game=lambda s: game(s)[:, 0]).get_n_order_values(1)
    nothing = np.full(n, np.nan)
    return np.asarray(found), nothing, nothing, game.calls


RUNS: dict[str, Run] = {
    "auto": ours("auto"),
    **{name: ours(name) for name in ESTIMATORS if name not in ("exact", "gaussian_process", "lasso")},
    "lasso": lasso,
    "shapiq KernelSHAP": shapiq_kernel_shap,
}


def judge(run: Run, table: np.ndarray, tokens: int, budget: int, seed: int) -> dict[str, float]:
    """One run on one game: NMSE, top-3 overlap, LDS, coverage, calls and seconds."""
    n = int(np.log2(len(table)))
    bits = 1 << np.arange(n)
    truth = exact_scores(table)
    begun = time.perf_counter()
    scores, low, high, calls = run(lambda s: table[s @ bits], n, tokens, budget, seed)
    seconds = time.perf_counter() - begun
    masks = all_coalitions(n)[np.random.default_rng(10_000).choice(len(table), 256, replace=False)]
    top = {*np.argsort(-scores)[:3].tolist()} & {*np.argsort(-truth)[:3].tolist()}
    return {
        "nmse": float(((scores - truth) ** 2).sum() / (truth**2).sum()),
        "top3": len(top) / 3,
        "lds": float(spearmanr(masks @ scores, table[masks @ bits]).statistic),
        "coverage": float(np.mean((low <= truth) & (truth <= high))) if np.isfinite(low).any() else float("nan"),
        "calls": float(calls),
        "seconds": seconds,
    }


def interval(values: np.ndarray) -> list[float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(values[rng.integers(len(values), size=(2000, len(values)))], axis=1)
    return np.quantile(medians, [0.025, 0.975]).tolist()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=Path, required=True, help="JSON of hotpotqa_games.py")
    parser.add_argument("--names", help="only these games, separated by commas")
    parser.add_argument("--budgets", default="16,32,64,128")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    games = json.loads(args.games.read_text())["games"]
    names = args.names.split(",") if args.names else list(games)
    report: dict[str, Any] = {"games": names, "seeds": args.seeds, "rows": []}
    print(f"{len(names)} games, {args.seeds} seeds; NMSE: median over games [95 % interval]")
    print("| evaluations | estimator | NMSE | top-3 | LDS | coverage | seconds |\n|---|---|---|---|---|---|---|")
    for budget in map(int, args.budgets.split(",")):
        for name, run in RUNS.items():
            runs = [
                [
                    judge(run, np.array(games[g]["values"]), games[g]["tokens"]["answer"], budget, s)
                    for s in range(args.seeds)
                ]
                for g in names
            ]
            per_game = {k: np.array([np.median([r[k] for r in game]) for game in runs]) for k in runs[0][0]}
            mean = {k: float(np.mean([r[k] for game in runs for r in game])) for k in runs[0][0]}
            row = {
                "budget": budget,
                "estimator": name,
                "nmse": float(np.median(per_game["nmse"])),
                "nmse_interval": interval(per_game["nmse"]),
                "nmse_per_game": per_game["nmse"].tolist(),
                "top3": mean["top3"],
                "lds": float(np.median(per_game["lds"])),
                "coverage": mean["coverage"],
                "calls": max(r["calls"] for game in runs for r in game),
                "seconds": mean["seconds"],
            }
            report["rows"].append(row)
            low, high = row["nmse_interval"]
            print(
                f"| {budget} | {name} | {row['nmse']:.4f} [{low:.4f}, {high:.4f}] | {row['top3']:.2f} "
                f"| {row['lds']:.3f} | {row['coverage']:.2f} | {row['seconds']:.3f} |",
                flush=True,
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
