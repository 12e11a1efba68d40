"""Attention vectors: heads' outputs against eager attention, ranks against brute force, programs saved and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amplify.errors import CapabilityError, InputError
from amplify.head_search.search import HeadSearch, find_heads
from amplify.methods import make
from amplify.methods.attention_vectors import VectorProgram, cosines, head_outputs, rank
from amplify.methods.base import Program
from amplify.models.base import LanguageModel, need_local
from amplify.models.chat import render, tokenise
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Message, Prompt


def test_head_outputs_are_attention_times_values(white: LanguageModel) -> None:
    """The input of o_proj, made again from eager attention weights and the layer's own values."""
    model = need_local(white, "this test")
    prompts = [Prompt(messages=(Message("user", text),)) for text in ("one two three", "a")]
    found = head_outputs(prompts, model)
    config = model.module.config
    shared = config.num_attention_heads // config.num_key_value_heads
    model.module.set_attn_implementation("eager")
    try:
        for prompt, own in zip(prompts, found, strict=True):
            [encoded] = tokenise(model.tokenizer, [render(prompt, model.tokenizer)])
            with torch.inference_mode():
                out = model.module(
                    input_ids=torch.tensor([encoded.ids]), output_attentions=True, output_hidden_states=True
                )
                for number, layer in enumerate(model.module.get_decoder().layers):
                    values = layer.self_attn.v_proj(layer.input_layernorm(out.hidden_states[number]))[0]
                    values = values.view(len(encoded.ids), config.num_key_value_heads, -1).repeat_interleave(shared, 1)
                    wanted = torch.einsum("ht,thd->hd", out.attentions[number][0, :, -1], values)
                    np.testing.assert_allclose(own[number], wanted.numpy(), atol=1e-5)
    finally:
        model.module.set_attn_implementation("sdpa")


def test_heads_are_ranked_without_the_item_that_is_judged() -> None:
    rng = np.random.default_rng(0)
    gold = np.arange(12) % 3
    outputs = rng.normal(size=(12, 2, 3, 5))
    outputs[:, 1, 2] += 4 * np.eye(5)[gold]  # this head knows
    found = rank(outputs, gold, 3)
    assert found.order[0] == (1, 2)
    for layer in range(2):
        for head in range(3):
            right = 0
            for i in range(12):
                rest = np.arange(12) != i
                means = [outputs[rest & (gold == c), layer, head].mean(axis=0) for c in range(3)]
                own = outputs[i, layer, head]
                near = [own @ m / np.linalg.norm(own) / np.linalg.norm(m) for m in means]
                right += int(np.argmax(near) == gold[i])
            assert found.accuracy[layer, head] == pytest.approx(right / 12)
    np.testing.assert_allclose(found.means[1, 0, 0], outputs[gold == 1, 0, 0].mean(axis=0))
    assert cosines(np.array([3.0, 0.0]), np.array([[1.0, 0.0], [0.0, 2.0]])).tolist() == [1.0, 0.0]
    with pytest.raises(InputError, match="two labelled items"):
        rank(outputs, np.array([0] * 11 + [1]), 2)


@pytest.mark.parametrize("name", ["attention_vectors", "attention_vectors_random_heads"])
def test_fitted_saved_and_answering(name: str, sentiment: Task, white: LanguageModel, tmp_path: Path) -> None:
    method = make(name, mode="score", heads=3, per_label=4)
    program = method.fit(sentiment, white, 0)
    assert isinstance(program, VectorProgram)
    assert len(program.heads) == 3
    program.save(tmp_path / "program.json")
    again = Program.load(tmp_path / "program.json")
    before = white.usage.snapshot()
    answers = again.answer(sentiment.test, white)
    assert answers == program.answer(sentiment.test, white)
    spent = white.usage.since(before)
    assert spent.calls == 2 * len(answers)
    assert spent.prompt_tokens == 2 * sum(a.prompt_tokens for a in answers)
    for answer in answers:
        assert sum(np.exp(list(answer.scores.values()))) == pytest.approx(1.0)
        assert answer.rationale.startswith("heads for ")
    assert method.rehearse(sentiment, white, 0).program is not None


def test_another_model_and_tasks_without_labels_are_refused(sentiment: Task, quiz: Task, white: LanguageModel) -> None:
    with pytest.raises(CapabilityError):
        make("attention_vectors").fit(sentiment, ScriptedModel("last_answer"), 0)
    with pytest.raises(InputError, match="no fixed labels"):
        make("attention_vectors").fit(quiz, white, 0)
    program = make("attention_vectors", heads=1, per_label=2).fit(sentiment, white, 0)
    with pytest.raises(InputError, match="fit it on that model"):
        program.answer(sentiment.test, ScriptedModel("last_answer"))


def test_they_propose_heads_for_steering(sentiment: Task, white: LanguageModel) -> None:
    from dataclasses import replace

    task = replace(sentiment, emphasis="text")
    found = find_heads([task], white, HeadSearch(samples=4, search="vectors", joint_samples=2, block=2, most=4))
    assert found.rankings["sentiment"].runs == 20
    assert set(found.rankings["sentiment"].top(4)) >= {
        (layer, head) for layer, heads in (found.steering.heads or {}).items() for head in heads
    }
    assert found.steering.provenance["search"] == "vectors"
