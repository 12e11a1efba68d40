"""Surrogates of a game with exact scores, and the residual correction that makes their scores consistent.

RegressionMSR (Witter, Liu & Musco 2025): fit any f whose scores are cheap to v, and add to them the sample-reuse
estimate of the scores of v - f: phi_i = phi_i(f) + sum over sampled S of w_i(S) [v(S) - f(S)] / P(S sampled).
The residuals are out of fold, so a surrogate that learned its sample by heart has no small residuals to show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaln

from amplify.shapley import gp
from amplify.shapley.exact import Index, coalition_weights
from amplify.shapley.game import Coalitions, Floats
from amplify.shapley.sampling import capacities

FEWEST = 3  # pairs of a size that are worth as many folds: fewer folds leave too little to learn from


@dataclass(frozen=True)
class Fitted:
    """A surrogate game: `predict` coalitions bool[m, n] -> [m], and its own exact `scores` [n]."""

    predict: Callable[[Coalitions], Floats]
    scores: Floats


Surrogate = Callable[[Coalitions, Floats, Index], Fitted]


def _features(coalitions: Coalitions, pairs: bool) -> Floats:
    x = np.where(coalitions, 1.0, -1.0)
    if not pairs:
        return x
    i, j = np.triu_indices(coalitions.shape[1], 1)
    return np.hstack([x, x[:, i] * x[:, j]])


def _ridge(coalitions: Coalitions, values: Floats, pairs: bool) -> Fitted:
    from sklearn.linear_model import RidgeCV

    n = coalitions.shape[1]
    model = RidgeCV(alphas=np.logspace(-3, 2, 11)).fit(_features(coalitions, pairs), values)
    # a product of two signs has equal values on the empty and the full coalition and is symmetric in its two sources,
    # so it has no Shapley (nor Banzhaf) values of its own: only the slopes count
    return Fitted(lambda s: model.predict(_features(s, pairs)), 2 * np.asarray(model.coef_)[:n])


def linear(coalitions: Coalitions, values: Floats, index: Index) -> Fitted:
    """Ridge regression on the sources' signs."""
    return _ridge(coalitions, values, pairs=False)


def pairwise(coalitions: Coalitions, values: Floats, index: Index) -> Fitted:
    """Ridge regression on the sources' signs and their pairwise products."""
    return _ridge(coalitions, values, pairs=True)


def boosted_trees(coalitions: Coalitions, values: Floats, index: Index) -> Fitted:
    """Gradient-boosted trees of depth 3."""
    from sklearn.ensemble import GradientBoostingRegressor

    rate = 0.1
    model = GradientBoostingRegressor(
        n_estimators=150, learning_rate=rate, max_depth=3, min_samples_leaf=2, subsample=0.8, random_state=0
    ).fit(coalitions.astype(float), values)
    trees = [tree.tree_ for tree in model.estimators_[:, 0]]
    return Fitted(lambda s: model.predict(s.astype(float)), tree_scores(trees, coalitions.shape[1], rate, index))


def gaussian_process(coalitions: Coalitions, values: Floats, index: Index) -> Fitted:
    """Posterior mean of the Gaussian process of `gp`."""
    center, spread = float(values.mean()), float(values.std()) or 1.0
    scaled = (values - center) / spread
    kernel = gp.fit(coalitions, scaled)
    gram = kernel.gram(coalitions, coalitions) + gp.JITTER * np.eye(len(values))
    alpha = np.linalg.solve(gram, scaled)

    def predict(s: Coalitions) -> Floats:
        return center + spread * (kernel.gram(s, coalitions) @ alpha)

    return Fitted(predict, spread * (kernel.cross(coalitions, index) @ alpha))


SURROGATES: dict[str, Surrogate] = {
    "linear": linear,
    "pairwise": pairwise,
    "boosted_trees": boosted_trees,
    "gaussian_process": gaussian_process,
}


@dataclass(frozen=True)
class Corrected:
    """Surrogate scores with their residual correction.

    Attributes:
        scores: [n].
        terms: one of each pair, [pairs, n], whose mean is as uncertain as the correction: 0 of a size all of whose
            pairs were sampled.
        folds: into how many parts the sample was split.
        error: mean squared out-of-fold residual of half the difference between a coalition and its complement: the
            part of v - f that has scores at all.
    """

    scores: Floats
    terms: Floats
    folds: int
    error: float


