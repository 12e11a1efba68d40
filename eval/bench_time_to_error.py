"""How many tokens until the error stays below 5 % and 1 %: amplify behind its trie against others' estimators.

    python eval/bench_time_to_error.py --games eval/results/hotpotqa_games.json \\
        --out eval/results/bench_time_to_error.json

Complete games in fixed order: any estimator's error after any number of evaluations is known exactly. For each game,
the smallest budget of a grid from which on the NMSE (median over seeds) stays at or below the figure, and the tokens
that a model would have forwarded by then. amplify's `auto` stands behind engine "trie", which forwards what prompts
share once; from 2^n evaluations on it asks all coalitions. "auto, tokens" has a budget of tokens instead of evaluations
(`tokens=` of `attribute_sources`) and chooses what it asks by what it tells for its tokens. The others ask a plain
value function, as their users would: each coalition a prompt and an answer of its own. Coalitions that they ask again
count as evaluations and cost no tokens, which is why the grid goes beyond the number of coalitions. Seconds are
proportional to tokens but for the attention (`bench_textgenshap.py` measures both on one game), so tokens are what is
compared.

shapiq: its approximators of Shapley values, paired where they can be. captum: `KernelShap` and `ShapleyValueSampling`.
context-cite: its masks and its LASSO of its logit-probabilities, which estimate another thing than Shapley values and
need not come near them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench_estimators import Game, ours
from measuring import command

import amplify
from amplify.shapley import exact_scores
from amplify.shapley.game import Floats

Scores = Callable[[Game, int, int], Floats]  # game, budget, seed


def shapiq(name: str, **options: Any) -> Scores:
    """One of shapiq's approximators."""

    def run(game: Game, budget: int, seed: int) -> Floats:
        import shapiq.approximator

        made = getattr(shapiq.approximator, name)(n=game.n, random_state=seed, **options)
        return np.asarray(
            made.approximate(budget=budget, game=lambda held: game.value(np.atleast_2d(held))).get_n_order_values(1)
        )

    return run


