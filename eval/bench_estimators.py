"""Judge the estimators on complete games: error, ranking, fit and interval coverage at equal numbers of evaluations.

    python eval/bench_estimators.py --games eval/results/hotpotqa_games.json --out eval/results/bench_estimators.json

Every estimator asks the same table of values, and every distinct coalition it asks is counted. "auto, control" may ask
the game's block-encoded values beside them, which the count leaves out; what they cost is in the tokens. Tokens are
those that engine "trie" forwards for what was asked, common beginnings once over all rounds of questions, and engine
"blocks" for the control. "told the kernel" is no rival but a yardstick: the Gaussian process with hyperparameters
fitted to the complete game, to see what is left when nothing has to be learned about the game's shape. "auto, banzhaf"
is judged by the exact Banzhaf values: they, and not Shapley values, are the best linear fit to coalitions drawn evenly,
which is what LDS asks for; the LDS of the exact values of both stands beside the table. Per game the median over seeds
is taken, then the median over games with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
from measuring import command
from scipy.stats import spearmanr

import amplify
from amplify.shapley import ESTIMATORS, CachedValue, Guide, PrefixCost, all_coalitions, estimate, exact_scores, gp
from amplify.shapley.exact import Index
from amplify.shapley.game import Coalitions, Floats
from amplify.shapley.sampling import ends

NOTHING = float("nan")
BANZHAF = "auto, banzhaf"


@dataclass
class Game:
    """A complete game, and what was asked of it.

    Attributes:
        table: value of each coalition, in the order of `all_coalitions`.
        blocks: those of its control.
        tokens: of the prompt's head, of each document, of what follows them, and of the answer.
        asked: coalitions, batch by batch.
        control_calls: distinct coalitions asked of the control.
    """

    table: Floats
    blocks: Floats
    tokens: Mapping[str, Any]
    asked: list[Coalitions] = field(default_factory=list)
    control_calls: int = 0

    @property
    def n(self) -> int:
        """Number of sources."""
        return int(np.log2(len(self.table)))

    def value(self, held: Coalitions) -> Floats:
        """What an estimator asks."""
        self.asked.append(held)
        return self.table[held @ (1 << np.arange(self.n))]

    def control(self, held: Coalitions) -> Floats:
        """The same of the control."""
        self.control_calls += len(held)
        return self.blocks[held @ (1 << np.arange(self.n))]

    def forwarded(self) -> int:
        """Tokens that a model would have forwarded for all this."""
        total = self.prices().of(np.concatenate(self.asked))
        if self.control_calls:
            t = self.tokens
            total += t["head"] + sum(t["documents"]) + self.control_calls * self.prices().each
        return int(total)

    def prices(self, limit: float = float("inf")) -> PrefixCost:
        """Tokens of each document and question."""
        t = self.tokens
        each = t["tail"] + t["answer"] - 1  # nothing is predicted from the last token
        return PrefixCost(t["documents"], each, limit, t["head"])


Found = tuple[Floats, Floats, Floats]  # scores, and the two ends of their intervals
Run = Callable[[Game, int, int], Found]  # game, budget, seed


def ours(name: str, control: bool = False, index: Index = "shapley") -> Run:
    """One of amplify's estimators."""

    def run(game: Game, budget: int, seed: int) -> Found:
        found = estimate(
            game.value,
            game.n,
            index,
            name,
            budget=budget,
            seed=seed,
            guide=Guide(control_variate=game.control) if control else None,
        )
        return found.scores, found.low, found.high

    return run


def lasso(game: Game, budget: int, seed: int) -> Found:
    """LASSO with ContextCite's penalty, which is per response token."""
    tokens = game.tokens["answer"]
    found = estimate(lambda s: game.value(s) / tokens, game.n, estimator="lasso", budget=budget, seed=seed)
    return found.scores * tokens, found.low * tokens, found.high * tokens


def shapiq_kernel_shap(game: Game, budget: int, seed: int) -> Found:
    """shapiq's KernelSHAP with the pairing trick."""
    import shapiq

    value = CachedValue(game.value, game.n)
    solver = shapiq.KernelSHAP(n=game.n, pairing_trick=True, random_state=seed)
    found = solver.approximate(budget=budget, game=lambda s: value(s)[:, 0]).get_n_order_values(1)
    nothing = np.full(game.n, NOTHING)
    return np.asarray(found), nothing, nothing


def told_the_kernel(game: Game, budget: int, seed: int) -> Found:
    """The Gaussian process with hyperparameters fitted to the complete game: the error that no fit could take away."""
    everything, bits = all_coalitions(game.n), 1 << np.arange(game.n)
    order = np.random.default_rng(seed).permutation(len(everything))
    kernel = gp.fit(everything[order], (game.table[order] - game.table.mean()) / game.table.std())
    asked = np.concatenate(
        [ends(game.n), gp.AcquisitionDesign(kernel, ends(game.n), everything[order], "shapley").pick(budget - 2)]
    )
    center = game.table[asked @ bits].mean()
    found = gp.posterior(kernel, asked, (game.value(asked) - center) / game.table.std(), "shapley")
    half = 1.96 * found.deviation
    return tuple(x * game.table.std() for x in (found.scores, found.scores - half, found.scores + half))  # type: ignore[return-value]


