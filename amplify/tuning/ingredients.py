"""What each ingredient of a search is worth: Shapley values of the game "the best candidate made of these alone"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amplify.shapley.exact import exact_scores

Floats = npt.NDArray[np.float64]
MOST = 12  # ingredients: 2^12 coalitions
ROUNDS = 500


@dataclass(frozen=True)
class Ingredient:
    """One ingredient's share of what the best candidate is better than the question alone.

    Attributes:
        name: of the ingredient.
        value: its Shapley value, as a share of the items.
        low, high: 95 % interval, by a percentile bootstrap over items.
        candidates: how many had it.

    Example:
        >>> [found.name for found in ingredients([np.zeros(4), np.ones(4)], [(), ("shots",)])]
        ['shots']
    """

    name: str
    value: float
    low: float
    high: float
    candidates: int


def ingredients(scores: Sequence[Floats], made_of: Sequence[Sequence[str]]) -> tuple[Ingredient, ...]:
    """Shapley values of the ingredients, highest first; together they are the best candidate less the one of none.

    A coalition of ingredients is worth the highest mean score among the candidates made of them alone: what a search
    that knew only these would have found. The maximum over noisy means is too high by a little, and the more so the
    more candidates there are: the values describe this search and promise nothing.

    Args:
        scores: of each candidate on the same items, shape (items,) each.
        made_of: its ingredients; one candidate has none.

    Returns:
        Values of the `MOST` ingredients that most candidates have. Where there are more, candidates that need one of
        the others are no part of the game: without it they are other candidates.
    """
    counts = Counter(name for own in made_of for name in set(own))
    names = sorted(sorted(counts, key=lambda name: (-counts[name], name))[:MOST])
    if not names or not any(not own for own in made_of):
        return ()
    within = [i for i, own in enumerate(made_of) if set(own) <= set(names)]
    table = np.stack([scores[i] for i in within])
    bits = np.array([sum(1 << names.index(n) for n in set(made_of[i])) for i in within])
    rows = np.arange(2 ** len(names))
    inside = (bits[None, :] & ~rows[:, None]) == 0  # candidate within coalition

    def values(means: Floats) -> Floats:
        game = np.where(inside, means[None, :], -np.inf).max(axis=1)
        return np.asarray(exact_scores(game), dtype=np.float64)

    found = values(table.mean(axis=1))
    rng = np.random.default_rng(0)
    n = table.shape[1]
    drawn = np.stack([values(table[:, rng.integers(0, n, n)].mean(axis=1)) for _ in range(ROUNDS)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    made = [
        Ingredient(name, float(found[i]), float(low[i]), float(high[i]), sum(name in made_of[k] for k in within))
        for i, name in enumerate(names)
    ]
    return tuple(sorted(made, key=lambda one: -one.value))