def captum(name: str) -> Scores:
    """One of captum's samplers; `ShapleyValueSampling` takes whole permutations, and as many as fit the budget."""

    def run(game: Game, budget: int, seed: int) -> Floats:
        import captum.attr
        import torch

        torch.manual_seed(seed)
        np.random.seed(seed)  # KernelShap draws from it
        explainer = getattr(captum.attr, name)(lambda x: torch.from_numpy(game.value(x.numpy() > 0.5)))
        samples = budget if name == "KernelShap" else max(1, (budget - 1) // game.n)
        return np.asarray(explainer.attribute(torch.ones(1, game.n), n_samples=samples)[0], dtype=float)

    return run


def context_cite(game: Game, budget: int, seed: int) -> Floats:
    """ContextCite's scores with so many ablations."""
    from context_cite.solver import LassoRegression
    from context_cite.utils import _create_mask

    masks = np.stack([_create_mask(game.n, 0.5, seed * 10_000 + k) for k in range(budget)]).astype(bool)
    log_probs = game.value(masks)
    outputs = log_probs - np.log(-np.expm1(log_probs))
    return np.asarray(LassoRegression().fit(masks, outputs, game.tokens["answer"])[0])


def by_tokens(game: Game, budget: int, seed: int) -> Floats:
    """amplify with a budget of tokens."""
    cost = game.prices(limit=budget)
    return amplify.shapley.estimate(
        game.value, game.n, budget=2**game.n, seed=seed, guide=amplify.shapley.Guide(cost=cost)
    ).scores


TOKENS = "auto, tokens"
METHODS: dict[str, dict[str, Scores]] = {
    "amplify": {"auto": lambda game, budget, seed: ours("auto")(game, budget, seed)[0], TOKENS: by_tokens},
    "shapiq": {
        "KernelSHAP": shapiq("KernelSHAP", pairing_trick=True),
        "UnbiasedKernelSHAP": shapiq("UnbiasedKernelSHAP", pairing_trick=True),
        "kADDSHAP": shapiq("kADDSHAP", pairing_trick=True),
        "PermutationSamplingSV": shapiq("PermutationSamplingSV"),
        "SVARM": shapiq("SVARM", pairing_trick=True),
        "StratifiedSamplingSV": shapiq("StratifiedSamplingSV"),
    },
    "captum": {"KernelShap": captum("KernelShap"), "ShapleyValueSampling": captum("ShapleyValueSampling")},
    "context-cite": {"LASSO": context_cite},
}


def plain_tokens(game: Game) -> int:
    """Tokens of what was asked, each distinct coalition a prompt and an answer of its own."""
    t = game.tokens
    held = np.unique(np.concatenate(game.asked), axis=0)
    return int(len(held) * (t["head"] + t["tail"] + t["answer"] - 1) + (held @ np.array(t["documents"])).sum())


def curve(group: str, scores: Scores, stored: Mapping[str, Any], budgets: list[int], seeds: int) -> dict[str, Any]:
    """NMSE, evaluations and tokens at each budget, medians over seeds."""
    truth = exact_scores(np.array(stored["values"]))
    errors, calls, tokens = np.zeros((3, len(budgets), seeds))
    for b, budget in enumerate(budgets):
        for seed in range(seeds):
            game = Game(np.array(stored["values"]), np.array(stored["blocks"]), stored["tokens"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = scores(game, budget, seed)
            calls[b, seed] = sum(map(len, game.asked)) if group == "amplify" else budget
            errors[b, seed] = ((found - truth) ** 2).sum() / (truth**2).sum()
            tokens[b, seed] = game.forwarded() if group == "amplify" else plain_tokens(game)
    middle = {"nmse": errors, "evaluations": calls, "tokens": tokens}
    return {name: np.median(each, 1).tolist() for name, each in middle.items()}


def reached(found: Mapping[str, Any], figure: float) -> int | None:
    """Index of the smallest budget from which on the error stays at or below the figure."""
    above = [k for k, error in enumerate(found["nmse"]) if not error <= figure]
    first = above[-1] + 1 if above else 0
    return first if first < len(found["nmse"]) else None


def summary(curves: Mapping[str, Any], figures: list[float]) -> list[dict[str, Any]]:
    """Of each figure and game: evaluations and tokens of each method, and each group's best by amplify's own two.

    A group's best is the method with the fewest tokens on that game.
    """
    rows = []
    for figure in figures:
        for name, game in curves.items():
            at = {(g, m): reached(found, figure) for g, methods in game.items() for m, found in methods.items()}
            tokens = {key: game[key[0]][key[1]]["tokens"][k] for key, k in at.items() if k is not None}
            best = {
                group: min((t for (g, _), t in tokens.items() if g == group), default=None)
                for group in game
                if group != "amplify"
            }
            rows.append(
                {
                    "figure": figure,
                    "game": name,
                    "evaluations": {
                        f"{g} {m}": None if k is None else game[g][m]["evaluations"][k] for (g, m), k in at.items()
                    },
                    "tokens": {f"{g} {m}": tokens.get((g, m)) for g, m in at},
                    "times": {
                        own: {
                            g: t / tokens["amplify", own] if t and ("amplify", own) in tokens else None
                            for g, t in best.items()
                        }
                        for own in game["amplify"]
                    },
                }
            )
    return rows


def median(values: list[float | None]) -> float | None:
    """The median, where None (never) is the greatest of all; None if that is the median."""
    found = float(np.median([np.inf if v is None else v for v in values]))
    return found if np.isfinite(found) else None


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    most = report["budgets"][-1]
    lines = [
        f"`{report['command']}`",
        "",
        f"{len(report['curves'])} games, {report['seeds']} seeds, budgets {', '.join(map(str, report['budgets']))}. "
        f"Medians over games; a game on which a method never gets there within {most:,} evaluations counts as more "
        "than any number. Times: tokens of the group's best method on each game by those of amplify's.",
        "",
        "| error | method | games that get there | evaluations | tokens |",
        "|---|---|---|---|---|",
    ]
    figures = list(dict.fromkeys(row["figure"] for row in report["rows"]))
    for figure in figures:
        rows = [row for row in report["rows"] if row["figure"] == figure]
        for method in rows[0]["tokens"]:
            there = sum(row["tokens"][method] is not None for row in rows)
            calls, tokens = (median([row[k][method] for row in rows]) for k in ("evaluations", "tokens"))
            shown = "never | never" if calls is None or tokens is None else f"{calls:,.0f} | {tokens:,.0f}"
            lines.append(f"| {figure:.0%} | {method} | {there} of {len(rows)} | {shown} |")
    lines += ["", "| error | against | times the tokens of | median | each game |", "|---|---|---|---|---|"]
    for figure in figures:
        rows = [row for row in report["rows"] if row["figure"] == figure]
        for own, groups in rows[0]["times"].items():
            for group in groups:
                each = [row["times"][own][group] for row in rows]
                middle = median(each)
                shown = ", ".join("never" if t is None else f"{t:.1f}" for t in each)
                times = "never" if middle is None else f"{middle:.1f}"
                lines.append(f"| {figure:.0%} | {group} | amplify {own} | {times} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=Path, required=True, help="JSON of hotpotqa_games.py")
    parser.add_argument("--names", help="only these games, separated by commas")
    parser.add_argument("--figures", default="0.05,0.01", help="errors to be reached")
    parser.add_argument("--budgets", default="16,23,32,45,64,91,128,181,256,362,512,724,1024,1448,2048,2896,4096")
    parser.add_argument(
        "--limits", default=",".join(str(round(2000 * 2 ** (k / 2))) for k in range(13)), help="of tokens"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file, Markdown beside it; curves in it are kept")
    args = parser.parse_args()
    games = json.loads(args.games.read_text())["games"]
    games = {name: games[name] for name in (args.names.split(",") if args.names else games)}
    budgets, limits = (sorted(map(int, text.split(","))) for text in (args.budgets, args.limits))
    grid = {"budgets": budgets, "limits": limits, "seeds": args.seeds}
    before = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    same = all(before.get(key) == value for key, value in grid.items())
    curves: dict[str, Any] = {name: before["curves"].get(name, {}) if same else {} for name in games}
    for name, stored in games.items():
        for group, methods in METHODS.items():
            for m, scores in methods.items():
                if m not in curves[name].setdefault(group, {}):
                    steps = limits if m == TOKENS else budgets
                    curves[name][group][m] = curve(group, scores, stored, steps, args.seeds)
        print(f"game {name} is through", file=sys.stderr, flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({**grid, "curves": curves}) + "\n")
    report = {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "versions": {"amplify": amplify.__version__}
        | {name: version(name) for name in ("shapiq", "captum", "context-cite")},
        **grid,
        "rows": summary(curves, [float(f) for f in args.figures.split(",")]),
        "curves": curves,
    }
    print(table(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
