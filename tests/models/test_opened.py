"""A model is given open, or as the id that opens it for one call and closes it again."""

from __future__ import annotations

from pathlib import Path

import pytest

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.models import opened
from amplify.models.scripted import ScriptedModel


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of scripted models that were closed."""
    found: list[str] = []
    monkeypatch.setattr(ScriptedModel, "close", lambda self: found.append(self.id))
    return found


def test_an_id_is_opened_for_a_block_and_closed_after_it(closed: list[str]) -> None:
    with opened("scripted:say=yes") as model:
        assert model.id == "scripted:say=yes"
        assert not closed
    assert closed == ["scripted:say=yes"]
    with pytest.raises(ZeroDivisionError), opened("scripted:say=no"):
        raise ZeroDivisionError
    assert closed[-1] == "scripted:say=no"
    own = ScriptedModel("echo")
    with opened(own) as model:
        assert model is own
    assert len(closed) == 2  # one that was given open stays open
    with pytest.raises(InputError, match="open model, or the id"), opened(3):  # type: ignore[arg-type]
        pass
    with pytest.raises(UnknownNameError), opened("scriptd:x"):
        pass


def test_calls_take_an_id(closed: list[str], tmp_path: Path) -> None:
    rows = "\n".join(f"text {i},{'good' if i % 2 else 'bad'}" for i in range(60))
    (tmp_path / "own.csv").write_text(f"text,label\n{rows}\n")
    task = amplify.load_task(str(tmp_path / "own.csv"), text="text", label="label")
    report = amplify.evaluate(task, "scripted:say=good", ["zero_shot"], seeds=(0,), limit=4, progress=False)
    assert report is not None
    assert closed == ["scripted:say=good"]
    found = amplify.attribute_sources("Why?", ["One says.", "Two say."], "scripted:say=One.", value="votes")
    assert found.answer == "One."
    assert closed == ["scripted:say=good", "scripted:say=One."]


def test_bad_input_is_said_before_a_model_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("amplify.models.load_model", lambda name, **options: asked.append(name))
    for documents in ([], [" "], ["one"], "text", [3]):
        with pytest.raises(InputError):
            amplify.attribute_sources("Why?", documents, "scripted:echo")
    with pytest.raises(InputError):
        amplify.attribute_sources("Why?", ["a", "b"], "scripted:echo", budgt=3)  # type: ignore[call-arg]
    with pytest.raises(InputError):
        amplify.attribute_sources(messages=[], model="scripted:echo")
    assert not asked
