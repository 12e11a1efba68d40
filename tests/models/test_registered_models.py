"""Models of one's own: a class registered as a kind of model, opened by its id, checked, run and explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

import amplify
from amplify.errors import CapabilityError, InputError, ModelError, UnknownNameError
from amplify.evaluation import evaluate
from amplify.models import MODELS, LanguageModel, ScoringModel, SimpleModel, load_model
from amplify.registry import table
from amplify.steering import Steering
from amplify.types import Prompt, Sampling, TokenLogProbs

ASK = [Prompt(text=f"question {i}") for i in range(3)]


@pytest.fixture
def own() -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        table("model").remove(name)


class Parrot(SimpleModel):
    """Says what it was asked."""

    def __init__(self, name: str, *, loud: bool = False, times: int = 1, room: int | None = None) -> None:
        super().__init__(name)
        self.loud, self.times, self.max_context = loud, times, room

    def complete(self, prompt: Prompt, sampling: Sampling) -> str:
        if "fail" in str(prompt.text):
            raise OSError("the bird is gone")
        said = " ".join([str(prompt.text)] * self.times)
        return said.upper() if self.loud else said


class Scoring(Parrot):
    """Also tells how likely a text is: the longer, the less."""

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        return [TokenLogProbs((text,), (0,), (-float(len(text)),)) for text in continuations]


def test_a_class_is_a_kind_of_model(own: Callable[[str], None]) -> None:
    own("parrot")
    amplify.register("model", "parrot")(Parrot)
    assert list(MODELS)[-1] == "parrot"
    with load_model("parrot:polly", loud=True, times=2) as model:
        assert isinstance(model, LanguageModel)
        assert not isinstance(model, ScoringModel)
        assert model.id == "parrot:polly"
        assert [c.text for c in model.generate(ASK, Sampling(stop=("2",)))][1:] == [
            "QUESTION 1 QUESTION 1", "QUESTION ",
        ]  # fmt: skip
        assert (model.usage.calls, model.usage.prompt_tokens) == (3, 9)
        with pytest.raises(CapabilityError, match="parrot:polly"):
            model.generate(ASK, Sampling(), steering=Steering(heads={0: [0]}))
        with pytest.raises(CapabilityError, match="log-probabilities"):
            amplify.explain("good bad", " x", model=model, method="occlusion")


def test_options_are_checked_before_the_model_is_made(own: Callable[[str], None]) -> None:
    own("parrot")
    amplify.register("model", "parrot")(Parrot)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'loud'\?"):
        load_model("parrot:x", lowd=True)
    with pytest.raises(InputError, match="times is of type int, not 'two'"):
        load_model("parrot:x", times="two")
    assert load_model("parrot:x", room=7).max_context == 7
    with pytest.raises(UnknownNameError, match=r"unknown model 'parot'. Did you mean 'parrot'\?"):
        load_model("parot:x")


def test_a_failure_keeps_what_was_answered(own: Callable[[str], None]) -> None:
    own("parrot")
    amplify.register("model", "parrot")(Parrot)
    with pytest.raises(ModelError, match=r"parrot:x failed on prompt 1: OSError: the bird is gone. 1 of 2") as caught:
        load_model("parrot:x").generate([ASK[0], Prompt(text="fail")], Sampling())
    assert [c.text for c in caught.value.completed.values()] == ["question 0"]


def test_a_function_may_open_a_model_and_what_it_gives_is_checked(own: Callable[[str], None]) -> None:
    own("maker")
    amplify.register("model", "maker")(lambda name, **options: Scoring(name, **options) if name == "bird" else name)
    model = load_model("maker:bird", times=2)
    assert isinstance(model, ScoringModel)
    found = amplify.explain("good bad", " x", model="maker:bird", method="occlusion")
    assert found.model == "maker:bird"
    with pytest.raises(InputError, match="'stone', which is no language model: it lacks id, usage"):
        load_model("maker:stone")
    with pytest.raises(InputError, match="a class or function"):
        amplify.register("model", "odd", 3)


def test_it_runs_a_task(own: Callable[[str], None]) -> None:
    own("scoring")
    amplify.register("model", "scoring")(Scoring)
    task = amplify.load_task("support_tickets", limit=4)
    with load_model("scoring:x") as model:
        report = evaluate(task, model, ["zero_shot"], mode="score", calibrate="none")
    assert report.config["model"]["id"] == "scoring:x"
    assert {r["answer"] for r in report.records} == {"billing"}  # no other label is as short


def test_a_simple_model_gives_several_answers_and_no_log_probabilities() -> None:
    parrot = Parrot("polly")
    assert [c.text for c in parrot.generate(ASK[:2], Sampling(n=2))] == [
        "question 0", "question 0", "question 1", "question 1",
    ]  # fmt: skip
    with pytest.raises(CapabilityError, match="no log-probabilities"):
        parrot.generate(ASK, Sampling(logprobs=True))
