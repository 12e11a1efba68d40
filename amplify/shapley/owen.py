"""Owen values of what a part consists of, from a sample that goes on from the part's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from amplify.shapley import gp
from amplify.shapley.estimators import POOL, conditioned, standardised
from amplify.shapley.exact import MAX_SOURCES, Owen, all_coalitions, coalition_weights
from amplify.shapley.game import Coalitions, Floats, distinct
from amplify.shapley.given import half_widths, merged

FEW = 2  # evaluations a player that tell players of the last block apart, below which fitted error bars are no guide


@dataclass(frozen=True)
class Sampled:
    """Scores of the last block.

    Attributes:
        scores, half: scores and half widths of their 95 % intervals, [scored, columns]; 0 where all is known.
        asked, values: what was asked beside what was known, bool[m, n] and [m, columns].
    """

    scores: Floats
    half: Floats
    asked: Coalitions
    values: Floats


def owen_scores(
    value: Callable[[Coalitions], Floats],
    owen: Owen,
    known: Coalitions,
    values: Floats,
    budget: int,
    rng: np.random.Generator,
    noisy: bool = False,
) -> Sampled:
    """Scores of the last block of a game, of which some values are known and so many more may be asked.

    All that is left is asked where it fits the budget, and the scores are exact. Otherwise a Gaussian process over all
    players (`gp`) chooses what tells most of these scores, in rounds that double what is known.

    Args:
        value: bool[m, n] -> [m, columns].
        owen: the blocks, n players in all.
        known: coalitions whose values are known already, the part's own sample; one that stands there twice counts
            with its mean. bool[m, n].
        values: theirs, [m, columns].
        budget: further coalitions that may be asked.
        rng: of the candidates and of ties.
        noisy: one value a coalition is a sample, so that all of them are not yet the game.
    """
    n, own = known.shape[1], owen.blocks[-1]
    asked, found = merged(known, values)
    rounds = [len(asked)]

    def more(rows: Coalitions) -> None:
        nonlocal asked, found
        if len(rows):
            asked, found = np.concatenate([asked, rows]), np.concatenate([found, value(rows)])
            rounds.append(len(asked))

    complete = n <= MAX_SOURCES and 2**n - len(asked) <= budget
    if complete:
        seen = {row.tobytes() for row in asked}
        more(np.array([row for row in all_coalitions(n) if row.tobytes() not in seen], bool).reshape(-1, n))
    if complete and not noisy:
        scores = coalition_weights(asked, owen).T @ found
        return Sampled(scores, np.zeros_like(scores), asked[rounds[0] :], found[rounds[0] :])
    pool = _candidates(owen, rng)
    while (left := budget - len(asked) + rounds[0]) > 0:
        kernels = [gp.fit(asked, y, small=0.0) for y in standardised(found)[0].T]
        shared = gp.unpack(np.mean([gp.pack(k) for k in kernels], axis=0), small=0.0)
        picked = gp.AcquisitionDesign(shared, asked, pool, owen).pick(min(left, max(2 * own, len(asked) // 2)))
        if not len(picked):
            break
        more(picked)
    raw = conditioned(asked, found, rounds, owen)
    half = raw.half
    inner = asked[:, owen.scored]
    apart = int((inner.any(axis=1) & ~inner.all(axis=1)).sum())
    if apart < FEW * own:  # hyperparameters fitted to so few see less error than there is
        half = np.maximum(half, half_widths(asked, found, owen))
    return Sampled(raw.scores, half, asked[rounds[0] :], found[rounds[0] :])


def _candidates(owen: Owen, rng: np.random.Generator) -> Coalitions:
    """Where the design may look: everything of few players, else a sample in which each block has sizes of its own."""
    n = sum(owen.blocks)
    if n <= MAX_SOURCES and 2**n <= POOL:
        return rng.permutation(all_coalitions(n))
    columns = []
    for size in owen.blocks:
        chance = rng.random((POOL // 2, 1)) if owen.index == "shapley" else np.full((POOL // 2, 1), 0.5)
        ends = rng.random((POOL // 2, 1))  # a quarter of the time a block is there whole, or not at all
        columns.append(rng.random((POOL // 2, size)) < np.where(ends < 0.25, (ends < 0.125) * 1.0, chance))
    drawn = np.concatenate(columns, axis=1)
    both = np.concatenate(
        [drawn, np.concatenate([drawn[:, : -owen.blocks[-1]], ~drawn[:, -owen.blocks[-1] :]], axis=1)]
    )
    single = np.eye(n, dtype=bool)
    return distinct(np.concatenate([both, single, ~single]))[0]
