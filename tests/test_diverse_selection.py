"""Diverse, balanced and well-labelled demonstrations: against brute force and cases one can check by hand."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from amplify.errors import InputError
from amplify.selection import likely_mislabelled, pick, submodular_pick, text_similarity
from amplify.types import Example


def test_relevance_alone_and_balanced() -> None:
    assert pick([0.1, 0.9, 0.5, 0.9], 3) == [1, 3, 2]
    assert pick([5, 4, 3, 2, 1], 3, groups=["a", "a", "a", "b", "b"]) == [0, 3, 1]
    assert pick([5, 4, 3, 2], 4, groups=["a", "a", "a", "b"]) == [0, 3, 1, 2], "a group may run out"


def test_marginal_relevance_step_by_step() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        worth = rng.random(7)
        points = rng.normal(size=(7, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        near, trade = points @ points.T, float(rng.uniform())
        chosen = pick(worth, 4, similarity=near, trade=trade)
        for step, item in enumerate(chosen):
            before = chosen[:step]
            left = [i for i in range(7) if i not in before]
            nearest = [max((near[i, j] for j in before), default=0.0) for i in range(7)]
            gains = trade * worth - (1 - trade) * np.array(nearest)
            assert gains[item] == pytest.approx(gains[left].max(), abs=1e-12)
    twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert pick([1.0, 0.9, 0.5], 2, similarity=twins) == [0, 2]
    assert pick([1.0, 0.9, 0.5], 2, similarity=twins, trade=1.0) == [0, 1]


def covered(weight: np.ndarray, items: Sequence[int]) -> float:
    return float(np.sqrt(np.abs(weight).sum(0))[(weight[list(items)] != 0).any(0)].sum())


def test_submodular_pick_covers_within_the_greedy_bound() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        weight = rng.normal(size=(8, 12)) * (rng.random((8, 12)) < 0.3)
        best = max(covered(weight, items) for items in combinations(range(8), 3))
        assert covered(weight, submodular_pick(weight, 3)) >= (1 - 1 / np.e) * best - 1e-12
    # the second item adds nothing new, however high its scores: the sign does not matter either
    assert submodular_pick([[3, 1, 0], [2, 0, 0], [0, 0, -1]], 2) == [0, 2]
    assert submodular_pick([[3, 1, 0], [2, 0, 0], [0, 0, -1]], 2, groups=["a", "b", "a"]) == [0, 1]


def test_planted_label_errors_are_flagged() -> None:
    rng = np.random.default_rng(2)
    names = ("x", "y", "z")
    truth = rng.integers(0, 3, 300)
    given = truth.copy()
    wrong = rng.choice(300, 30, replace=False)
    given[wrong] = (truth[wrong] + 1) % 3
    logits = rng.normal(size=(300, 3)) + 4 * np.eye(3)[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = [dict(zip(names, map(float, row), strict=True)) for row in p]
    flags = np.array(likely_mislabelled(rows, [names[i] for i in given]))
    planted = np.isin(np.arange(300), wrong)
    assert flags[planted].mean() > 0.8
    assert flags[~planted].mean() < 0.05


def test_a_doubtful_item_is_no_label_error() -> None:
    rows = [{"a": 0.9, "b": 0.1}, {"a": 0.8, "b": 0.2}, {"a": 0.45, "b": 0.55}, {"a": 0.1, "b": 0.9}]
    assert likely_mislabelled(rows, ["a", "a", "a", "b"]) == [False] * 4, "0.55 is below what b usually has"
    assert likely_mislabelled([*rows, {"a": 0.05, "b": 0.95}], ["a", "a", "a", "b", "a"])[-1] is True


def test_similarity_and_bad_input() -> None:
    near = text_similarity([Example("1", "red fox"), Example("2", "Red fox"), Example("3", "slow snail")])
    assert near[0, 1] == pytest.approx(1.0)
    assert near[0, 2] == 0.0
    with pytest.raises(InputError, match="3 of 2 items"):
        pick([1.0, 2.0], 3)
    with pytest.raises(InputError, match="one each"):
        pick([1.0, 2.0], 1, groups=["a"])
