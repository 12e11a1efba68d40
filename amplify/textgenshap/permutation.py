"""Shapley values by antithetic permutation sampling."""

from __future__ import annotations

import numpy as np

from amplify.textgenshap.sampling import ends, prefixes
from amplify.textgenshap.value import CachedValue, Floats


def permutation_scores(game: CachedValue, rng: np.random.Generator, budget: int) -> tuple[Floats, Floats]:
    """Walk permutations and their reverses until the next one no longer fits the budget.

    Castro et al. 2009; the reverse of each permutation is walked too (antithetic, Mitchell et al. 2022): it asks the
    complements. Coalitions met before cost nothing.

    Returns:
        The scores, [n, answers], and one row of marginals per independent unit (a permutation with its reverse;
        the last unit may be one permutation), [units, n, answers].
    """
    n = game.n
    game(ends(n))
    units: list[list[Floats]] = []
    complete = True
    while complete and (
        not units or game.calls < 2**n
    ):  # once all coalitions are known there is nothing left to sample
        order = rng.permutation(n)
        walked: list[Floats] = []
        for walk in (order, order[::-1]):
            path = prefixes(walk)
            if game.new_among(path) > budget - game.calls:
                complete = False
                break
            values = game(path)
            credit = np.empty((n, values.shape[1]))
            credit[walk] = values[1:] - values[:-1]
            walked.append(credit)
        if walked:
            units.append(walked)
    marginals = np.concatenate([np.stack(u) for u in units])
    return marginals.mean(axis=0), np.stack([np.mean(u, axis=0) for u in units])
