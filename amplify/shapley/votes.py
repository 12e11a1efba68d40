"""Shapley-Shubik and Penrose-Banzhaf credit in TextGenSHAP's voting game: who turned the answer into c.

The source whose arrival makes the answer c, where it was not c before, gets credit for c (arXiv 2312.01279, section
3.1): the positive part of a marginal. For Shapley-Shubik sources arrive in a random order; for Penrose-Banzhaf each
joins those of the others that are there, each by chance. Credit is not linear in the game, so it comes from pairs of
neighbouring coalitions alone, never from a regression.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.shapley.exact import all_coalitions, marginal_weights
from amplify.shapley.game import Coalitions, Floats
from amplify.shapley.intervals import BORROWED, half_width, mean_deviation

MOST_ORDERS = 10_000  # of few sources all coalitions become known, and orders cost nothing: so many tell enough
Answers = npt.NDArray[np.object_]


def credit(before: Sequence[str] | Answers, after: Sequence[str] | Answers, candidates: Sequence[str]) -> Floats:
    """1.0 where the answer became a candidate that it was not, [pairs, candidates]."""
    old, new, c = (np.asarray(x, dtype=object) for x in (before, after, candidates))
    return ((new[:, None] == c) & (old[:, None] != c)).astype(np.float64)


def shubik_weights(n: int) -> Floats:
    """Chance of each coalition that a source finds in a random order, by its size, [n]."""
    return marginal_weights(n, "shapley")


def penrose_weights(n: int, inclusion_probability: float) -> Floats:
    """Chance of each coalition of the others, by its size, where each of them is there with that probability."""
    sizes = np.arange(n)
    return inclusion_probability**sizes * (1 - inclusion_probability) ** (n - 1 - sizes)


def exact_credit(said: Sequence[str], n: int, candidates: Sequence[str], by_size: Floats) -> Floats:
    """Credit of each source over all coalitions.

    Args:
        said: answer to each of the 2^n coalitions, in the order of `all_coalitions`.
        n: number of sources.
        candidates: the answers to score.
        by_size: weight of what a coalition of so many others credits (`shubik_weights`, `penrose_weights`), [n].

    Returns:
        [n, candidates].

    Example:
        >>> exact_credit(["no", "yes", "no", "yes"], 2, ["yes"], shubik_weights(2))  # the first source says so
        array([[1.],
               [0.]])
    """
    held = all_coalitions(n)
    rows = np.arange(2**n)
    weight = by_size[np.minimum(held.sum(axis=1), n - 1)]
    scores = np.empty((n, len(candidates)))
    for i in range(n):
        without = rows[~held[:, i]]
        gained = credit([said[k] for k in without], [said[k | 1 << i] for k in without], candidates)
        scores[i] = weight[without] @ gained
    return scores


def walked_shubik(orders: npt.NDArray[np.int64], said: Answers, candidates: Sequence[str]) -> tuple[Floats, Floats]:
    """Credit of each source over sampled orders.

    Args:
        orders: int[permutations, n]; the reverse of an order, where it was drawn, follows it.
        said: answer to each prefix of each order, empty first, [permutations, n + 1].
        candidates: the answers to score.

    Returns:
        Mean credit and half widths of 95 % intervals (`credit_half_width`), [n, candidates] both.
    """
    count, n = orders.shape
    found = np.empty((count, n, len(candidates)))
    for k in range(count):
        found[k, orders[k]] = credit(said[k, :-1], said[k, 1:], candidates)
    units, k = [], 0
    while k < count:  # an order and its reverse are one draw
        both = k + 1 < count and np.array_equal(orders[k + 1], orders[k][::-1])
        units.append(found[k : k + 1 + both].mean(axis=0))
        k += 1 + both
    return found.mean(axis=0), credit_half_width(np.stack(units), count)


def sampled_orders(
    n: int, budget: int, asked: Callable[[npt.NDArray[np.int64]], Iterable[Hashable]], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Random orders and their reverses, as many as the budget holds, `budget` and MOST_ORDERS at most.

    Args:
        n: number of sources.
        budget: distinct coalitions.
        asked: an order -> what it asks; what is equal is one coalition.
        rng: random numbers.

    Returns:
        int[permutations, n].

    Raises:
        InputError: not one order fits.
    """
    if budget < n + 1:
        raise InputError(f"one order of {n} documents asks {n + 1} coalitions; the budget is {budget}")
    orders: list[npt.NDArray[np.int64]] = []
    known: set[Hashable] = set()
    while True:
        drawn = rng.permutation(n)
        for order in (drawn, drawn[::-1]):
            new = set(asked(order)) - known
            if len(known) + len(new) > budget or len(orders) == min(budget, MOST_ORDERS):
                return np.stack(orders)
            known |= new
            orders.append(order)


def sampled_flips(n: int, budget: int, inclusion_probability: float, rng: np.random.Generator) -> Coalitions:
    """Random coalitions, each with every source flipped in turn, as many as the budget holds beside none and all.

    Returns:
        bool[draws, n + 1, n]: the coalition, then those with source 0, 1, … flipped.

    Raises:
        InputError: not one draw fits.
    """
    flips: list[Coalitions] = []
    known = {np.full(n, end).tobytes() for end in (False, True)}
    while len(flips) < min(budget, MOST_ORDERS):
        drawn = np.vstack([np.zeros((1, n), bool), np.eye(n, dtype=bool)]) ^ (rng.random(n) < inclusion_probability)
        new = {row.tobytes() for row in drawn} - known
        if len(known) + len(new) > budget:
            break
        flips.append(drawn)
        known |= new
    if not flips:
        raise InputError(f"one coalition of {n} documents has {n} neighbours, all to be asked; the budget is {budget}")
    return np.stack(flips)


def flipped_credit(flips: Coalitions, said: Answers, candidates: Sequence[str]) -> tuple[Floats, Floats]:
    """Credit of each source over sampled coalitions.

    Args:
        flips: as `sampled_flips` gives them.
        said: answer to each, [draws, n + 1].
        candidates: the answers to score.

    Returns:
        As `walked_shubik`.
    """
    count, n = len(flips), flips.shape[2]
    found = np.empty((count, n, len(candidates)))
    for k in range(count):
        there = flips[k, 0]  # flipping what is there takes it away
        before, after = np.where(there, said[k, 1:], said[k, 0]), np.where(there, said[k, 0], said[k, 1:])
        found[k] = credit(before, after, candidates)
    return found.mean(axis=0), credit_half_width(found, count)


def credit_half_width(units: Floats, draws: int) -> Floats:
    """Half widths of 95 % intervals of mean credit, [n, candidates]: above 0 even where all agree, and at most 1.

    Args:
        units: credit of independent draws, [units, n, candidates].
        draws: how many coalitions' or orders' credit they hold in all.
    """
    # one draw more might give the credit to any one source, whatever the others say
    deviation = np.sqrt(mean_deviation(units) ** 2 + 1 / (draws**2 * units.shape[1]))
    return np.minimum(half_width(deviation, len(units) - 1 + BORROWED), 1.0)
