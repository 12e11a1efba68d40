"""The estimators on the committed games of a real model: all values known, so every error is exact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from amplify import resources
from amplify.shapley import Guide, estimate, exact_scores

GAMES = resources.content("eval") / "results" / "hotpotqa_games.json"


Table = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def games() -> list[Table]:
    if not GAMES.exists():
        pytest.skip("no games yet: run eval/hotpotqa_games.py")
    stored = json.loads(GAMES.read_text())["games"].values()
    return [{kind: np.array(game[kind]) for kind in ("values", "blocks")} for game in stored]


def errors(games: list[Table], name: str, budget: int, control: bool = False) -> float:
    """Median over games of the median NMSE over three seeds."""
    bits = 1 << np.arange(10)
    per_game = []
    for game in games:
        truth = exact_scores(game["values"])
        guide = Guide(lambda s, t=game["blocks"]: t[s @ bits]) if control else None
        runs = [
            estimate(lambda s, t=game["values"]: t[s @ bits], 10, "shapley", name, budget, k, guide=guide)
            for k in range(3)
        ]
        assert max(r.calls for r in runs) <= budget
        per_game.append(np.median([((r.scores - truth) ** 2).sum() / (truth**2).sum() for r in runs]))
    return float(np.median(per_game))


def test_single_prompts_agree(games: list[Table]) -> None:
    stored = json.loads(GAMES.read_text())["games"].values()
    assert max(game["single_prompts_differ_by"] for game in stored) <= 1e-4


def test_auto_with_64_evaluations_errs_half_as_much_as_the_best_other(games: list[Table]) -> None:
    best = min(errors(games, other, 64) for other in ("permutation", "kernel_shap", "leverage_shap", "lasso"))
    assert errors(games, "auto", 64) < 0.5 * best
    assert errors(games, "auto", 64, control=True) < 0.5 * best


@pytest.mark.parametrize("other", ["lasso", "kernel_shap", "permutation"])
def test_auto_with_32_evaluations_beats(games: list[Table], other: str) -> None:
    assert errors(games, "auto", 32) < errors(games, other, 32)
