"""The estimators on the committed games of a real model: all values known, so every error is exact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from amplify import resources
from amplify.textgenshap import estimate, exact_scores

GAMES = resources.content("eval") / "results" / "hotpotqa_games.json"


@pytest.fixture(scope="module")
def tables() -> list[np.ndarray]:
    if not GAMES.exists():
        pytest.skip("no games yet: run eval/hotpotqa_games.py")
    return [np.array(game["values"]) for game in json.loads(GAMES.read_text())["games"].values()]


def errors(tables: list[np.ndarray], name: str, budget: int) -> float:
    """Median over games of the median NMSE over three seeds."""
    bits = 1 << np.arange(10)
    per_game = []
    for table in tables:
        truth = exact_scores(table)
        runs = [estimate(lambda s, t=table: t[s @ bits], 10, estimator=name, budget=budget, seed=k) for k in range(3)]
        assert max(r.calls for r in runs) <= budget
        per_game.append(np.median([((r.scores - truth) ** 2).sum() / (truth**2).sum() for r in runs]))
    return float(np.median(per_game))


def test_auto_with_64_evaluations(tables: list[np.ndarray]) -> None:
    assert errors(tables, "auto", 64) <= 0.01


@pytest.mark.parametrize("other", ["lasso", "kernel_shap", "permutation"])
def test_auto_with_32_evaluations_beats(tables: list[np.ndarray], other: str) -> None:
    assert errors(tables, "auto", 32) < errors(tables, other, 32)
