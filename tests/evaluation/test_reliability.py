"""Brier score, calibration error and risk-coverage curves against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from amplify.evaluation.reliability import calibration_error, reliability, risk_coverage


def record(item: str, gold: str, p: dict[str, float], mass: float = 1.0, seed: int = 0) -> dict[str, Any]:
    logprobs = {label: math.log(mass * share) for label, share in p.items()}
    answer = max(p, key=p.__getitem__)
    return {
        "id": item, "seed": seed, "gold": gold, "answer": answer, "label_scores": logprobs, "label_logprobs": logprobs,
    }  # fmt: skip


def test_brier_mass_and_resolved_by_hand() -> None:
    found = reliability([record("1", "a", {"a": 0.8, "b": 0.2}, 0.5), record("2", "b", {"a": 0.6, "b": 0.4}, 0.9)])
    assert found is not None
    assert found.brier.value == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert found.mass == pytest.approx(0.7)
    # 1 - .5 against .3; 1 - .9 against .18
    assert found.resolved == 0.5
    assert found.brier.low <= found.brier.value <= found.brier.high


def test_a_classifier_has_no_mass() -> None:
    found = reliability([record("1", "a", {"a": 0.8, "b": 0.2}), record("2", "b", {"a": 0.6, "b": 0.4})])
    assert found is not None
    assert found.mass is None
    assert found.resolved is None


def test_what_was_not_scored_has_no_reliability() -> None:
    assert reliability([{"id": "1", "gold": "a", "answer": "a", "label_scores": {}, "label_logprobs": {}}]) is None


def test_calibration_error_of_perfect_and_of_boastful_probabilities() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    right = (rng.random(20_000) < confidence).astype(float)
    assert calibration_error(confidence, right) < 0.02  # four standard errors of a bin of 2,000
    assert calibration_error(np.full(100, 0.9), np.tile([1.0, 0.0], 50)) == pytest.approx(0.4)


def test_risk_coverage_by_hand_and_with_ties() -> None:
    coverage, risk = risk_coverage(np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0]))
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk == pytest.approx([0, 1 / 2, 1 / 3])
    # equal confidence says nothing of the order, so the order of the rows may not matter
    for right in ([1.0, 0.0], [0.0, 1.0]):
        assert risk_coverage(np.array([0.5, 0.5]), np.array(right))[1] == pytest.approx([0.5, 0.5])


def test_seeds_of_an_item_are_drawn_together() -> None:
    """Ten seeds of two items are two independent items: the interval is that of two."""
    records = [record(i, "a", {"a": 0.9 if i == "1" else 0.1, "b": 0.1 if i == "1" else 0.9}, seed=s)
               for s in range(10) for i in ("1", "2")]  # fmt: skip
    found = reliability(records)
    assert found is not None
    assert (found.brier.low, found.brier.high) == pytest.approx((0.02, 1.62))


def test_abstaining_helps_where_confidence_tells() -> None:
    sure = [record(f"s{i}", "a", {"a": 0.99, "b": 0.01}) for i in range(50)]
    unsure = [record(f"u{i}", "a" if i % 2 else "b", {"a": 0.6, "b": 0.4}) for i in range(50)]
    found = reliability([*sure, *unsure])
    assert found is not None
    assert found.selective[0].value == 1.0
    assert found.risk[-1] == pytest.approx(0.25)
    assert found.aurc.value < 0.25