RUNS: dict[str, Run] = {
    "auto, control": ours("auto", control=True),
    "auto": ours("auto"),
    BANZHAF: ours("auto", index="banzhaf"),
    **{name: ours(name) for name in ESTIMATORS if name not in ("exact", "gaussian_process", "lasso")},
    "lasso": lasso,
    "shapiq KernelSHAP": shapiq_kernel_shap,
    "told the kernel": told_the_kernel,
}


def fit(game: Game, scores: Floats) -> float:
    """LDS: rank correlation of the scores' sums with the values of 256 coalitions drawn evenly."""
    masks = all_coalitions(game.n)[np.random.default_rng(10_000).choice(len(game.table), 256, replace=False)]
    return float(spearmanr(masks @ scores, game.table[masks @ (1 << np.arange(game.n))]).statistic)


def loaded(stored: Mapping[str, Any]) -> Game:
    """A game that nothing has been asked of."""
    return Game(np.array(stored["values"]), np.array(stored["blocks"]), stored["tokens"])


def judge(name: str, stored: Mapping[str, Any], budget: int, seed: int) -> dict[str, float]:
    """One run on one game: NMSE, top-3 overlap, LDS, coverage, calls, tokens and seconds."""
    game = loaded(stored)
    truth = exact_scores(game.table, "banzhaf" if name == BANZHAF else "shapley")
    begun = time.perf_counter()
    scores, low, high = RUNS[name](game, budget, seed)
    seconds = time.perf_counter() - begun
    top = {*np.argsort(-scores)[:3].tolist()} & {*np.argsort(-truth)[:3].tolist()}
    return {
        "nmse": float(((scores - truth) ** 2).sum() / (truth**2).sum()),
        "top3": len(top) / 3,
        "lds": fit(game, scores),
        "coverage": float(np.mean((low <= truth) & (truth <= high))) if np.isfinite(low).any() else NOTHING,
        "calls": float(len(np.unique(np.concatenate(game.asked), axis=0))),
        "control_calls": float(game.control_calls),
        "tokens": float(game.forwarded()),
        "seconds": seconds,
    }


def interval(values: Floats) -> list[float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(values[rng.integers(len(values), size=(2000, len(values)))], axis=1)
    return np.quantile(medians, [0.025, 0.975]).tolist()


def judged(name: str, budget: int, games: Mapping[str, Mapping[str, Any]], seeds: int) -> dict[str, Any]:
    """One estimator at one budget over all games."""
    runs = [[judge(name, game, budget, s) for s in range(seeds)] for game in games.values()]
    per_game = {k: np.array([np.median([r[k] for r in game]) for game in runs]) for k in runs[0][0]}
    mean = {k: float(np.mean([r[k] for game in runs for r in game])) for k in runs[0][0]}
    return {
        "budget": budget,
        "estimator": name,
        "nmse": float(np.median(per_game["nmse"])),
        "nmse_interval": interval(per_game["nmse"]),
        "nmse_per_game": dict(zip(games, per_game["nmse"].tolist(), strict=True)),
        "top3": mean["top3"],
        "lds": float(np.median(per_game["lds"])),
        "coverage": None if np.isnan(mean["coverage"]) else mean["coverage"],
        "calls": max(r["calls"] for game in runs for r in game),
        "control_calls": mean["control_calls"],
        "tokens": mean["tokens"],
        "seconds": mean["seconds"],
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"{len(report['games'])} games, {report['seeds']} seeds. NMSE: median over games [95 % interval]. "
        "Tokens: forwarded by the exact engine and the control together, mean. LDS of the exact values: "
        + ", ".join(f"{index} {x:.3f}" for index, x in report["lds_of_exact"].items())
        + ".",
        "",
        "| evaluations | estimator | NMSE | top-3 | LDS | coverage | tokens | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        low, high = r["nmse_interval"]
        coverage = "" if r["coverage"] is None else f"{r['coverage']:.2f}"
        lines.append(
            f"| {r['budget']} | {r['estimator']} | {r['nmse']:.4f} [{low:.4f}, {high:.4f}] | {r['top3']:.2f} "
            f"| {r['lds']:.3f} | {coverage} | {r['tokens']:,.0f} | {r['seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=Path, required=True, help="JSON of hotpotqa_games.py")
    parser.add_argument("--names", help="only these games, separated by commas")
    parser.add_argument("--estimators", help=f"only these, separated by semicolons, of: {'; '.join(RUNS)}")
    parser.add_argument("--budgets", default="16,32,64,128")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file; a Markdown file is written beside it")
    args = parser.parse_args()
    games = json.loads(args.games.read_text())["games"]
    games = {name: games[name] for name in (args.names.split(",") if args.names else games)}
    report: dict[str, Any] = {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "amplify": amplify.__version__,
        "games": list(games),
        "seeds": args.seeds,
        "lds_of_exact": {
            index: float(np.median([fit(g, exact_scores(g.table, index)) for g in map(loaded, games.values())]))
            for index in get_args(Index)
        },
        "rows": [],
    }
    for budget in map(int, args.budgets.split(",")):
        for name in args.estimators.split(";") if args.estimators else RUNS:
            report["rows"].append(judged(name, budget, games, args.seeds))
            print(table(report).splitlines()[-1], flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
