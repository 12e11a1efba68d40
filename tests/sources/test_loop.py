"""The loop on a reader that knows something by heart, and says what is emphasised; and on a tiny model."""

from __future__ import annotations

import re

import numpy as np
import pytest

from amplify.errors import CapabilityError, InputError
from amplify.models import load_model
from amplify.models.scripted import ScriptedModel
from amplify.sources.asked import asked_of
from amplify.sources.context import Part
from amplify.sources.games import LogProbGame
from amplify.sources.loop import Rests, answer_in_loop, judged, rests_on, selections, telling
from amplify.sources.options import options
from amplify.steering import Steering
from amplify.types import Sampling

QUESTION = "Who painted the Mona Lisa?"
DOCUMENTS = ["Paris is large. Adam Caine painted the Mona Lisa.", "It hangs in the Louvre. Many people come."]


class Reader(ScriptedModel):
    """Answers from memory unless its attention is steered; then it repeats the first emphasised name."""

    def generate(self, prompts, sampling, *, steering=None):  # type: ignore[no-untyped-def]
        if steering is None:
            return super().generate(prompts, sampling)
        self.steering = steering
        self.marked = [[p.messages[s.message].content[s.start : s.end] for s in p.emphasis] for p in prompts]
        said = [re.search("Adam Caine|Louvre", " ".join(marked)) for marked in self.marked]
        other = ScriptedModel(reply=lambda text: said[0][0] if said[0] else "Leonardo")
        return other.generate(prompts, sampling)


def likely(text: str, answer: str) -> float:
    """The passage speaks for what it says and against what is known by heart; the Louvre is never an answer."""
    names = "Adam Caine painted" in text
    if "Leonardo" in answer:
        return -2.0 - 3.0 * names
    return (-10.0 + 8.0 * names) if "Adam" in answer else -12.0 + 0.5 * ("Louvre" in text)


def reader() -> Reader:
    return Reader(reply=lambda text: "Leonardo", logprob=likely)


def test_the_sentence_that_contradicts_what_is_known_is_steered_to_and_the_second_answer_rests_on_it() -> None:
    model = reader()
    found = answer_in_loop(QUESTION, DOCUMENTS, model, spans=1, budget=16)
    assert model.marked == [["Adam Caine painted the Mona Lisa."]]
    assert model.steering == Steering(mode="instaboost", bonus=2.0)
    assert (found.answer, found.kept, found.first, found.steered) == ("Adam Caine", "steered", "Leonardo", "Adam Caine")
    assert found.rests is not None
    first, second = found.rests
    assert second == Rests(-10.0, -2.0, 8.0, 0.0)
    assert second.share == 0.8
    assert first == Rests(-2.0, -5.0, -3.0, 0.0)
    assert found.attribution is not None
    assert found.attribution.answer == "Leonardo"
    assert found.to_dict()["rests"][1]["share"] == 0.8
    assert "80%" in found.why


def test_an_answer_that_does_not_rest_on_the_spans_is_not_returned() -> None:
    asked = asked_of(QUESTION, DOCUMENTS, None, "messages", "default", options({"budget": 8}))
    louvre = [Part(1, 0, 24)]
    found = judged(asked.context, reader(), "Leonardo", "Louvre", louvre)
    assert (found.answer, found.kept) == ("Leonardo", "first")
    assert found.rests is not None
    assert found.rests[1].share == pytest.approx(0.5 / 12)
    assert judged(asked.context, reader(), "Leonardo", "Louvre", louvre, 0.01).kept == "steered"
    # where the first answer rests on them even more, it stays, however little is asked for
    sure = [Part(0, 16, len(DOCUMENTS[0]))]
    assert judged(asked.context, reader(), "Adam Caine", "Louvre", sure, 0.0).kept == "first"


@pytest.mark.parametrize(
    ("first", "second", "answer"), [("The Bear", "the bear.", "The Bear"), ("B", " ", "B"), ("", "B", "B")]
)
def test_there_is_nothing_to_judge_where_answers_are_equal_or_empty(first: str, second: str, answer: str) -> None:
    asked = asked_of(QUESTION, DOCUMENTS, None, "messages", "default", options({"budget": 8}))
    model = reader()
    found = judged(asked.context, model, first, second, [Part(0, 0, 15)])
    assert (found.answer, found.rests, model.calls) == (answer, None, [])


