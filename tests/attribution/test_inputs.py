"""Entering encoders behind their embeddings module, whatever its architecture calls things."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amplify.attribution.inputs import embeddings_module, inputs_of, score_from
from amplify.proxies import train_proxy
from amplify.tasks import Task
from amplify.types import Example

LABELS = ("negative", "positive")
TASK = Task(
    name="t",
    instruction="Which?",
    train=(Example(id="0", text="bad phone", label="negative"), Example(id="1", text="good", label="positive")),
    validation=(),
    test=(Example(id="2", text="great", label="positive"),),
    labels=LABELS,
)
SIZES = {
    "initializer_range": 0.5,
    "hidden_size": 16,
    "embedding_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 80,
    "dim": 16,
    "hidden_dim": 20,
    "n_layers": 2,
    "n_heads": 2,
}


@pytest.fixture(scope="module")
def encoder(tiny_encoder, tmp_path_factory):
    return train_proxy(TASK, tiny_encoder, epochs=1, out=tmp_path_factory.mktemp("p"), progress=False)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert", "mpnet", "deberta-v2"])
def test_the_inputs_are_the_first_hidden_states(encoder, kind):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(kind, vocab_size=len(encoder.tokenizer), num_labels=2, pad_token_id=0, **SIZES)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    proxy = replace(encoder, module=model)
    rows = [row for e in TASK.train for row in proxy.rows(e)]
    if kind in ("roberta", "distilbert", "mpnet"):
        rows = [replace(row, types=()) for row in rows]
    words, mask, types = proxy.embed(rows)
    inputs = inputs_of(proxy, rows, words, mask, types)
    extra = {"token_type_ids": types} if rows[0].types else {}
    whole = model(inputs_embeds=words, attention_mask=mask, output_hidden_states=True, **extra)
    width = inputs.shape[-1]
    if whole.hidden_states[0].shape[-1] == width:  # ALBERT and ELECTRA widen what their embeddings module gives
        torch.testing.assert_close(inputs, whole.hidden_states[0], rtol=0, atol=0)
    torch.testing.assert_close(score_from(proxy, rows, inputs, words, mask, types), whole.logits, rtol=0, atol=1e-6)
    moved = score_from(proxy, rows, inputs + torch.randn_like(inputs), words, mask, types)
    assert not torch.allclose(moved, whole.logits, atol=1e-4)
    assert not embeddings_module(model)._forward_hooks  # nothing is left behind


def test_a_language_model_is_entered_at_its_word_embeddings(tiny_lm):
    proxy = train_proxy(TASK, tiny_lm, epochs=0)
    rows = proxy.rows(TASK.train[0])
    words, mask, types = proxy.embed(rows)
    assert embeddings_module(proxy.module) is None
    torch.testing.assert_close(inputs_of(proxy, rows, words, mask, types), words, rtol=0, atol=0)
