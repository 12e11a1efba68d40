"""A guess of the scores as a prior: right, useless, wrong way round, and refused."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.errors import InputError
from amplify.shapley import Guide, all_coalitions, estimate, exact_scores
from amplify.shapley.game import Coalitions, Floats

N = 10
WEIGHTS = np.array([3.0, 0.0, 0.0, 1.5, 0.0, -1.0, 0.0, 0.0, 0.5, 0.0])


def saturating(held: Coalitions) -> Floats:
    """More of the same helps less: log of a sum."""
    return np.log(0.1 + held @ np.abs(WEIGHTS)) + 0.3 * held[:, 2] * held[:, 7]


TRUTH = exact_scores(saturating(all_coalitions(N)))


def error(prior: Floats | None, budget: int, seeds: int = 5) -> float:
    """Mean NMSE over seeds."""
    runs = [estimate(saturating, N, budget=budget, seed=s, guide=Guide(prior=prior)) for s in range(seeds)]
    return float(np.mean([((r.scores - TRUTH) ** 2).sum() / (TRUTH**2).sum() for r in runs]))


def test_an_additive_game_is_known_from_few_values() -> None:
    for unit in (0.01, 1.0, -50.0):  # a guess has no unit, nor a sign
        found = estimate(lambda s: s @ WEIGHTS, N, budget=6, guide=Guide(prior=unit * WEIGHTS))
        np.testing.assert_allclose(found.scores, WEIGHTS, atol=0.25)
        assert found.meta["prior"]["slope"][0] * unit == pytest.approx(1.0, abs=0.15)


def test_a_good_guess_lowers_the_error_of_few_values() -> None:
    assert error(TRUTH + 0.02, 16) < 0.8 * error(None, 16)  # interactions are left to be found


def test_a_useless_guess_fades() -> None:
    rng = np.random.default_rng(0)
    plain = error(None, 48)
    useless = np.mean([error(rng.standard_normal(N), 48, seeds=2) for _ in range(4)])
    assert useless < 1.5 * plain + 1e-3


def test_several_answers_share_a_guess() -> None:
    def two(held: Coalitions) -> Floats:
        return np.stack([held @ WEIGHTS, -2 * (held @ WEIGHTS)], axis=1)

    found = estimate(two, N, budget=8, guide=Guide(prior=WEIGHTS))
    assert found.scores.shape == (N, 2)
    np.testing.assert_allclose(found.scores[:, 1], -2 * found.scores[:, 0], atol=0.3)
    assert len(found.meta["prior"]["slope"]) == 2


def test_the_guess_is_checked_before_anything_is_asked() -> None:
    def never(held: Coalitions) -> Floats:
        raise AssertionError("asked")

    for wrong in (np.ones(N - 1), np.full(N, np.nan), np.ones((N, 2))):
        with pytest.raises(InputError, match="prior is a finite number for each of 10 sources"):
            estimate(never, N, budget=16, guide=Guide(prior=wrong))
    with pytest.raises(InputError, match="give one of them"):
        Guide(prior=WEIGHTS, control_variate=saturating)
    with pytest.raises(InputError, match="takes no guide"):
        estimate(never, N, estimator="kernel_shap", budget=32, guide=Guide(prior=WEIGHTS))
