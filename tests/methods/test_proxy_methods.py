"""Proxy and model together: pools, hints, cascades and abstention, on scripted models and a tiny trained proxy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from method_fakes import BAD, GOOD

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.methods import make
from amplify.methods.base import METHODS, Program, inner_method
from amplify.methods.cascade import CascadeProgram, SelectiveProgram
from amplify.methods.proxy_hint import HintProgram
from amplify.methods.proxy_pool import PoolProgram
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Answer, Example


def knows(text: str, continuation: str) -> float:
    """A model that prefers "positive" by far, and "negative" a little more where it reads a bad word."""
    bad = any(word in text.rpartition("Review: ")[2] for word in BAD)
    return (-1.0 if "positive" in continuation else -3.0) + (1.5 if bad and "negative" in continuation else 0.0)


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel("knows", reply=lambda text: "positive.", logprob=knows)


@dataclass(frozen=True)
class Fixed(Program):
    """Says "positive" with a probability that the text tells."""

    by: tuple[tuple[str, float], ...]
    calls: int = 1
    kind = "test_fixed"

    def answer(self, examples: Sequence[Example], model: object) -> list[Answer]:
        found = [next((p for word, p in self.by if word in e.text), 0.5) for e in examples]
        made = [{"positive": math.log(p), "negative": math.log(1 - p)} for p in found]
        return [Answer(max(s, key=s.__getitem__), scores=s, calls=self.calls, prompt_tokens=7) for s in made]


def ask(*texts: str) -> list[Example]:
    return [Example(str(i), text) for i, text in enumerate(texts)]


def test_a_pool_multiplies_and_tells_the_models_own_scores(model: ScriptedModel) -> None:
    program = PoolProgram(Fixed((("a", 0.8),)), Fixed((("a", 0.4),), calls=0), (1.0, 2.0))
    [answer] = program.answer(ask("a"), model)
    product = np.array([0.8 * 0.16, 0.2 * 0.36])
    assert np.exp(answer.scores["positive"]) == pytest.approx(product[0] / product.sum())
    assert answer.raw_scores["positive"] == pytest.approx(math.log(0.8))
    assert answer.calls == 1


def test_a_weight_of_nothing_asks_nothing(model: ScriptedModel) -> None:
    [answer] = PoolProgram(Fixed((("a", 0.8),)), Fixed((("a", 0.4),), calls=0), (0.0, 2.0)).answer(ask("a"), model)
    assert (answer.value, answer.calls) == ("negative", 0)


def test_a_cascade_asks_the_second_where_the_first_is_unsure(model: ScriptedModel) -> None:
    first, second = Fixed((("sure", 0.95), ("torn", 0.6)), calls=0), Fixed((("sure", 0.1), ("torn", 0.1)))
    answers = CascadeProgram(first, second, 0.9).answer(ask("sure", "torn"), model)
    assert [a.value for a in answers] == ["positive", "negative"]
    assert [a.calls for a in answers] == [0, 1]
    always = CascadeProgram(first, second, math.inf).answer(ask("sure", "torn"), model)
    assert [a.value for a in always] == ["negative", "negative"]
    never = CascadeProgram(first, second, -math.inf).answer(ask("sure", "torn"), model)
    assert [a.value for a in never] == ["positive", "positive"]


def test_abstaining_says_what_would_have_been_answered(model: ScriptedModel) -> None:
    program = SelectiveProgram(Fixed((("sure", 0.95), ("torn", 0.6))), 0.8)
    sure, torn = program.answer(ask("sure", "torn"), model)
    assert (sure.value, torn.value) == ("positive", None)
    assert torn.text == "abstains: positive is 60 % likely"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("proxy_pool", {"inner": "few_shot[shots=2]"}),
        ("proxy_pool", {"inner": "zero_shot", "calibrate": "none"}),
        ("cascade", {"inner": "zero_shot"}),
        ("cascade", {"inner": "zero_shot", "reverse": True}),
        ("proxy_hint", {"shots": 2}),
        ("proxy_hint_random", {"shots": 2, "words": 0}),
        ("selective", {"inner": "zero_shot"}),
    ],
)
def test_fitted_saved_loaded_and_deployed(
    name: str, options: dict[str, object], sentiment: Task, model: ScriptedModel, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Each program answers the same from its file, and `apply` runs it."""
    proxied = {} if name == "selective" else {"proxy": str(tiny_encoder), "epochs": 2}
    method = make(name, mode="score", **options, **proxied)
    assert method.role == ("control" if name.endswith("random") else "method")
    program = method.fit(sentiment, model, 0)
    program.save(tmp_path / "program.json")
    loaded = Program.load(tmp_path / "program.json")
    assert loaded.answer(sentiment.test, model) == program.answer(sentiment.test, model)
    assert method.rehearse(sentiment, model, 0).program is not None
    (tmp_path / "new.csv").write_text("message\nA great phone.\nAn awful phone.\n")
    from amplify.evaluation.apply import apply_program

    assert apply_program(loaded, tmp_path / "new.csv", "message", model, tmp_path / "out.csv").rows == 2


