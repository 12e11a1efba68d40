"""Deciding with several opinions or with none: pooled log-probabilities, who is asked when, and when to abstain.

Pure functions of arrays; `amplify.methods.proxy_pool`, `several` and `cascade` ask models and proxies for them.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from amplify.calibration import log_softmax
from amplify.errors import InputError

Floats = npt.NDArray[np.float64]
Aggregate = Literal["mean_logprob", "mean_probability", "vote", "lowest_entropy"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
PENALTY = 1.0  # on pool weights, as if this many nats pulled each to 1
MOST = 10.0  # a weight at most


def pooled(opinions: Floats, weights: Floats) -> Floats:
    """A logarithmic opinion pool (Genest & Zidek 1986): log p(y) = sum over sources of w log p_source(y), normalised.

    Args:
        opinions: log-probabilities, shape (sources, ..., labels).
        weights: one a source, shape (sources,).

    Returns:
        Log-probabilities, shape (..., labels).
    """
    mixed: Floats = np.einsum("s,s...->...", weights, opinions)
    return log_softmax(mixed)


def entropies(log_p: Floats) -> Floats:
    """Entropy of each distribution, in nats: shape (..., labels) -> (...).

    >>> entropies(np.log([[0.5, 0.5], [1.0, 1e-300]])).round(3)
    array([0.693, 0.   ])
    """
    p = np.exp(log_p)
    return -np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0).sum(axis=-1)


def log_odds(log_p: Floats, gold: int) -> float:
    """Log of p / (1 - p) of one label, from scores of all labels (any constant added to all changes nothing).

    >>> round(log_odds(np.log([0.8, 0.1, 0.1]), 0), 3) == round(math.log(4), 3)
    True
    """
    return float(log_p[gold] - np.logaddexp.reduce(np.delete(log_p, gold)))


def aggregated(opinions: Floats, how: Aggregate) -> Floats:
    """One distribution over labels made of several, each of equal standing.

    Args:
        opinions: log-probabilities, each summing to one, shape (answers, labels).
        how: "mean_logprob" (a logarithmic pool: a label must be likely in every answer), "mean_probability" (a linear
            pool), "vote" (the share of answers whose best label it is; their mean probability counts as one vote more,
            so that it breaks ties and no label has none), or "lowest_entropy" (the surest answer alone).

    Returns:
        Log-probabilities, shape (labels,).

    >>> np.exp(aggregated(np.log([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]]), "vote")).round(3)
    array([0.608, 0.392])
    """
    if how == "mean_logprob":
        return log_softmax(opinions.mean(axis=0))
    mean = np.exp(opinions).mean(axis=0)
    if how == "mean_probability":
        return log_softmax(np.log(mean))
    if how == "lowest_entropy":
        surest: Floats = opinions[entropies(opinions).argmin()]
        return surest
    votes = np.bincount(opinions.argmax(axis=1), minlength=opinions.shape[1])
    return log_softmax(np.log(votes + mean))


def fit_weights(opinions: Floats, gold: npt.NDArray[np.intp]) -> Floats:
    """Weights of a pool by penalised maximum likelihood; the problem is convex, so they are the best there are.

    Args:
        opinions: log-probabilities of labelled items that no source was fitted on, shape (sources, items, labels);
            -inf where an item does not offer a label.
        gold: place of each item's right label.

    Returns:
        Weights from 0 to `MOST`, shape (sources,).

    Raises:
        InputError: no item.
    """
    from scipy.optimize import minimize

    if not len(gold):
        raise InputError("a pool needs labelled items to weigh its sources on")
    offered = np.isfinite(opinions).all(axis=0)
    table = np.where(offered, opinions, 0.0)
    right = np.eye(table.shape[-1])[gold]

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = np.where(offered, np.tensordot(weights, table, axes=1), -np.inf)
        log_p = log_softmax(mixed)
        wrong = np.where(offered, np.exp(log_p), 0.0) - right
        gradient = (table * wrong).sum(axis=(1, 2)) + PENALTY * (weights - 1)
        return -float(log_p[right.astype(bool)].sum()) + PENALTY * float(((weights - 1) ** 2).sum()) / 2, gradient

    start = np.ones(len(table))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, MOST)] * len(start))
    weights: Floats = np.where(found.x < 1e-6, 0.0, found.x)
    return weights


def deferral(confidence: Floats, first: Floats, second: Floats) -> float:
    """Below which confidence of the first the second is asked, so that most items come out right.

    Of equally good thresholds the one that asks the second least often. Among them are "never" (-inf) and "always"
    (inf): on these items the cascade is never worse than the better of the two.

    Args:
        confidence: of the first, one an item.
        first, second: 1 where that one is right (or its score), one an item.
    """
    order = np.argsort(confidence, kind="stable")
    gain = np.concatenate([[0.0], np.cumsum((second - first)[order])])  # of asking the second on the k least sure
    levels = confidence[order]
    cuts = [0, *(k for k in range(1, len(order)) if levels[k] > levels[k - 1]), len(order)]  # no cut inside a tie
    best = max(cuts, key=lambda k: (gain[k], -k))
    if best == 0:
        return -math.inf
    return math.inf if best == len(order) else float(levels[best])


def abstention(confidence: Floats, right: Floats, risk: float, delta: float = 0.1) -> float:
    """From which confidence on answers may be given, so that at most a share `risk` of those given is wrong.

    With probability at least 1 - delta over the calibration items, for new items drawn like them (learn then test;
    Angelopoulos et al. 2021, arXiv 2110.01052). From few answers to many each threshold's risk is tested; the first
    that cannot be shown to be low enough ends the search (fixed-sequence testing, which needs no correction). Given the
    k-th highest confidence, the k - 1 items above it are independent, so their errors are binomial.

    Args:
        confidence: of each calibration item, which nothing was fitted on.
        right: 1 where it was answered rightly.
        risk: tolerated share of wrong answers among those given.
        delta: chance that the guarantee fails.

    Returns:
        The threshold: answer where the confidence is above it. inf where no threshold can be shown to keep the risk.

    Raises:
        InputError: risk or delta outside (0, 1).
    """
    from scipy.stats import binom

    if not 0 < risk < 1 or not 0 < delta < 1:
        raise InputError(f"risk and delta lie between 0 and 1, not at {risk} and {delta}")
    order = np.argsort(-confidence, kind="stable")
    levels, wrong = confidence[order], np.concatenate([[0.0], np.cumsum(1 - right[order])])
    fewest = needed(risk, delta)
    threshold = math.inf
    for k in range(fewest, len(order)):
        above = int(np.searchsorted(-levels, -levels[k], side="left"))  # strictly surer than item k
        if above < fewest:
            continue
        if binom.cdf(round(wrong[above]), above, risk) > delta:
            break
        threshold = float(levels[k])
    return threshold


def needed(risk: float, delta: float) -> int:
    """The fewest answers, all of them right, that show a risk: (1 - risk)^n <= delta.

    >>> needed(0.1, 0.1)
    22
    """
    return math.ceil(math.log(delta) / math.log1p(-risk))
