"""95 % intervals of sampled scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from amplify.shapley.game import Floats

LEVEL = 0.95
BORROWED = 4.0


def half_width(deviation: Floats, freedom: float) -> Floats:
    """Half the width of the 95 % interval; infinite without degrees of freedom, but 0 where there is no deviation.

    Example:
        >>> half_width(np.array([1.0]), freedom=1000).round(2)
        array([1.96])
    """
    if freedom < 1:
        return np.where(deviation > 0, np.inf, 0.0)
    return deviation * float(student.ppf((1 + LEVEL) / 2, freedom))


def mean_deviation(terms: Floats) -> Floats:
    """Standard error of the mean of independent `terms` [units, n, ...], which a bootstrap of the units converges to.

    Returns:
        [n, ...]; infinite for one unit.
    """
    units = len(terms)
    if units < 2:
        return np.full(terms.shape[1:], np.inf)
    own = ((terms - terms.mean(axis=0)) ** 2).sum(axis=0) / (units * (units - 1))
    # a few units tell little about the spread of a single source: borrow from all sources as much as BORROWED units say
    pooled = own.mean(axis=0, keepdims=True)
    return np.sqrt(((units - 1) * own + BORROWED * pooled) / (units - 1 + BORROWED))


def wild_bootstrap(
    estimate: Callable[[Floats], Floats],
    values: Floats,
    residuals: Floats,
    leverage: Floats,
    unsampled: Floats,
    freedom: float,
    rng: np.random.Generator,
    rounds: int = 200,
) -> Floats:
    """Standard deviation of a regression's scores under the wild bootstrap over complement pairs (Wu 1986).

    Each round keeps the design and turns the pairs' errors round by lot, so no round loses rank, which a resampling of
    few pairs would. A pair that the fit follows (leverage h near 1) has a small residual whatever its error. So the
    variance of an error is taken from its own residual, which has 1 - h degrees of freedom, and from all residuals
    together, with the weight of one; and it is inflated by 1 + h, as the jackknife does to first order (MacKinnon &
    White 1985).

    Args:
        estimate: values [pairs, 2, columns] -> scores [n, columns], affine in the values, column by column.
        values: what was measured, [pairs, 2, answers] (of single draws [draws, 1, answers]).
        residuals: values less the fitted ones, same shape.
        leverage: how far the fit at each pair follows that pair, from 0 to 1. [pairs]
        unsampled: share of the population that each pair leaves unseen, [pairs].
        freedom: pairs less fitted coefficients.
        rng: random numbers.
        rounds: bootstrap rounds.

    Returns:
        [n, answers]; infinite where the fit leaves no degree of freedom.
    """
    if freedom < 1:
        return np.full_like(estimate(values), np.inf)
    squares = residuals[:, 0] ** 2
    h = leverage[:, None]
    variance = (squares + squares.sum(axis=0) / freedom) / (2 - h) * (1 + h) * unsampled[:, None]
    both = np.array([1.0, -1.0])[: values.shape[1], None]  # an error has the other sign in the other half
    noise = np.sqrt(variance)[:, None] * both
    signs = rng.choice([-1.0, 1.0], (rounds, len(values), 1, 1))
    drawn = np.moveaxis(signs * noise, 0, -1)  # [pairs, 2, answers, rounds], as columns of one fit
    scores = estimate(drawn.reshape(*values.shape[:2], -1))
    return scores.reshape(len(scores), -1, rounds).std(axis=-1)
