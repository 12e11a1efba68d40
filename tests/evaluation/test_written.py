"""Rationales and written answers under other words: closed forms, an independent sum, and the columns of a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.evaluation.uncertainty import agreed, auroc, measures, relevance, unsure, without
from amplify.evaluation.written import Rewritten, followed
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.calibrated import calibrated
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Answer, Example, Message, Prompt, TokenLogProbs


def reads(text: str, label: str) -> float:
    """Goes by the rationale alone: log-odds 2 for "good" where it says "fine", for "bad" where it says "poor"."""
    said = text.rpartition("at a time")[2]
    odds = 2.0 * ("fine" in said) - 2.0 * ("poor" in said)
    return -math.log1p(math.exp(-odds if "good" in label else odds))


def writes(text: str) -> str:
    if "other words" in text:
        return "It is fine indeed." if "fine" in text else "It is poor indeed."
    asked = text.rpartition("Review: ")[2]
    return " I find it fine today all of it." if "nice" in asked else " I find it poor today all of it."


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel("reads", reply=writes, logprob=reads)


@pytest.fixture
def task() -> Task:
    def items(split: str) -> tuple[Example, ...]:
        words = ("nice", "ugly")
        return tuple(
            Example(f"{split}{i}", f"{words[i % 2]} thing {i} {split}", ("good", "bad")[i % 2]) for i in range(8)
        )

    return Task(
        name="things", instruction="Judge.", labels=("good", "bad"), input_name="Review",
        train=items("train"), validation=items("validation"), test=items("test"),
    )  # fmt: skip


P = 1 / (1 + math.exp(-2.0))


def test_an_answer_that_goes_by_its_rationale_alone(task: Task, model: ScriptedModel) -> None:
    program = make("zero_shot_cot", mode="score").fit(task, model, 0)
    answers = program.answer(task.test, model)
    assert [a.value for a in answers] == [e.label for e in task.test]
    found = followed(program, task.test, answers, model)
    for each in found:
        assert each["rationale_filler"] == pytest.approx(P - 0.5)
        assert each["rationale_early"] == pytest.approx(P - 0.5)  # its first third is the words that begin the answer
        assert each["rationale_other"] == pytest.approx(P - (1 - P))
        assert each["rationale_reworded"] == pytest.approx(0.0)


def test_an_item_that_stands_twice_in_a_batch_is_measured_as_once(task: Task) -> None:
    """Both stand behind one prompt, so what is put into it is the same other item's rationale."""

    def scored(text: str, label: str) -> float:
        said = text.rpartition("at a time")[2]
        return math.log(
            0.8 if next((name for name in ("good", "bad", "odd") if name in said), "good") in label else 0.1
        )

    def written(text: str) -> str:
        asked = text.rpartition("Review: ")[2]
        return f" It is {('good' if 'nice' in asked else 'bad' if 'ugly' in asked else 'odd')} all of it."

    model = ScriptedModel("three", reply=written, logprob=scored)
    texts = ("nice", "ugly", "nice", "strange")
    items = tuple(Example(f"i{i}", text, "good") for i, text in enumerate(texts))
    three = replace(task, labels=("good", "bad", "odd"))
    program = make("zero_shot_cot", mode="score").fit(three, model, 0)

    def other(*which: int) -> list[float]:
        batch = [items[i] for i in which]
        return [e["rationale_other"] for e in followed(program, batch, program.answer(batch, model), model)]

    once = other(0, 1, 3)
    assert once[0] > 0.5
    assert other(0, 1, 2, 3) == pytest.approx([once[0], once[1], once[0], once[2]])


def test_a_rationale_that_was_never_written_has_no_columns(task: Task, model: ScriptedModel) -> None:
    """What some programs call theirs, such as the words that they emphasised, stands in no prompt."""
    program = make("zero_shot", mode="score").fit(task, model, 0)
    named = [replace(a, rationale="heads for good 3") for a in program.answer(task.test, model)]
    assert followed(program, task.test, named, model) == [{}] * len(task.test)


@pytest.mark.parametrize("way", ["none", "batch"])
def test_its_own_rationale_gives_the_same_answer(task: Task, model: ScriptedModel, way: str) -> None:
    program: Program = make("zero_shot_cot", mode="score").fit(task, model, 0)
    program = calibrated(program, task, model, way, 0)  # type: ignore[arg-type]
    answers = program.answer(task.test, model)
    again = program.answer(task.test, Rewritten(model, answers, [a.rationale for a in answers]))
    assert [a.scores for a in again] == [a.scores for a in answers]


