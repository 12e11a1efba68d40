"""Intervals and paired tests over test items, as pure functions of numpy arrays.

The test item is the unit throughout: a method that ran with several seeds is averaged per item first, because the
seeds of one item are no independent samples of the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from amplify.errors import InputError

Floats = NDArray[np.float64]

_ENUMERATED = 16  # 2^16 sign patterns are cheap to enumerate; above, floats without a common grid are sampled
_GRIDS = 60  # denominators tried when looking for the grid on which the differences lie


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval and how it was made."""

    low: float
    high: float
    kind: str


@dataclass(frozen=True, slots=True)
class Test:
    """A two-sided p-value and how it was made."""

    p: float
    kind: str


def _normal(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"a confidence level lies between 0 and 1, not at {level}")
    return float(stats.norm.ppf((1 + level) / 2))


def _vector(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise InputError(f"expected a non-empty vector of finite numbers, got shape {array.shape}")
    return array


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1."""
    array = np.asarray(values)
    return bool(np.isin(array, (0, 1)).all())


def wilson(right: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
        right: number of successes, 0 <= right <= n.
        n: number of independent items, at least 1.
        level: nominal coverage.
    """
    if n < 1 or not 0 <= right <= n:
        raise InputError(f"a proportion needs 0 <= right <= n and n >= 1, got {right} of {n}")
    z, share = _normal(level), right / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # at the ends the formula gives exactly 0 or 1 up to round-off
    low = 0.0 if right == 0 else max(0.0, float(middle - half))
    high = 1.0 if right == n else min(1.0, float(middle + half))
    return Interval(low, high, "wilson")


def mcnemar(a: ArrayLike, b: ArrayLike) -> Test:
    """Exact McNemar test: under the null hypothesis either method wins a discordant item with chance 1/2.

    Args:
        a, b: 0 or 1 per item, shape (items,), the same items in the same order.
    """
    first, second = _vector(a), _vector(b)
    if first.shape != second.shape or not is_binary(first) or not is_binary(second):
        raise InputError("McNemar's test compares two vectors of zeros and ones over the same items")
    wins, losses = int((first > second).sum()), int((first < second).sum())
    p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Test(p, "exact McNemar")


def bonett_price(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Adjusted Wald interval of a paired difference of proportions (Bonett & Price 2012).

    Args:
        differences: a − b per item, each in [−1, 1]; for fractions it is conservative.
        level: nominal coverage.
    """
    d = _vector(differences)
    n = d.size + 2
    up, down = (np.maximum(d, 0).sum() + 1) / n, (np.maximum(-d, 0).sum() + 1) / n
    half = _normal(level) * np.sqrt((up + down - (up - down) ** 2) / n)
    return Interval(max(-1.0, float(up - down - half)), min(1.0, float(up - down + half)), "Bonett-Price")


def bootstrap_means(values: ArrayLike, resamples: int = 10_000, seed: int = 0) -> Floats:
    """Means of `resamples` resamples of the items with replacement, shape (resamples,)."""
    x = _vector(values)
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // x.size)  # bounds the memory of the drawn indices
    parts = [
        x[rng.integers(0, x.size, (min(step, resamples - start), x.size))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def bootstrap(
    values: ArrayLike, level: float = 0.95, *, bca: bool = True, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of a mean over items.

    Args:
        values: one value per item, shape (items,): the item's score averaged over seeds, or a difference of two.
        level: nominal coverage.
        bca: bias-corrected and accelerated (Efron 1987) instead of plain percentiles.
        resamples, seed: of the resampling; the same pair gives the same interval.

    Returns:
        The interval; it has no width where all values are equal, so callers use another one there.
    """
    x = _vector(values)
    if np.ptp(x) == 0:
        return Interval(float(x[0]), float(x[0]), "degenerate")
    means = bootstrap_means(x, resamples, seed)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if bca:
        centre = x.mean()
        # ties count half: means of few distinct values often hit the estimate itself
        below = np.mean(means < centre - 1e-12) + np.mean(np.abs(means - centre) <= 1e-12) / 2
        bias = stats.norm.ppf(np.clip(below, 1 / resamples, 1 - 1 / resamples))
        d = x - centre
        acceleration = (d**3).sum() / (6 * (d**2).sum() ** 1.5)  # the jackknife's, in closed form for a mean
        shifted = bias + stats.norm.ppf(tails)
        tails = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(means, tails)
    return Interval(float(low), float(high), "BCa bootstrap" if bca else "percentile bootstrap")


def sign_flip(differences: ArrayLike, *, resamples: int = 100_000, seed: int = 0) -> Test:
    """Item-level sign-flip (paired permutation) test of a mean difference of zero, two-sided.

    Under the null hypothesis the two methods are exchangeable within an item, so each item's difference may be
    negated. Averages of S seeds lie on a grid of 1/S, where the distribution of the sum follows exactly by
    convolution for any number of items. Other values are enumerated up to 16 non-zero differences, else sampled,
    with the observed assignment counted in (p is never 0). For zeros and ones it equals the exact McNemar test.

    Args:
        differences: a − b per item, shape (items,).
        resamples, seed: of the sampling, where it is needed.
    """
    d = _vector(differences)
    d = d[np.abs(d) > 1e-12]
    if not d.size:
        return Test(1.0, "exact sign flip")
    for grid in range(1, _GRIDS + 1):
        steps = np.rint(d * grid)
        if np.abs(d * grid - steps).max() < 1e-9:
            return Test(_convolved(steps.astype(int)), "exact sign flip")
    observed = abs(d.sum()) * (1 - 1e-12)
    if d.size <= _ENUMERATED:
        signs = 1 - 2 * ((np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1)
        return Test(float(np.mean(np.abs(signs @ d) >= observed)), "exact sign flip")
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, 4_000_000 // d.size)
    for start in range(0, resamples, step):
        signs = 1 - 2 * rng.integers(0, 2, (min(step, resamples - start), d.size), dtype=np.int8)
        hits += int((np.abs(signs @ d) >= observed).sum())
    return Test((hits + 1) / (resamples + 1), "sampled sign flip")


def _convolved(steps: NDArray[np.int_]) -> float:
    """P(|Σ ± steps| >= |Σ steps|) with independent fair signs, by convolution over the integers."""
    reach = int(np.abs(steps).sum())
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for size in np.abs(steps):
        # np.roll wraps only cells that are still zero: partial sums never exceed `reach`
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(int(steps.sum()))
    return float(min(1.0, chance[far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979) over a family of tests, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    if not p.size:
        return []
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, scaled)
    return [float(value) for value in adjusted]


def spread(seed_scores: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n − 1), None for fewer than two."""
    return float(np.std(seed_scores, ddof=1)) if len(seed_scores) > 1 else None


def item_means(scores: Sequence[Sequence[float]]) -> Floats:
    """Average over seeds per item.

    Args:
        scores: one sequence of items per seed, shape (seeds, items).
    """
    return np.asarray(scores, dtype=np.float64).mean(axis=0)


def interval_of(scores: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """The interval of a method's score: Wilson for one run of zeros and ones, else the item bootstrap.

    Args:
        scores: shape (seeds, items), each value in [0, 1].
        level: nominal coverage.
    """
    means = item_means(scores)
    if len(scores) == 1 and is_binary(means):
        return wilson(float(means.sum()), means.size, level)
    interval = bootstrap(means, level)
    if interval.kind == "degenerate":  # equal items say nothing about their spread: fall back on the proportion
        return wilson(float(np.clip(means.sum(), 0, means.size)), means.size, level)
    return interval


def compare(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], level: float = 0.95
) -> tuple[float, Interval, Test]:
    """Paired comparison of two methods over the same items.

    Args:
        a, b: shape (seeds, items) each; the numbers of seeds may differ, the items may not.
        level: nominal coverage of the interval.

    Returns:
        The mean difference a − b, its interval and the test: Bonett-Price and exact McNemar where both ran once
        with zeros and ones, else item bootstrap and sign flip.
    """
    first, second = item_means(a), item_means(b)
    d = first - second
    if len(a) == len(b) == 1 and is_binary(first) and is_binary(second):
        return float(d.mean()), bonett_price(d, level), mcnemar(first, second)
    interval = bootstrap(d, level)
    if interval.kind == "degenerate":
        interval = bonett_price(d, level)
    return float(d.mean()), interval, sign_flip(d)