def test_a_pool_mends_a_biased_model_with_a_calibration_and_a_proxy(
    sentiment: Task, model: ScriptedModel, tiny_encoder: Path
) -> None:
    """The model alone says positive to all; its calibrated scores tell the two apart, whatever the proxy is worth."""
    options = {"inner": "zero_shot", "proxy": str(tiny_encoder), "epochs": 2}
    program = make("proxy_pool", mode="score", **options).fit(sentiment, model, 0)
    assert isinstance(program, PoolProgram)
    plain = make("zero_shot", mode="score").fit(sentiment, model, 0).answer(sentiment.test, model)
    assert {a.value for a in plain} == {"positive"}
    assert [a.value for a in program.answer(sentiment.test, model)] == [e.label for e in sentiment.test]
    assert program.meta["held_out"] == len(sentiment.validation)


def test_without_a_validation_split_a_pool_is_weighed_on_folds(
    sentiment: Task, model: ScriptedModel, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proxy answers for a training item that it was trained on."""
    from amplify.methods import proxy_pool

    trained: list[set[str]] = []
    real = proxy_pool.find_proxy
    monkeypatch.setattr(
        proxy_pool, "find_proxy", lambda task, *a: trained.append({e.id for e in task.train}) or real(task, *a)
    )
    task = replace(sentiment, validation=())
    program = make("proxy_pool", mode="score", inner="zero_shot", proxy=str(tiny_encoder), epochs=1).fit(task, model, 0)
    everything, *folds = trained
    assert everything == {e.id for e in task.train}
    left = [everything - fold for fold in folds]
    assert set().union(*left) == everything
    assert sum(map(len, left)) == len(everything)
    assert isinstance(program, PoolProgram)


def test_a_hint_stands_in_shots_and_question(sentiment: Task, model: ScriptedModel, tiny_encoder: Path) -> None:
    program = make("proxy_hint", proxy=str(tiny_encoder), epochs=2, shots=2, words=1).fit(sentiment, model, 0)
    assert isinstance(program, HintProgram)
    prompt = program.prompt(sentiment.test[0])
    asked = [m.content for m in prompt.messages if m.role == "user"]
    assert len(asked) == 3
    assert all("Hint: a small classifier, right" in text and "because of" in text for text in asked)
    # what is shown was never trained on
    assert {shot.example.id for shot in program.shots} <= {e.id for e in sentiment.validation}


def test_random_hints_do_not_tell_the_label(sentiment: Task, model: ScriptedModel, tiny_encoder: Path) -> None:
    many = tuple(Example(f"n{i}", f"A {GOOD[i % 4]} phone, {i}.", "positive") for i in range(60))
    program = make("proxy_hint_random", proxy=str(tiny_encoder), epochs=1, shots=2, words=0).fit(sentiment, model, 0)
    says = ["says positive" in e.text for e in program.hinted(many)]  # type: ignore[attr-defined]
    assert 15 <= sum(says) <= 45  # four standard errors around half


def test_a_selective_program_keeps_the_risk_it_was_asked_for(sentiment: Task) -> None:
    """Right where it reads a good or bad word and says so; torn, and as often wrong, where there is none."""

    def logprob(text: str, continuation: str) -> float:
        asked = text.rpartition("Review: ")[2]
        for words, label in ((GOOD, "positive"), (BAD, "negative")):
            if any(word in asked for word in words):
                return -0.1 if label in continuation else -4.0
        return -0.7

    many = [(w, "positive") for w in GOOD] + [(w, "negative") for w in BAD] + [("odd", "positive"), ("odd", "negative")]
    validation = tuple(Example(f"v{i}", f"A {w} phone, {i}.", y) for i, (w, y) in enumerate(many * 12))
    task = replace(sentiment, validation=validation)
    found = ScriptedModel("torn", reply=lambda text: "", logprob=logprob)
    program = make("selective", mode="score", inner="zero_shot", calibrate="none").fit(task, found, 0)
    assert isinstance(program, SelectiveProgram)
    assert 0.5 <= program.threshold < 0.99
    answers = program.answer([Example("1", "A great phone."), Example("2", "An odd phone.")], found)
    assert [a.value for a in answers] == ["positive", None]
    # a model that is torn everywhere can promise nothing
    none = make("selective", mode="score", inner="zero_shot", risk=0.05).fit(sentiment, found, 0)
    assert "abstains always" in none.notes[0]  # type: ignore[attr-defined]
    assert {a.value for a in none.answer(sentiment.test, found)} == {None}


def test_a_run_with_all_of_them(sentiment: Task, model: ScriptedModel, tiny_encoder: Path) -> None:
    report = amplify.evaluate(
        sentiment, model, ["zero_shot", "proxy_pool", "cascade"], seeds=[0], mode="score", calibrate="none",
        progress=False, options={"*.proxy": str(tiny_encoder), "*.epochs": 1, "*.inner": "zero_shot"},
    )  # fmt: skip
    assert report.row("zero_shot").score == 0.5
    assert report.finished


def test_bad_input_is_one_clear_error(sentiment: Task, words: Task, model: ScriptedModel) -> None:
    with pytest.raises(InputError, match="use score mode"):
        make("proxy_pool", inner="zero_shot").fit(sentiment, model, 0)
    with pytest.raises(UnknownNameError, match="Did you mean 'few_shot'"):
        make("proxy_pool", inner="few_shots")
    with pytest.raises(InputError, match=r"NAME\[OPTION=VALUE"):
        inner_method("few_shot[4]", "score")
    with pytest.raises(InputError, match="calibrate is one of"):
        make("cascade", calibrate="bach")
    with pytest.raises(InputError, match="free-text answers"):
        make("proxy_pool", mode="score", inner="zero_shot").fit(words, model, 0)
    with pytest.raises(InputError, match="free-text answers"):
        make("proxy_hint").fit(words, model, 0)
    with pytest.raises(InputError, match="validation examples"):
        make("proxy_hint", shots=99).fit(sentiment, model, 0)
    with pytest.raises(InputError, match="use score mode"):
        make("cascade", reverse=True, inner="zero_shot").fit(sentiment, model, 0)
    with pytest.raises(InputError, match="risk and delta"):
        make("selective", risk=1.0)


def test_inner_methods_are_named_as_records_name_them() -> None:
    two = "few_shot[shots=4,selection=balanced]"
    assert inner_method(two, "score").label == two
    nested = inner_method(f"proxy_pool[inner={two},epochs=3]", "score")
    assert (getattr(nested, "inner", None), getattr(nested, "epochs", None)) == (two, 3)
    assert {"proxy_pool", "proxy_hint", "cascade", "selective"} <= set(METHODS)
