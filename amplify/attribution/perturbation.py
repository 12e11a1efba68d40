"""Explanations by leaving words out, as one thing: a neighbourhood of the input, and a linear fit to the model on it.

Local function approximation (Han, Srinivas & Lakkaraju 2022, "Which Explanation Should I Choose?"): draw coalitions of
words z from a neighbourhood, evaluate the model's `Value` v(z), and fit g(z) = a + w.z by weighted least squares. The
methods differ in three things alone:

| method        | neighbourhood                              | weight of a coalition    | g agrees with v exactly on |
|---------------|--------------------------------------------|--------------------------|----------------------------|
| `occlusion`   | every word left out once                   | 1                        | all words                  |
| `lime`        | each word kept with probability 1/2        | exp(-distance^2/width^2) | nothing (ridge)            |
| `kernel_shap` | paired, sizes by the Shapley kernel        | 1, or the kernel if all  | all words and none         |

Nothing here sees text or a model: `amplify.attribution.games` makes a `Value` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError, UnknownNameError

Coalitions = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Value = Callable[[Coalitions], Floats]
"""Boolean coalitions of shape (coalitions, words), True for a word that stays -> one number each."""


@dataclass(frozen=True)
class Neighbourhood:
    """Coalitions to evaluate and what each counts in the fit.

    Attributes:
        masks: shape (coalitions, words).
        weights: shape (coalitions,), not negative.
        through: which of "full" and "empty" the fit must reproduce exactly.
        ridge: penalty on the squared coefficients.
    """

    masks: Coalitions
    weights: Floats
    through: frozenset[str]
    ridge: float = 0.0


def occlusion(words: int, budget: int, seed: int) -> Neighbourhood:
    """Leave one word out (erasure; Li et al. 2016). Exact: neither budget nor seed changes it, n coalitions needed."""
    _need(budget, words + 1, "occlusion")
    return Neighbourhood(~np.eye(words, dtype=bool), np.ones(words), frozenset({"full"}))


def lime(words: int, budget: int, seed: int, *, width: float = 0.25, ridge: float = 1.0) -> Neighbourhood:
    """Random coalitions near the input (Ribeiro et al. 2016, LIME for text).

    The distance of a coalition is one minus its cosine with the full input, that is 1 - sqrt(words kept / words).
    """
    _need(budget, 3, "lime")
    masks = np.random.default_rng(seed).random((budget - 1, words)) < 0.5
    distance = 1 - np.sqrt(masks.mean(1))
    masks = np.concatenate([np.ones((1, words), dtype=bool), masks])
    weights = np.concatenate([[1.0], np.exp(-(distance**2) / width**2)])
    return Neighbourhood(masks, weights, frozenset(), ridge)


def kernel_shap(words: int, budget: int, seed: int) -> Neighbourhood:
    """Coalitions by the Shapley kernel, in complementary pairs (Lundberg & Lee 2017; Covert & Lee 2021).

    Every coalition with its kernel weight, and so exact Shapley values, where the budget covers all 2^n.
    """
    _need(budget, min(words + 2, 2**words), "kernel_shap")
    through = frozenset({"full", "empty"})
    if 2**words <= budget:
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
    return Neighbourhood(masks, np.array(list(counts.values()), dtype=np.float64), through)


NEIGHBOURHOODS = {"occlusion": occlusion, "lime": lime, "kernel_shap": kernel_shap}


def attribute(value: Value, words: int, method: str, *, budget: int, seed: int = 0) -> tuple[Floats, int]:
    """Scores of the words by one of `NEIGHBOURHOODS`.

    Args:
        value: the model as a function of which words stay.
        words: how many there are.
        method: its name.
        budget: model evaluations at most, those of all words and of none included.
        seed: of the coalitions.

    Returns:
        One score per word, and the model evaluations made.

    Raises:
        UnknownNameError: no such method.
        InputError: no words, a budget too small for the method, or a value that is not finite.
    """
    if method not in NEIGHBOURHOODS:
        raise UnknownNameError("perturbation method", method, NEIGHBOURHOODS)
    if words < 1:
        raise InputError("there is no word to explain: the text is empty, or every word of it is masked")
    near = NEIGHBOURHOODS[method](words, budget, seed)
    ends = [end for end in ("full", "empty") if end in near.through]
    edge = np.array([[end == "full"] * words for end in ends], dtype=bool).reshape(-1, words)
    masks = np.concatenate([near.masks.reshape(-1, words), edge])
    values = np.asarray(value(masks), dtype=np.float64)
    if values.shape != (len(masks),):
        raise InputError(f"a value gives one number per coalition: {len(masks)} were asked for, got {values.shape}")
    if not np.isfinite(values).all():
        bad = masks[np.flatnonzero(~np.isfinite(values))[0]]
        raise InputError(f"the model's value is not finite with words {np.flatnonzero(bad).tolist()} of {words} kept")
    known = dict(zip(ends, values[len(near.masks) :].tolist(), strict=True))
    return fit(near, values[: len(near.masks)], known), len(masks)


def fit(near: Neighbourhood, values: Floats, known: dict[str, float]) -> Floats:
    """Weighted least squares of a + w.z on the neighbourhood, through the known points; returns w."""
    masks, n = near.masks.astype(np.float64), near.masks.shape[1]
    if near.through == {"full"}:  # a = v(full) - sum(w): what is missing explains what is lost
        design, target = masks - 1, values - known["full"]
        return _least_squares(design, target, near.weights, near.ridge)
    if near.through == {"full", "empty"}:  # a = v(empty); w_n follows from the sum
        gain = known["full"] - known["empty"]
        if n == 1:
            return np.array([gain])
        design, target = masks[:, :-1] - masks[:, -1:], values - known["empty"] - masks[:, -1] * gain
        head = _least_squares(design, target, near.weights, near.ridge)
        return np.append(head, gain - head.sum())
    # a free intercept, not penalised: centre by the weighted mean
    share = near.weights / near.weights.sum()
    return _least_squares(masks - share @ masks, values - share @ values, near.weights, near.ridge)


def _least_squares(design: Floats, target: Floats, weights: Floats, ridge: float) -> Floats:
    root = np.sqrt(weights)
    rows = np.concatenate([design * root[:, None], np.sqrt(ridge) * np.eye(design.shape[1])])
    found: Floats = np.linalg.lstsq(rows, np.concatenate([target * root, np.zeros(design.shape[1])]), rcond=None)[0]
    return found


def _need(budget: int, least: int, method: str) -> None:
    if budget < least:
        raise InputError(f"a budget of {budget} evaluations is too small for {method} here: it needs {least} or more")
