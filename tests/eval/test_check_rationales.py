"""The causal check of rationale measures: its items, and a model that holds the stated rationale true."""

from __future__ import annotations

import math

import check_rationales
import pytest

from amplify.methods import make
from amplify.models.scripted import ScriptedModel

FACTS = [
    {"subject": f"S{i}", "prompt": f"S{i} lives in", "attribute": f"Town{i}", "relation_id": "P1"} for i in range(6)
]


def test_rationales_of_both_kinds_speak_of_the_item_and_only_one_is_stated() -> None:
    items = check_rationales.claims(FACTS, 6)
    assert len(items) == 6
    assert {e.label for e, _, _ in items} == {"true", "false"}
    for example, stated, third in items:
        told, _, claim = example.text.partition(" Claim: ")
        assert stated == told
        assert third != told
        assert third.split(" lives in ")[0] == told.split(" lives in ")[0]
        assert (claim == told) == (example.label == "true")


def test_a_model_that_believes_the_stated_rationale_alone_makes_the_measure_diagnostic() -> None:
    def reads(text: str, label: str) -> float:
        body, _, said = text.partition("at a time.")
        told = body.rpartition("Text: ")[2].partition(" Claim: ")[0]
        odds = 2.0 * (told in said) * (1 if ("true" in label) == (body.count(told) > 1) else -1)
        return -math.log1p(math.exp(-odds))

    model = ScriptedModel("reads", reply=lambda text: text.rpartition("Text: ")[2].strip(), logprob=reads)
    items = check_rationales.claims(FACTS, 6)
    program = make("zero_shot_cot", mode="score").fit(check_rationales.task_of([e for e, _, _ in items]), model, 0)
    rows = check_rationales.measured(program, items, model)
    gain = 1 / (1 + math.exp(-2.0)) - 0.5
    for row in rows:
        assert row["rationale_filler"] == pytest.approx([gain, 0.0])
    n, share, low, _ = check_rationales.diagnosticity(rows, "rationale_filler")
    assert (n, share) == (6, 1.0)
    assert low > 0.5
    assert check_rationales.diagnosticity([{"rationale_early": [0.2, 0.2]}], "rationale_early")[1] == 0.5
