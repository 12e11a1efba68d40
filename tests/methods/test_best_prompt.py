"""The best wording of an emphasis: found where one wording is obeyed, at a bounded cost, saved and reloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from amplify.errors import InputError
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.best_prompt import WORDINGS, WordedProgram
from amplify.metrics.text import harmonic, json_further
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Example


@pytest.fixture
def task() -> Task:
    def items(split: str) -> tuple[Example, ...]:
        return tuple(Example(f"{split}{i}", f"number {i} of {split}", "yes", answers=("yes",)) for i in range(12))

    return Task(
        name="obey", instruction="Say yes only.", metric="exact_match", input_name="Text", emphasis="instruction",
        train=(), validation=items("validation"), test=items("test"),
    )  # fmt: skip


def obeys(text: str) -> str:
    if "other words" in text or "wording" in text.casefold():
        return " Reply with yes alone."
    return " yes" if "Above all, go by this: Say yes only." in text else " no"


def test_the_wording_that_is_obeyed_is_found_and_kept(task: Task, tmp_path: Path) -> None:
    model = ScriptedModel("obeys", reply=obeys)
    program = make("best_prompt", budget=100).fit(task, model, 0)
    assert isinstance(program, WordedProgram)
    assert program.wording == "above_all"
    assert program.meta["prompts"] <= 100
    assert len(program.meta["tried"]) == len(WORDINGS) + 1  # four times the same paraphrase is one
    program.save(tmp_path / "p.json")
    again = Program.load(tmp_path / "p.json")
    assert again == program
    assert [a.value for a in again.answer(task.test[:2], model)] == ["yes", "yes"]
    assert not any("test" in str(one) for one in program.meta["tried"])


def test_budgets_and_tasks_that_cannot_be(task: Task) -> None:
    model = ScriptedModel("obeys", reply=obeys)
    with pytest.raises(InputError, match="budget is 8"):
        make("best_prompt", budget=8).fit(task, model, 0)
    with pytest.raises(InputError, match="emphasis"):
        make("best_prompt").fit(replace(task, emphasis=""), model, 0)


def test_what_obeys_and_is_broken_loses() -> None:
    gold = '{"name": "Ann", "occupation": "nurse"}'
    assert json_further(gold, gold)["harmonic"] == 1.0
    assert json_further("Ann is a nurse.", gold)["harmonic"] == 0.0  # fluent, disobeys
    assert json_further("{}", gold)["harmonic"] == 0.0  # obeys, says nothing
    assert harmonic(0.5, 0.5, 0.5) == pytest.approx(0.5)
