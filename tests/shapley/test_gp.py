"""The Gaussian process's closed forms against enumeration, its gradients' optimum, its design and its intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from amplify.shapley import all_coalitions, estimate, exact_scores, gp
from amplify.shapley.exact import coalition_weights


def random_kernel(n: int) -> gp.Kernel:
    rng = np.random.default_rng(n)
    return gp.Kernel(rng.random(n), 0.7, rng.random(n), 0.3)


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_scores_of_the_prior_equal_enumeration(n: int, index) -> None:
    kernel, held = random_kernel(n), all_coalitions(n)
    weights = coalition_weights(held, index).T
    gram = kernel.gram(held, held)
    # float64 sums over 2^8 terms
    np.testing.assert_allclose(kernel.cross(held, index), weights @ gram, atol=1e-11)
    np.testing.assert_allclose(kernel.scores_variance(index), np.diag(weights @ gram @ weights.T), atol=1e-11)
    np.testing.assert_allclose(np.diag(gram), kernel.variance(held))


def test_posterior_equals_conditioning_the_whole_table() -> None:
    n = 6
    kernel, held = random_kernel(n), all_coalitions(n)
    rng = np.random.default_rng(0)
    seen = rng.choice(2**n, 20, replace=False)
    values = rng.normal(size=20)
    gram = kernel.gram(held, held)
    inside = np.linalg.inv(gram[np.ix_(seen, seen)])
    mean = gram[:, seen] @ inside @ values
    rest = gram - gram[:, seen] @ inside @ gram[seen]
    weights = coalition_weights(held, "shapley").T
    found = gp.posterior(kernel, held[seen], values, "shapley")
    np.testing.assert_allclose(found.scores, exact_scores(mean), atol=1e-7)  # the jitter is 1e-9
    np.testing.assert_allclose(found.deviation, np.sqrt(np.diag(weights @ rest @ weights.T)), atol=1e-6)


def test_posterior_with_a_control_equals_conditioning_the_whole_table() -> None:
    n = 6
    held, rng = all_coalitions(n), np.random.default_rng(1)
    kernel = replace(random_kernel(n), follows=0.8)
    cheap, seen = rng.normal(size=2**n), rng.choice(2**n, 20, replace=False)
    values = 0.7 * cheap[seen] + rng.normal(size=20)
    gram = kernel.gram(held, held) + kernel.follows * np.outer(cheap, cheap)
    inside = np.linalg.inv(gram[np.ix_(seen, seen)])
    rest = gram - gram[:, seen] @ inside @ gram[seen]
    weights = coalition_weights(held, "shapley").T
    control = gp.Control(cheap[seen], exact_scores(cheap))
    found = gp.posterior(kernel, held[seen], values, "shapley", control)
    np.testing.assert_allclose(found.scores, exact_scores(gram[:, seen] @ inside @ values), atol=1e-7)  # jitter 1e-9
    np.testing.assert_allclose(found.deviation, np.sqrt(np.diag(weights @ rest @ weights.T)), atol=1e-6)
    assert found.slope == pytest.approx(0.8 * cheap[seen] @ inside @ values, abs=1e-6)


def test_fit_is_a_stationary_point() -> None:
    """A step from the optimum in any one hyperparameter lowers the marginal likelihood, prior included."""
    rng = np.random.default_rng(0)
    held = all_coalitions(6)[rng.choice(64, 30, replace=False)]
    values = held @ rng.normal(size=6) + 2.0 * held[:, 0] * held[:, 1]
    values = (values - values.mean()) / values.std()
    control = gp.Control(values + rng.normal(0, 0.5, 30), np.zeros(6))
    theta = gp.pack(gp.fit(held, values, control, iterations=500))

    def cost(at: np.ndarray) -> float:
        gram = gp.unpack(at).gram(held, held) + gp.JITTER * np.eye(len(held))
        gram += gp.unpack(at).follows * np.outer(control.values, control.values)
        spread = np.concatenate([np.full(6, 2.0), [1.5], np.full(6, 1.0), [1.5, 1.5]])
        pull = (at - gp.pack(gp.prior(6))) / spread
        likelihood = values @ np.linalg.solve(gram, values) / 2 + np.linalg.slogdet(gram)[1] / 2
        return float(likelihood + pull @ pull / 2)

    for k in range(len(theta)):
        for step in (-0.3, 0.3):
            assert cost(theta + step * np.eye(len(theta))[k]) > cost(theta)


def test_design_takes_the_coalition_that_lowers_the_variance_most() -> None:
    n = 5
    kernel, held = random_kernel(n), all_coalitions(n)
    known = held[[0, 31, 7]]

    def variance(sample: np.ndarray) -> float:
        return float((gp.posterior(kernel, sample, np.zeros(len(sample)), "shapley").deviation ** 2).sum())

    picked = gp.AcquisitionDesign(kernel, known, held, "shapley").pick(3)
    assert len({row.tobytes() for row in np.concatenate([known, picked])}) == 6
    sample = known
    for row in picked:
        open_ = [c for c in held if not (sample == c).all(axis=1).any()]
        best = min(variance(np.concatenate([sample, c[None]])) for c in open_)
        sample = np.concatenate([sample, row[None]])
        assert variance(sample) == pytest.approx(best, abs=1e-6)


def test_many_sources_equal_the_law_of_an_additive_game() -> None:
    slopes = np.random.default_rng(0).normal(size=40)
    found = estimate(lambda s: s @ slopes, 40, budget=128)
    assert found.estimator == "gaussian_process"
    assert np.corrcoef(found.scores, slopes)[0, 1] > 0.999
    assert found.scores.sum() == pytest.approx(slopes.sum(), abs=1e-6)


def test_fewer_evaluations_than_kernel_shap_on_redundant_evidence() -> None:
    """Two sources that each suffice, one hop of two more, and noise of all orders: what retrieval looks like."""
    bits, held = 1 << np.arange(10), all_coalitions(10)
    errors: dict[str, list[float]] = {"auto": [], "kernel_shap": []}
    for seed in range(24):
        rng = np.random.default_rng(seed)
        a, b, c, d = rng.choice(10, 4, replace=False)
        table = 3.0 * (held[:, a] | held[:, b]) + 2.0 * (held[:, c] & held[:, d]) + held @ rng.normal(0, 0.3, 10)
        table += rng.normal(0, 0.1, 1024)
        truth = exact_scores(table)
        for name, list_ in errors.items():
            scores = estimate(lambda s, t=table: t[s @ bits], 10, estimator=name, budget=48, seed=seed).scores
            list_.append(float(((scores - truth) ** 2).sum() / (truth**2).sum()))
    assert np.mean(errors["auto"]) < 0.85 * np.mean(errors["kernel_shap"])


@pytest.mark.parametrize("followed", [False, True])
def test_moves_of_a_right_model_are_as_large_as_it_expects(followed: bool) -> None:
    rng = np.random.default_rng(0)
    n, known, m, draws = 6, 14, 24, 4000
    held = rng.permutation(all_coalitions(n))[:m]
    kernel = gp.Kernel(rng.uniform(0.05, 1, n), 0.8, rng.uniform(0.1, 1, n), 0.05, 0.7)
    control = gp.Control(rng.normal(size=m), rng.normal(size=n)) if followed else None
    gram = kernel.gram(held, held) + 1e-9 * np.eye(m)
    if control:
        gram += kernel.follows * np.outer(control.values, control.values)
    values = rng.normal(size=(draws, m)) @ np.linalg.cholesky(gram).T
    found = [gp.surprise(kernel, held, v, known, "shapley", control) for v in values]
    ratios, freedom = np.array([f.ratio for f in found]), found[0].freedom
    # mean 1 and variance 2 / freedom, as of a chi-squared variable over its degrees of freedom
    assert ratios.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / freedom / draws))
    assert ratios.var() == pytest.approx(2 / freedom, rel=0.15)
    assert 1 < freedom < n
    # what is expected is the posterior variance that the new values take away
    first = gp.posterior(kernel, held[:known], values[0, :known], "shapley", control and control.first(known))
    then = gp.posterior(kernel, held, values[0], "shapley", control)
    expected = (first.deviation**2 - then.deviation**2).sum()
    assert ratios[0] == pytest.approx(((then.scores - first.scores) ** 2).sum() / expected, rel=1e-4)
