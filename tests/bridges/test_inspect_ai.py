"""Inspect, the real one: whole evaluations with an amplify model and with the scorer that attributes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import amplify
from amplify.errors import CapabilityError
from amplify.models.scripted import ScriptedModel

pytest.importorskip("inspect_ai")

import inspect_ai
from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate, solver, system_message

from amplify.bridges.inspect_ai import AmplifyAPI, supported

DOCUMENTS = ["The tower is in Rome.", "Bees fly far.", "Wine is often red."]


def run(task: Task, model: Any, folder: Path) -> Any:
    [log] = inspect_ai.eval(task, model=model, log_dir=str(folder), display="none", log_samples=True)
    return log


def in_rome(text: str) -> str:
    return "Rome" if "in Rome" in text else "Paris"


def test_inspect_finds_the_provider_by_itself() -> None:
    pyproject = Path(amplify.__file__).parents[1] / "pyproject.toml"
    assert '[project.entry-points.inspect_ai]\namplify = "amplify.bridges.inspect_ai"' in pyproject.read_text()


def test_a_model_answers_an_evaluation(tmp_path: Path) -> None:
    data = [Sample(input="Where? It is in Rome.", target="Rome"), Sample(input="Where is it?", target="Rome")]
    model = ScriptedModel(reply=in_rome)
    task = Task(dataset=data, solver=[system_message("Be brief."), generate()], scorer=match())
    log = run(task, get_model("amplify/scripted:custom", opened=model, memoize=False), tmp_path)
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    assert {tuple(m.role for m in call.prompt.messages) for call in model.calls} == {("system", "user")}
    [usage] = log.stats.model_usage.values()
    assert (usage.input_tokens, usage.output_tokens) == (model.usage.prompt_tokens, model.usage.completion_tokens)


def test_by_its_name_alone(tmp_path: Path) -> None:
    task = Task(dataset=[Sample(input="Where is it?", target="Rome")], solver=generate(), scorer=match())
    log = run(task, "amplify/scripted:say=Rome", tmp_path)
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert log.eval.model == "amplify/scripted:say=Rome"


def test_settings_and_steering_reach_the_model(tiny_lm: Path, tmp_path: Path) -> None:
    steering = amplify.Steering(heads={0: [0, 1], 1: [2]}, alpha=0.01)
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32", device="cpu") as model:
        way = amplify.Sampling(max_tokens=6, temperature=0.8, top_p=0.9, seed=5)
        wanted = model.generate([amplify.parse_emphasis("**Paris** is")], way, steering=steering)[0].text
        task = Task(
            dataset=[Sample(input="**Paris** is", target="x")],
            solver=generate(),
            scorer=match(),
            config=GenerateConfig(max_tokens=6, temperature=0.8, top_p=0.9, seed=5),
        )
        name = get_model("amplify/tiny", opened=model, steering=steering, memoize=False)
        log = run(task, name, tmp_path)
        assert log.status == "success", log.error
        assert log.samples[0].output.completion == wanted


def test_a_begun_answer_is_continued() -> None:
    model = ScriptedModel(reply=lambda text: " Rome")
    turns = [ChatMessageUser(content="Where?"), ChatMessageAssistant(content="It is in")]
    found = asyncio.run(AmplifyAPI("scripted:custom", opened=model).generate(turns, [], "none", GenerateConfig()))
    assert found.completion == " Rome"
    assert model.calls[0].prompt == amplify.Prompt(messages=(amplify.Message("user", "Where?"),), prefix="It is in")


def test_what_a_model_does_not_take_is_refused() -> None:
    asked = AmplifyAPI("scripted:echo").generate([], [], "none", GenerateConfig(top_k=3))
    with pytest.raises(CapabilityError, match="top_k"):
        asyncio.run(asked)


def test_the_scorer_attributes(tmp_path: Path) -> None:
    def logprob(text: str, continuation: str) -> float:
        return -0.1 if ("in Rome" in text) == ("Rome" in continuation) else -6.0

    model = ScriptedModel(reply=in_rome, logprob=logprob)
    samples = [
        Sample(input="Where is the tower?", target="Rome", metadata={"documents": DOCUMENTS}),
        Sample(input="Where is the tower?", target="Rome", metadata={"documents": DOCUMENTS[1:]}),
    ]

    @solver
    def told() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            state.messages[-1].text = "\n".join([*state.metadata["documents"], state.input_text])
            return await generate(state)

        return solve

    task = Task(dataset=samples, solver=told(), scorer=supported(budget=16))
    log = run(task, get_model("amplify/scripted:custom", opened=model, memoize=False), tmp_path)
    assert log.status == "success", log.error
    first, second = (sample.scores["supported"] for sample in log.samples)
    assert (first.answer, first.value, second.answer, second.value) == ("Rome", 1.0, "Paris", 0.0)
    assert [c["source"] for c in first.metadata["citations"]] == [0]
    assert first.metadata["claims"][0]["verdict"] == "supported"
    assert "Rome" in first.explanation
