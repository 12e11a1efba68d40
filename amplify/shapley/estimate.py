"""Shapley and Banzhaf values of any game from a given number of its values, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np

from amplify.errors import InputError, UnknownNameError
from amplify.shapley.budget import PrefixCost, check_budget
from amplify.shapley.estimators import ESTIMATORS, ControlVariate, gaussian_process
from amplify.shapley.exact import MAX_SOURCES, UNASKED, Index, all_coalitions
from amplify.shapley.game import CachedValue, Floats, Value
from amplify.shapley.sampling import ends

CONTROL_CALLS = 16  # how many values of the control may be asked for each of the game's


@dataclass(frozen=True)
class Guide:
    """What the Gaussian process of `estimate` may go by besides the values that it asks for.

    Attributes:
        control_variate: a cheap game that correlates with the one asked, same shapes. It is asked 16 times as often, or
            for all of at most 1,024 coalitions; its calls do not count, and are in `meta`. How far the game follows it
            is inferred from the values asked.
        cost: what coalitions cost where common beginnings are paid once, and a limit, which then holds beside `budget`:
            most is asked of what tells most for its price. What was spent is in `meta`.
        prior: a guess of the scores in any unit, [n]: the game of these sums is what the values may follow, as far as
            the values asked say so. In place of a control variate.

    Raises:
        InputError: both a prior and a control variate.

    Example:
        >>> from amplify.shapley import estimate
        >>> found = estimate(lambda kept: kept @ [1.0, 2.0, 4.0], 3, budget=6, guide=Guide(prior=[1, 2, 4]))
        >>> found.scores.round(1), found.calls
        (array([1., 2., 4.]), 6)
    """

    control_variate: Value | None = None
    cost: PrefixCost | None = None
    prior: Sequence[float] | Floats | None = None

    def __post_init__(self) -> None:
        if self.prior is not None and self.control_variate is not None:
            raise InputError("the values follow a prior or a control_variate: give one of them")

    def helper(self, n: int, index: Index, budget: int, seed: int) -> ControlVariate | None:
        """The game that the values may follow, with its own scores: those of a control exact where it may be asked."""
        if self.control_variate is None:
            return None if self.prior is None else _guessed(self.prior, n)
        cheap = CachedValue(self.control_variate, n)
        complete = n <= MAX_SOURCES and 2**n <= max(CONTROL_CALLS * budget, 1024)
        how, calls = ("exact", 2**n) if complete else ("leverage_shap", CONTROL_CALLS * budget)
        own = estimate(cheap, n, index, how, calls, seed)
        return ControlVariate(cheap, own.scores.reshape(n, -1), (own.high - own.low).reshape(n, -1) / 2)


@dataclass(frozen=True)
class Scores:
    """Scores with intervals.

    Attributes:
        scores: [n], or [n, answers] where the values have an answer axis.
        low, high: 95 % interval of each score, same shape; equal to `scores` where they are exact, infinite where the
            sample says nothing about the error.
        calls: evaluations made; of a game its distinct coalitions, the empty and the full one included.

    Example:
        >>> Scores.exact(np.array([1.0, 2.0]), calls=4).low
        array([1., 2.])
    """

    scores: Floats
    low: Floats
    high: Floats
    calls: int

    @classmethod
    def exact(cls, scores: Floats, calls: int) -> Scores:
        """Scores without an interval."""
        return cls(scores, scores, scores, calls)


@dataclass(frozen=True)
class Estimate(Scores):
    """Scores of the sources of a game.

    Attributes:
        estimator: what was used, never "auto"; "exact" if and only if all 2^n coalitions were known, whichever was
            named ("lasso", "lime" and "leave_one_out", which say something else, stay).
        index: "shapley" or "banzhaf".
        meta: what else a reader must know (seed, budget, surrogate chosen, rounds).

    Example:
        >>> found = estimate(lambda kept: kept @ [1.0, 2.0], 2)
        >>> found.estimator, found.scores
        ('exact', array([1., 2.]))
    """

    estimator: str
    index: Index
    meta: Mapping[str, Any] = field(default_factory=dict)


def _check(n: int, index: str, estimator: str, budget: int, seed: int, width: Any) -> None:
    whole: dict[str, Any] = {"n": n, "budget": budget, "seed": seed}
    for name, given in whole.items():
        if not isinstance(given, Integral):
            raise InputError(f"{name} is a whole number, got {given!r}")
    if seed < 0:
        raise InputError(f"the seed is at least 0, got {seed}")
    if width is not None and not (isinstance(width, Real) and float(width) >= 0):
        raise InputError(f"the width is a number of at least 0, got {width!r}")
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
    guide: Guide | None = None,
) -> Estimate:
    """Estimate the Shapley or Banzhaf values of a game.

    Args:
        value: bool[coalitions, n] -> float[coalitions] or float[coalitions, answers]. Asked once for each coalition.
        n: number of sources.
        index: "shapley" or "banzhaf".
        estimator: one of `ESTIMATORS`, or "auto": exact where 2^n fits the budget and
            n <= 15, else the Gaussian process.
        budget: distinct coalitions that may be asked, the empty and the full one included.
        seed: makes the sample repeatable.
        width: stop early once every 95 % interval is at most this wide, in units of the value.
        guide: what else the scores may go by, or a limit of what coalitions cost; for the Gaussian process only.

    Raises:
        InputError: n < 1, budget < 2, exact values that do not fit the budget, a value that is not a finite number, a
            guide for an estimator that takes none, a number that is not whole, a negative seed or width.
        UnknownNameError: no such estimator or index.

    Example:
        >>> def value(coalitions):  # two of three have to agree
        ...     return (coalitions.sum(axis=1) >= 2).astype(float)
        >>> found = estimate(value, 3)
        >>> found.scores.round(3), found.estimator, found.calls
        (array([0.333, 0.333, 0.333]), 'exact', 8)
    """
    _check(n, index, estimator, budget, seed, width)
    n, budget = int(n), int(budget)  # 2^n of NumPy's integers overflows
    cost = guide.cost if guide is not None else None
    if cost is not None and len(cost.sources) != n:
        raise InputError(f"the game has {n} sources, and the cost names {len(cost.sources)} sources")
    game = CachedValue(value, n, budget)
    budget = min(budget, 2 ** min(n, 62))
    complete = n <= MAX_SOURCES and 2**n <= budget
    whole = cost.of(all_coalitions(n)) if cost is not None and complete else 0.0
    affordable = complete and (cost is None or cost.soft or whole <= cost.limit)
    name = estimator
    if estimator == "auto":
        name = "exact" if affordable and n <= UNASKED else "gaussian_process"
    elif (
        affordable
        and n <= UNASKED
        and ESTIMATORS[name].efficient
        and (width, cost) == (None, None)
        and (guide is None or guide.control_variate is None)
    ):
        name = "exact"  # which any sample of all coalitions would come to
    if name != "exact":
        check_budget(name, n, budget, index)
    run = ESTIMATORS[name].run
    if name == "exact" and cost is not None and not affordable:
        raise InputError(f"exact values cost {whole:,.0f}, more than the limit {cost.limit:,.0f}")
    if name != "exact" and guide is not None:
        if name != "gaussian_process":
            raise InputError(f"estimator {name!r} takes no guide: use estimator='auto', or leave it out")
        run = partial(gaussian_process, helper=guide.helper(n, index, budget, seed), cost=cost)
    raw = None
    for stage in _stages(n, budget) if width is not None and name != "exact" else [budget]:
        raw = run(game, index, stage, seed)
        if ESTIMATORS[name].efficient and game.calls == 2**n:
            name, raw = "exact", replace(ESTIMATORS["exact"](game, index, stage, seed), meta=raw.meta)
        elif game.calls < 2**n and ESTIMATORS[name].sampled:
            raw = replace(raw, half=_unseen(raw.half, game.values))
        if width is not None and np.all(2 * raw.half <= width):
            break
    assert raw is not None
    scores, half = raw.scores, raw.half
    if index == "shapley" and ESTIMATORS[name].efficient:
        # what is left of the efficiency gap after closed forms is round-off; equal shares keep the ranking
        gap = np.subtract(*game(ends(n))[::-1]) - scores.sum(axis=0)
        scores = scores + gap / n
    shape = (n,) if game.flat else scores.shape
    spent = {} if cost is None else {"limit": cost.limit, "spent": cost.of(game.coalitions)}
    return Estimate(
        scores=scores.reshape(shape),
        low=(scores - half).reshape(shape),
        high=(scores + half).reshape(shape),
        calls=game.calls,
        estimator=name,
        index=index,
        meta={"budget": game.budget, "seed": seed, **spent, **raw.meta},
    )


def _unseen(half: Floats, values: Floats) -> Floats:
    """Half widths of a sample [calls, answers], above 0 where all its values are equal.

    By the rule of three at most 3 / calls of the coalitions have another value (95 %). How far it would be away the
    sample does not say: one unit.
    """
    return np.where(np.ptp(values, axis=0) == 0, np.maximum(half, 3 / len(values)), half)


def _stages(n: int, budget: int) -> list[int]:
    """Budgets at which the intervals are looked at: growing by half, from what every estimator can begin with."""
    stages, now = [], 2 * n + 2 if n > 2 else 8
    while now < budget:
        stages.append(now)
        now = now * 3 // 2
    return [*stages, budget]


def _guessed(prior: Sequence[float] | Floats, n: int) -> ControlVariate:
    """The game of a guess's sums, the same for every answer."""
    guess = np.asarray(prior, dtype=np.float64)
    if guess.shape != (n,) or not np.isfinite(guess).all():
        raise InputError(f"the prior is a finite number for each of {n} sources, got shape {guess.shape}")
    return ControlVariate(CachedValue(lambda held: held @ guess, n), guess[:, None], np.zeros((n, 1)), "prior")
