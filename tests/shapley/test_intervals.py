"""Whether 95 % intervals hold the exact values, over many closed-form games; and control variates."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.errors import InputError
from amplify.shapley import Guide, all_coalitions, estimate, exact_scores
from amplify.shapley.regression import pair_leverage, pair_scores, ridge_leverage, ridge_scores
from amplify.shapley.sampling import leverage, paired
from amplify.shapley.surrogates import SURROGATES

HELD = all_coalitions(10)
BITS = 1 << np.arange(10)


def voting(rng: np.random.Generator) -> np.ndarray:
    """A weighted majority."""
    weights = rng.integers(1, 20, 10)
    return (HELD @ weights > weights.sum() / 2).astype(float)


def unanimity(rng: np.random.Generator) -> np.ndarray:
    """Twelve unanimity games of one to four sources, whose exact values are weight / size."""
    table = np.zeros(1024)
    for _ in range(12):
        table += rng.normal() * HELD[:, rng.choice(10, rng.integers(1, 5), replace=False)].all(axis=1)
    return table


def gloves(rng: np.random.Generator) -> np.ndarray:
    """Pairs of a left and a right glove."""
    left = int(rng.integers(2, 9))
    return np.minimum(HELD[:, :left].sum(axis=1), HELD[:, left:].sum(axis=1)).astype(float)


def log_probability(rng: np.random.Generator) -> np.ndarray:
    """Log-probabilities of tokens that one or two of three documents make likely, with mild noise."""
    table = np.zeros(1024)
    a, b, c = rng.choice(10, 3, replace=False)
    for _ in range(6):
        logit = rng.normal(0, 0.3, 10) @ HELD.T - 1 + rng.normal(0, 0.1, 1024)
        logit += rng.uniform(1, 5) * rng.choice([HELD[:, a], HELD[:, a] | HELD[:, b], HELD[:, a] & HELD[:, c]])
        table -= np.logaddexp(0, -logit)
    return table


@pytest.mark.parametrize("name", ["gaussian_process", "kernel_shap", "leverage_shap", "permutation", "regression_msr"])
def test_intervals_cover(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SURROGATES, "boosted_trees")  # which take a second a game
    hits = []
    for k, game in enumerate((voting, unanimity, gloves, log_probability)):
        for run in range(12):
            table = game(np.random.default_rng([run, k]))
            found = estimate(lambda s, t=table: t[s @ BITS], 10, estimator=name, budget=64, seed=run)
            truth = exact_scores(table)
            slack = 1e-9 * np.abs(truth).max()
            hits.append(np.mean((found.low - slack <= truth) & (truth <= found.high + slack)))
    assert 0.90 <= np.mean(hits) <= 0.99


def near_copies(rng: np.random.Generator, n: int) -> np.ndarray:
    """Log-probabilities of an answer that two of the sources say, and a third one a little."""
    held = all_coalitions(n)
    a, b, c = rng.choice(n, 3, replace=False)
    table = rng.uniform(10, 30) * (held[:, a] | held[:, b]) + rng.uniform(2, 10) * held[:, c] * (1 - 0.5 * held[:, a])
    return table + held @ rng.normal(0, 0.3, n) + rng.normal(0, 0.15, 2**n)


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
@pytest.mark.parametrize("name", ["kernel_shap", "leverage_shap"])
def test_intervals_of_few_pairs_cover(name: str, index: str) -> None:
    """Pairs that a regression follows have small residuals: fifteen pairs for seven coefficients (review, A20)."""
    hits, bits = [], 1 << np.arange(8)
    for run in range(60):
        table = near_copies(np.random.default_rng([run, 77]), 8)
        found = estimate(lambda s, t=table: t[s @ bits], 8, index, name, 32, run)  # type: ignore[arg-type]
        truth = exact_scores(table, index)  # type: ignore[arg-type]
        hits.append(np.mean((found.low <= truth) & (truth <= found.high)))
    assert 0.92 <= np.mean(hits) <= 0.995


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
def test_leverage_is_how_far_a_fit_follows_a_pair(index) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    first, weight = paired(7, 12, leverage(7), 0), rng.uniform(1, 3, 12)
    values, outer = rng.normal(size=(12, 2, 1)), rng.normal(size=(2, 1))
    for pair, found in enumerate(pair_leverage(first, weight, index)):
        moved = values.copy()
        moved[pair] += np.array([[0.5], [-0.5]])
        change = pair_scores(first, moved, weight, outer, index) - pair_scores(first, values, weight, outer, index)
        assert 2 * (first[pair] - 0.5) @ change[:, 0] == pytest.approx(found, abs=1e-9)
    design, weights = rng.normal(size=(9, 3)), rng.uniform(0.1, 1, 9)
    for draw, found in enumerate(ridge_leverage(design, weights, 0.7)):
        unit = np.eye(9)[:, [draw]]
        slopes = ridge_scores(design, unit, weights, 0.7)[:, 0]
        at = (
            np.average(unit[:, 0], weights=weights)
            + (design[draw] - np.average(design, axis=0, weights=weights)) @ slopes
        )
        assert at == pytest.approx(found, abs=1e-9)


def test_intervals_cover_when_nearly_all_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals that are out of fold do not vanish when few coalitions are left to ask."""
    monkeypatch.delitem(SURROGATES, "boosted_trees")
    hits = []
    for n, budget in ((5, 30), (6, 60)):
        bits = 1 << np.arange(n)
        for run in range(15):
            weights = np.random.default_rng([run, n]).integers(1, 20, n)
            table = (all_coalitions(n) @ weights > weights.sum() / 2).astype(float)
            table += np.random.default_rng([run, n]).normal(0, 0.1, 2**n)
            found = estimate(lambda s, t=table, b=bits: t[s @ b], n, "shapley", "regression_msr", budget, run)
            truth = exact_scores(table)
            hits.append(np.mean((found.low <= truth) & (truth <= found.high)))
    assert np.mean(hits) >= 0.90


