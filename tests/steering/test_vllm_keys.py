"""SEKA inside real vLLM engines (float32) against a model in transformers whose key layers are replaced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from steering_reference import edited_reference

from amplify import Prompt, Sampling, Steering, load_model, parse_emphasis
from amplify.errors import InputError
from amplify.models.chat import encode_with_target, render
from amplify.steering.formula import token_spans
from amplify.steering.keys import Projections

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(600)]

TOLERANCE = 1e-4
HEADS, SIZE = 3, 64  # of SmolLM2's keys
SHARED = "Previously Africa was colder, and Mary lives there with her two dogs. " * 8
PROMPTS = [
    parse_emphasis(SHARED + "The penguins live in **Antarctica**. They live in", raw=True),
    parse_emphasis(SHARED + "The **penguins** live in **Africa**. They live in", raw=True),
    Prompt(text=SHARED + "The penguins live in Africa. They live in"),
    parse_emphasis("What is the capital of France? **Answer in JSON only.**"),
]
TARGETS = [" Antarctica", " the cold of Antarctica", " Antarctica", '{"capital": "Paris"}']


def random_projections(path, layers, heads, size):
    """Projections of random ranks on random directions; the last key head is left alone."""
    draw = np.random.default_rng(3)
    made = ({}, {})
    for layer in layers:
        for out in made:
            turned = np.linalg.qr(draw.standard_normal((heads, size, size)))[0][:, :, : size // 4]
            out[layer] = (turned @ turned.transpose(0, 2, 1)).astype(np.float32)
            out[layer][-1] = 0
    Projections(*made).save(path)
    return Steering(mode="seka", projections=str(path), positive_gain=3.0, negative_gain=-1.0)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return random_projections(tmp_path_factory.mktemp("keys") / "p.safetensors", (4, 12, 29), HEADS, SIZE)


@pytest.fixture(scope="module")
def model(smollm2, profile):
    with load_model(
        f"vllm:{smollm2}", steering=profile, dtype="float32", enforce_eager=True, max_model_len=512,
        max_num_batched_tokens=64, max_num_seqs=8, block_size=32, num_gpu_blocks_override=26, seed=0,
    ) as opened:  # fmt: skip
        yield opened


def expected(folder, tokenizer, prompt, target, steering):
    """Log-probabilities of a target's tokens, from one pass of the reference."""
    rendered = render(prompt, tokenizer)
    ids, start = encode_with_target(tokenizer, rendered, target)
    offsets = tokenizer(rendered.text + target, return_offsets_mapping=True, add_special_tokens=not rendered.chat)
    spans = token_spans(offsets["offset_mapping"], rendered.emphasis, steering, rendered.text)
    assert offsets["input_ids"] == list(ids)
    rows = edited_reference(folder, list(ids), [i for s in spans for i in range(s.start, s.end)], steering)
    return [rows[k - 1, ids[k]].item() for k in range(start, len(ids))]


def agree(model, folder, prompts, targets, steering):
    for _ in range(2):  # cold, then from the prefix cache
        found = model.score(prompts, targets, steering=steering)
        for got, prompt, target in zip(found, prompts, targets, strict=True):
            assert got.logprobs == pytest.approx(
                expected(folder, model.tokenizer, prompt, target, steering), abs=TOLERANCE
            )
    return found


def test_a_mixed_batch_is_exact_in_chunks_and_from_the_prefix_cache(model, smollm2, profile):
    plain = model.score(PROMPTS, TARGETS)
    for steering in (profile, replace(profile, positive_gain=-0.5)):
        found = agree(model, smollm2, PROMPTS, TARGETS, steering)
        moved = [abs(a.total - b.total) > 1e-3 for a, b in zip(found, plain, strict=True)]
        assert moved == [True, True, False, True]
    assert [s.logprobs for s in model.score(PROMPTS, TARGETS)] == [s.logprobs for s in plain]


def test_written_text_is_that_of_transformers(model, smollm2, profile):
    sampling = Sampling(max_tokens=24)
    texts = [c.text for c in model.generate(PROMPTS, sampling, steering=profile)]
    with load_model(f"transformers:{smollm2}", dtype="float32") as other:
        assert texts == [c.text for c in other.generate(PROMPTS, sampling, steering=profile)]
    assert texts != [c.text for c in model.generate(PROMPTS, sampling)]


def test_what_is_refused(model, smollm2, profile, tmp_path):
    other = random_projections(tmp_path / "other.safetensors", (5,), HEADS, SIZE)
    for steering in (other, replace(profile, rotation=1)):
        with pytest.raises(InputError, match="by other projections"):
            model.score(PROMPTS[:1], TARGETS[:1], steering=steering)
    with pytest.raises(InputError, match="other layers than 3"):
        model.score(PROMPTS[:1], TARGETS[:1], steering=Steering(heads={3: [0]}))
    with pytest.raises(InputError, match="are for other keys"):
        load_model(f"vllm:{smollm2}", steering=random_projections(tmp_path / "wide.safetensors", (5,), 2, SIZE))


def test_a_compiled_engine_whose_keys_have_a_norm_is_exact(tmp_path, tiny_lm):
    """Qwen3 of random weights; heads as wide as its stock engine's, and plain requests bit for bit those of it."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path / "qwen3"
    Qwen3ForCausalLM(shape).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    steering = random_projections(tmp_path / "p.safetensors", (0, 2), 2, 64)
    options = {"dtype": "float32", "max_model_len": 512, "seed": 0}
    with load_model(f"vllm:{folder}", steering=steering, **options) as compiled:
        agree(compiled, folder, PROMPTS, TARGETS, steering)
        plain = [s.logprobs for s in compiled.score(PROMPTS, TARGETS)]
    with load_model(f"transformers:{folder}", dtype="float32") as other:
        for mine, theirs in zip(plain, other.score(PROMPTS, TARGETS), strict=True):
            assert mine == pytest.approx(theirs.logprobs, abs=TOLERANCE)
