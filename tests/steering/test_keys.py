"""SEKA: edited keys against a model whose key layers are replaced, and projections against their definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from steering_reference import edited_reference
from transformers import AutoModelForCausalLM

from amplify import Sampling, Steering, load_model, parse_emphasis, steered
from amplify.cli import cli
from amplify.errors import DataError, InputError
from amplify.head_search.search import HeadSearch, find_heads
from amplify.models import chat
from amplify.steering.keys import (
    Projections,
    Triple,
    edited_keys,
    find_projections,
    load_projections,
    save_profile,
    triples,
)
from amplify.tasks import load_task

TOLERANCE = 1e-4
PROMPTS = [
    parse_emphasis("Great phone, **terrible battery**. The answer is"),
    parse_emphasis("Great phone, terrible **battery**. The answer is"),
    parse_emphasis("Great phone, terrible battery. The answer is"),
    parse_emphasis("**Paris** is the capital of **France**. The answer is", raw=True),
]


@pytest.fixture(scope="module")
def model(tiny_lm):
    with load_model(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=16) as opened:
        yield opened


@pytest.fixture(scope="module")
def profile(model, tmp_path_factory):
    return save_profile(model, tmp_path_factory.mktemp("keys") / "mine.yaml", layers=2, least=0.0, samples=12)


def laid(tokenizer, prompt, continuation=""):
    """Token ids, places of emphasised tokens found one by one, and where the continuation starts."""
    rendered = chat.render(prompt, tokenizer)
    encoded = chat.tokenise(tokenizer, [chat.Rendered(rendered.text + continuation, rendered.chat)])[0]
    marked = {c for span in rendered.emphasis for c in range(span.start, span.end)}
    places = [i for i, (a, b) in enumerate(encoded.offsets) if marked & set(range(a, b))]
    start = next((i for i, (_, b) in enumerate(encoded.offsets) if b > len(rendered.text)), len(encoded.ids))
    return list(encoded.ids), places, start


STRENGTHS = [{}, {"positive_gain": 3.0, "negative_gain": -1.0}, {"rotation": 5, "positive_gain": 4.0}]


@pytest.mark.parametrize("strength", STRENGTHS, ids=["own", "strong", "random"])
def test_scores_match_the_reference(model, profile, tiny_lm, strength):
    steering = replace(profile, **strength)
    prompts = [p for p in PROMPTS for _ in range(2)]
    continuations = [" positive", " negative. Paris"] * len(PROMPTS)
    found = model.score(prompts, continuations, steering=steering)
    plain = model.score(prompts, continuations)
    for i, (prompt, target) in enumerate(zip(prompts, continuations, strict=True)):
        ids, places, start = laid(model.tokenizer, prompt, target)
        expected = edited_reference(tiny_lm, ids, places, steering)
        for k, value in enumerate(found[i].logprobs, start=start):
            assert value == pytest.approx(expected[k - 1, ids[k]].item(), abs=TOLERANCE)
        assert (found[i] == plain[i]) == (not places)


def test_greedy_text_matches_the_reference(model, profile, tiny_lm):
    steering = replace(profile, positive_gain=3.0)
    for prompt, got in zip(PROMPTS, model.generate(PROMPTS, Sampling(max_tokens=6), steering=steering), strict=True):
        ids, places, start = laid(model.tokenizer, prompt)
        for _ in range(got.completion_tokens):
            ids.append(int(edited_reference(tiny_lm, ids, places, steering)[-1].argmax()))
        written = model.tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert got.text == written.rstrip("\ufffd")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_of_ones_own(profile, model, tiny_lm, attention):
    own = AutoModelForCausalLM.from_pretrained(tiny_lm, attn_implementation=attention, dtype=torch.float32).eval()
    steering = replace(profile, positive_gain=3.0)
    with steered(own, model.tokenizer, PROMPTS, steering) as inputs, torch.inference_mode():
        logits = own(**inputs).logits[:, -1].log_softmax(-1)
        written = own.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
        beams = own.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0)
    for row, prompt in enumerate(PROMPTS):
        ids, places, _ = laid(model.tokenizer, prompt)
        assert logits[row].tolist() == pytest.approx(
            edited_reference(tiny_lm, ids, places, steering)[-1].tolist(), abs=TOLERANCE
        )
        new = written[row, inputs["input_ids"].shape[1] :].tolist()
        for token in new:
            if token == 0:
                break
            assert token == int(edited_reference(tiny_lm, ids, places, steering)[-1].argmax())
            ids.append(token)
    assert beams.shape[0] == len(PROMPTS)
    again = own(**inputs).logits[:, -1].log_softmax(-1)
    assert not torch.allclose(again, logits, atol=1e-3)  # nothing of it is left
    assert not any(module._forward_hooks for module in own.modules())


def test_projections_are_what_the_paper_says(model):
    given = triples(6, seed=3)
    found, about = find_projections(model, given, layers=2, mass=0.8, least=0.0)
    keys: dict[str, list] = {"": [], "about": [], "other": []}
    layer = model.module.model.layers[1].self_attn.k_proj
    for each in given:
        for kind, question in (("", None), ("about", each.about), ("other", each.other)):
            begun = "Context: " if question is None else f"Question: {question}\nContext: "
            text = begun + each.context
            encoded = model.tokenizer(text, return_offsets_mapping=True)
            a = len(begun) + each.context.rindex(each.answer)
            inside = [
                i
                for i, (x, y) in enumerate(encoded["offset_mapping"])
                if set(range(x, y)) & set(range(a, a + len(each.answer)))
            ]
            seen = []
            handle = layer.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
            with torch.inference_mode():
                model.module(torch.tensor([encoded["input_ids"]]))
            handle.remove()
            keys[kind] += seen[0][0, inside].double().tolist()
    h, with_about, with_other = (np.array(keys[k]).reshape(len(keys[k]), 2, 8) for k in ("", "about", "other"))
    assert about["tokens"] == len(h)
    for head in range(2):
        for crossed, got, first in ((with_about, found.positive, True), (with_other, found.negative, False)):
            u, s, _ = np.linalg.svd(h[:, head].T @ crossed[:, head] / len(h))
            rank = next(r for r in range(1, 9) if s[:r].sum() >= 0.8 * s.sum())
            kept = u[:, :rank] if first else u[:, rank:]
            assert got[1][head] == pytest.approx(kept @ kept.T, abs=1e-4)
    far = np.linalg.norm(with_about - with_other, axis=-1).mean(0)
    only, _ = find_projections(model, given, layers=2, mass=0.8, least=float(far.mean()))
    assert [bool(only.positive[1][head].any()) for head in range(2)] == (far >= far.mean()).tolist()


def test_the_control_has_the_same_ranks(profile):
    found = load_projections(profile.projections)
    turned = found.rotated(3)
    for layer, matrices in found.positive.items():
        for head, matrix in enumerate(matrices):
            other = turned.positive[layer][head]
            assert np.linalg.matrix_rank(matrix, tol=1e-3) == np.linalg.matrix_rank(other, tol=1e-3)
            assert other @ other == pytest.approx(other, abs=1e-5)  # a projection
            assert not np.allclose(matrix, other, atol=1e-2)
    again = found.rotated(3).positive
    assert all((again[i] == m).all() for i, m in turned.positive.items())


def test_command_and_profile(model, tiny_lm, tmp_path: Path):
    out = tmp_path / "mine.yaml"
    arguments = ["projections", "-m", f"transformers:{tiny_lm}", "-B", "dtype=float32", "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--samples", "4", "--layers", "1", "--least", "0"])
    assert done.exit_code == 0, done.output
    assert "2 key heads" in done.output
    loaded = Steering.load(out)
    assert loaded.mode == "seka"
    assert "projections: mine.safetensors" in out.read_text()
    assert Steering.from_json(loaded.to_json()) == loaded
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (out, out.with_suffix(".safetensors")):
        file.rename(moved / file.name)
    assert model.generate(PROMPTS, Sampling(max_tokens=1), steering=Steering.load(moved / "mine.yaml"))


def test_method_and_its_control(model, profile, tmp_path: Path):
    from amplify.methods import make

    task = load_task("json_formatting")
    path = Path(profile.projections).with_suffix(".yaml")
    own, control = (make(name, profile=str(path)) for name in ("seka", "seka_random"))
    assert own.fit(task, model, 0).steering == replace(profile)
    assert control.fit(task, model, 7).steering.rotation == 7
    assert control.role == "control"
    with pytest.raises(InputError, match="amplify projections"):
        make("seka").fit(task, model, 0)


def test_what_cannot_be_is_refused(model, profile, tmp_path: Path):
    with pytest.raises(InputError, match="amplify projections"):
        Steering(mode="seka")
    with pytest.raises(InputError, match="heads"):
        replace(profile, heads={0: (0,)})
    with pytest.raises(InputError, match="positive_gain"):
        replace(profile, positive_gain=float("nan"))
    with pytest.raises(InputError, match="belong to mode 'seka'"):
        Steering(mode="instaboost", projections="x.safetensors")
    with pytest.raises(InputError, match="has no factors"):
        model.score([parse_emphasis("<em weight=7>Great</em> phone")], [" x"], steering=profile)
    with pytest.raises(DataError, match="no key projections"):
        model.score(PROMPTS, [" x"] * 4, steering=replace(profile, projections=str(tmp_path / "nothing.safetensors")))
    other = tmp_path / "other.safetensors"
    wrong = {0: np.zeros((2, 4, 4), np.float32)}
    Projections(wrong, wrong).save(other)
    with pytest.raises(InputError, match="projections are for other keys"):
        model.score(PROMPTS, [" x"] * 4, steering=replace(profile, projections=str(other)))
    with pytest.raises(InputError, match="does not hold"):
        find_projections(model, [Triple("Ada lives in Oslo.", "Lima", "Where?", "Who?")])
    with pytest.raises(InputError, match="moves by"):
        find_projections(model, triples(2), least=1e6)
    with pytest.raises(InputError, match="steers no heads"):
        find_heads([load_task("json_formatting")], model, HeadSearch(samples=1), steering=profile)


def _own_model(kind):
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**shape, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    config = Qwen3Config(
        **shape, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.4, attn_implementation="eager",
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def test_keys_are_edited_behind_their_norm_where_they_have_one(tmp_path: Path):
    draw = np.random.default_rng(0)
    matrices = {1: draw.standard_normal((2, 16, 16)).astype(np.float32)}
    Projections(matrices, {1: np.zeros_like(matrices[1])}).save(tmp_path / "p.safetensors")
    steering = Steering(mode="seka", projections=str(tmp_path / "p.safetensors"), positive_gain=2.0)
    ids, marks = torch.tensor([[5, 9, 11, 3, 8]]), torch.tensor([[0.0, 1, 1, 0, 0]])
    model, plain = _own_model("qwen3"), _own_model("qwen3")
    with edited_keys(model, steering, marks), torch.inference_mode():
        found = model(ids).logits
    norm = plain.model.layers[1].self_attn.k_norm
    stock = norm.forward

    def edited(x):
        keys = stock(x).clone()  # [rows, tokens, key heads, head size]
        for place in (1, 2):
            for head in range(2):
                keys[0, place, head] += torch.from_numpy(matrices[1][head]) @ keys[0, place, head]
        return keys

    untouched = plain(ids).logits
    norm.forward = edited
    with torch.inference_mode():
        expected = plain(ids).logits
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=TOLERANCE)
    assert not torch.allclose(expected, untouched, atol=1e-3)


def test_an_architecture_without_key_layers_is_refused(tmp_path: Path):
    matrices = {0: np.eye(8, dtype=np.float32)[None].repeat(2, 0)}
    Projections(matrices, matrices).save(tmp_path / "p.safetensors")
    steering = Steering(mode="seka", projections=str(tmp_path / "p.safetensors"))
    with (
        pytest.raises(InputError, match="does not compute its keys by a layer of their own"),
        edited_keys(_own_model("gpt2"), steering, torch.ones(1, 3)),
    ):
        pass
