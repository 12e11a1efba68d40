"""Attention rollout and flow against the definition, brute force and networkx; attention against eager transformers."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.attribution import explain
from amplify.attribution.attention import flow, raw, rollout
from amplify.models import load_model
from amplify.types import Prompt


def layers(depth=3, n=5, seed=0, causal=False):
    weights = np.random.default_rng(seed).random((depth, n, n))
    if causal:
        weights = np.tril(weights)
    return weights / weights.sum(2, keepdims=True)


def test_rollout_is_the_sum_over_all_paths():
    from itertools import product

    a = layers()
    step = (a + np.eye(5)) / 2
    want = np.zeros(5)
    for path in product(range(5), repeat=3):  # tokens below each layer, the input last
        top = 2
        weight = 1.0
        for layer, below in zip(step[::-1], path, strict=True):
            weight *= layer[top, below]
            top = below
        want[path[-1]] += weight
    np.testing.assert_allclose(rollout(a, [2]), want, atol=1e-12)
    assert rollout(a, [0, 1]).sum() == pytest.approx(1)


@pytest.mark.parametrize("causal", [False, True])
def test_flow_equals_networkx(causal):
    nx = pytest.importorskip("networkx")
    a = layers(seed=1, causal=causal)
    graph = nx.DiGraph()
    for level, layer in enumerate((a + np.eye(5)) / 2):
        for i in range(5):
            for j in range(5):
                graph.add_edge((level + 1, i), (level, j), capacity=layer[i, j])
    want = [nx.maximum_flow_value(graph, (3, 4), (0, j)) for j in range(5)]
    # capacities are rounded down to 1e-7
    np.testing.assert_allclose(flow(a, [4]), want, atol=1e-5)


def test_raw_is_the_last_layer():
    a = layers()
    np.testing.assert_allclose(raw(a, [1, 3]), (a[-1, 1] + a[-1, 3]) / 2)


def test_attention_of_a_language_model(tiny_lm):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text, target = "Great phone, terrible battery.", " The answer"
    model = load_model(f"transformers:{tiny_lm}", dtype="float32")
    found = explain(text, target, foil=" positive", model=model, method="raw_attention")
    assert found.foil is None
    assert model.module.config._attn_implementation == "sdpa"
    module = AutoModelForCausalLM.from_pretrained(tiny_lm, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    batch = tokenizer(text + target, return_offsets_mapping=True)
    with torch.inference_mode():
        weights = module(torch.tensor([batch["input_ids"]]), output_attentions=True).attentions[-1][0].mean(0)
    starts = [i for i, (_, end) in enumerate(batch["offset_mapping"]) if end > len(text)]
    row = weights[starts[0] - 1 : starts[-1]].mean(0).numpy()
    for (a, b), score in zip(found.spans, found.scores, strict=True):
        tokens = [i for i, (s, e) in enumerate(batch["offset_mapping"]) if s < b and e > a and e <= len(text)]
        assert score == pytest.approx(row[tokens].sum(), abs=1e-5)
    after = explain(Prompt(text=text), target, model=model, method="occlusion")  # sdpa again: trees still work
    assert np.isfinite(after.scores).all()


def test_flow_through_weights_that_are_not_finite_is_not_finite():
    layers = np.full((2, 3, 3), np.nan)
    assert np.isnan(flow(layers, [2])).all()  # which `explain` refuses, saying where