def test_intervals_have_width_zero_when_exact() -> None:
    found = estimate(lambda s: s.sum(axis=1) ** 2.0, 6)
    assert found.estimator == "exact"
    np.testing.assert_array_equal(found.low, found.high)


def test_a_good_control_lowers_the_error_and_a_bad_one_does_no_harm() -> None:
    errors: dict[str, list[float]] = {"plain": [], "good": [], "bad": []}
    for seed in range(16):
        rng = np.random.default_rng(seed)
        table = unanimity(rng)
        truth = exact_scores(table)
        controls = {"plain": None, "good": 0.5 * table + rng.normal(0, 0.02, 1024), "bad": rng.normal(size=1024)}
        for kind, u in controls.items():
            cheap = None if u is None else (lambda s, u=u: u[s @ BITS])
            found = estimate(lambda s, t=table: t[s @ BITS], 10, budget=40, guide=Guide(cheap), seed=seed)
            assert found.calls <= 40
            assert found.scores.sum() == pytest.approx(table[-1] - table[0], abs=1e-6)
            errors[kind].append(((found.scores - truth) ** 2).sum() / (truth**2).sum())
            if kind == "good":
                assert found.meta["control_variate"]["slope"][0] == pytest.approx(2.0, rel=0.3)
                assert found.meta["control_variate"]["calls"] == 1024
    assert np.median(errors["good"]) < 0.5 * np.median(errors["plain"])
    assert np.median(errors["bad"]) < 1.5 * np.median(errors["plain"])


def test_a_control_of_many_sources_widens_the_intervals_by_what_is_not_known_of_it() -> None:
    hits = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        slopes, (a, b, c, d) = rng.normal(size=14), rng.permutation(14)[:4]

        def value(s: np.ndarray, slopes=slopes, a=a, b=b, c=c, d=d) -> np.ndarray:
            return s @ slopes + 2.0 * (s[:, a] & s[:, b]) * (s[:, c] | s[:, d])

        found = estimate(value, 14, budget=24, guide=Guide(lambda s, value=value: 0.5 * value(s)), seed=seed)
        truth = exact_scores(value(all_coalitions(14)))
        assert found.meta["control_variate"]["calls"] <= 16 * 24 + 24
        assert np.all(found.high > found.low)
        hits.append(np.mean((found.low <= truth) & (truth <= found.high)))
    assert np.mean(hits) >= 0.9


def test_only_the_gaussian_process_takes_a_control() -> None:
    guide = Guide(lambda s: s.sum(axis=1))
    with pytest.raises(InputError, match="takes no guide"):
        estimate(lambda s: s.sum(axis=1), 5, estimator="permutation", budget=20, guide=guide)
