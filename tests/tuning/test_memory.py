"""A model that is asked nothing twice, and charged the same however often it starts again."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplify.errors import ModelError, RunError
from amplify.models.base import LocalModel, ScoringModel
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.tuning import Budget
from amplify.tuning.budget import BudgetSpentError, Ledger
from amplify.tuning.memory import RememberedGenerator, remembered
from amplify.types import Prompt, Sampling

ONE, TWO = Prompt(text="one word"), Prompt(text="two words more")


def made(model: ScriptedGenerator, path: Path, **budget: float) -> RememberedGenerator:
    return remembered(model, Ledger(Budget(**(budget or {"calls": 1000.0}))), path / "asked.jsonl", {"of": "this"})


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    model = ScriptedModel("echo")
    memory = made(model, tmp_path)
    first = memory.generate([ONE, TWO, ONE], Sampling())
    assert len(model.calls) == 2
    assert memory.generate([TWO], Sampling()) == first[1:2]
    assert len(model.calls) == 2
    memory.generate([TWO], Sampling(max_tokens=3))  # asked otherwise: another request
    assert len(model.calls) == 3
    scores = memory.score([ONE, ONE], ["a", "b"])  # type: ignore[attr-defined]
    assert memory.score([ONE], ["b"]) == scores[1:]  # type: ignore[attr-defined]
    assert len(model.calls) == 5
    assert memory.ledger.spent.calls == 5
    assert memory.asked > memory.ledger.spent.tokens


def test_a_prompt_counts_once_a_call_and_its_labels_beside_it(tmp_path: Path) -> None:
    memory = made(ScriptedModel("echo"), tmp_path)
    memory.score([TWO, TWO, ONE], ["a", "b c", "d"])  # type: ignore[attr-defined]
    assert memory.ledger.spent.tokens == 3 + 2 + 1 + 2 + 1


def test_an_earlier_process_is_charged_as_it_was_then(tmp_path: Path) -> None:
    before = made(ScriptedModel("echo"), tmp_path)
    said = before.generate([ONE, TWO], Sampling())
    with before.stage("fit"):
        pass
    model = ScriptedModel("echo", fail_after=0)
    after = made(model, tmp_path)
    assert after.ledger.spent.calls == 0  # nothing is charged before it is asked
    assert after.generate([ONE, TWO, ONE], Sampling()) == [*said, said[0]]
    with after.stage("fit"):
        pass
    assert after.ledger.spent == before.ledger.spent
    assert model.calls == []


def test_what_a_model_said_before_it_failed_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        made(ScriptedModel("echo", fail_after=1), tmp_path).generate([ONE, TWO], Sampling())
    model = ScriptedModel("echo")
    made(model, tmp_path).generate([ONE, TWO], Sampling())
    assert [call.prompt for call in model.calls] == [TWO]


def test_what_cannot_be_afforded_is_not_asked(tmp_path: Path) -> None:
    model = ScriptedModel("echo")
    memory = made(model, tmp_path, calls=2)
    with pytest.raises(BudgetSpentError):
        memory.score([ONE, ONE, TWO], ["a", "b", "c"])  # type: ignore[attr-defined]
    assert model.calls == []
    memory.score([ONE, ONE], ["a", "b"])  # type: ignore[attr-defined]
    assert memory.score([ONE], ["a"])  # type: ignore[attr-defined]  # remembered: nothing to pay


def test_a_journal_of_other_work_is_refused_with_what_differs(tmp_path: Path) -> None:
    made(ScriptedModel("echo"), tmp_path)
    with pytest.raises(RunError, match='of: "this" in the file, "that" in this call'):
        remembered(ScriptedModel("echo"), Ledger(Budget(calls=1)), tmp_path / "asked.jsonl", {"of": "that"})


def test_a_changed_line_is_refused(tmp_path: Path) -> None:
    made(ScriptedModel("echo"), tmp_path).generate([ONE], Sampling())
    path = tmp_path / "asked.jsonl"
    path.write_text(path.read_text().replace('"finish_reason": "stop"', '"finish_reason": "tired"'))
    with pytest.raises(RunError, match=r"line 2 of .*was changed"):
        made(ScriptedModel("echo"), tmp_path)


def test_a_model_can_what_it_could(tmp_path: Path) -> None:
    assert not isinstance(made(ScriptedGenerator("echo"), tmp_path / "a"), ScoringModel)
    scorer = made(ScriptedModel("echo"), tmp_path / "b")
    assert isinstance(scorer, ScoringModel)
    assert not isinstance(scorer, LocalModel)


def test_several_answers_to_a_prompt(tmp_path: Path) -> None:
    model = ScriptedModel("echo")
    memory = made(model, tmp_path)
    answers = memory.generate([ONE, TWO], Sampling(n=2, temperature=1.0))
    assert [a.text for a in answers] == ["one word", "one word", "two words more", "two words more"]
    assert memory.ledger.spent.calls == 4
