"""Engines as people configure them: exact with adapters in chunks, or refused at the start with the reason."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(600)]


def test_adapters_and_the_plain_model_share_a_batch_and_are_exact(script):
    found = script("check_engines").one("two adapters and the plain model in one batch")
    assert found["verdict"] == "exact", found
    assert found["steering_moves_scores_by"] > 0.01


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("speculative decoding by n-grams", "steering and speculative decoding cannot be combined: drafts come from"),
        ("float16 cache of a bfloat16 model", "a key/value cache of another dtype cannot be combined"),
        ("a key/value store outside", "steering and a key/value store outside the engine cannot be combined"),
    ],
)
def test_what_would_not_be_exact_is_refused_with_its_reason(script, case, why):
    found = script("check_engines").one(case)
    assert found["verdict"] == "refused"
    assert why in found["reason"]
