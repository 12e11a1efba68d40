"""Several answers made one: the pure rules by hand, each variation, the gate, and what is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from method_fakes import GOOD

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.evaluation import plan
from amplify.evaluation.apply import apply_program
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.deciding import AGGREGATES, aggregated, entropies
from amplify.methods.several import RewordedProgram, SeveralProgram, combined, entropy, shuffles
from amplify.models.base import LanguageModel
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Answer, Completion, Example, Prompt, Sampling


def test_each_rule_by_hand() -> None:
    said = np.log([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.02, 0.08, 0.9]])
    geometric = np.array([0.6 * 0.5 * 0.02, 0.3 * 0.4 * 0.08, 0.1 * 0.1 * 0.9]) ** (1 / 3)
    assert np.exp(aggregated(said, "mean_logprob")) == pytest.approx(geometric / geometric.sum())
    mean = np.array([1.12, 0.78, 1.1]) / 3
    assert np.exp(aggregated(said, "mean_probability")) == pytest.approx(mean)
    assert np.exp(aggregated(said, "vote")) == pytest.approx((np.array([2, 0, 1]) + mean) / 4)
    assert aggregated(said, "lowest_entropy") == pytest.approx(said[2])
    assert entropies(np.log([[0.5, 0.5]])) == pytest.approx(math.log(2))
    for how in AGGREGATES:
        assert np.exp(aggregated(said, how)).sum() == pytest.approx(1)
        assert aggregated(said[:1], how).argmax() == said[0].argmax()


def test_a_tie_of_votes_is_broken_by_the_mean_probability() -> None:
    said = np.log([[0.9, 0.1], [0.4, 0.6]])
    assert aggregated(said, "vote").argmax() == 0
    assert aggregated(said[:, ::-1], "vote").argmax() == 1


def test_written_answers_are_voted_on() -> None:
    given = [Answer(value, text=str(value), calls=2) for value in ("Ada", None, "Bob", "bob ", None)]
    both = combined(given, "vote")
    assert (both.value, both.text, both.calls) == ("Bob", "Bob", 10)
    assert combined(given[:3], "vote").value == "Ada"  # of equally many the first
    assert combined([Answer(None), Answer(None)], "vote").value is None


def test_orders_are_different_and_repeatable() -> None:
    assert sorted(shuffles(3, 99, 0)) == [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    many = shuffles(8, 20, 1)
    assert many == shuffles(8, 20, 1)
    assert many != shuffles(8, 20, 2)
    assert len(set(many)) == 20
    assert tuple(range(8)) not in many


@dataclass(frozen=True)
class Says(Program):
    """Says "positive" with a probability that the input's last word tells."""

    by: tuple[tuple[str, float], ...]
    kind = "test_says"

    def answer(self, examples: Sequence[Example], model: object) -> list[Answer]:
        found = [dict(self.by)[e.text.split()[-1]] for e in examples]
        made = [{"positive": math.log(p), "negative": math.log(1 - p)} for p in found]
        return [Answer(max(s, key=s.__getitem__), scores=s, prompt_tokens=7) for s in made]


def test_the_others_are_asked_where_the_first_is_unsure() -> None:
    first, other = Says((("sure", 0.95), ("torn", 0.55))), Says((("sure", 0.01), ("torn", 0.01)))
    ask = [Example("0", "sure"), Example("1", "torn")]
    model = ScriptedModel("echo")
    gated = SeveralProgram((first, other, other), "vote", threshold=0.6).answer(ask, model)
    assert [a.value for a in gated] == ["positive", "negative"]
    assert [a.calls for a in gated] == [1, 3]
    assert [a.value for a in SeveralProgram((first, other, other), "vote").answer(ask, model)] == ["negative"] * 2
    never = SeveralProgram((first, other, other), "vote", threshold=math.inf).answer(ask, model)
    assert [a.calls for a in never] == [1, 1]
    assert entropy(gated[0]) == pytest.approx(-0.95 * math.log(0.95) - 0.05 * math.log(0.05))


def by_last_shot(text: str, continuation: str) -> float:
    """Sees the word, and is drawn to the label of the last shot more than it should be."""
    shots, _, asked = text.rpartition("Review: ")
    label = continuation.strip(" .")
    right = "positive" if any(word in asked for word in GOOD) else "negative"
    last = "positive" if shots.rfind("is positive") > shots.rfind("is negative") else "negative"
    return 1.0 * (label == right) + (1.5 if "thing" not in asked else 0.0) * (label == last) - 5.0


