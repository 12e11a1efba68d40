"""Shapley and Banzhaf values of any game from a given number of its values, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from amplify.errors import InputError, UnknownNameError
from amplify.textgenshap import gp
from amplify.textgenshap.exact import MAX_SOURCES, Index, all_coalitions, exact_scores
from amplify.textgenshap.intervals import BORROWED, half_width, mean_deviation, wild_bootstrap
from amplify.textgenshap.permutation import permutation_scores
from amplify.textgenshap.regression import lasso_scores, pair_scores
from amplify.textgenshap.sampling import ends, leverage, paired, shapley_kernel, stands_for, with_complements
from amplify.textgenshap.surrogates import SURROGATES, corrected
from amplify.textgenshap.value import CachedValue, Coalitions, Floats, Value

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


@dataclass(frozen=True)
class _Raw:
    """An estimator's answer: scores and half widths, both [n, answers]."""

    scores: Floats
    half: Floats
    meta: dict[str, Any] = field(default_factory=dict)


def _exact(game: CachedValue, index: Index, budget: int, seed: int) -> _Raw:
    scores = exact_scores(game(all_coalitions(game.n)), index)
    return _Raw(scores, np.zeros_like(scores))


def _permutation(game: CachedValue, index: Index, budget: int, seed: int) -> _Raw:
    if index != "shapley":
        raise InputError("permutation sampling estimates Shapley values; for Banzhaf values use estimator='auto'")
    scores, units = permutation_scores(game, np.random.default_rng(seed), budget)
    return _Raw(scores, half_width(mean_deviation(units), len(units) - 1 + BORROWED), {"units": len(units)})


