"""Regressions and surrogates against enumeration, shapiq and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.shapley import CachedValue, all_coalitions, estimate, exact_scores
from amplify.shapley.regression import constrained_least_squares, kernel_weights, lasso_scores, least_squares
from amplify.shapley.sampling import leverage, paired, stands_for
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


@pytest.mark.parametrize("name", list(SURROGATES))
def test_residual_correction_is_unbiased(name: str) -> None:
    """The mean over samples comes near the exact values whatever the surrogate misses."""
    n, held = 6, all_coalitions(6)
    table = np.random.default_rng(3).normal(size=64)
    truth, bits = exact_scores(table), 1 << np.arange(n)
    runs = []
    for seed in range(60 if name in ("linear", "pairwise") else 12):
        first = paired(n, 15, leverage(n), seed)
        values = np.stack([table[first @ bits], table[~first @ bits]], axis=1)
        weight = stands_for(first, leverage(n))
        runs.append(corrected(SURROGATES[name], first, values, table[[0, -1]], weight, "shapley").scores)
    spread = np.std(runs, axis=0) / np.sqrt(len(runs))
    assert len(held) == 64
    # four standard errors of the mean, for each of six sources
    assert (np.abs(np.mean(runs, axis=0) - truth) < 4 * spread + 1e-9).all()


def test_lasso_equals_context_cites_pipeline() -> None:
    from sklearn.linear_model import Lasso
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(4)
    masks = rng.random((64, 9)) < 0.5
    values = masks @ rng.normal(size=9) + rng.normal(0, 0.1, 64)
    scaler = StandardScaler().fit(masks.astype(float))
    model = Lasso(alpha=0.01).fit(scaler.transform(masks.astype(float)), values)
    np.testing.assert_allclose(lasso_scores(masks, values[:, None])[:, 0], model.coef_ / scaler.scale_, atol=1e-4)