def test_orders_of_shots_average_out_what_depends_on_the_order(sentiment: Task) -> None:
    """The last shot's label wins alone; with the mean over orders the input decides. Equal calls: five prompts."""
    model = ScriptedModel("drawn", reply=lambda text: "positive.", logprob=by_last_shot)
    inner = "few_shot[shots=4,selection=balanced]"
    alone = make("few_shot", mode="score", shots=4, selection="balanced").fit(sentiment, model, 0)
    assert len({a.value for a in alone.answer(sentiment.test, model)}) == 1
    method = make("shuffled_shots", mode="score", inner=inner, answers=24, gated=False)
    assert method.role == "control"
    program = method.fit(sentiment, model, 0)
    answers = program.answer(sentiment.test, model)
    assert [a.value for a in answers] == [e.label for e in sentiment.test]
    assert {a.calls for a in answers} == {48}  # 24 orders, two labels
    gated = make("shuffled_shots", mode="score", inner=inner, answers=24).fit(sentiment, model, 0)
    assert isinstance(gated, SeveralProgram)
    before, after = gated.meta["right"]
    assert (before, after) == (0.5, 1.0)
    curve = gated.meta["by_items_asked_again"]
    assert (curve[0], curve[-1], len(curve)) == (0.5, 1.0, gated.meta["held_out"] + 1)
    assert [a.value for a in gated.answer(sentiment.test, model)] == [e.label for e in sentiment.test]


def test_a_gate_that_does_not_pay_is_shut(sentiment: Task) -> None:
    """Every order says the same, so nobody is asked again."""
    model = ScriptedModel("same", reply=lambda text: "", logprob=lambda text, c: -1.0 if "positive" in c else -2.0)
    program = make("shuffled_shots", mode="score", inner="few_shot[shots=3]").fit(sentiment, model, 0)
    assert isinstance(program, SeveralProgram)
    assert program.threshold == math.inf
    assert {a.calls for a in program.answer(sentiment.test, model)} == {2}


