"""Lookback ratios against attention that is computed eagerly over the whole sequence in float32."""

from __future__ import annotations

import numpy as np
import pytest

import amplify
from amplify.errors import InputError
from amplify.models import load_model
from amplify.models.chat import render
from amplify.models.scripted import ScriptedModel
from amplify.sources.lookback import lookback

DOCUMENTS = ["The warranty is two years.", "Shipping is free.", "It opened in 1931. Cats sleep."]
QUESTION = "How long is the warranty?"
ANSWER = "The warranty is two years. Shipping is free of charge and takes about three days in most of the cases."


@pytest.fixture(scope="module")
def local(tiny_lm):  # type: ignore[no-untyped-def]
    with load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        yield model


def by_hand(model, result, sink: bool):  # type: ignore[no-untyped-def]
    """[tokens, layers, heads] from the whole attention matrix, token by token."""
    import torch

    text = render(result.prompt, model.tokenizer).text
    encoded = model.tokenizer(text + result.answer, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    start = next(k for k, (_, end) in enumerate(offsets) if end > len(text))
    own = [any(a < text.index(d) + len(d) and text.index(d) < b for d in DOCUMENTS) for a, b in offsets[:start]]
    last = max(k for k, inside in enumerate(own) if inside)
    context = list(range(last + 1)) if sink else [k for k, inside in enumerate(own) if inside]
    model.module.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = model.module(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    model.module.set_attn_implementation("sdpa")
    found = []
    for token in range(start, len(ids)):
        query = token - 1
        here = []
        for layer in layers:
            weights = layer[0, :, query].double().numpy()
            looked, elsewhere = weights[:, context].mean(1), weights[:, last + 1 : query + 1].mean(1)
            here.append(looked / (looked + elsewhere))
        found.append(here)
    return np.array(found), [text_end - len(text) for _, text_end in offsets[start:]]


@pytest.mark.parametrize("sink", [False, True])
def test_ratios_are_those_of_the_whole_attention_matrix(local, sink: bool) -> None:  # type: ignore[no-untyped-def]
    result = amplify.attribute_sources(QUESTION, DOCUMENTS, local, ANSWER, budget=8, granularity="documents")
    before = local.module.config._attn_implementation
    found = lookback(result, local, sink=sink)
    assert local.module.config._attn_implementation == before
    want, ends = by_hand(local, result, sink)
    assert len(want) > 16  # more than one part of rows
    np.testing.assert_allclose(found.tokens, want, atol=1e-5)
    first = sum(end <= len("The warranty is two years.") for end in ends)
    assert found.owners == (0,) * first + (1,) * (len(ends) - first)
    np.testing.assert_allclose(found.features[0], want[:first].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.ratios, [want[:first].mean(), want[first:].mean()], atol=1e-5)
    assert ((found.tokens >= 0) & (found.tokens <= 1)).all()


def test_in_a_conversation_a_claim_without_support_and_attention_is_flagged(local) -> None:  # type: ignore[no-untyped-def]
    messages = [{"role": "user", "content": f"{DOCUMENTS[0]} {DOCUMENTS[1]}\n\n{QUESTION}"}]
    result = amplify.attribute_sources(
        None, DOCUMENTS[:2], local, ANSWER, messages=messages, budget=4, granularity="documents"
    )
    found = lookback(result, local)
    unsupported = tuple(c for c, claim in enumerate(result.claims) if claim.verdict != "supported")
    assert found.ungrounded(result, 1.1) == unsupported
    assert found.ungrounded(result, 0.0) == ()


def test_votes_have_no_text_to_look_back_from(local) -> None:  # type: ignore[no-untyped-def]
    model = ScriptedModel(reply=lambda text: "Two years")
    result = amplify.attribute_sources(QUESTION, DOCUMENTS, model, value="votes", granularity="documents")
    with pytest.raises(InputError, match="votes"):
        lookback(result, local)
