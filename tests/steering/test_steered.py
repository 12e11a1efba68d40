"""Steering a model without a model: the same answers, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import amplify
from amplify import Prompt, Sampling, Steering, load_model, parse_emphasis
from amplify.errors import InputError

PROMPTS = [
    parse_emphasis("Great phone, **terrible battery**. The answer is"),
    parse_emphasis("Paris is the capital of **France**.", raw=True),
    parse_emphasis("Great phone, terrible battery. The answer is"),
]
STEERING = Steering(heads={0: [1], 1: [0, 3], 2: [2]}, alpha=0.01)


@pytest.fixture(scope="module")
def own(tiny_lm):
    return AutoModelForCausalLM.from_pretrained(tiny_lm).eval(), AutoTokenizer.from_pretrained(tiny_lm)


def test_it_generates_as_the_model_does(own, tiny_lm):
    module, tokenizer = own
    with amplify.steered(module, tokenizer, PROMPTS, STEERING) as inputs:
        out = module.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    with load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        expected = model.generate(PROMPTS, Sampling(max_tokens=8), steering=STEERING)
        plain = model.generate(PROMPTS, Sampling(max_tokens=8))
    decoded = tokenizer.batch_decode(out, skip_special_tokens=True)
    assert [text.rstrip("\ufffd") for text in decoded] == [e.text for e in expected]
    assert [e.text for e in expected[:2]] != [p.text for p in plain[:2]]
    assert expected[2].text == plain[2].text


def test_an_exception_leaves_nothing(own):
    model, tokenizer = own
    ids = torch.arange(1, 7)[None]
    before = model(ids).logits
    with pytest.raises(ZeroDivisionError), amplify.steered(model, tokenizer, PROMPTS, STEERING):
        raise ZeroDivisionError
    assert torch.equal(model(ids).logits, before)
    assert not model.get_decoder()._forward_pre_hooks


def test_bad_input(own):
    model, tokenizer = own
    for prompts, steering, says in (
        ([], STEERING, "at least one prompt"),
        ([Prompt(text="")], STEERING, "every prompt a token"),
        (PROMPTS, Steering(heads={99: [0]}), "layer 99"),
        (PROMPTS, Steering(heads={0: [0]}, model={"model_type": "gpt2"}), "another model"),
    ):
        with pytest.raises(InputError, match=says), amplify.steered(model, tokenizer, prompts, steering):
            pass
