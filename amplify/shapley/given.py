"""Scores from values that are there already, however they were chosen."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from amplify.shapley import gp
from amplify.shapley.exact import MAX_SOURCES, Index, Owen, as_owen, coalition_weights
from amplify.shapley.game import Coalitions, Floats, distinct
from amplify.shapley.intervals import half_width

MOVES = 3  # doublings of the sample that tell how far scores still move


def merged(coalitions: Coalitions, values: Floats) -> tuple[Coalitions, Floats]:
    """Each coalition once, with the mean of its values: [m, n] and [m, columns]."""
    unique, _, which = distinct(coalitions)
    total = np.zeros((len(unique), values.shape[1]))
    np.add.at(total, which, values)
    return unique, total / np.bincount(which)[:, None]


def given_scores(coalitions: Coalitions, values: Floats, index: Index | Owen) -> tuple[Floats, Floats]:
    """Shapley, Banzhaf or Owen values of a game of which some values are known.

    Exact where all 2^n are known, else the posterior of a Gaussian process (`gp`).

    Args:
        coalitions: bool[m, n] in the order of asking; one that stands there twice counts with its mean. For Shapley
            values the empty and the full one are among them.
        values: [m, columns].
        index: which value.

    Returns:
        Scores and half widths of their 95 % intervals, [scored, columns] both; Shapley values sum to v(N) - v(empty). A
        width is 0 only where all 2^n are known.

    Example:
        >>> from amplify.shapley import all_coalitions
        >>> coalitions = all_coalitions(2)
        >>> scores, half = given_scores(coalitions, coalitions @ np.array([[1.0], [2.0]]), "shapley")
        >>> scores.ravel(), half.ravel()
        (array([1., 2.]), array([0., 0.]))
    """
    seen, table = merged(coalitions, values)
    n = seen.shape[1]
    owen = as_owen(index, n)
    if n <= MAX_SOURCES and len(seen) == 2**n:
        scores = coalition_weights(seen, owen).T @ table
        return scores, np.zeros_like(scores)
    scores = np.zeros((owen.blocks[-1], table.shape[1]))
    for k, column in enumerate(table.T):
        spread = float(column.std())
        if spread == 0:  # every value the same: every source did nothing, as far as is known
            continue
        scaled = (column - column.mean()) / spread
        found = gp.posterior(gp.fit(seen, scaled, small=gp.rougher(index)), seen, scaled, owen)
        scores[:, k] = found.scores * spread
    size = seen.sum(axis=1)
    if index == "shapley" and size.min() == 0 and size.max() == n:
        scores += (table[size.argmax()] - table[size.argmin()] - scores.sum(axis=0)) / n
    asked = np.argsort(distinct(coalitions)[1])
    return scores, half_widths(seen[asked], table[asked], index)


def half_widths(coalitions: Coalitions, values: Floats, index: Index | Owen) -> Floats:
    """Half widths of 95 % intervals where the sample was chosen for another column, [n, columns].

    Hyperparameters fitted to a column that is nearly always the same see no error where nothing was asked. So the error
    bars are those of the kernel before any value is seen, in the scale that the values have under it, widened by how
    much further than they say the scores moved when the sample doubled (`gp.surprise`).

    Args:
        coalitions: bool[m, n], all different, in the order of asking.
        values: [m, columns].
        index: which value.
    """
    m, n = coalitions.shape
    kernel = gp.prior(n, gp.rougher(index))
    factor = cho_factor(kernel.gram(coalitions, coalitions) + gp.JITTER * np.eye(m), lower=True)
    deviation = gp.posterior(kernel, coalitions, np.zeros(m), index).deviation
    halves = []
    for column in values.T:
        if np.ptp(column) == 0:  # one value more may be a unit away
            halves.append(half_width(deviation / np.sqrt(m), 1))
            continue
        gap = column - column.mean()
        scale = np.sqrt(gap @ cho_solve(factor, gap) / m)
        moved: list[gp.Surprise] = []
        then = m
        while len(moved) < MOVES and (known := (then + 1) // 2) > 2:
            moved.append(gp.surprise(kernel, coalitions[:then], gap[:then] / scale, known, index))
            then = known
        ratio = max(float(np.mean([s.ratio for s in moved])), 1.0) if moved else 1.0
        # a scale is known from few moves, and from no more values than stand out
        odd = 1 + (gap**2).sum() ** 2 / (gap**4).sum()
        freedom = 1 / (1 / odd + 1 / (sum(s.freedom for s in moved) if moved else 1.0))
        halves.append(half_width(deviation * scale * np.sqrt(ratio), max(freedom, 1.0)))
    return np.stack(halves, axis=1)