def _sample_pairs(
    game: CachedValue, shares: Floats, budget: int, seed: int
) -> tuple[Coalitions, Floats, Floats, Floats]:
    """Ask the two ends and as many complement pairs as fit: first halves, their values, weights, values of the ends."""
    outer = game(ends(game.n))
    first = paired(game.n, (budget - 2) // 2, shares, seed)
    if not len(first):
        return first, np.zeros((0, 2, outer.shape[1])), np.zeros(0), outer
    values = game(with_complements(first)).reshape(len(first), 2, -1)
    return first, values, stands_for(first, shares), outer


def _regression(game: CachedValue, index: Index, budget: int, seed: int, *, shares: Callable[[int], Floats]) -> _Raw:
    n = game.n
    first, values, weight, outer = _sample_pairs(game, shares(n), budget, seed)

    def estimate(v: Floats) -> Floats:
        return pair_scores(first, v, weight, outer, index)

    scores = estimate(values)
    both = np.stack([first, ~first], axis=1) - 0.5
    residual = values - (outer.mean(axis=0) + both @ scores)
    # only the part that changes sign between a coalition and its complement enters the scores
    residual = (residual - residual[:, ::-1]) / 2
    freedom = len(first) - (n - 1 if index == "shapley" else n)
    rng = np.random.default_rng([seed, 1])
    deviation = wild_bootstrap(estimate, values, residual, 1 - 1 / weight, freedom, rng)
    return _Raw(scores, half_width(deviation, freedom), {"pairs": len(first)})


def _lasso(game: CachedValue, index: Index, budget: int, seed: int) -> _Raw:
    rng = np.random.default_rng(seed)
    wanted = min(budget, 2 ** min(game.n, 60))
    masks: dict[bytes, Coalitions] = {}
    while len(masks) < wanted:
        row = rng.random(game.n) < 0.5
        masks.setdefault(row.tobytes(), row)
    sample = np.stack(list(masks.values()))
    values = game(sample)
    scores = lasso_scores(sample, values)
    resampled = [rng.integers(len(sample), size=len(sample)) for _ in range(100)]
    deviation = np.std([lasso_scores(sample[k], values[k]) for k in resampled], axis=0)
    return _Raw(scores, half_width(deviation, len(sample) - 1), {"note": "surrogate coefficients, not efficient"})


def _regression_msr(game: CachedValue, index: Index, budget: int, seed: int) -> _Raw:
    shares = leverage(game.n)
    first, values, weight, outer = _sample_pairs(game, shares, budget, seed)
    if len(first) < 5:
        return _regression(game, index, budget, seed, shares=leverage)
    columns, halves, chosen = [], [], []
    for k in range(values.shape[2]):
        fits = {
            name: corrected(fit, first, values[:, :, k], outer[:, k], weight, index) for name, fit in SURROGATES.items()
        }
        name = min(fits, key=lambda f: fits[f].error)
        best = fits[name]
        columns.append(best.scores)
        # every model in it has learned from (folds - 1) / folds of the sample only
        wider = np.sqrt(best.folds / (best.folds - 1))
        halves.append(half_width(mean_deviation(best.terms, 1 - 1 / weight) * wider, len(first) - 1))
        chosen.append(name)
    return _Raw(np.stack(columns, axis=1), np.stack(halves, axis=1), {"surrogate": chosen, "pairs": len(first)})


def _candidates(n: int, seed: int) -> Coalitions:
    """Where the design may look: every coalition of few sources, else a sample balanced over sizes."""
    if n <= 11:
        return all_coalitions(n)
    single = np.eye(n, dtype=bool)
    return np.concatenate([ends(n), single, ~single, with_complements(paired(n, 700, leverage(n), seed))])


def _standardised(values: Floats) -> tuple[Floats, Floats, Floats]:
    center, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    return (values - center) / spread, center, spread


def _gaussian_process(game: CachedValue, index: Index, budget: int, seed: int) -> _Raw:
    n = game.n
    game(ends(n))
    pool = _candidates(n, seed)
    batch = max(8, budget // 8)
    rounds = [game.calls]
    while True:
        seen = game.coalitions
        scaled, _, _ = _standardised(game.values)
        kernels = [gp.prior(n)] if len(seen) == 2 else [gp.fit(seen, column) for column in scaled.T]
        shared = gp.unpack(np.mean([gp.pack(k) for k in kernels], axis=0))
        count = min(budget - game.calls, batch if game.calls > 2 else max(batch, n))
        picked = gp.Design(shared, seen, pool, index).pick(count)
        if not len(picked):
            return _condition(seen, game.values, rounds, index)
        game(picked)
        rounds.append(game.calls)


def _condition(coalitions: Coalitions, values: Floats, rounds: list[int], index: Index) -> _Raw:
    """Scores of a Gaussian process given values that came in rounds (how many were known after each)."""
    n = coalitions.shape[1]
    scaled, _, spread = _standardised(values)
    scores, halves, surprises = [], [], []
    for y in scaled.T:
        found = gp.posterior(gp.fit(coalitions, y), coalitions, y, index)
        # how wrong the model's own error bars were in the latest rounds tells how far to widen the present ones
        moved = [
            gp.surprise(gp.fit(coalitions[:known], y[:known]), coalitions[:then], y[:then], known, index)
            for known, then in list(pairwise(rounds))[-3:]
            if known > 2
        ]
        surprises.append(max(float(np.mean(moved)), 1.0) if moved else 1.0)
        scores.append(found.scores)
        halves.append(half_width(found.deviation * np.sqrt(surprises[-1]), len(coalitions) - n))
    return _Raw(
        np.stack(scores, axis=1) * spread, np.stack(halves, axis=1) * spread, {"surprise": surprises, "rounds": rounds}
    )


def _with_control(
    name: str, raw: _Raw, game: CachedValue, control: Value, index: Index, budget: int, seed: int
) -> _Raw:
    """Estimate what a cheap game u leaves of v, v - b u, from the values already asked, and add b times u's scores.

    Control variate: b is the least-squares slope. Used only where |correlation| of u and v reaches `GATE`.
    """
    n = game.n
    cheap = CachedValue(control, n)
    spent = estimate(cheap, n, index, "auto", min(2 ** min(n, MAX_SOURCES), CONTROL_CALLS * budget), seed)
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
        return _Raw(raw.scores, raw.half, {**raw.meta, **meta})
    if name == "gaussian_process":
        rest = _condition(game.coalitions, v - slope * u, raw.meta["rounds"], index)
    else:
        rest = ESTIMATORS[name](CachedValue(lambda s: game(s) - slope * cheap(s), n, budget), index, budget, seed)
    own = spent.scores.reshape(n, -1)
    own_half = (spent.high - spent.low).reshape(n, -1) / 2
    half = np.sqrt(rest.half**2 + (slope * own_half) ** 2)
    return _Raw(rest.scores + slope * own, half, {**rest.meta, **meta})


_Estimator = Callable[[CachedValue, Index, int, int], _Raw]
ESTIMATORS: dict[str, _Estimator] = {
    "exact": _exact,
    "permutation": _permutation,
    "kernel_shap": partial(_regression, shares=shapley_kernel),
    "leverage_shap": partial(_regression, shares=leverage),
    "lasso": _lasso,
    "regression_msr": _regression_msr,
    "gaussian_process": _gaussian_process,
}


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
            asked up to 16 times as often, its calls do not count, and it is used only where the correlation measured
            on the coalitions asked is at least 0.9.

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