def test_two_players_have_the_shapley_values_of_their_definition() -> None:
    """Against a game whose values are drawn at random, prompt by prompt."""
    asked = asked_of(QUESTION, DOCUMENTS, None, "messages", "default", options({"budget": 8}))
    values: dict[str, float] = {}
    drawn = np.random.default_rng(0)
    model = ScriptedModel(reply=lambda text: "x", logprob=lambda text, a: values.setdefault(text, -drawn.uniform(1, 9)))
    parts = [Part(0, 0, 16), Part(1, 24, len(DOCUMENTS[1]))]
    found = rests_on(asked.context, model, "x", parts)
    own, other = selections(asked.context, parts)
    assert asked.context.texts(own) == ["Paris is large.", "Many people come."]
    assert asked.context.texts(other) == ["Adam Caine painted the Mona Lisa.", "It hangs in the Louvre."]
    v = LogProbGame(asked.context, model, "x").of([(), own, other, asked.context.everything()])[:, 0]
    assert len(values) == 4
    assert found.spans == pytest.approx(np.mean([v[1] - v[0], v[3] - v[2]]))
    assert found.others == pytest.approx(np.mean([v[2] - v[0], v[3] - v[1]]))
    assert found.spans + found.others == pytest.approx(v[3] - v[0])


def test_a_document_that_speaks_against_the_answer_is_opened_where_that_is_asked_for() -> None:
    import amplify

    given = {"budget": 16, "granularity": "sentences"}
    inside = [Part(0, 0, 16), Part(0, 16, len(DOCUMENTS[0]))]
    usual = amplify.attribute_sources(QUESTION, DOCUMENTS, reader(), "Leonardo", **given).sentences
    assert usual is None or not set(inside) & set(usual.sources)
    either = amplify.attribute_sources(QUESTION, DOCUMENTS, reader(), "Leonardo", opens="either", **given).sentences
    assert either is not None
    scores = dict(zip(either.sources, either.scores.tolist(), strict=True))
    assert [scores[part] for part in inside] == pytest.approx([0.0, -3.0])


def test_titles_are_chosen_last() -> None:
    result = answer_in_loop(QUESTION, DOCUMENTS, reader(), spans=1, budget=16).attribution
    assert result is not None
    best = telling(result, 1)
    assert best == (Part(0, 16, len(DOCUMENTS[0])),)
    assert telling(result, 1, best) != best
    every = tuple(sorted(result.sentences.sources))  # type: ignore[union-attr]
    assert telling(result, 99, every) == every


def test_in_a_conversation_and_bad_input() -> None:
    messages = [{"role": "user", "content": f"{DOCUMENTS[0]}\n\n{DOCUMENTS[1]}\n\n{QUESTION}"}]
    found = answer_in_loop(None, DOCUMENTS, reader(), messages=messages, spans=1, budget=16)
    assert found.answer == "Adam Caine"
    for wrong in ({"spans": 0}, {"least": 2.0}, {"value": "votes"}, {"order": "random"}):
        with pytest.raises(InputError):
            answer_in_loop(QUESTION, DOCUMENTS, reader(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="model= is missing"):
        answer_in_loop(QUESTION, DOCUMENTS)
    with pytest.raises(CapabilityError):  # it cannot be steered
        answer_in_loop(QUESTION, DOCUMENTS, ScriptedModel(reply=lambda text: "Leonardo", logprob=likely))


def test_a_tiny_model_says_the_steered_answer_of_its_marked_prompt(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    with load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        steering = Steering(mode="instaboost", bonus=4.0)
        found = answer_in_loop(QUESTION, DOCUMENTS, model, spans=1, budget=12, steering=steering, max_tokens=5)
        asked = asked_of(QUESTION, DOCUMENTS, None, "messages", "default", options({"budget": 12}))
        prompt = asked.context.marked(found.marked)
        [alone] = model.generate([prompt], Sampling(max_tokens=5), steering=steering)
        assert found.steered == alone.text.strip()
        if found.rests is not None:  # both answers, each against the prompts scored one by one
            for rests, said in zip(found.rests, (found.first, found.steered), strict=True):
                own, other = selections(asked.context, found.marked)
                every = [(), own, other, asked.context.everything()]
                v = [model.score([asked.context.prompt(s)], [said])[0].total for s in every]
                assert rests.spans == pytest.approx((v[1] - v[0] + v[3] - v[2]) / 2, abs=1e-4)
