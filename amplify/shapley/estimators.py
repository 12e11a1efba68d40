"""The estimators by name: each asks a game within a budget and gives scores with half their intervals' widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from amplify.errors import InputError
from amplify.registry import Table, register
from amplify.shapley import gp
from amplify.shapley.budget import CELLS, PrefixCost
from amplify.shapley.exact import MAX_SOURCES, Index, Owen, all_coalitions, exact_scores
from amplify.shapley.game import CachedValue, Coalitions, Floats, leave_one_out
from amplify.shapley.intervals import BORROWED, half_width, mean_deviation, wild_bootstrap
from amplify.shapley.regression import lasso_scores, pair_leverage, pair_scores, ridge_leverage, ridge_scores
from amplify.shapley.sampling import (
    ends,
    leverage,
    luck,
    paired,
    prefixes,
    shapley_kernel,
    spanning,
    stands_for,
    uniform,
    with_complements,
)
from amplify.shapley.surrogates import SURROGATES, corrected

LIME_WIDTH, LIME_RIDGE = 0.25, 1.0
POOL = 2048  # coalitions that the Gaussian process's design looks at, at least


@dataclass(frozen=True)
class RawEstimate:
    """An estimator's answer: scores and half widths, both [n, answers]."""

    scores: Floats
    half: Floats
    meta: dict[str, Any] = field(default_factory=dict)


