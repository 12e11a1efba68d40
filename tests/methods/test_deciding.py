"""Pools, cascades and abstention against closed forms and simulated guarantees."""

from __future__ import annotations

import math

import numpy as np
import pytest

from amplify.calibration import log_softmax
from amplify.errors import InputError
from amplify.methods.deciding import abstention, deferral, fit_weights, needed, pooled


def test_a_pool_of_two_by_hand() -> None:
    a, b = np.log([0.8, 0.2]), np.log([0.4, 0.6])
    product = np.array([0.8 * 0.4**2, 0.2 * 0.6**2])
    assert np.exp(pooled(np.stack([a, b]), np.array([1.0, 2.0]))) == pytest.approx(product / product.sum())


def test_weights_recover_those_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    opinions = log_softmax(rng.normal(0, 2, (2, 6000, 3)))
    p = np.exp(pooled(opinions, np.array([0.3, 1.4])))
    gold = np.array([rng.choice(3, p=row) for row in p])
    assert fit_weights(opinions, gold) == pytest.approx([0.3, 1.4], abs=0.07)  # three standard errors


def test_a_source_that_is_always_wrong_gets_nothing() -> None:
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 2, 200)
    good = np.where(np.eye(2)[gold] == 1, 0.9, 0.1)
    weights = fit_weights(np.log(np.stack([good, 1 - good])), gold)
    assert weights[1] == 0.0
    assert weights[0] > 0.5


def test_labels_that_an_item_does_not_offer_change_nothing() -> None:
    rng = np.random.default_rng(2)
    opinions, gold = log_softmax(rng.normal(0, 1, (2, 40, 2))), rng.integers(0, 2, 40)
    wider = np.concatenate([opinions, np.full((2, 40, 1), -np.inf)], axis=2)
    assert fit_weights(wider, gold) == pytest.approx(fit_weights(opinions, gold), abs=1e-6)


def test_deferral_by_hand() -> None:
    confidence = np.array([0.9, 0.6, 0.5, 0.8])
    first, second = np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    assert deferral(confidence, first, second) == 0.8  # those at .5 and .6 are handed on, .8 is not below .8
    assert deferral(confidence, np.ones(4), np.ones(4)) == -math.inf  # of equals the one that asks less
    assert deferral(confidence, np.zeros(4), np.ones(4)) == math.inf


@pytest.mark.parametrize("seed", range(20))
def test_a_cascade_is_no_worse_than_either_on_the_items_it_was_fitted_on(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.choice([0.3, 0.5, 0.7, 0.9], 30)  # with ties, inside which there is no threshold
    first, second = rng.integers(0, 2, (2, 30)).astype(float)
    threshold = deferral(confidence, first, second)
    mixed = np.where(confidence < threshold, second, first)
    assert mixed.mean() >= max(first.mean(), second.mean())
    cuts = [-math.inf, *np.unique(confidence), math.inf]
    assert mixed.mean() == max(np.where(confidence < cut, second, first).mean() for cut in cuts)


def test_the_fewest_answers_that_show_a_risk() -> None:
    assert 0.9**22 <= 0.1 < 0.9**21
    assert needed(0.1, 0.1) == 22
    right = np.ones(23)
    assert abstention(np.linspace(0.99, 0.5, 23), right, 0.1, 0.1) == pytest.approx(0.5)
    assert abstention(np.linspace(0.99, 0.5, 22), right[:22], 0.1, 0.1) == math.inf


def test_ties_are_answered_together_or_not_at_all() -> None:
    assert abstention(np.full(200, 0.7), np.ones(200), 0.1) == math.inf  # nothing is surer than the rest


@pytest.mark.parametrize("risk", [0.1, 0.3])
def test_the_guarantee_holds_over_many_calibration_sets(risk: float) -> None:
    """True risk of the threshold found exceeds the wanted one in at most delta of the sets."""
    rng = np.random.default_rng(3)
    failed = answered = 0
    for _ in range(400):
        confidence = rng.uniform(0.4, 1, 150)
        right = (rng.random(150) < confidence).astype(float)  # P(right | c) = c
        threshold = abstention(confidence, right, risk, 0.1)
        if threshold < math.inf:
            answered += 1
            failed += 1 - (threshold + 1) / 2 > risk  # mean error above the threshold, in closed form
    assert failed / 400 <= 0.1 + 3 * math.sqrt(0.09 / 400)
    assert answered > 100  # and it is no guarantee of silence


def test_bad_input_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        abstention(np.ones(3), np.ones(3), 1.5)
    with pytest.raises(InputError, match="needs labelled items"):
        fit_weights(np.zeros((2, 0, 2)), np.zeros(0, dtype=int))