def test_a_run_has_the_columns_and_does_not_count_their_cost(task: Task, model: ScriptedModel, tmp_path: Path) -> None:
    plain = amplify.evaluate(task, model, ["zero_shot", "zero_shot_cot"], seeds=[0], mode="score", progress=False)
    report = amplify.evaluate(
        task, model, ["zero_shot", "zero_shot_cot"], seeds=[0], mode="score", progress=False, out=tmp_path,
        also=["rationales"],
    )  # fmt: skip
    assert "rationale_filler" not in report.rows[0].metrics
    assert report.rows[1].metrics["rationale_filler"] == pytest.approx(P - 0.5)
    assert report.rows[1].cost.calls == plain.rows[1].cost.calls
    assert "rationale other" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["also"] == ["rationales"]


def test_what_cannot_be_measured_is_refused_before_any_work(task: Task, model: ScriptedModel) -> None:
    for also, mode, says in (("rationales", "generate", "score mode"), ("uncertainty", "score", "Brier")):
        with pytest.raises(InputError, match=says):
            amplify.evaluate(task, model, ["zero_shot"], mode=mode, also=[also])  # type: ignore[list-item]
    with pytest.raises(UnknownNameError):
        amplify.evaluate(task, model, ["zero_shot"], mode="score", also=["rationale"])  # type: ignore[list-item]
    assert model.usage.calls == 0


def test_sar_is_the_published_sum() -> None:
    rng = np.random.default_rng(0)
    surprises = [rng.exponential(size=n) for n in (3, 5, 2)]
    weights = [rng.random(n) for n in (3, 5, 2)]
    texts = ["a b", "a c", "d"]
    found = measures(surprises, weights, texts)
    energies = [
        sum(w / sum(r) * s for w, s in zip(r, own, strict=True)) for r, own in zip(weights, surprises, strict=True)
    ]
    likeness = {(0, 1): 0.5, (1, 0): 0.5}  # of two words one is shared: F1 1/2
    total = 0.0
    for i, energy in enumerate(energies):
        others = sum(likeness.get((i, j), 0.0) * math.exp(-energies[j]) for j in range(3) if j != i)
        total += -math.log(math.exp(-energy) + others / 0.001)
    assert found["token_sar"] == pytest.approx(np.mean(energies))
    assert found["sar"] == pytest.approx(total / 3)
    assert found["entropy"] == pytest.approx(np.mean([s.sum() for s in surprises]))
    assert agreed(np.array([1.0]), np.ones((1, 1))) == pytest.approx([1.0])


def test_auroc_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    scores, wrong = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.4
    assert auroc(scores, wrong) == pytest.approx(roc_auc_score(wrong, scores))
    assert auroc([1.0], [True]) is None


def test_a_token_matters_as_far_as_the_question_makes_it_likelier() -> None:
    own = TokenLogProbs(("The", " house"), (1, 2), (-1.0, -0.5))
    assert relevance(own, TokenLogProbs(("The", " house"), (1, 2), (-0.5, -3.0))).tolist() == [0.0, 2.5]
    other = TokenLogProbs(("Th", "e house"), (3, 4), (-0.2, -0.7))  # -0.1 a character
    assert relevance(own, other) == pytest.approx([0.0, 0.1])
    prompt = Prompt(messages=(Message("user", "a question"), Message("user", "Q: a question?")))
    assert [m.content for m in without(prompt, "a question").messages] == ["a question", "Q: ?"]


def test_wrong_answers_that_waver_are_told_from_right_ones(tmp_path: Path) -> None:
    """Answers of "hard" questions are unlikely and wrong, of the others likely and right: AUROC 1 of every measure."""
    items = tuple(
        Example(f"{i}", f"{('easy', 'hard')[i % 2]} question {i}", "yes", answers=("yes",)) for i in range(12)
    )
    task = Task(name="questions", instruction="Answer.", metric="qa", train=items[:2], validation=(), test=items[2:])

    def logprob(text: str, answer: str) -> float:
        asked = text.rpartition("nswer.")[2]
        return -0.1 if "easy" in asked else -4.0 if "hard" in asked else -6.0

    model = ScriptedModel("wavers", reply=lambda text: " yes" if "easy" in text else " perhaps so", logprob=logprob)
    report = amplify.evaluate(task, model, ["zero_shot"], seeds=[0], progress=False, out=tmp_path, also=["uncertainty"])
    found = report.rows[0].uncertainty
    assert set(found) == {"entropy", "length_normalised", "token_sar", "sar"}
    assert all(each.value == 1.0 for of in found.values() for each in of.values())
    assert "token sar" in (tmp_path / "report.md").read_text()
    assert 'id="uncertainty"' in (tmp_path / "report.html").read_text()
    assert unsure(items, [Answer("yes")] * len(items), model) == [{}] * len(items)