def _exact(game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
    scores = exact_scores(game(all_coalitions(game.n)), index)
    return RawEstimate(scores, np.zeros_like(scores))


def _permutation(game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
    if index != "shapley":
        raise InputError("permutation sampling estimates Shapley values; for Banzhaf values use estimator='auto'")
    if game.n <= MAX_SOURCES and budget == 2**game.n:  # orders would meet the last coalitions late
        game(all_coalitions(game.n))
    scores, units = permutation_scores(game, np.random.default_rng(seed), budget)
    return RawEstimate(scores, half_width(mean_deviation(units), len(units) - 1 + BORROWED), {"units": len(units)})


def _sample_pairs(
    game: CachedValue, shares: Floats, budget: int, seed: int, fit: Index | None = None
) -> tuple[Coalitions, Floats, Floats, Floats]:
    """Ask the two ends and as many complement pairs as fit: first halves, their values, weights, values of the ends.

    `fit`: pairs that determine a linear fit of these scores.
    """
    outer = game(ends(game.n))
    first = paired(game.n, (budget - 2) // 2, shares, seed)
    if fit is not None:
        first = spanning(first, fit)
    if not len(first):
        return first, np.zeros((0, 2, outer.shape[1])), np.zeros(0), outer
    values = game(with_complements(first)).reshape(len(first), 2, -1)
    return first, values, stands_for(first, shares), outer


def _regression(
    game: CachedValue, index: Index, budget: int, seed: int, *, shares: Callable[[int], Floats]
) -> RawEstimate:
    n = game.n
    # a Banzhaf value weighs all coalitions alike: sampled by size, those that count would hardly be seen
    chosen = shares(n) if index == "shapley" else uniform(n)
    first, values, weight, outer = _sample_pairs(game, chosen, budget, seed, index)

    def estimate(v: Floats) -> Floats:
        return pair_scores(first, v, weight, np.repeat(outer, v.shape[2] // outer.shape[1], axis=1), index)

    scores = estimate(values)
    both = np.stack([first, ~first], axis=1) - 0.5
    residual = values - (outer.mean(axis=0) + both @ scores)
    # only the part that changes sign between a coalition and its complement enters the scores
    residual = (residual - residual[:, ::-1]) / 2
    freedom = len(first) - (n - 1 if index == "shapley" else n)
    rng = np.random.default_rng([seed, 1])
    follows = pair_leverage(first, weight, index)
    deviation = wild_bootstrap(estimate, values, residual, follows, 1 - 1 / weight, freedom, rng)
    return RawEstimate(scores, half_width(deviation, freedom), {"pairs": len(first)})


def _lasso(game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
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
    return RawEstimate(
        scores,
        half_width(deviation, len(sample) - 1),
        {"note": "surrogate coefficients with their intervals, no Shapley values"},
    )


def _leave_one_out(game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
    scores = leave_one_out(game, game.n)
    return RawEstimate(scores, np.zeros_like(scores))


def near(n: int, draws: int, seed: int) -> tuple[Coalitions, Floats]:
    """LIME's neighbourhood for text: all sources and random halves, or every coalition where there are no more.

    The distance of a coalition is one minus its cosine with the full one, 1 - sqrt(sources kept / n).

    Returns:
        The coalitions, bool[at most draws, n], and their weights.
    """
    each = 1.0
    if n <= MAX_SOURCES and 2**n <= draws:
        masks, each = all_coalitions(n), draws / 2**n
    else:
        masks = np.random.default_rng(seed).random((draws - 1, n)) < 0.5
        masks = np.concatenate([np.ones((1, n), bool), masks])
    return masks, each * np.exp(-((1 - np.sqrt(masks.mean(axis=1))) ** 2) / LIME_WIDTH**2)


def _lime(game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
    whole = budget == 2**game.n
    masks, weights = near(game.n, game.budget or budget if whole else budget, seed)
    design, values = masks.astype(np.float64), game(masks)
    note = {"note": "slopes of a local linear fit, not efficient"}
    if whole:
        scores = ridge_scores(design, values, weights, LIME_RIDGE)
        return RawEstimate(scores, np.zeros_like(scores), note)
    return RawEstimate(*ridge_fit(design, values, weights, LIME_RIDGE, seed), note)


def ridge_fit(design: Floats, values: Floats, weights: Floats, ridge: float, seed: int) -> tuple[Floats, Floats]:
    """Slopes of a weighted ridge regression, and half the widths of their 95 % intervals.

    By the wild bootstrap (Wu 1986), errors inflated for the degrees of freedom that the fit really used.

    Args:
        design: what was drawn, [draws, n].
        values: [draws, answers].
        weights: of the draws, [draws], not negative.
        ridge: penalty on the squared slopes.
        seed: of the bootstrap.

    Returns:
        [n, answers] both.
    """

    def slopes(v: Floats) -> Floats:
        return ridge_scores(design, v[:, 0], weights, ridge)

    scores = slopes(values[:, None])
    centred = values - np.average(values, axis=0, weights=weights)
    residuals = centred - (design - np.average(design, axis=0, weights=weights)) @ scores
    follows = ridge_leverage(design, weights, ridge)
    freedom = len(design) - float(follows.sum())
    rng = np.random.default_rng([seed, 1])
    deviation = wild_bootstrap(slopes, values[:, None], residuals[:, None], follows, np.ones(len(design)), freedom, rng)
    return scores, half_width(deviation, freedom)


def _regression_msr(game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
    shares = leverage(game.n)
    if len(paired(game.n, (budget - 2) // 2, shares, seed)) < 5:  # which would ask for other pairs than these
        return _regression(game, index, budget, seed, shares=leverage)
    first, values, _, outer = _sample_pairs(game, shares, budget, seed)
    columns, halves, chosen = [], [], []
    drawn = luck(first, shares)
    for k in range(values.shape[2]):
        fits = {
            name: corrected(fit, first, values[:, :, k], outer[:, k], drawn, index) for name, fit in SURROGATES.items()
        }
        name = min(fits, key=lambda f: fits[f].error)
        best = fits[name]
        columns.append(best.scores)
        # every model in it has learned from (folds - 1) / folds of the sample only, and is corrected on the rest: its
        # error does not fade, as that of a sample without replacement does, when nearly all coalitions are known
        wider = np.sqrt(best.folds / (best.folds - 1))
        halves.append(half_width(mean_deviation(best.terms) * wider, len(first) - 1))
        chosen.append(name)
    return RawEstimate(np.stack(columns, axis=1), np.stack(halves, axis=1), {"surrogate": chosen, "pairs": len(first)})


def _candidates(n: int, budget: int, seed: int) -> Coalitions:
    """Where the design may look: every coalition of few sources, else a sample balanced over sizes.

    Of very many sources not every single one, nor POOL coalitions: what is known of each candidate is a table.
    """
    if n <= MAX_SOURCES and 2**n <= POOL:
        return np.random.default_rng(seed).permutation(all_coalitions(n))  # ties of the design are broken by lot
    room = CELLS // 4 // n
    single = np.eye(n, dtype=bool)[: room // 4]
    pairs = paired(n, max(min(POOL // 2, room // 4), budget), leverage(n), seed)
    return np.concatenate([ends(n), single, ~single, with_complements(pairs)])


@dataclass(frozen=True)
class ControlVariate:
    """A cheap game that the one in question may follow.

    Attributes:
        game: gives its values at any coalition.
        scores, half: its own scores and half the widths of their intervals (0 where exact), [n, answers], or [n, 1]
            for all answers.
        name: what it is called in `meta`.
    """

    game: CachedValue
    scores: Floats
    half: Floats
    name: str = "control_variate"

    def at(self, coalitions: Coalitions, answers: int) -> list[gp.Control]:
        """What is known of it where the game was asked, for each answer."""
        scaled, _, spread = standardised(self.game(coalitions))
        found = [gp.Control(u, own) for u, own in zip(scaled.T, (self.scores / spread).T, strict=True)]
        return found * answers if len(found) == 1 else found


def standardised(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Values [m, columns] of mean 0 and deviation 1, and the means and deviations they had, [columns] both."""
    center, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    return (values - center) / spread, center, spread


def gaussian_process(
    game: CachedValue,
    index: Index,
    budget: int,
    seed: int,
    helper: ControlVariate | None = None,
    cost: PrefixCost | None = None,
) -> RawEstimate:
    """Ask in rounds what lowers the scores' posterior variance most, hyperparameters fitted anew after each.

    Args:
        game: asked within its budget.
        index: which value.
        budget: distinct coalitions.
        seed: breaks ties of the design.
        helper: a control variate.
        cost: what asking costs, and how much may be spent; the design then weighs what it learns by what it pays.
    """
    n = game.n
    pool = _candidates(n, budget, seed)
    begin = ends(n)
    if not game.calls:  # the first design needs no value: asked together, it shares prompt prefixes with the ends
        first = gp.chosen(gp.prior(n), begin, pool, index, min(budget - 2, n), cost, budget)
        begin = np.concatenate([begin, first])
    game(begin)
    rounds = [game.calls]
    while True:
        seen = game.coalitions
        scaled, _, _ = standardised(game.values)
        controls = helper.at(seen, scaled.shape[1]) if helper else [None] * scaled.shape[1]
        kernels = [gp.fit(seen, y, u) for y, u in zip(scaled.T, controls, strict=True)]
        shared = gp.unpack(np.mean([gp.pack(k) for k in kernels], axis=0))
        # each round doubles what is known: few large rounds share more prompt prefixes, at no cost in error
        count = min(budget - game.calls, max(n, game.calls))
        picked = gp.chosen(shared, seen, pool, index, count, cost, budget)
        if not len(picked):
            return conditioned(seen, game.values, rounds, index, controls, helper)
        game(picked)
        rounds.append(game.calls)


def conditioned(
    coalitions: Coalitions,
    values: Floats,
    rounds: list[int],
    index: Index | Owen,
    controls: Sequence[gp.Control | None] = (),
    helper: ControlVariate | None = None,
) -> RawEstimate:
    """Scores of a Gaussian process given values that came in rounds (how many were known after each)."""
    scaled, _, spread = standardised(values)
    controls = controls or [None] * scaled.shape[1]
    found, halves, surprises = [], [], []
    for y, control in zip(scaled.T, controls, strict=True):
        found.append(
            gp.posterior(gp.fit(coalitions, y, control, small=gp.rougher(index)), coalitions, y, index, control)
        )
        # how wrong the model's own error bars were in the latest rounds tells how far to widen the present ones
        moved = []
        for known, then in list(pairwise(rounds))[-3:]:
            if known > 2:
                early, late = control and control.first(known), control and control.first(then)
                kernel = gp.fit(coalitions[:known], y[:known], early, small=gp.rougher(index))
                moved.append(gp.surprise(kernel, coalitions[:then], y[:then], known, index, late))
        surprises.append(max(float(np.mean([m.ratio for m in moved])), 1.0) if moved else 1.0)
        # the scale of the errors is known from these few moves, hence their few degrees of freedom
        freedom = sum(m.freedom for m in moved) if moved else 1.0
        halves.append(half_width(found[-1].deviation * np.sqrt(surprises[-1]), freedom))
    scores, half = np.stack([f.scores for f in found], axis=1) * spread, np.stack(halves, axis=1) * spread
    meta: dict[str, Any] = {"surprise": surprises, "rounds": rounds}
    if helper is not None:
        u = helper.game(coalitions)
        slope = np.array([f.slope for f in found]) * spread / standardised(u)[2]
        half = np.hypot(half, slope * helper.half)
        together = np.mean(standardised(u)[0] * scaled, axis=0)
        meta[helper.name] = {"correlation": together.tolist(), "slope": slope.tolist()}
        if helper.name == "control_variate":
            meta[helper.name]["calls"] = helper.game.calls
    return RawEstimate(scores, half, meta)


def permutation_scores(game: CachedValue, rng: np.random.Generator, budget: int) -> tuple[Floats, Floats]:
    """Walk permutations and their reverses until the next one no longer fits the budget.

    Castro et al. 2009; the reverse of each permutation is walked too (antithetic, Mitchell et al. 2022): it asks the
    complements. Coalitions met before cost nothing.

    Returns:
        The scores, [n, answers], and one row of marginals per independent unit (a permutation with its reverse;
        the last unit may be one permutation), [units, n, answers].
    """
    n = game.n
    game(ends(n))
    units: list[list[Floats]] = []
    complete = True
    while complete and (
        not units or game.calls < 2**n
    ):  # once all coalitions are known there is nothing left to sample
        order = rng.permutation(n)
        walked: list[Floats] = []
        for walk in (order, order[::-1]):
            path = prefixes(walk)
            if game.new_among(path) > budget - game.calls:
                complete = False
                break
            values = game(path)
            credit = np.empty((n, values.shape[1]))
            credit[walk] = values[1:] - values[:-1]
            walked.append(credit)
        if walked:
            units.append(walked)
    marginals = np.concatenate([np.stack(u) for u in units])
    return marginals.mean(axis=0), np.stack([np.mean(u, axis=0) for u in units])


@dataclass(frozen=True)
class Estimator:
    """A way to estimate all scores of a game within a budget.

    Attributes:
        description: one line.
        run: (game, index, budget, seed) -> scores, with half widths.
        efficient: whether it estimates the index itself, so that Shapley values sum to what all sources do together;
            else its scores are taken as they are.
        sampled: whether its scores are estimates; else they are exact from any sample, and have no interval.
    """

    description: str
    run: Callable[[CachedValue, Index, int, int], RawEstimate]
    efficient: bool = True
    sampled: bool = True

    def __call__(self, game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
        """Scores and half widths, [n, answers] both."""
        return self.run(game, index, budget, seed)


def _adopt(name: str, value: Any) -> Estimator:
    if isinstance(value, Estimator):
        return value
    if not callable(value):
        raise InputError(
            f"the estimator {name!r} is a function of a game, an index, a budget and a seed, or an Estimator, not "
            f"{value!r}"
        )

    def run(game: CachedValue, index: Index, budget: int, seed: int) -> RawEstimate:
        found = value(game, index, budget, seed)
        raw = found if isinstance(found, RawEstimate) else RawEstimate(found, np.full(np.shape(found), np.inf))
        wanted = (game.n, game.values.shape[1])
        scores, half = (np.asarray(x, dtype=np.float64) for x in (raw.scores, raw.half))
        if scores.shape != wanted or half.shape != wanted or not np.isfinite(scores).all():
            raise InputError(
                f"the estimator {name!r} gives scores of shape {scores.shape} and half widths of shape {half.shape}: "
                f"finite scores of shape {wanted} (sources, answers) are needed"
            )
        return RawEstimate(scores, half, raw.meta)

    return Estimator(next(iter((value.__doc__ or "").strip().splitlines()), ""), run, efficient=False)


ESTIMATORS: Table[Estimator] = Table("estimator", _adopt)
"""Every estimator by name."""

_kernel, _leverage = partial(_regression, shares=shapley_kernel), partial(_regression, shares=leverage)
register("estimator", "exact", Estimator("all coalitions", _exact, sampled=False))
register("estimator", "permutation", Estimator("what a source adds in random orders and their reverses", _permutation))
register("estimator", "kernel_shap", Estimator("regression on pairs drawn by the Shapley kernel", _kernel))
register("estimator", "leverage_shap", Estimator("regression on pairs drawn by leverage", _leverage))
register("estimator", "lasso", Estimator("coefficients of a sparse linear surrogate", _lasso, efficient=False))
register("estimator", "lime", Estimator("ridge fit to random coalitions near the full one", _lime, efficient=False))
register(
    "estimator", "leave_one_out", Estimator("what is lost where one is missing", _leave_one_out, False, sampled=False)
)
register(
    "estimator", "regression_msr", Estimator("a surrogate, corrected by what it misses in the sample", _regression_msr)
)
register(
    "estimator", "gaussian_process", Estimator("asks in rounds what lowers the scores' variance most", gaussian_process)
)
