"""Instructions that a model proposes: which are found and refused, and that nothing is found where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from method_fakes import GOOD

from amplify.errors import InputError
from amplify.methods import InstructionSearch, find_instruction, make
from amplify.methods.base import Program
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task

BETTER = "Say positive where the phone is praised."
OTHER = "Tell what the customer had for dinner."


def proposes(text: str) -> str:
    """A good instruction from errors, a useless one from examples, and another wording where it is asked for one."""
    if "answered wrongly" in text:
        return f'"{BETTER}"'
    if "Write the instruction" in text:
        return OTHER
    return "Is that a positive or a negative review?" if "in other words" in text else "positive."


def heeds(text: str, continuation: str) -> float:
    """Says positive to all, and reads the review where it is told to heed praise."""
    asked = text.rpartition("Review: ")[2]
    right = "positive" if any(word in asked for word in GOOD) else "negative"
    if "praised" in text:
        return -0.5 if right in continuation else -2.0
    return -1.0 if "positive" in continuation else -1.5


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel("proposer", reply=proposes, logprob=heeds)


def test_the_better_instruction_is_found_from_errors(sentiment: Task, model: ScriptedModel) -> None:
    found = find_instruction(sentiment, model, InstructionSearch("zero_shot", proposals=4, mode="score"))
    assert found.text == BETTER
    assert [(one.source, one.text) for one in found.proposals] == [
        ("task", sentiment.instruction), ("examples", OTHER), ("errors", BETTER),
    ]  # fmt: skip
    assert found.refused == 2  # proposed twice
    assert found.proposals[2].score == pytest.approx(1.5)  # log-odds of two labels 1.5 nats apart
    assert [a.value for a in found.program.answer(sentiment.test, model)] == [e.label for e in sentiment.test]
    assert found.program.meta["instruction"]["chosen"] == BETTER  # type: ignore[attr-defined]
    assert not any(e.text in text for e in sentiment.test for text in model.texts[:-12])  # nothing of the test split


def test_paraphrases_are_the_control(sentiment: Task, model: ScriptedModel) -> None:
    method = make("instruction_paraphrases", mode="score", inner="zero_shot", proposals=4)
    assert method.role == "control"
    program = method.fit(sentiment, model, 0)
    assert program.meta["instruction"]["chosen"] == sentiment.instruction  # type: ignore[attr-defined]
    assert [one["source"] for one in program.meta["instruction"]["proposals"]] == ["task", "paraphrase"]  # type: ignore[attr-defined]


def test_where_labels_are_shuffled_nothing_is_found(sentiment: Task) -> None:
    """Labels by lot: the task's own instruction stays in most draws (it leaves for what is over one error better)."""
    kept = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        labels = rng.permutation([str(e.label) for e in sentiment.validation])
        shuffled = tuple(replace(e, label=str(y)) for e, y in zip(sentiment.validation, labels, strict=True))
        model = ScriptedModel("proposer", reply=proposes, logprob=heeds)
        how = InstructionSearch("zero_shot", proposals=2, mode="score")
        found = find_instruction(replace(sentiment, validation=shuffled), model, how, seed=seed)
        kept += found.text == sentiment.instruction
    assert kept >= 6


@pytest.mark.parametrize("reply", ["", "Yes.", "word " * 90, "See: a great phone, number 0 of train. Yes"])
def test_what_can_be_no_instruction_is_refused(reply: str, sentiment: Task) -> None:
    model = ScriptedModel("bad", reply=lambda text: reply, logprob=heeds)
    how = InstructionSearch("zero_shot", proposals=1, mode="score")
    found = find_instruction(replace(sentiment, train=sentiment.train[:6]), model, how)
    assert (len(found.proposals), found.refused) == (1, 1)


def test_another_model_may_propose(sentiment: Task, model: ScriptedModel) -> None:
    silent = ScriptedModel("silent", reply=lambda text: "", logprob=heeds)
    found = find_instruction(
        sentiment, silent, InstructionSearch("few_shot[shots=2]", proposals=2, mode="score"), proposer=model
    )
    assert found.text == BETTER
    assert not any("answered wrongly" in text for text in silent.texts)


@pytest.mark.parametrize("name", ["instruction_search", "instruction_paraphrases"])
@pytest.mark.parametrize("mode", ["score", "generate"])
def test_fitted_saved_planned(name: str, mode: str, sentiment: Task, model: ScriptedModel, tmp_path: Path) -> None:
    method = make(name, mode=mode, inner="few_shot[shots=2]", proposals=2)  # type: ignore[arg-type]
    program = method.fit(sentiment, model, 0)
    program.save(tmp_path / "program.json")
    assert Program.load(tmp_path / "program.json").answer(sentiment.test, model) == program.answer(
        sentiment.test, model
    )
    assert method.rehearse(sentiment, model, 0).program is not None


def test_what_cannot_be(sentiment: Task, model: ScriptedModel) -> None:
    with pytest.raises(InputError, match="at least one proposal"):
        InstructionSearch(proposals=0)
    with pytest.raises(InputError, match="shows no instruction"):
        find_instruction(sentiment, model, InstructionSearch("few_shot[shots=2,system=none]", mode="score"))
