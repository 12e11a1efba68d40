"""Shapley-Shubik credit in TextGenSHAP's voting game: who turned the answer into c.

In a random order of the sources, the source whose arrival makes the answer c, where it was not c before, gets credit
for c (arXiv 2312.01279, section 3.1): the positive part of a marginal. It is not linear in the game, so it comes from
pairs of neighbouring coalitions alone, never from a regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.textgenshap.exact import all_coalitions, marginal_weights
from amplify.textgenshap.intervals import BORROWED, half_width, mean_deviation
from amplify.textgenshap.value import Floats

Answers = npt.NDArray[np.object_]


def credit(before: Sequence[str] | Answers, after: Sequence[str] | Answers, candidates: Sequence[str]) -> Floats:
    """1.0 where the answer became a candidate that it was not, [pairs, candidates]."""
    old, new, c = (np.asarray(x, dtype=object) for x in (before, after, candidates))
    return ((new[:, None] == c) & (old[:, None] != c)).astype(np.float64)


def exact_shubik(said: Sequence[str], n: int, candidates: Sequence[str]) -> Floats:
    """Credit of each source over all orders.

    Args:
        said: answer to each of the 2^n coalitions, in the order of `all_coalitions`.
        n: number of sources.
        candidates: the answers to score.

    Returns:
        [n, candidates].
    """
    held = all_coalitions(n)
    rows = np.arange(2**n)
    weight = marginal_weights(n, "shapley")[np.minimum(held.sum(axis=1), n - 1)]
    scores = np.empty((n, len(candidates)))
    for i in range(n):
        without = rows[~held[:, i]]
        gained = credit([said[k] for k in without], [said[k | 1 << i] for k in without], candidates)
        scores[i] = weight[without] @ gained
    return scores


def walked_shubik(orders: npt.NDArray[np.int64], said: Answers, candidates: Sequence[str]) -> tuple[Floats, Floats]:
    """Credit of each source over sampled orders.

    Args:
        orders: int[permutations, n].
        said: answer to each prefix of each order, empty first, [permutations, n + 1].
        candidates: the answers to score.

    Returns:
        Mean credit and half widths of 95 % intervals, [n, candidates] both.
    """
    count, n = orders.shape
    found = np.empty((count, n, len(candidates)))
    for k in range(count):
        found[k, orders[k]] = credit(said[k, :-1], said[k, 1:], candidates)
    return found.mean(axis=0), half_width(mean_deviation(found), count - 1 + BORROWED)


def sampled_orders(
    n: int, budget: int, new: Callable[[npt.NDArray[np.int64]], int], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Random orders and their reverses, as many as the budget holds.

    Args:
        n: number of sources.
        budget: distinct coalitions.
        new: orders so far -> distinct coalitions that they ask.
        rng: random numbers.

    Returns:
        int[permutations, n].

    Raises:
        InputError: not one order fits.
    """
    orders = np.zeros((0, n), np.int64)
    while len(orders) < budget:
        drawn = rng.permutation(n)
        for order in (drawn, drawn[::-1]):
            longer = np.concatenate([orders, order[None]])
            if new(longer) > budget:
                if not len(orders):
                    raise InputError(f"one order of {n} documents asks {n + 1} coalitions; the budget is {budget}")
                return orders
            orders = longer
    return orders
