"""What is no Shapley value, and the same regressions by captum and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.errors import InputError
from amplify.shapley import CachedValue, estimate, leave_one_out
from amplify.shapley.estimators import near
from amplify.shapley.regression import kernel_weights
from amplify.shapley.sampling import paired, shapley_kernel, spanning, stands_for, with_complements


def bent(n: int, seed: int):  # type: ignore[no-untyped-def]
    """A game of main effects, pairs and a wave, which no linear fit reaches."""
    rng = np.random.default_rng(seed)
    w, pairs = rng.normal(size=n), 0.3 * rng.normal(size=(n, n))
    return lambda z: z @ w + np.einsum("ci,ij,cj->c", z, pairs, z) + 0.3 * np.sin(7 * z @ w)


def test_leave_one_out_is_exact_and_costs_one_evaluation_a_source() -> None:
    value = bent(12, 0)
    found = estimate(value, 12, estimator="leave_one_out", budget=500)
    full = np.ones(12, bool)
    for i in range(12):
        assert found.scores[i] == pytest.approx(value(full[None])[0] - value((full & (np.arange(12) != i))[None])[0])
    assert (found.calls, found.estimator) == (13, "leave_one_out")
    np.testing.assert_array_equal(found.low, found.high)
    both = leave_one_out(lambda s: np.stack([value(s), -value(s)], axis=1), 12)
    np.testing.assert_allclose(both[:, 0], -both[:, 1])


@pytest.mark.parametrize(("n", "budget"), [(10, 200), (4, 200)])
def test_lime_is_a_weighted_ridge(n: int, budget: int) -> None:
    from sklearn.linear_model import Ridge

    value = bent(n, 1)
    found = estimate(value, n, estimator="lime", budget=budget, seed=3)
    masks, weights = near(n, budget, 3)
    want = Ridge(alpha=1.0).fit(masks, value(masks), sample_weight=weights).coef_
    np.testing.assert_allclose(found.scores, want, atol=1e-9)
    assert found.calls == len(np.unique(masks, axis=0)) <= budget
    assert ((found.high > found.low) == (n == 10)).all()  # of four sources every coalition is known


def test_lime_intervals_cover_what_many_draws_tend_to() -> None:
    covered = []
    for seed in range(30):
        value = bent(8, seed)
        masks, _ = near(8, 256, 0)  # all there are, as if 256 had been drawn
        assert len(masks) == 256
        limit = estimate(value, 8, estimator="lime", budget=256).scores
        found = estimate(value, 8, estimator="lime", budget=128, seed=seed)
        covered.append((found.low <= limit) & (limit <= found.high))
    assert 0.85 <= np.mean(covered) < 1  # the ridge shrinks half as many draws more, which no interval shows


def test_captum_finds_the_same_on_the_same_masks() -> None:
    import torch
    from captum._utils.models.linear_model import SkLearnLinearRegression, SkLearnRidge
    from captum.attr import FeatureAblation
    from captum.attr._core.lime import LimeBase

    n, value = 7, bent(7, 3)

    def forward(z):  # type: ignore[no-untyped-def]
        return torch.tensor(value(z.numpy().astype(np.float64)))

    first = spanning(paired(n, 24, shapley_kernel(n), 0), "shapley")
    pairs = with_complements(first)
    # captum's way to an exact sum: a weight of a million on both ends
    shap = np.concatenate([pairs, np.ones((1, n), bool), np.zeros((1, n), bool)])
    kernel = kernel_weights(pairs) * np.repeat(stands_for(first, shapley_kernel(n)), 2)
    samples = {
        "lime": (*near(n, 50, 0), SkLearnRidge(alpha=1.0)),
        "kernel_shap": (shap, np.concatenate([kernel / kernel.mean(), [1e6, 1e6]]), SkLearnLinearRegression()),
    }
    for name, (masks, weights, model) in samples.items():
        rows, given = iter(torch.tensor(masks, dtype=torch.float32)), iter(weights.tolist())
        captum = LimeBase(
            forward,
            model,
            lambda *_, given=given, **__: next(given),
            lambda *_, rows=rows, **__: next(rows)[None],
            True,
            lambda z, x, **_: z,
            None,
        )
        theirs = captum.attribute(torch.ones(1, n), n_samples=len(masks)).reshape(-1).numpy()
        # captum solves in float32, and a weight of a million is not infinity
        np.testing.assert_allclose(estimate(value, n, estimator=name, budget=50).scores, theirs, atol=2e-3)
    theirs = FeatureAblation(forward).attribute(torch.ones(1, n), baselines=0)[0].numpy()
    np.testing.assert_allclose(leave_one_out(value, n), theirs, atol=1e-5)


def test_orders_are_walked_both_ways() -> None:
    value = bent(6, 5)
    found = estimate(value, 6, estimator="permutation", budget=40, seed=1)
    rng = np.random.default_rng(1)
    game, adds = CachedValue(value, 6, 40), []
    game(np.stack([np.zeros(6, bool), np.ones(6, bool)]))
    while True:
        order = rng.permutation(6)
        for walk in (order, order[::-1]):
            steps = np.array([np.isin(np.arange(6), walk[:k]) for k in range(7)])
            if game.new_among(steps) > game.left:
                break
            adds.append(np.diff(game(steps)[:, 0])[np.argsort(walk)])
        else:
            continue
        break
    np.testing.assert_allclose(found.scores, np.mean(adds, axis=0), atol=1e-9)
    assert found.calls == game.calls


def test_a_value_that_is_not_finite_is_not_kept() -> None:
    broken = [True]
    value = CachedValue(lambda m: np.where(m.all(1) & broken[0], np.nan, m.sum(1)), 3)
    with pytest.raises(InputError, match=r"sources \[0, 1, 2\] is not a finite number"):
        leave_one_out(value, 3)
    broken[0] = False
    np.testing.assert_allclose(leave_one_out(value, 3)[:, 0], 1)