class Dice(ScriptedModel):
    """Reasons differently at each seed: right with seeds that are not divisible by three."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: object = None) -> list[Completion]:
        assert sampling.temperature == 0.7
        self.seeds = [*getattr(self, "seeds", []), sampling.seed]
        done = super().generate(prompts, sampling)
        if (sampling.seed or 0) % 3:
            return done
        flip = {"positive": "negative", "negative": "positive"}
        return [replace(c, text=" ".join(flip.get(w.strip("."), w) for w in c.text.split())) for c in done]


def by_word(text: str) -> str:
    asked = text.rpartition("Review: ")[2]
    return f" It says so. The answer is {'positive' if any(word in asked for word in GOOD) else 'negative'}."


def test_sampled_reasoning_is_voted_on(sentiment: Task) -> None:
    model = Dice("dice", reply=by_word)
    program = make("self_consistency", answers=5).fit(sentiment, model, 0)
    answers = program.answer(sentiment.test, model)
    assert model.seeds == [1, 2, 3, 4, 5]
    assert [a.value for a in answers] == [e.label for e in sentiment.test]
    assert {a.calls for a in answers} == {5}
    one = make("self_consistency", answers=2).fit(sentiment, model, 1)
    model.seeds = []
    one.answer(sentiment.test[:1], model)
    assert model.seeds == [1001, 1002]  # another seed of the run draws other samples


def test_reasoning_can_be_sampled_and_its_labels_scored(sentiment: Task) -> None:
    def logprob(text: str, continuation: str) -> float:
        return -0.1 if "It says so" in text and continuation.strip(" .") in by_word(text) else -3.0

    model = Dice("dice", reply=by_word, logprob=logprob)
    method = make("self_consistency", mode="score", answers=3, aggregate="mean_probability")
    answers = method.fit(sentiment, model, 0).answer(sentiment.test, model)
    assert [a.value for a in answers] == [e.label for e in sentiment.test]
    assert all(a.scores for a in answers)


def wordy(text: str) -> str:
    """Rewords a review so that it can be understood, and labels nothing."""
    if "in other words" not in text:
        return "positive."
    original = text.rpartition("Review: ")[2].partition("\n")[0]
    return f"Review: To say it clearly: {original.strip()}"


def clearly(text: str, continuation: str) -> float:
    asked = text.rpartition("Review: ")[2]
    right = "positive" if any(word in asked for word in GOOD) else "negative"
    if "clearly" in asked:
        return -0.1 if right in continuation else -4.0
    return -1.0 if "positive" in continuation else -1.2


def test_rewordings_help_where_they_are_clearer(sentiment: Task) -> None:
    model = ScriptedModel("wordy", reply=wordy, logprob=clearly)
    program = make("augmented", mode="score", inner="few_shot[shots=2]", answers=3).fit(sentiment, model, 0)
    assert isinstance(program, SeveralProgram)
    assert program.meta["right"] == [0.5, 1.0]
    answers = program.answer(sentiment.test, model)
    assert [a.value for a in answers] == [e.label for e in sentiment.test]
    assert {a.calls for a in answers} == {2 * 3 + 2}  # labels of three wordings, and two rewordings


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("Review: a nice one", "a nice one"),
        ("", "a fine phone"),
        ("a positive one", "a fine phone"),  # names a label that the input does not
        ("word " * 40, "a fine phone"),
        ("<think>hm</think>it: is a nice one", "it: is a nice one"),
    ],
)
def test_a_rewording_that_cannot_be_one_is_not_used(reply: str, kept: str, sentiment: Task) -> None:
    inner = make("zero_shot", mode="score").fit(sentiment, ScriptedModel("echo"), 0)
    template = amplify.templates.load("reword", "default")  # type: ignore[attr-defined]
    program = RewordedProgram(inner, template, "Review", ("positive", "negative"), 0.7, 1)
    model = ScriptedModel("reworder", reply=lambda text: reply)
    program.answer([Example("0", "a fine phone")], model)
    assert model.texts[-1].rpartition("Review: ")[2].partition("\n")[0] == kept


def test_labels_listed_in_other_orders(sentiment: Task) -> None:
    """The label that is listed first is favoured; over both orders that is gone."""

    def first_listed(text: str, continuation: str) -> float:
        asked = text.rpartition("Review: ")[2]
        right = "positive" if any(word in asked for word in GOOD) else "negative"
        listed = asked.partition("Options: ")[2]
        return 1.0 * (continuation.strip(" .") == right) + 2.0 * listed.startswith(continuation.strip(" ."))

    model = ScriptedModel("first", reply=lambda text: "", logprob=first_listed)
    method = make("augmented", mode="score", inner="zero_shot", vary="labels", answers=2, gated=False)
    program = method.fit(sentiment, model, 0)
    assert [a.value for a in program.answer(sentiment.test, model)] == [e.label for e in sentiment.test]


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("shuffled_shots", "score", {"inner": "few_shot[shots=2]", "calibrate": "batch"}),
        ("augmented", "score", {"inner": "zero_shot", "answers": 2}),
        ("augmented", "score", {"inner": "few_shot[shots=2]", "vary": "labels", "aggregate": "vote"}),
        ("self_consistency", "generate", {"answers": 2}),
        ("self_consistency", "score", {"answers": 2, "aggregate": "lowest_entropy"}),
    ],
)
def test_planned_fitted_saved_and_deployed(
    name: str, mode: str, options: dict[str, object], sentiment: Task, tmp_path: Path
) -> None:
    model = ScriptedModel("knows", reply=by_word, logprob=clearly)
    method = make(name, mode=mode, **options)  # type: ignore[arg-type]
    program = method.fit(sentiment, model, 0)
    program.save(tmp_path / "program.json")
    loaded = Program.load(tmp_path / "program.json")
    assert loaded == program
    assert loaded.answer(sentiment.test, model) == program.answer(sentiment.test, model)
    (tmp_path / "new.csv").write_text("message\nA great phone.\nAn awful phone.\n")
    assert apply_program(loaded, tmp_path / "new.csv", "message", model, tmp_path / "out.csv").rows == 2
    planned = plan(sentiment, None, [method], seeds=[0]).rows[0]
    before = model.usage.snapshot()
    SeveralProgram(loaded.programs, loaded.aggregate).answer(sentiment.test, model)  # type: ignore[attr-defined]
    assert planned.calls == model.usage.since(before).calls


@pytest.mark.parametrize(
    ("name", "mode", "options", "says"),
    [
        ("augmented", "generate", {"gated": True}, "can only be voted on"),
        ("augmented", "score", {"answers": 1}, "at least 2"),
        ("augmented", "score", {"inner": "few_shot_knn", "vary": "shots"}, "no fixed prompt"),
        ("shuffled_shots", "score", {"inner": "zero_shot"}, "fewer than two shots"),
        ("self_consistency", "score", {"inner": "few_shot"}, "writes nothing that could be sampled"),
    ],
)
def test_what_cannot_be(name: str, mode: str, options: dict[str, object], says: str, sentiment: Task) -> None:
    with pytest.raises(InputError, match=says):
        make(name, mode=mode, **options).fit(sentiment, ScriptedModel("echo"), 0)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError):
        make("augmented", mode="score", inner="few_shots")


def test_a_model_behind_a_server_that_gives_no_scores_is_told(sentiment: Task) -> None:
    from amplify.models.scripted import ScriptedGenerator

    model: LanguageModel = ScriptedGenerator("echo")
    with pytest.raises(amplify.CapabilityError, match="log-probabilities"):
        make("shuffled_shots", mode="score", inner="few_shot[shots=2]").fit(sentiment, model, 0)