def corrected(
    fit: Surrogate, first: Coalitions, values: Floats, ends: Floats, luck: Floats, index: Index, folds: int = 5
) -> Corrected:
    """Fit a surrogate out of fold and correct its scores by the residuals.

    A surrogate f has learned from t of a size's m sampled pairs, and the other h = m - t are a random sample of the
    N - t that it has not seen. So the scores of v - f are those of the residuals of the pairs that it has seen, as they
    are, and (N - t) / h times those of the pairs held out: without bias, however large a share of all pairs the sample
    is. Every size is spread over as many folds as it has pairs; where these are fewer than all folds, those that hold
    out one of it stand for the others.

    Args:
        fit: the surrogate.
        first: first halves of the sampled pairs, bool[pairs, n].
        values: values of the pairs, [pairs, 2] (a coalition and its complement).
        ends: values of the empty and the full coalition, [2].
        luck: for each pair, how many of its size were drawn over how many are drawn on average, [pairs].
        index: which value.
        folds: into how many parts the pairs are split, at most.
    """
    pairs, n = first.shape
    outer = np.stack([np.zeros(n, bool), np.ones(n, bool)])
    size = np.minimum(first.sum(axis=1), n - first.sum(axis=1))
    there = np.bincount(size, minlength=n // 2 + 1)  # m of each size
    whole = np.concatenate([[0.0], capacities(n)])  # N
    folds = min(folds, pairs, *(m for m, of in zip(there, whole, strict=True) if FEWEST <= m < of))
    fold = np.empty(pairs, int)
    fold[np.argsort(size, kind="stable")] = np.arange(pairs) % folds
    # the folds miss the same pairs, so the error is that of a sum over all N - m whose mean m residuals tell
    spread = np.sqrt(whole - there) * np.sqrt(whole) / np.maximum(there, 1)
    holding = np.array([len(np.unique(fold[size == s])) for s in range(len(there))])  # folds that hold out a size
    terms = np.empty((pairs, n))
    total = np.zeros(n)
    odd = np.empty(pairs)
    for k in range(folds):
        part, rest = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        seen = np.concatenate([outer, first[rest], ~first[rest]])
        model = fit(seen, np.concatenate([ends, values[rest, 0], values[rest, 1]]), index)
        gap = values - np.stack([model.predict(first), model.predict(~first)], axis=1)
        odd[part] = (gap[part, 0] - gap[part, 1]) / 2
        at_ends = coalition_weights(outer, index).T @ (ends - model.predict(outer))
        credit = coalition_weights(first, index) * gap[:, :1] + coalition_weights(~first, index) * gap[:, 1:]
        credit *= luck[:, None]
        held = np.bincount(size[part], minlength=len(there))
        unseen = whole - (there - held)
        factor = (unseen / np.maximum(held, 1) * folds / np.maximum(holding, 1))[size[part], None]
        total += (model.scores + at_ends + credit[rest].sum(axis=0) + (factor * credit[part]).sum(axis=0)) / folds
        terms[part] = pairs * spread[size[part], None] * credit[part]
    return Corrected(total, terms, folds, float(np.mean(odd**2)))


def leaf_credit(present: int, absent: int, index: Index) -> tuple[float, float]:
    """Scores of the game 1[P in S and no A in S] for a member of P and for a member of A, |P| and |A| given.

    The Shapley value of i in P is the chance that i comes last of P and before all of A: (p-1)! a! / (p+a)!.
    """
    if index == "banzhaf":
        each = 0.5 ** (present + absent - 1)
        return each, -each
    # (p-1)! a! / (p+a)! is the Beta function B(p, a+1), and p! (a-1)! / (p+a)! is B(p+1, a)
    gain = float(np.exp(betaln(present, absent + 1))) if present else 0.0
    loss = float(np.exp(betaln(present + 1, absent))) if absent else 0.0
    return gain, -loss


def tree_scores(trees: list[Any], n: int, scale: float, index: Index) -> Floats:
    """Scores of the game S -> scale * sum of the trees' outputs on the 0/1 vector of S.

    Every leaf is reached by the coalitions that hold all of a set P and none of a set A, so the values of the
    ensemble are sums of closed forms over leaves (interventional TreeSHAP with the baseline 0 and the input 1).

    Args:
        trees: fitted scikit-learn regression trees (their `tree_`).
        n: number of sources.
        scale: factor on every leaf, e.g. the learning rate.
        index: which value.

    Returns:
        [n].
    """
    scores = np.zeros(n)

    def walk(tree: Any, node: int, present: tuple[int, ...], absent: tuple[int, ...]) -> None:
        feature = int(tree.feature[node])
        if feature < 0:  # a leaf
            if not present and not absent:
                return
            gain, loss = leaf_credit(len(present), len(absent), index)
            worth = scale * float(tree.value[node].ravel()[0])
            scores[list(present)] += worth * gain
            scores[list(absent)] += worth * loss
            return
        walk(tree, int(tree.children_left[node]), present, (*absent, feature))
        walk(tree, int(tree.children_right[node]), (*present, feature), absent)

    for tree in trees:
        walk(tree, 0, (), ())
    return scores
