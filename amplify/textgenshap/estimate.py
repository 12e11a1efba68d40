"""Shapley and Banzhaf values of any game from a given number of its values, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amplify.errors import InputError, UnknownNameError
from amplify.textgenshap.estimators import ESTIMATORS, Raw, condition
from amplify.textgenshap.exact import MAX_SOURCES, Index
from amplify.textgenshap.sampling import ends
from amplify.textgenshap.value import CachedValue, Floats, Value

GATE = 0.9  # a control variate below this correlation costs more than it gains
CONTROL_CALLS = 16  # how many values of the control may be asked for each of the game's


@dataclass(frozen=True)
class Estimate:
    """Scores of the sources of a game.

    Attributes:
        scores: [n], or [n, answers] where the values have an answer axis.
        low, high: 95 % interval of each score, same shape; equal to `scores` where they are exact, infinite where the
            sample says nothing about the error.
        calls: distinct coalitions asked, the empty and the full one included.
        estimator: what was used, never "auto".
        index: "shapley" or "banzhaf".
        meta: what else a reader must know (seed, budget, surrogate chosen, rounds).
    """

    scores: Floats
    low: Floats
    high: Floats
    calls: int
    estimator: str
    index: Index
    meta: Mapping[str, Any] = field(default_factory=dict)


def _check(n: int, index: str, estimator: str, budget: int) -> None:
    if n < 1:
        raise InputError(f"a game needs at least one source, got n = {n}")
    if budget < 2:
        raise InputError(f"the budget counts the empty and the full coalition, so it is at least 2; got {budget}")
    if index not in ("shapley", "banzhaf"):
        raise UnknownNameError("index", index, ("shapley", "banzhaf"))
    if estimator not in ESTIMATORS and estimator != "auto":
        raise UnknownNameError("estimator", estimator, (*ESTIMATORS, "auto"))
    if estimator == "exact" and (n > MAX_SOURCES or 2**n > budget):
        limit = (
            f"and more than {MAX_SOURCES} sources are out of reach" if n > MAX_SOURCES else f"the budget is {budget}"
        )
        raise InputError(
            f"exact values of {n} sources need 2^{n} = {2**n} evaluations; {limit}. Raise budget=, score fewer "
            "sources, or use estimator='auto'"
        )


def estimate(
    value: Value,
    n: int,
    index: Index = "shapley",
    estimator: str = "auto",
    budget: int = 64,
    seed: int = 0,
    width: float | None = None,
    control: Value | None = None,
) -> Estimate:
    """Estimate the Shapley or Banzhaf values of a game.

    Args:
        value: bool[coalitions, n] -> float[coalitions] or float[coalitions, answers]. Asked once for each coalition.
        n: number of sources.
        index: "shapley" or "banzhaf".
        estimator: one of `ESTIMATORS`, or "auto": exact where 2^n fits the budget, else the Gaussian process.
        budget: distinct coalitions that may be asked, the empty and the full one included.
        seed: makes the sample repeatable.
        width: stop early once every 95 % interval is at most this wide, in units of the value.
        control: a cheap game that correlates with `value`, same shapes (e.g. one that reuses encoded documents). It is
            asked 16 times as often, or for all of at most 1,024 coalitions; its calls do not count. It is used only
            where the correlation measured on the coalitions asked is at least 0.9.

    Raises:
        InputError: n < 1, budget < 2, exact values that do not fit the budget, a value that is not a finite number.
        UnknownNameError: no such estimator or index.
    """
    _check(n, index, estimator, budget)
    game = CachedValue(value, n, budget)
    name = estimator
    if estimator == "auto":
        name = "exact" if n <= MAX_SOURCES and 2**n <= budget else "gaussian_process"
    raw = None
    for stage in _stages(n, budget) if width is not None and name != "exact" else [budget]:
        raw = ESTIMATORS[name](game, index, stage, seed)
        if control is not None and name != "exact":
            raw = _with_control(name, raw, game, control, index, stage, seed)
        if width is not None and np.all(2 * raw.half <= width):
            break
    assert raw is not None
    scores, half = raw.scores, raw.half
    if index == "shapley" and name != "lasso":
        # what is left of the efficiency gap after closed forms is round-off; equal shares keep the ranking
        gap = np.subtract(*game(ends(n))[::-1]) - scores.sum(axis=0)
        scores = scores + gap / n
    shape = (n,) if game.flat else scores.shape
    return Estimate(
        scores=scores.reshape(shape),
        low=(scores - half).reshape(shape),
        high=(scores + half).reshape(shape),
        calls=game.calls,
        estimator=name,
        index=index,
        meta={"budget": budget, "seed": seed, **raw.meta},
    )


def _stages(n: int, budget: int) -> list[int]:
    """Budgets at which the intervals are looked at: growing by half, from twice the number of sources."""
    stages, now = [], max(2 * n, 8)
    while now < budget:
        stages.append(now)
        now = now * 3 // 2
    return [*stages, budget]


def _with_control(name: str, raw: Raw, game: CachedValue, control: Value, index: Index, budget: int, seed: int) -> Raw:
    """Estimate what a cheap game u leaves of v, v - b u, from the values already asked, and add b times u's scores.

    Control variate: b is the least-squares slope. Used only where |correlation| of u and v reaches `GATE`.
    """
    n = game.n
    cheap = CachedValue(control, n)
    complete = n <= MAX_SOURCES and 2**n <= max(CONTROL_CALLS * budget, 1024)
    how, calls = ("exact", 2**n) if complete else ("leverage_shap", CONTROL_CALLS * budget)
    spent = estimate(cheap, n, index, how, calls, seed)
    u = cheap(game.coalitions)
    v = game.values
    if u.shape != v.shape:
        raise InputError(f"the control gives {u.shape[1]} values a coalition, the game {v.shape[1]}")
    du, dv = u - u.mean(axis=0), v - v.mean(axis=0)
    power = (du**2).sum(axis=0)
    slope = np.divide((du * dv).sum(axis=0), power, out=np.zeros_like(power), where=power > 0)
    norm = np.sqrt(power * (dv**2).sum(axis=0))
    correlation = np.divide((du * dv).sum(axis=0), norm, out=np.zeros_like(norm), where=norm > 0)
    slope = np.where(np.abs(correlation) >= GATE, slope, 0.0)
    meta = {"control": {"correlation": correlation.tolist(), "slope": slope.tolist(), "calls": cheap.calls}}
    if not slope.any():
        return Raw(raw.scores, raw.half, {**raw.meta, **meta})
    if name == "gaussian_process":
        rest = condition(game.coalitions, v - slope * u, raw.meta["rounds"], index)
    else:
        rest = ESTIMATORS[name](CachedValue(lambda s: game(s) - slope * cheap(s), n, budget), index, budget, seed)
    own = spent.scores.reshape(n, -1)
    own_half = (spent.high - spent.low).reshape(n, -1) / 2
    half = np.sqrt(rest.half**2 + (slope * own_half) ** 2)
    return Raw(rest.scores + slope * own, half, {**rest.meta, **meta})
