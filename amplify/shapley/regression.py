"""Linear regressions: paired KernelSHAP and LeverageSHAP, the LASSO surrogate of ContextCite, LIME's ridge."""

from __future__ import annotations

import numpy as np

from amplify.shapley.exact import Index, log_binomial
from amplify.shapley.game import Coalitions, Floats


def kernel_weights(coalitions: Coalitions) -> Floats:
    """Shapley kernel of each coalition, 1 / (C(n, s) s (n - s)) up to a constant; sizes 0 and n are not allowed."""
    n = coalitions.shape[1]
    sizes = coalitions.sum(axis=1)
    return np.exp(-log_binomial(n, sizes)) / (sizes * (n - sizes))


def constrained_least_squares(
    coalitions: Coalitions, values: Floats, weights: Floats, empty: Floats, full: Floats
) -> Floats:
    """Shapley values as the weighted least-squares fit that is exact on the empty and the full coalition.

    Lundberg & Lee 2017, Theorem 2, with the constraint projected out (Musco & Witter 2025). What the coalitions leave
    open gets the solution of least norm.

    Args:
        coalitions: bool[m, n], sizes 1 .. n - 1.
        values: [m, answers].
        weights: [m], at least 0.
        empty, full: [answers].

    Returns:
        [n, answers]; the sum over sources is full - empty.
    """
    n = coalitions.shape[1]
    share = (full - empty) / n
    if not len(coalitions):
        return np.repeat(share[None], n, axis=0)
    root = np.sqrt(weights / weights.max())[:, None]
    design = coalitions - coalitions.mean(axis=1, keepdims=True)
    target = values - empty - coalitions.sum(axis=1)[:, None] * share
    free = np.linalg.lstsq(root * design, root * target, rcond=None)[0]
    return share + free - free.mean(axis=0)


def least_squares(coalitions: Coalitions, values: Floats, weights: Floats) -> Floats:
    """Banzhaf values as the slopes of the (weighted) least-squares line (Hammer & Holzman 1992). [n, answers]."""
    root = np.sqrt(weights / weights.max())[:, None]
    design = np.column_stack([np.ones(len(coalitions)), coalitions - 0.5])
    return np.linalg.lstsq(root * design, root * values, rcond=None)[0][1:]


def pair_scores(first: Coalitions, values: Floats, weight: Floats, ends: Floats, index: Index) -> Floats:
    """Scores by linear regression on sampled complement pairs.

    Args:
        first: first halves, bool[pairs, n].
        values: of each pair, [pairs, 2, answers].
        weight: inverse inclusion probability of each pair, [pairs].
        ends: values of the empty and the full coalition, [2, answers].
        index: "shapley" (efficient by construction) or "banzhaf".

    Returns:
        [n, answers].
    """
    both = np.concatenate([first, ~first])
    stacked = np.concatenate([values[:, 0], values[:, 1]])
    twice = np.concatenate([weight, weight])
    if index == "shapley":
        twice = twice * kernel_weights(both) if len(both) else twice
        return constrained_least_squares(both, stacked, twice, ends[0], ends[1])
    outer = np.stack([np.zeros(first.shape[1], bool), np.ones(first.shape[1], bool)])
    return least_squares(
        np.concatenate([outer, both]), np.concatenate([ends, stacked]), np.concatenate([[1.0, 1.0], twice])
    )


def pair_leverage(first: Coalitions, weight: Floats, index: Index) -> Floats:
    """Diagonal of the hat matrix of `pair_scores`: how far the fit at each pair follows it, 0 to 1. [pairs].

    Args:
        first: first halves, bool[pairs, n].
        weight: inverse inclusion probability of each pair, [pairs].
        index: which scores.
    """
    if not len(first):
        return np.zeros(0)
    if index == "shapley":
        x, weights = first - first.mean(axis=1, keepdims=True), weight * kernel_weights(first)
    else:
        x = np.concatenate([first, np.ones((1, first.shape[1]))]) - 0.5
        weights = np.append(weight, 1.0)
    left, values, _ = np.linalg.svd(np.sqrt(weights / weights.max())[:, None] * x, full_matrices=False)
    there = values > 1e-10 * values.max(initial=0.0)
    return np.asarray((left[: len(first), there] ** 2).sum(axis=1))


def _centred(design: Floats, values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Both less their weighted means, times the roots of the weights: a free intercept, not penalised."""
    root = np.sqrt(weights)[:, None]
    return root * (design - np.average(design, axis=0, weights=weights)), root * (
        values - np.average(values, axis=0, weights=weights)
    )


def ridge_scores(design: Floats, values: Floats, weights: Floats, ridge: float) -> Floats:
    """Slopes of a weighted ridge regression with a free intercept. [n, columns].

    Args:
        design: [m, n].
        values: [m, columns].
        weights: [m], not negative.
        ridge: penalty on the squared slopes; at 0 what the design leaves open gets the solution of least norm.

    Example:
        >>> design = np.array([[0.0], [1.0], [2.0]])
        >>> ridge_scores(design, 3 * design + 1, np.ones(3), ridge=0.0)
        array([[3.]])
    """
    x, y = _centred(design, values, weights)
    n = x.shape[1]
    rows = np.concatenate([x, np.sqrt(ridge) * np.eye(n)])
    return np.linalg.lstsq(rows, np.concatenate([y, np.zeros((n, y.shape[1]))]), rcond=None)[0]


def ridge_leverage(design: Floats, weights: Floats, ridge: float) -> Floats:
    """Diagonal of the hat matrix of `ridge_scores`, [m]; its sum is how many coefficients the fit really used."""
    x, _ = _centred(design, design, weights)
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    there = values > 1e-6 * max(values.max(initial=0.0), 1e-150)
    share = values[there] ** 2 / (values[there] ** 2 + ridge)
    return np.asarray(left[:, there] ** 2 @ share + weights / weights.sum())


def lasso_scores(coalitions: Coalitions, values: Floats, alpha: float = 0.01) -> Floats:
    """Coefficients of a LASSO surrogate on standardised masks, as ContextCite fits it (Cohen-Wang et al. 2024).

    The penalty is relative to one unit of the value, as there (log-odds per response token): a value summed over
    tokens is best divided by their number, or `alpha` multiplied by it.

    Returns:
        [n, answers]; not a Shapley value, and without its efficiency.
    """
    from sklearn.linear_model import Lasso

    mask = coalitions.astype(float)
    spread = mask.std(axis=0)
    spread[spread == 0] = 1.0
    scaled = (mask - mask.mean(axis=0)) / spread
    columns = [Lasso(alpha=alpha, max_iter=20_000).fit(scaled, column).coef_ / spread for column in values.T]
    return np.stack(columns, axis=1)
