"""Scores from values that are there already, however they were chosen."""

from __future__ import annotations

import numpy as np

from amplify.textgenshap import gp
from amplify.textgenshap.exact import Index, all_coalitions, exact_scores
from amplify.textgenshap.intervals import half_width
from amplify.textgenshap.value import Coalitions, Floats


def merged(coalitions: Coalitions, values: Floats) -> tuple[Coalitions, Floats]:
    """Each coalition once, with the mean of its values: [m, n] and [m, columns]."""
    unique, which = np.unique(coalitions, axis=0, return_inverse=True)
    which = which.reshape(-1)
    total = np.zeros((len(unique), values.shape[1]))
    np.add.at(total, which, values)
    return unique, total / np.bincount(which)[:, None]


def given_scores(coalitions: Coalitions, values: Floats, index: Index) -> tuple[Floats, Floats]:
    """Shapley or Banzhaf values of a game of which some values are known.

    Exact where all 2^n are known, else the posterior of a Gaussian process (`gp`).

    Args:
        coalitions: bool[m, n]; one that stands there twice counts with its mean. For Shapley values the empty and the
            full one are among them.
        values: [m, columns].
        index: which value.

    Returns:
        Scores and half widths of their 95 % intervals, [n, columns] both; Shapley values sum to v(N) - v(empty).
    """
    seen, table = merged(coalitions, values)
    n = seen.shape[1]
    if n < 20 and len(seen) == 2**n:
        order = np.lexsort(seen.T)  # the last key, the highest bit, counts most: the order of `all_coalitions`
        assert np.array_equal(seen[order], all_coalitions(n))
        scores = exact_scores(table[order], index)
        return scores, np.zeros_like(scores)
    scores, half = np.zeros((n, table.shape[1])), np.zeros((n, table.shape[1]))
    for k, column in enumerate(table.T):
        spread = float(column.std())
        if spread == 0:  # every value the same: every source did nothing, as far as is known
            continue
        scaled = (column - column.mean()) / spread
        found = gp.posterior(gp.fit(seen, scaled), seen, scaled, index)
        scores[:, k] = found.scores * spread
        half[:, k] = half_width(found.deviation * spread, max(len(seen) - n, 1))
    size = seen.sum(axis=1)
    if index == "shapley" and size.min() == 0 and size.max() == n:
        scores += (table[size.argmax()] - table[size.argmin()] - scores.sum(axis=0)) / n
    return scores, half


def given_each(coalitions: Coalitions, values: Floats, index: Index) -> Floats:
    """Scores of several related games of which the same values are known, with the hyperparameters of their mean.

    Args:
        coalitions: bool[m, n], all different.
        values: [m, games, columns].
        index: which value.

    Returns:
        [games, n, columns].
    """
    m, games, columns = values.shape
    n = coalitions.shape[1]
    if m == 2**n:
        order = np.lexsort(coalitions.T)
        return exact_scores(values[order].reshape(m, -1), index).reshape(n, games, columns).transpose(1, 0, 2)
    scores = np.zeros((games, n, columns))
    for k in range(columns):
        mean = values[:, :, k].mean(axis=1)
        if (spread := float(mean.std())) == 0:
            continue
        kernel = gp.fit(coalitions, (mean - mean.mean()) / spread)
        for g in range(games):
            own = values[:, g, k] - values[:, g, k].mean()
            scores[g, :, k] = gp.posterior(kernel, coalitions, own, index).scores
    return scores
