"""Regressions and surrogates against enumeration, shapiq and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.shapley import CachedValue, all_coalitions, estimate, exact_scores
from amplify.shapley.regression import constrained_least_squares, kernel_weights, lasso_scores, least_squares
from amplify.shapley.sampling import leverage, luck, paired
from amplify.shapley.surrogates import SURROGATES, corrected, leaf_credit


def test_kernel_regression_on_all_coalitions_is_exact() -> None:
    n = 7
    held, table = all_coalitions(n), np.random.default_rng(0).normal(size=(2**7, 2))
    inner = held[1:-1]
    found = constrained_least_squares(inner, table[1:-1], kernel_weights(inner), table[0], table[-1])
    np.testing.assert_allclose(found, exact_scores(table), atol=1e-10)
    flat = least_squares(held, table, np.ones(len(held)))
    np.testing.assert_allclose(flat, exact_scores(table, "banzhaf"), atol=1e-10)


def test_kernel_regression_equals_shapiq_on_the_same_sample() -> None:
    shapiq = pytest.importorskip("shapiq")
    n = 8
    table = np.random.default_rng(1).normal(size=2**n)
    bits = 1 << np.arange(n)
    game = CachedValue(lambda s: table[s @ bits], n)
    solver = shapiq.KernelSHAP(n=n, pairing_trick=True, random_state=0)
    theirs = solver.approximate(budget=2**n, game=lambda s: game(s)[:, 0]).get_n_order_values(1)
    ours = estimate(lambda s: table[s @ bits], n, estimator="kernel_shap", budget=2**n)
    # shapiq holds the two ends by a large weight, not by a constraint
    np.testing.assert_allclose(ours.scores, theirs, atol=1e-4)
    np.testing.assert_allclose(ours.high - ours.low, 0, atol=1e-6)


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
@pytest.mark.parametrize("name", list(SURROGATES))
def test_scores_of_a_surrogate_equal_enumeration(name: str, index) -> None:
    n = 8
    rng = np.random.default_rng(2)
    held = all_coalitions(n)
    sample = held[rng.choice(2**n, 60, replace=False)]
    values = sample @ rng.normal(size=n) + 2.0 * (sample[:, 1] | sample[:, 5]) + rng.normal(0, 0.1, 60)
    model = SURROGATES[name](sample, values, index)
    np.testing.assert_allclose(model.scores, exact_scores(model.predict(held), index), atol=1e-6)


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
def test_credit_of_a_leaf(index) -> None:
    held = all_coalitions(6)
    for present, absent in [(1, 0), (0, 1), (2, 1), (3, 3), (1, 4)]:
        inside = held[:, :present].all(axis=1) & ~held[:, present : present + absent].any(axis=1)
        truth = exact_scores(inside.astype(float), index)
        gain, loss = leaf_credit(present, absent, index)
        expected = [gain] * present + [loss] * absent + [0.0] * (6 - present - absent)
        np.testing.assert_allclose(truth, expected, atol=1e-12)


def _corrected(name: str, n: int, pairs: int, seeds: int, index) -> tuple[np.ndarray, np.ndarray]:
    """The exact scores of a game without structure, and those of so many samples of it, [seeds, n]."""
    table = np.random.default_rng(3).normal(size=2**n)
    bits, shares, runs = 1 << np.arange(n), leverage(n), []
    for seed in range(seeds):
        first = paired(n, pairs, shares, seed)
        values = np.stack([table[first @ bits], table[~first @ bits]], axis=1)
        runs.append(corrected(SURROGATES[name], first, values, table[[0, -1]], luck(first, shares), index).scores)
    return exact_scores(table, index), np.array(runs)


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
@pytest.mark.parametrize(
    ("name", "n", "pairs", "seeds"),
    [
        ("linear", 6, 15, 150),  # 15 of 31
        ("linear", 6, 28, 150),
        ("linear", 8, 60, 100),
        ("linear", 9, 12, 150),
        ("pairwise", 6, 15, 60),
        ("boosted_trees", 6, 15, 12),
        ("gaussian_process", 6, 15, 12),
    ],
)
def test_residual_correction_is_unbiased(name: str, n: int, pairs: int, seeds: int, index) -> None:
    """The mean over samples comes near the exact values whatever the surrogate misses, also of most of a small game."""
    truth, runs = _corrected(name, n, pairs, seeds, index)
    spread = np.std(runs, axis=0, ddof=1) / np.sqrt(seeds)
    # a chance of about 1 in 1,000 that one of nine means of 150 is further off
    assert (np.abs(np.mean(runs, axis=0) - truth) < (4 if seeds >= 60 else 5) * spread).all()


@pytest.mark.parametrize("name", list(SURROGATES))
def test_of_all_pairs_the_correction_is_exact(name: str) -> None:
    truth, runs = _corrected(name, 5, 15, 1, "shapley")
    np.testing.assert_allclose(runs[0], truth, atol=1e-9)


def test_sizes_of_equal_shares_are_dealt_out_by_lot() -> None:
    n, shares = 9, leverage(9)
    for pairs in (6, 13, 40):
        drawn = [paired(n, pairs, shares, seed) for seed in range(400)]
        lucks = [luck(first, shares) for first in drawn]
        for size in range(1, n // 2 + 1):
            found = [float(k[first.sum(axis=1) == size].mean()) for k, first in zip(lucks, drawn, strict=True)
                     if (first.sum(axis=1) == size).any()]  # fmt: skip
            # times when none of a size is drawn count as 0
            mean = sum(found) / len(drawn)
            assert abs(mean - 1) < 4 * np.std([*found, *[0.0] * (len(drawn) - len(found))]) / len(drawn) ** 0.5 + 1e-9


def test_lasso_equals_context_cites_pipeline() -> None:
    from sklearn.linear_model import Lasso
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(4)
    masks = rng.random((64, 9)) < 0.5
    values = masks @ rng.normal(size=9) + rng.normal(0, 0.1, 64)
    scaler = StandardScaler().fit(masks.astype(float))
    model = Lasso(alpha=0.01).fit(scaler.transform(masks.astype(float)), values)
    np.testing.assert_allclose(lasso_scores(masks, values[:, None])[:, 0], model.coef_ / scaler.scale_, atol=1e-4)
