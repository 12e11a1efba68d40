"""Margins of head sets against plain steered scoring."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from profiling_samples import item

from amplify.errors import InputError
from amplify.head_search.margins import Item, Margins, by_layer, heads_of
from amplify.head_search.search import PLAIN
from amplify.models import load_model
from amplify.models.scripted import ScriptedModel
from amplify.steering import Steering
from amplify.types import Prompt


def plain_margins(model, one, steering, sets):
    """One steered scoring after the other, as any scorer does it."""
    return Margins(SimpleNamespace(score=model.score), [one], steering)(0, sets)


@contextmanager
def counting(layer):
    """A list with one entry for each time the layer runs."""
    runs = []
    hook = layer.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    hook.remove()


@pytest.mark.parametrize("alpha", [0.01, 0.5])
@pytest.mark.parametrize(
    "options",
    [{}, {"exempt_generated": True}, {"keep_attention_sink": True}, {"mode": "instaboost"}, {"phase": "decode"}],
)
def test_packed_margins_equal_steered_scoring(tiny_lm, alpha, options):
    """The shortcuts (common prefix, shared trunk, skipped layers, head sets as rows) change round-off only: 1e-4."""
    model = load_model(f"transformers:{tiny_lm}", dtype="float32")
    sets = [PLAIN, *(frozenset({(layer, head)}) for layer in range(3) for head in range(4))]
    sets += [frozenset({(0, 0), (2, 3)}), frozenset({(1, 1), (1, 2), (2, 0)})]
    steering = Steering(heads={0: (0,)}, alpha=alpha, **options)
    for one in (item(), item((0, 15)), item((39, 67), foil=""), item(gold=" good", foil=" good, bad", whole=True)):
        measure = Margins(model, [one], steering)
        assert measure(0, sets) == pytest.approx(plain_margins(model, one, steering, sets), abs=1e-4)
        with counting(model.module.model.layers[0]) as runs:
            measure(0, [frozenset({(2, 1)})])
        assert runs == []  # what stands below the lowest head is not computed again
    if steering.phase == "both":  # and the heads do differ
        assert len({round(m, 3) for m in Margins(model, [item()], steering)(0, sets)}) > 8
    model.close()


def test_margins_of_other_architectures(tmp_path, tiny_lm):
    """GPT-2 keeps its layers under another name: nothing is skipped, and the numbers are right all the same."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.4
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(f"transformers:{tmp_path}", dtype="float32")
    steering = Steering(heads={0: (0,)})
    sets = [PLAIN, frozenset({(0, 1)}), frozenset({(1, 3), (0, 0)})]
    margins = Margins(model, [item()], steering)(0, sets)
    assert margins == pytest.approx(plain_margins(model, item(), steering, sets), abs=1e-4)


def test_only_first_tokens_count(tiny_lm):
    model = load_model(f"transformers:{tiny_lm}", dtype="float32")
    steering = Steering(heads={0: (0,)})
    long = item(gold=" positive, great phone, great", foil="")
    one = Margins(model, [long], steering, target_tokens=1)(0, [frozenset({(1, 1)})])[0]
    first = model.score([long.prompt], [long.gold], steering=replace(steering, heads={1: (1,)}))[0].logprobs[0]
    assert one == pytest.approx(first, abs=1e-4)


def test_margins_refuse_items_without_emphasis():
    with pytest.raises(InputError, match="emphasises nothing"):
        Margins(ScriptedModel("echo"), [Item("x", Prompt(text="a"), " b")], Steering(heads={0: (0,)}))
    assert heads_of(by_layer(frozenset({(1, 2), (0, 3)}))) == {(1, 2), (0, 3)}
