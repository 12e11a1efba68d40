"""The order-randomised game: w(S) is the mean of v(S) over the orders in which the sources of S can stand.

Along a random permutation, the value of every prefix is one unbiased sample of w of that prefix; and the prompts are
prefixes of each other, so that one packed pass gives all n + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from amplify.errors import InputError
from amplify.shapley.exact import Index
from amplify.shapley.game import Floats
from amplify.shapley.given import given_scores
from amplify.shapley.intervals import BORROWED, half_width, mean_deviation
from amplify.shapley.regression import constrained_least_squares
from amplify.shapley.sampling import prefixes
from amplify.sources.context import Context, Ordered
from amplify.sources.parts import Sample, Scored, SelectionGame

GROUPS = 20


def random_order(
    play: SelectionGame, context: Context, index: Index, estimator: str, budget: int, rng: np.random.Generator
) -> tuple[Scored, Floats, str]:
    """Documents in random order: every prefix of a permutation is one sample of w(S) = E over orders of v(S).

    Permutations come with their reverses, whose prefixes are the complements.
    """
    parts = list(context.sources)
    n = len(parts)
    count = (budget - 1) // n
    if count < 1:
        raise InputError(
            f"one random order of {n} documents asks {n + 1} coalitions; the documents' share of the budget is {budget}"
        )
    orders: list[Ordered] = []
    while len(orders) < count:
        drawn = rng.permutation(n)
        orders += [drawn, drawn[::-1]]
    orders = orders[:count]
    ranks = np.repeat([np.argsort(o) for o in orders], n + 1, axis=0)
    walks = np.concatenate([prefixes(o) for o in orders])
    units = tuple((part,) for part in parts)
    rows = [play.held(units, walk, rank) for walk, rank in zip(walks.tolist(), ranks.tolist(), strict=True)]
    flat = play.of(rows)
    values = flat.reshape(count, n + 1, -1)
    scores, half, used = random_order_scores(np.stack(orders), values, index, estimator)
    sample = Sample((units,), walks, tuple(rows), flat)
    ends = np.stack([values[:, 0].mean(axis=0), values[:, -1].mean(axis=0)])
    return Scored(parts, scores, half, [(sample, k) for k in range(n)]), ends, used


def random_order_scores(orders: Any, values: Floats, index: str, estimator: str = "auto") -> tuple[Floats, Floats, str]:
    """Scores of the order-randomised game from values along permutations.

    Args:
        orders: int[permutations, n].
        values: of each permutation's prefixes, empty first, [permutations, n + 1, columns].
        index: "shapley", "banzhaf", or "append": the mean change where a document is put behind those before it. It
            judges every document as the last one, so it is no Shapley value of this game.
        estimator: "gaussian_process" (or "auto") or "kernel_shap".

    Returns:
        Scores and half widths, [n, columns] both, and the estimator's name.

    Raises:
        InputError: another estimator.
    """
    count, n = orders.shape
    if index == "append":
        credit = np.empty((count, n, values.shape[2]))
        np.put_along_axis(credit, orders[:, :, None], np.diff(values, axis=1), axis=1)
        return credit.mean(axis=0), half_width(mean_deviation(credit), count - 1 + BORROWED), "permutation"
    name = "gaussian_process" if estimator == "auto" else estimator
    if name not in ("gaussian_process", "kernel_shap") or (name == "kernel_shap" and index != "shapley"):
        raise InputError(
            f"estimator {estimator!r} chooses its own coalitions; random orders are scored with 'auto' "
            "('gaussian_process') or, for Shapley values, 'kernel_shap'"
        )

    def process(chosen: Sequence[int]) -> Floats:
        held = np.concatenate([prefixes(orders[k]) for k in chosen])
        flat = np.concatenate([values[k] for k in chosen])
        return given_scores(held, flat, index)[0]  # type: ignore[arg-type]

    def regression(chosen: Sequence[int]) -> Floats:
        rows = np.concatenate([prefixes(orders[k])[1:-1] for k in chosen])
        inner = np.concatenate([values[k, 1:-1] for k in chosen])
        size = rows.sum(axis=1)
        # a prefix of size s comes up with probability 1 / C(n, s), which is part of the kernel already
        ends = values[list(chosen)][:, [0, -1]].mean(axis=0)
        return constrained_least_squares(rows, inner, 1.0 / (size * (n - size)), ends[0], ends[1])

    estimate = process if name == "gaussian_process" else regression
    scores = estimate(range(count))
    # an order and its reverse are one draw; leaving each (of many: each of GROUPS groups) out in turn shows how far the
    # draws disagree, order effects included, which the process itself takes for part of the game
    draws = [range(k, min(k + 2, count)) for k in range(0, count, 2)]
    parts = np.array_split(np.arange(len(draws)), min(GROUPS, len(draws)))
    units = [{k for d in part for k in draws[d]} for part in parts]
    if len(units) < 2:
        return scores, np.full_like(scores, np.inf), name
    without = np.stack([estimate([k for k in range(count) if k not in unit]) for unit in units])
    gaps = (without - without.mean(axis=0)) * (len(units) - 1)
    return scores, half_width(mean_deviation(gaps), len(units) - 1 + BORROWED), name
