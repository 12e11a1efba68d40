"""DSPy, the real one: amplify models answer its modules, and programs go there and come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import amplify
from amplify.errors import CapabilityError, InputError
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.program import ShotProgram
from amplify.models.scripted import ScriptedModel

pytest.importorskip("dspy")

import dspy

from amplify.bridges.dspy import AmplifyEngine, ProgramModule, dspy_lm, from_predict, to_predict

FIELDS = "[[ ## answer ## ]]\nno\n\n[[ ## completed ## ]]"


@pytest.fixture(scope="module")
def task() -> Any:
    return amplify.load_task("coin_flip", limit=5)


@pytest.fixture(scope="module")
def program(task: Any) -> ShotProgram:
    fitted = make("few_shot", shots=3).fit(task, ScriptedModel(), 0)
    assert isinstance(fitted, ShotProgram)
    return fitted


def test_a_model_answers_a_predictor() -> None:
    model = ScriptedModel(reply=lambda text: FIELDS)
    lm = dspy_lm(model, cache=False, max_tokens=50)
    with dspy.context(lm=lm):
        found = dspy.Predict("question -> answer")(question="Does it show heads?")
    assert found.answer == "no"
    assert "Does it show heads?" in model.texts[0]
    assert [m.role for m in model.calls[0].prompt.messages] == ["system", "user"]
    assert lm.history[0]["usage"]["prompt_tokens"] == model.usage.prompt_tokens


def test_settings_reach_the_model(tiny_lm: Path) -> None:
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32", device="cpu") as model:
        turns = (amplify.Message("user", "Paris is"),)
        way = amplify.Sampling(max_tokens=5, temperature=0.7, seed=3)
        wanted = model.generate([amplify.Prompt(messages=turns)], way)[0].text
        lm = dspy_lm(model, cache=False, max_tokens=5, temperature=0.7, seed=3)
        assert lm("Paris is") == [wanted]
        steering = amplify.Steering(heads={0: [0, 1], 1: [2]}, alpha=0.01)
        steered = dspy_lm(model, steering=steering, cache=False, max_tokens=8)("**Paris** is")
        prompt = amplify.parse_emphasis("**Paris** is")
        assert steered == [model.generate([prompt], amplify.Sampling(max_tokens=8), steering=steering)[0].text]


def test_what_a_model_does_not_take_is_refused() -> None:
    from dspy import lm15

    engine = AmplifyEngine("scripted:echo")
    request = lm15.Request(model="x", messages=(lm15.Message.user("hello"),), config=lm15.Config(top_k=3))
    with pytest.raises(CapabilityError, match="top_k"):
        engine.complete(request)


def test_a_saved_module_finds_its_model_again(tmp_path: Path) -> None:
    lm = dspy_lm("scripted:say=Rome", cache=False)
    predict = dspy.Predict("question -> answer")
    predict.lm = lm
    state = AmplifyEngine.load_state(lm.engine.dump_state())
    assert state.model.id == "scripted:say=Rome"
    assert state.steering is None


def test_a_program_is_a_module(task: Any, program: ShotProgram, tmp_path: Path) -> None:
    model = ScriptedModel("last_answer")
    module = ProgramModule(program, model)
    wanted = program.answer(task.test, ScriptedModel("last_answer"))
    assert [module(text=e.text).answer for e in task.test] == [a.value for a in wanted]
    module.save(str(tmp_path / "module.json"))
    other = ProgramModule(replace(program, shots=()), model)
    other.load(str(tmp_path / "module.json"))
    assert other.program == program
    with dspy.context(lm=dspy_lm("scripted:echo", cache=False)):
        score = dspy.Evaluate(
            devset=[dspy.Example(text=e.text, answer=e.label).with_inputs("text") for e in task.test],
            metric=lambda gold, found, trace=None: gold.answer == found.answer,
        )(module)
    right = sum(a.value == e.label for a, e in zip(wanted, task.test, strict=True))
    assert score.score == pytest.approx(100 * right / len(task.test))


def test_a_program_goes_there_and_comes_back(task: Any, program: ShotProgram) -> None:
    predict = to_predict(program)
    assert predict.signature.instructions == task.instruction
    assert [d.answer for d in predict.demos] == [s.example.label for s in program.shots]
    back = from_predict(predict, program)
    examples = task.test
    assert [back.prompt(e) for e in examples] == [program.prompt(e) for e in examples]
    predict.demos = predict.demos[:1]
    predict.signature = predict.signature.with_instructions("Say whether it shows heads.")
    optimised = from_predict(predict, program)
    assert len(optimised.shots) == 1
    assert "Say whether it shows heads." in optimised.prompt(examples[0]).messages[0].content
    assert Program.of(optimised.tagged()) == optimised


def test_an_optimiser_of_dspy_finds_shots_that_amplify_deploys(task: Any, program: ShotProgram) -> None:
    trainset = [dspy.Example(text=e.text, answer=e.label).with_inputs("text") for e in task.train[:8]]
    model = ScriptedModel(reply=lambda text: FIELDS)
    with dspy.context(lm=dspy_lm(model, cache=False)):
        chosen = dspy.LabeledFewShot(k=4).compile(to_predict(replace(program, shots=())), trainset=trainset)
    found = from_predict(chosen, program)
    assert {s.example.text for s in found.shots} <= {e.text for e in task.train[:8]}
    assert len(found.shots) == 4
    assert all(s.example.label in task.labels for s in found.shots)


def test_rationales_are_reasoning(task: Any) -> None:
    program = make("few_shot", shots=1).fit(task, ScriptedModel(), 0)
    assert isinstance(program, ShotProgram)
    shot = replace(program.shots[0], rationale=amplify.Rationale("It was flipped twice.", kind="steps"))
    reasoned = replace(program, form=replace(program.form, reasons=True), shots=(shot,))
    predict = to_predict(reasoned)
    assert list(predict.signature.output_fields) == ["reasoning", "answer"]
    assert from_predict(predict, reasoned).shots[0].rationale.text == "It was flipped twice."  # type: ignore[union-attr]


def test_what_cannot_go_is_refused(program: ShotProgram) -> None:
    predict = to_predict(program)
    predict.demos = [dspy.Example(text="A coin.", answer="perhaps")]
    with pytest.raises(InputError, match="demo 0"):
        from_predict(predict, program)
    with pytest.raises(InputError, match="their own choices"):
        to_predict(replace(program, form=replace(program.form, kind="choices", labels=())))
    with pytest.raises(InputError, match="ProgramModule"):
        to_predict(make("few_shot_knn").fit(amplify.load_task("coin_flip"), ScriptedModel(), 0))
