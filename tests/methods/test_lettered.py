"""Forms of lettered options on models whose favourite letter or text is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.lettered import OptionsProgram, fit_in_form, in_texts, rotated, task_in_texts
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Answer, Example

LETTERS = ("A", "B", "C")
BIAS = {"A": 3.0, "B": 0.0, "C": -2.0}  # what this model adds to a letter whatever stands behind it
WORTH = {"cat": 1.0, "dog": 2.0, "eel": 0.5}  # what it thinks of an option


def question(i: int, label: str = "B", split: str = "x") -> Example:
    return Example(f"{split}{i}", f"Which barks, number {i} of {split}?", label, LETTERS, ("cat", "dog", "eel"))


def task() -> Task:
    splits = {name: tuple(question(i, split=name) for i in range(4)) for name in ("train", "validation", "test")}
    return Task(name="animals", instruction="Choose.", **splits)  # type: ignore[arg-type]


class ByLetter(Program):
    """Scores letters by their options and by its own taste in letters."""

    kind = "test_by_letter"

    def answer(self, examples: Sequence[Example], model: object) -> list[Answer]:
        scores = [{c: BIAS[c] + WORTH[o] for c, o in zip(e.choices, e.options, strict=True)} for e in examples]
        return [Answer(max(s, key=s.__getitem__), scores=s, prompt_tokens=5) for s in scores]

    def to_dict(self) -> dict[str, object]:
        return {}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> ByLetter:
        return cls()


MODEL = ScriptedModel("first_option")


def test_in_every_order_a_taste_in_letters_cancels_exactly() -> None:
    assert ByLetter().answer([question(0)], MODEL)[0].value == "A"
    [answer] = OptionsProgram(ByLetter(), "permuted").answer([question(0)], MODEL)
    assert answer.value == "B"
    # each option stands behind each letter once, so what is left are differences of worth
    assert answer.scores["B"] - answer.scores["A"] == pytest.approx(WORTH["dog"] - WORTH["cat"])
    assert answer.scores["A"] - answer.scores["C"] == pytest.approx(WORTH["cat"] - WORTH["eel"])
    assert (answer.calls, answer.prompt_tokens) == (3, 15)


def test_a_turn_keeps_the_label_with_its_text() -> None:
    for turn in range(3):
        example = rotated(question(0), turn)
        assert example.options[example.choices.index(str(example.label))] == "dog"


def test_texts_are_scored_and_told_by_letter() -> None:
    def logprob(prompt: str, continuation: str) -> float:
        return next(-5 + worth for text, worth in WORTH.items() if text in continuation)

    model = ScriptedModel("texts", reply=lambda text: "", logprob=logprob)
    program = fit_in_form(make("zero_shot", mode="score"), task(), model, 0, "texts")
    [answer] = program.answer(task().test[:1], model)
    assert answer.value == "B"
    assert answer.scores == pytest.approx({"A": -4.0, "B": -3.0, "C": -4.5})
    assert {str(call.continuation).strip(" .") for call in model.calls} == set(WORTH)


def test_pmi_takes_away_what_a_text_is_worth_without_a_question() -> None:
    """The model likes `eel` best whatever is asked, and the question only moves `dog` up."""

    def logprob(prompt: str, continuation: str) -> float:
        text = next(text for text in WORTH if text in continuation)
        return {"cat": -6.0, "dog": -6.0, "eel": -1.0}[text] + (2.0 if text == "dog" and "barks" in prompt else 0.0)

    model = ScriptedModel("texts", reply=lambda text: "", logprob=logprob)
    told = {
        form: fit_in_form(make("zero_shot", mode="score"), task(), model, 0, form).answer(task().test[:1], model)[0]  # type: ignore[arg-type]
        for form in ("texts", "texts_pmi")
    }
    assert told["texts"].value == "C"
    assert told["texts_pmi"].value == "B"
    assert told["texts_pmi"].scores == pytest.approx({"A": 0.0, "B": 2.0, "C": 0.0})


def test_shots_show_texts_too() -> None:
    made = task_in_texts(task())
    assert {e.label for e in made.train} == {"dog"}
    assert made.train[0].choices == ("cat", "dog", "eel")
    program = fit_in_form(make("few_shot", mode="score", shots=2), task(), MODEL, 0, "texts")
    assert isinstance(program, OptionsProgram)
    prompt = program.program.prompt(in_texts(task().test[0]))  # type: ignore[attr-defined]
    assert [m.content for m in prompt.messages if m.role == "assistant"] == ["The answer is dog."] * 2


def test_saved_and_loaded(tmp_path: Path) -> None:
    program = OptionsProgram(ByLetter(), "permuted")
    program.save(tmp_path / "p.json")
    assert Program.load(tmp_path / "p.json").answer(task().test, MODEL) == program.answer(task().test, MODEL)


def test_a_run_in_another_form() -> None:
    report = amplify.evaluate(
        task(), ScriptedModel("first_option"), ["zero_shot"], mode="score", option_form="permuted", progress=False
    )
    assert report.config["option_form"] == "permuted"
    assert report.records[0]["calls"] == 9
    assert "options permuted scored" in str(report)


def test_options_with_the_same_text_share_its_score() -> None:
    twice = Example("1", "x", "C", ("A", "B", "C"), ("cat", "dog", "cat"))
    assert in_texts(twice).choices == ("cat", "dog")
    assert in_texts(twice).label == "cat"
    for form in ("texts", "texts_pmi"):
        [answer] = fit_in_form(make("zero_shot", mode="score"), task(), MODEL, 0, form).answer([twice], MODEL)
        assert set(answer.scores) == {"A", "B", "C"}
        assert answer.scores["A"] == answer.scores["C"] != answer.scores["B"]


def test_bad_input_is_one_clear_error() -> None:
    with pytest.raises(UnknownNameError, match="option form 'text'"):
        fit_in_form(make("zero_shot", mode="score"), task(), MODEL, 0, "text")  # type: ignore[arg-type]
    plain = Task(name="t", instruction="?", labels=("a",), train=(), validation=(), test=(Example("1", "x", "a"),))
    with pytest.raises(InputError, match="no lettered options"):
        fit_in_form(make("zero_shot", mode="score"), plain, MODEL, 0, "permuted")
    with pytest.raises(InputError, match="score mode"):
        amplify.evaluate(task(), MODEL, ["zero_shot"], option_form="permuted", progress=False)
