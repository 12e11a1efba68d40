"""Explanations by leaving words out, as one thing: a neighbourhood of the input, and a linear fit to the model on it.

Local function approximation (Han, Srinivas & Lakkaraju 2022, "Which Explanation Should I Choose?"): draw coalitions of
words z from a neighbourhood, evaluate the model's `Value` v(z), and fit g(z) = a + w.z by weighted least squares. The
methods differ in three things alone:

| method        | neighbourhood                              | weight of a coalition    | g agrees with v exactly on |
|---------------|--------------------------------------------|--------------------------|----------------------------|
| `occlusion`   | every word left out once                   | 1                        | all words                  |
| `lime`        | each word kept with probability 1/2        | exp(-distance^2/width^2) | nothing (ridge)            |
| `kernel_shap` | paired, sizes by the Shapley kernel        | 1, or the kernel if all  | all words and none         |
| `c_lime`      | each word's embeddings times 1 + N(0, s^2) | 1                        | nothing                    |

The gradient methods are the same with another loss, which matches gradients instead of values: `embedded`.
`shapley_sampling` is no fit: it averages what each word adds behind those before it in random orders.

Nothing here sees text or a model: `amplify.attribution.games` makes a `Value` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError, UnknownNameError
from amplify.shapley.budget import check_budget
from amplify.shapley.exact import MAX_SOURCES
from amplify.shapley.sampling import spanning, with_complements

Coalitions = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Value = Callable[[Coalitions], Floats]
"""Boolean coalitions of shape (coalitions, words), True for a word that stays -> one number each."""


@dataclass(frozen=True)
class Neighbourhood:
    """Coalitions to evaluate and what each counts in the fit.

    Attributes:
        masks: shape (coalitions, words); for `c_lime` numbers, not truth values.
        weights: shape (coalitions,), not negative.
        through: which of "full" and "empty" the fit must reproduce exactly.
        ridge: penalty on the squared coefficients.
        draws: independent random draws behind the coalitions, each of as many of them, in order; 0: nothing is drawn.
    """

    masks: Coalitions | Floats
    weights: Floats
    through: frozenset[str]
    ridge: float = 0.0
    draws: int = 0


def occlusion(words: int, budget: int, seed: int) -> Neighbourhood:
    """Leave one word out (erasure; Li et al. 2016). Exact: neither budget nor seed changes it, n coalitions needed."""
    check_budget("occlusion", words, budget, "words")
    return Neighbourhood(~np.eye(words, dtype=bool), np.ones(words), frozenset({"full"}))


def lime(words: int, budget: int, seed: int, *, width: float = 0.25, ridge: float = 1.0) -> Neighbourhood:
    """Random coalitions near the input (Ribeiro et al. 2016, LIME for text).

    The distance of a coalition is one minus its cosine with the full input, that is 1 - sqrt(words kept / words).
    """
    check_budget("lime", words, budget, "words")
    masks = np.random.default_rng(seed).random((budget - 1, words)) < 0.5
    distance = 1 - np.sqrt(masks.mean(1))
    masks = np.concatenate([np.ones((1, words), dtype=bool), masks])
    weights = np.concatenate([[1.0], np.exp(-(distance**2) / width**2)])
    return Neighbourhood(masks, weights, frozenset(), ridge, draws=len(masks))


def kernel_shap(words: int, budget: int, seed: int) -> Neighbourhood:
    """Coalitions by the Shapley kernel, in complementary pairs (Lundberg & Lee 2017; Covert & Lee 2021).

    Every coalition with its kernel weight, and so exact Shapley values, where the budget covers all 2^n.
    """
    check_budget("kernel_shap", words, budget, "words")
    through = frozenset({"full", "empty"})
    if words <= MAX_SOURCES and 2**words <= budget:
        masks = ((np.arange(1, 2**words - 1)[:, None] >> np.arange(words)) & 1).astype(bool)
        sizes = masks.sum(1)
        kernel = [(words - 1) / (comb(words, s) * s * (words - s)) for s in sizes]
        return Neighbourhood(masks, np.array(kernel, dtype=np.float64), through)
    rng = np.random.default_rng(seed)
    sizes = np.arange(1, words)
    odds = 1 / (sizes * (words - sizes))  # the kernel summed over the coalitions of a size
    # without replacement: a coalition drawn again costs nothing and counts once more
    counts: dict[bytes, int] = {}
    for _ in range(50 * budget):
        if len(counts) + 2 > budget - 2:
            break
        mask = np.zeros(words, dtype=bool)
        mask[rng.permutation(words)[: rng.choice(sizes, p=odds / odds.sum())]] = True
        for one in (mask, ~mask):
            counts[one.tobytes()] = counts.get(one.tobytes(), 0) + 1
    masks = np.array([np.frombuffer(key, dtype=bool) for key in counts])
    masks = with_complements(spanning(masks[::2], "shapley"))
    weights = [counts.get(mask.tobytes(), 1) for mask in masks]
    return Neighbourhood(masks, np.array(weights, dtype=np.float64), through, draws=len(masks) // 2)


def scaled(words: int, draws: int, seed: int, *, deviation: float = 0.1) -> Neighbourhood:
    """Continuous LIME (Agarwal et al. 2021) with one number per word: by how much its embeddings are stretched.

    `masks` holds the Gaussian draws. As the deviation goes to 0 the scores become gradient x input.
    """
    check_budget("c_lime", words, draws, "words")
    noise = np.random.default_rng(seed).normal(0, deviation, (draws, words))
    return Neighbourhood(noise, np.ones(draws), frozenset(), draws=draws)


NEIGHBOURHOODS = {"occlusion": occlusion, "lime": lime, "kernel_shap": kernel_shap}
PERTURBATIONS = (*NEIGHBOURHOODS, "shapley_sampling")
LEVEL = 0.95
ROUNDS = 500


@dataclass(frozen=True)
class Estimate:
    """Scores of words.

    Attributes:
        scores: shape (words,).
        low, high: 95 % intervals; equal to the scores where nothing was sampled, infinite where there are too few
            samples to tell.
        calls: model evaluations made.
    """

    scores: Floats
    low: Floats
    high: Floats
    calls: int


def exact(scores: Floats, calls: int) -> Estimate:
    """Scores without an interval."""
    return Estimate(scores, scores, scores, calls)


def estimate(value: Value, words: int, method: str, *, budget: int, seed: int = 0) -> Estimate:
    """Scores of the words by one of `PERTURBATIONS`, with intervals.

    Args:
        value: the model as a function of which words stay.
        words: how many there are.
        method: its name.
        budget: model evaluations at most, those of all words and of none included.
        seed: of what is drawn.

    Raises:
        UnknownNameError: no such method.
        InputError: no words, a budget too small for the method, or a value that is not finite.
    """
    if method not in PERTURBATIONS:
        raise UnknownNameError("perturbation method", method, PERTURBATIONS)
    if words < 1:
        raise InputError("there is no word to explain: the text is empty, or every word of it is masked")
    if method == "shapley_sampling":
        return shapley_sampling(value, words, budget, seed)
    near = NEIGHBOURHOODS[method](words, budget, seed)
    ends = [end for end in ("full", "empty") if end in near.through]
    edge = np.array([[end == "full"] * words for end in ends], dtype=bool).reshape(-1, words)
    masks = np.concatenate([near.masks.reshape(-1, words), edge])
    values = evaluated(value, masks)
    known = dict(zip(ends, values[len(near.masks) :].tolist(), strict=True))
    scores, half = fit_with_interval(near, values[: len(near.masks)], known, seed)
    return Estimate(scores, scores - half, scores + half, len(masks))


def attribute(value: Value, words: int, method: str, *, budget: int, seed: int = 0) -> tuple[Floats, int]:
    """`estimate` without intervals: one score per word, and the model evaluations made."""
    found = estimate(value, words, method, budget=budget, seed=seed)
    return found.scores, found.calls


def shapley_sampling(value: Value, words: int, budget: int, seed: int) -> Estimate:
    """Mean of what a word adds over random orders, each taken forwards and backwards (Castro et al. 2009)."""
    check_budget("shapley_sampling", words, budget, "words")
    rng = np.random.default_rng(seed)
    fit_in = (budget - 2) // max(words - 1, 1)  # orders; the ends of all are the same two coalitions
    orders = [rng.permutation(words) for _ in range(max(1, fit_in // 2))] if words > 1 else [np.zeros(1, np.int64)]
    chains = [one for order in orders for one in ((order, order[::-1]) if fit_in > 1 else (order,))]
    steps = np.array([[np.argsort(chain) < k for k in range(words + 1)] for chain in chains])
    different, back = np.unique(steps.reshape(-1, words), axis=0, return_inverse=True)
    values = evaluated(value, different)[back].reshape(len(chains), words + 1)
    adds = np.empty((len(chains), words))
    for row, chain, line in zip(adds, chains, values, strict=True):
        row[chain] = np.diff(line)
    units = adds.reshape(len(orders), -1, words).mean(1)
    scores = units.mean(0)
    half = np.zeros(words)
    if words > 1:
        spread = units.std(0, ddof=1) / np.sqrt(len(units)) if len(units) > 1 else np.full(words, np.inf)
        half = _half(spread, len(units) - 1)
    return Estimate(scores, scores - half, scores + half, len(different))


def evaluated(value: Callable[[Coalitions], npt.ArrayLike], masks: Coalitions) -> Floats:
    """The values, checked.

    Raises:
        InputError: not one number per coalition, or one that is not finite.
    """
    values = np.asarray(value(masks), dtype=np.float64)
    if values.shape != (len(masks),):
        raise InputError(f"a value gives one number per coalition: {len(masks)} were asked for, got {values.shape}")
    if not np.isfinite(values).all():
        bad = masks[np.flatnonzero(~np.isfinite(values))[0]]
        raise InputError(
            f"the model's value is not finite with words {np.flatnonzero(bad).tolist()} of {masks.shape[1]} kept"
        )
    return values


def fit(near: Neighbourhood, values: Floats, known: dict[str, float]) -> Floats:
    """Weighted least squares of a + w.z on the neighbourhood, through the known points; returns w."""
    design, target = _equations(near, values, known)
    return _complete(near, _least_squares(design, target, near.weights, near.ridge), known)


def fit_with_interval(near: Neighbourhood, values: Floats, known: dict[str, float], seed: int) -> tuple[Floats, Floats]:
    """`fit`, and half the width of each score's 95 % interval.

    By the wild bootstrap (Wu 1986): the design stays, the residuals of each draw (of each pair of complements
    together) are turned round by lot. Residuals are inflated for the degrees of freedom that the fit has used.
    """
    design, target = _equations(near, values, known)
    head = _least_squares(design, target, near.weights, near.ridge)
    scores = _complete(near, head, known)
    if near.draws == 0 or not design.shape[1]:
        return scores, np.zeros_like(scores)
    root = np.sqrt(near.weights)[:, None] * design
    # trace of the hat matrix: coefficients that the fit really used, fewer under a ridge
    used = float(np.sum(root * (root @ np.linalg.pinv(root.T @ root + near.ridge * np.eye(root.shape[1])))))
    free = near.draws - used - (not near.through)
    if free < 1:
        return scores, np.full_like(scores, np.inf)
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], (near.draws, ROUNDS))
    signs = np.repeat(signs, len(design) // near.draws, axis=0)
    noise = (target - design @ head)[:, None] * np.sqrt(near.draws / free) * signs
    rounds = _least_squares(design, noise, near.weights, near.ridge)
    if near.through == {"full", "empty"}:
        rounds = np.concatenate([rounds, -rounds.sum(0, keepdims=True)])
    return scores, _half(rounds.std(1), free)


def _equations(near: Neighbourhood, values: Floats, known: dict[str, float]) -> tuple[Floats, Floats]:
    """The unconstrained least squares problem: design and target."""
    masks = near.masks.astype(np.float64)
    if near.through == {"full"}:  # a = v(full) - sum(w): what is missing explains what is lost
        return masks - 1, values - known["full"]
    if near.through == {"full", "empty"}:  # a = v(empty); w_n follows from the sum
        gain = known["full"] - known["empty"]
        return masks[:, :-1] - masks[:, -1:], values - known["empty"] - masks[:, -1] * gain
    # a free intercept, not penalised: centre by the weighted mean
    share = near.weights / near.weights.sum()
    return masks - share @ masks, values - share @ values


def _complete(near: Neighbourhood, head: Floats, known: dict[str, float]) -> Floats:
    if near.through == {"full", "empty"}:
        return np.append(head, known["full"] - known["empty"] - head.sum())
    return head


def _least_squares(design: Floats, target: Floats, weights: Floats, ridge: float) -> Floats:
    """Coefficients; target may have several columns."""
    columns = target[:, None] if target.ndim == 1 else target
    root = np.sqrt(weights)[:, None]
    rows = np.concatenate([design * root, np.sqrt(ridge) * np.eye(design.shape[1])])
    wanted = np.concatenate([columns * root, np.zeros((design.shape[1], columns.shape[1]))])
    found: Floats = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return found[:, 0] if target.ndim == 1 else found


def _half(deviation: Floats, freedom: float) -> Floats:
    """Half the width of a 95 % interval."""
    from scipy.stats import t

    if freedom < 1:
        return np.where(deviation > 0, np.inf, 0.0)
    return np.asarray(deviation * float(t.ppf((1 + LEVEL) / 2, freedom)))
