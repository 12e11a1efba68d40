"""What every variant of Self-AMPLIFY does, and its controls."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from self_amplify_fakes import SMALL, logprob, reply

import amplify
from amplify.errors import CapabilityError, ContextLengthError, InputError
from amplify.methods import METHODS, Program, make
from amplify.methods.self_attribution import citable
from amplify.models.base import LanguageModel
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.tasks import Task

WORDS = ("topk", "shap", "lime", "occlusion")
STEPS = ("phcot", "autocot")


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(reply=reply, logprob=logprob)


@pytest.mark.parametrize("mode", ["generate", "score"])
@pytest.mark.parametrize("name", [*WORDS, *STEPS, "no_rationale", "random_words"])
def test_answers_saves_and_reloads(sentiment: Task, model: ScriptedModel, name: str, mode: str, tmp_path: Path) -> None:
    for layout in ("chat", "text"):
        program = make(f"self_amplify_{name}", mode=mode, layout=layout, **SMALL).fit(sentiment, model, 0)
        program.save(tmp_path / "p.json")
        again = Program.load(tmp_path / "p.json")
        assert again == program
        assert json.loads((tmp_path / "p.json").read_text())["meta"]["asked"] == 20
        assert [a.value for a in again.answer(sentiment.test, model)] == [e.label for e in sentiment.test]


def test_variants_and_controls_share_their_shots(sentiment: Task, model: ScriptedModel) -> None:
    first = make("self_amplify_topk", **SMALL).fit(sentiment, model, 3)
    before = sum(re.search("The answer is$", text) is not None for text in model.texts)
    for name in ("phcot", "autocot", "shap", "no_rationale", "random_words"):
        other = make(f"self_amplify_{name}", **SMALL).fit(sentiment, model, 3)
        assert [s.example for s in other.shots] == [s.example for s in first.shots]
    generated = [c for c in model.calls if c.continuation is None and c.text.endswith("The answer is")]
    assert len(generated) == before == 20, "the model is asked for its answers once"
    words = make("self_amplify_random_words", k=2, **SMALL).fit(sentiment, model, 3)
    for shot in words.shots:
        spans = citable(sentiment, shot.example)
        assert set(shot.rationale.words) <= {shot.example.text[a:b] for a, b in spans}
    assert words.prompt("x").prefix == first.prompt("x").prefix


@pytest.mark.parametrize("name", ["topk", "phcot", "autocot", "shap", "lime"])
def test_everything_is_seeded(sentiment: Task, white: LanguageModel, name: str) -> None:
    method = make(f"self_amplify_{name}", shots=2, pool=6, max_tokens=8)
    task = replace(sentiment, validation=sentiment.validation[:6])
    first = method.fit(task, white, 5)
    model = amplify.load_model(white.id, dtype="float32")
    with model:
        assert method.fit(task, model, 5) == first


def test_refused_before_any_work(sentiment: Task, words: Task) -> None:
    model = ScriptedModel(reply=reply, max_context=250)
    with pytest.raises(ContextLengthError, match=r"self_amplify_topk.shots=\d"):
        make("self_amplify_topk", shots=20).fit(sentiment, model, 0)
    with pytest.raises(InputError, match="free-text answers"):
        make("self_amplify_phcot").fit(words, model, 0)
    with pytest.raises(InputError, match="k must be at least 1"):
        make("self_amplify_topk", k=0).fit(sentiment, model, 0)
    with pytest.raises(InputError, match="steps must be at least 1"):
        make("self_amplify_phcot", steps=0).fit(sentiment, model, 0)
    with pytest.raises(InputError, match="30 shots, but only 20"):
        make("self_amplify_topk", shots=30).fit(sentiment, ScriptedModel(reply=reply), 0)
    with pytest.raises(CapabilityError, match="kernel_shap"):
        make("self_amplify_shap", **SMALL).fit(sentiment, ScriptedGenerator(reply=reply), 0)
    with pytest.raises(CapabilityError, match="grad_x_input looks inside"):
        make("self_amplify_gradient", **SMALL).fit(sentiment, ScriptedModel(reply=reply), 0)
    assert not model.calls


def test_every_variant_is_a_method() -> None:
    variants = {"topk", "phcot", "autocot", "shap", "lime", "occlusion", "gradient", "deeplift", "shapley_sampling"}
    assert {f"self_amplify_{v}" for v in variants} <= set(METHODS)
    for name in METHODS:
        if name.startswith("self_amplify"):
            assert make(name).label == name


def test_controls_are_what_variants_are_compared_with() -> None:
    from amplify.evaluation.configuration import declare_family

    names = ["topk", "no_rationale", "random_words"]
    family = declare_family([make(f"self_amplify_{n}") for n in names])
    assert family == [["self_amplify_topk", f"self_amplify_{n}"] for n in names[1:]]


def test_a_dry_run_knows_what_it_takes(sentiment: Task, model: ScriptedModel) -> None:
    from amplify.evaluation import plan

    names = ["topk", "phcot", "shap", "gradient", "no_rationale", "random_words"]
    rows = plan(sentiment, None, [f"self_amplify_{n}" for n in names], seeds=(0,)).rows
    asked = [row.fit_calls for row in rows]
    assert asked == [28, 28, 20 + 8 * 128, 20, 20, 20]
    assert all(row.calls == 6 for row in rows)
    bare, words = rows[4], rows[5]
    assert bare.prompt_tokens < words.prompt_tokens == rows[0].prompt_tokens < rows[1].prompt_tokens
    make("self_amplify_topk").fit(sentiment, model, 0)
    assert len(model.calls) == 28


@pytest.mark.real
def test_on_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    task = amplify.load_task("support_tickets")
    with amplify.load_model(f"transformers:{smollm2}", dtype="float32") as model:
        for name in ("topk", "phcot", "shap"):
            few = {"budget": 64} if name == "shap" else {}
            program = make(f"self_amplify_{name}", mode="score", shots=2, pool=6, **few).fit(task, model, 0)
            program.save(tmp_path / "program.json")
            answers = Program.load(tmp_path / "program.json").answer(task.test[:4], model)
            assert [a.value for a in answers] == [max(a.scores, key=a.scores.__getitem__) for a in answers]
            assert all(set(a.scores) == set(task.labels) and a.rationale for a in answers)
            shots = [shot for shot in program.shots if shot.rationale]
            assert shots  # one whose words the model made up is shown without
            for shot in shots:
                assert shot.rationale.text
                if name != "phcot":
                    assert shot.rationale.words
                    assert all(re.search(rf"\b{re.escape(w)}\b", shot.example.text) for w in shot.rationale.words)
