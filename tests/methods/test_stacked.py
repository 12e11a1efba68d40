"""Three opinions: their pool in closed form, what the second proxy reads, and programs saved and applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from method_fakes import BAD

from amplify.errors import InputError
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.stacked import NOTHING, Reading, StackedProgram
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Answer, Example


def writes(text: str) -> str:
    asked = text.rpartition("Review: ")[2]
    return f" It sounds {'poor' if any(word in asked for word in BAD) else 'good'}, so positive."


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel("writes", reply=writes, logprob=lambda text, label: -1.0 if "positive" in label else -2.0)


@dataclass(frozen=True)
class Opinion(Program):
    """The same probability of "positive" for all, or another where the text says a word."""

    p: float
    word: str = "\n"
    other: float = 0.5
    kind = "test_opinion"

    def answer(self, examples: Sequence[Example], model: object) -> list[Answer]:
        found = [self.other if self.word in e.text else self.p for e in examples]
        scores = [{"positive": math.log(p), "negative": math.log(1 - p)} for p in found]
        return [Answer("positive", scores=s, rationale="it is bad", calls=1, prompt_tokens=5) for s in scores]


def test_a_stack_multiplies_three_opinions_one_of_them_on_the_reason(model: ScriptedModel) -> None:
    reading = Reading("own", ("positive", "negative"), ())
    program = StackedProgram(Opinion(0.6), Opinion(0.7), Opinion(0.5, "bad", 0.1), (1.0, 0.5, 2.0), reading)
    [answer] = program.answer([Example("1", "a phone")], model)
    product = np.array([0.6 * 0.7**0.5 * 0.1**2, 0.4 * 0.3**0.5 * 0.9**2])
    assert np.exp(answer.scores["positive"]) == pytest.approx(product[0] / product.sum())
    assert (answer.value, answer.rationale, answer.calls) == ("negative", "it is bad", 1)
    alone = StackedProgram(Opinion(0.6), Opinion(0.7), Opinion(0.5), (0.0, 1.0, 0.0), reading)
    assert np.exp(alone.answer([Example("1", "a phone")], model)[0].scores["positive"]) == pytest.approx(0.7)


def test_what_the_controls_read() -> None:
    examples = [Example("1", "one"), Example("2", "two")]
    answers = [Answer("positive", rationale="It is fine, so Positive."), Answer(None)]
    labels, pool = ("positive", "negative"), ("first", "second", "It is fine, so Positive.")
    assert [e.text for e in Reading("own", labels, pool).of(examples, answers)] == [answers[0].rationale, NOTHING]
    assert Reading("unnamed", labels, pool).of(examples, answers)[0].text == "It is fine, so …."
    others = Reading("others", labels, pool).of(examples, answers)
    assert others[0].text in ("first", "second")  # never its own
    assert others == Reading("others", labels, pool).of(examples, answers)


@pytest.mark.parametrize("name", ["stacked", "stacked_others_reasons", "stacked_unnamed"])
def test_fitted_saved_and_applied(
    name: str, sentiment: Task, model: ScriptedModel, tiny_encoder: Path, tmp_path: Path
) -> None:
    method = make(name, mode="score", rows=12, proxy=str(tiny_encoder), epochs=2)
    assert method.role == ("method" if name == "stacked" else "control")
    program = method.fit(sentiment, model, 0)
    assert isinstance(program, StackedProgram)
    assert program.meta["rows"] == 12
    program.save(tmp_path / "program.json")
    again = Program.load(tmp_path / "program.json")
    assert again.answer(sentiment.test, model) == program.answer(sentiment.test, model)
    assert method.rehearse(sentiment, model, 0).program is not None


def test_what_has_no_reasons_is_refused(sentiment: Task, model: ScriptedModel, tiny_encoder: Path) -> None:
    for options, says in (({"inner": "zero_shot"}, "no rationale"), ({"mode": "generate"}, "score mode")):
        with pytest.raises(InputError, match=says):
            make("stacked", **{"mode": "score", "rows": 2, **options}).fit(sentiment, model, 0)
