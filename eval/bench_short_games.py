"""Judge estimators on complete games of ten short passages: the half that nothing was developed on, or the other.

    python eval/bench_short_games.py --games eval/results/short_games_smollm2.json --half held \\
        --guesses GUESSES.json --rivals eval/results/bench_shapiq.json --out eval/results/bench_short_games.json

"auto" is amplify's default; "auto, prior" is told what one pass of the model predicts (`train_one_pass.py`), and its
count leaves that pass out, which costs about as much as three prompts. Rivals are read from `bench_shapiq.py`: same
games, same counts. Per game the median over seeds is taken, then the median over games (NMSE) or the mean (top-3
overlap, rank correlation), with 95 % bootstrap intervals over games. Scores at the price of one pass are ranked against
the exact values, beside leave-one-out, which asks eleven prompts, and beside the few prompts from which "auto" ranks as
well.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command
from scipy.stats import spearmanr
from short_games import held_out

import amplify
from amplify.shapley import Guide, estimate, exact_scores
from amplify.shapley.game import Coalitions, Floats

HALVES: dict[str, Callable[[str], bool]] = {
    "development": lambda name: not held_out(name),
    "held": held_out,
    "all": lambda name: True,
}
FEW = (4, 8, 12, 16)  # prompts from which the default's ranking is shown beside that of one pass


def values_of(table: Floats) -> Callable[[Coalitions], Floats]:
    """A complete game as a value function."""
    return lambda held: table[held @ (1 << np.arange(held.shape[1]))]


def judge(scores: Floats, truth: Floats) -> dict[str, float]:
    """Error, overlap and rank correlation of scores."""
    top = {*np.argsort(-scores)[:3].tolist()} & {*np.argsort(-truth)[:3].tolist()}
    rank = float(spearmanr(scores, truth).statistic) if np.ptp(scores) > 0 else 0.0
    return {
        "nmse": float(((scores - truth) ** 2).sum() / (truth**2).sum()),
        "top3": len(top) / 3,
        "rank": rank,
    }


def run(table: Floats, budget: int, seed: int, prior: Sequence[float] | None) -> dict[str, float]:
    """One run of the default estimator."""
    n = int(np.log2(len(table)))
    guide = None if prior is None else Guide(prior=prior)
    found = estimate(values_of(table), n, budget=budget, seed=seed, guide=guide)
    truth = exact_scores(table, "shapley")
    inside = float(np.mean((found.low <= truth) & (truth <= found.high)))
    return judge(found.scores, truth) | {"coverage": inside, "calls": float(found.calls)}


def interval(values: Floats, statistic: Callable[..., Any]) -> list[float]:
    """95 % bootstrap interval over games."""
    rng = np.random.default_rng(0)
    drawn = statistic(values[rng.integers(len(values), size=(4000, len(values)))], axis=1)
    return np.quantile(drawn, [0.025, 0.975]).round(5).tolist()


def row(name: str, budget: int, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """One method at one budget: runs of each game over seeds, summed up."""
    found: dict[str, Any] = {"estimator": name, "budget": budget, "games": len(runs)}
    for key, over, statistic in (
        ("nmse", np.median, np.median),
        ("top3", np.mean, np.mean),
        ("rank", np.mean, np.mean),
        ("coverage", np.mean, np.mean),
    ):
        if all(key in r for each in runs.values() for r in each):
            values = np.array([over([r[key] for r in each]) for each in runs.values()])
            found[key] = round(float(statistic(values)), 5)
            found[f"{key}_interval"] = interval(values, statistic)
            if key == "nmse":
                found["nmse_per_game"] = dict(zip(runs, values.round(5).tolist(), strict=True))
    found["calls"] = max(r["calls"] for each in runs.values() for r in each)
    return found


def ratios(rows: Sequence[Mapping[str, Any]], budget: int) -> dict[str, list[float]]:
    """How many times the default's error each other one's is, game by game: median and interval."""
    at = {r["estimator"]: r["nmse_per_game"] for r in rows if r["budget"] == budget}
    own = at["auto"]
    found = {}
    for name, other in at.items():
        if name != "auto" and set(own) <= set(other):
            each = np.array([other[g] / max(own[g], 1e-12) for g in own])
            found[name] = [round(float(np.median(each)), 2), *interval(each, np.median)]
    return found


def shown(value: float, ends: Sequence[float], digits: int) -> str:
    """A number with its interval."""
    return f"{value:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"{len(report['games'])} games ({report['half']} half), {report['seeds']} seeds; intervals are 95 % bootstrap "
        "intervals over games. NMSE: median over games. Times: median over games of an estimator's error over that of "
        "`auto`.",
        "",
        "| evaluations | estimator | NMSE | top-3 overlap | rank correlation | times |",
        "|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        times = report["ratios"].get(str(r["budget"]), {}).get(r["estimator"])
        rank = shown(r["rank"], r["rank_interval"], 2) if "rank" in r else ""
        lines.append(
            f"| {r['budget']} | {r['estimator']} | {shown(r['nmse'], r['nmse_interval'], 4)} "
            f"| {shown(r['top3'], r['top3_interval'], 2)} | {rank} | {shown(times[0], times[1:], 1) if times else ''} |"
        )
    if report["ranked"]:
        lines += ["", "| scores | prompts | rank correlation | top-3 overlap |", "|---|---|---|---|"]
        lines += [
            f"| {r['estimator']} | {r['prompts']} | {shown(r['rank'], r['rank_interval'], 2)} "
            f"| {shown(r['top3'], r['top3_interval'], 2)} |"
            for r in report["ranked"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=Path, required=True, help="JSON of short_games.py")
    parser.add_argument("--half", choices=HALVES, default="development")
    parser.add_argument("--guesses", type=Path, help="JSON of train_one_pass.py")
    parser.add_argument("--rivals", type=Path, help="JSON of bench_shapiq.py")
    parser.add_argument("--budgets", default="32,64,128")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file; a Markdown file is written beside it")
    args = parser.parse_args()
    games = {
        name: np.array(g["values"])
        for name, g in json.loads(args.games.read_text())["games"].items()
        if HALVES[args.half](name)
    }
    guesses = json.loads(args.guesses.read_text())["games"] if args.guesses else {}
    rivals = json.loads(args.rivals.read_text())["rows"] if args.rivals else []
    budgets = [int(b) for b in args.budgets.split(",")]

    def ours(budget: int, prior: bool) -> dict[str, list[dict[str, float]]]:
        return {
            name: [run(t, budget, s, guesses[name]["one pass"] if prior else None) for s in range(args.seeds)]
            for name, t in games.items()
        }

    rows, ranked = [], []
    for budget in budgets:
        rows.append(row("auto", budget, ours(budget, False)))
        if guesses:
            rows.append(row("auto, prior", budget, ours(budget, True)))
        for name in dict.fromkeys(r["estimator"] for r in rivals):
            own = [r for r in rivals if r["estimator"] == name and r["budget"] == budget]
            if {r["game"] for r in own} >= set(games):
                rows.append(row(f"shapiq {name}", budget, {g: [r for r in own if r["game"] == g] for g in games}))
    truth = {name: exact_scores(t, "shapley") for name, t in games.items()}
    if guesses:
        for name in next(iter(guesses.values())):
            runs = {g: [judge(np.array(guesses[g][name]), truth[g]) | {"calls": 0.0}] for g in games}
            ranked.append(row(name, 0, runs) | {"prompts": "one pass"})
        alone = {}
        for g, t in games.items():
            everything = len(t) - 1
            lost = np.array([t[-1] - t[everything ^ 1 << i] for i in range(len(truth[g]))])
            alone[g] = [judge(lost, truth[g]) | {"calls": float(len(lost) + 1)}]
        ranked.append(row("leave one out", 0, alone) | {"prompts": 11})
        ranked += [row("auto", few, ours(few, False)) | {"prompts": few} for few in FEW]
    report = {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "amplify": amplify.__version__,
        "half": args.half,
        "games": list(games),
        "seeds": args.seeds,
        "rows": rows,
        "ratios": {str(b): ratios(rows, b) for b in budgets},
        "ranked": ranked,
    }
    print(table(report))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
