"""What is remembered of prompts' beginnings: the same numbers, fewer tokens, within the bound."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tree import build

from amplify.errors import CapabilityError, InputError
from amplify.models import load_model
from amplify.models.chat import encode_with_target, render
from amplify.models.tree.forward import PackedModel
from amplify.models.tree.kv_cache import PrefixCache
from amplify.models.tree.tree import plan_tree, trie
from amplify.steering import Steering
from amplify.types import Prompt

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
CLOSE = {"rtol": 2e-6, "atol": 1e-5}  # float32: the same sums in passes cut elsewhere
ANSWERS = (" yes", " not at all")


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Iterator[Any]:
    with load_model(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=37, device="cpu") as model:
        yield model


def rounds(count: int, seed: int = 0) -> list[list[Prompt]]:
    """Prompts that hold subsets of the words in their order, and one that is the beginning of others."""
    rng = random.Random(seed)
    asked = [
        [Prompt(text="Q: which? " + " ".join(w for w in WORDS if rng.random() < 0.6) + " A:") for _ in range(5)]
        for _ in range(count)
    ]
    asked[-1].append(Prompt(text="Q: which? alpha beta"))
    return asked


def sequences(model: Any, prompts: Sequence[Prompt], answer: str) -> list[tuple[list[int], int]]:
    return [encode_with_target(model.tokenizer, render(p, model.tokenizer), answer) for p in prompts]


def forwarded(model: Any, prompts: Sequence[Prompt], answer: str, memory: PrefixCache | None) -> tuple[Any, int]:
    """Log-probabilities of all tokens, and how many were forwarded for them."""
    before = model.usage.snapshot()
    found = model.score(prompts, [answer] * len(prompts), memory=memory)
    return np.concatenate([f.logprobs for f in found]), model.usage.since(before).forwarded_tokens


def union(model: Any, asked: Sequence[tuple[Prompt, str]]) -> int:
    """Tokens of one trie of all that was asked: what a memory without bound comes to."""
    pairs = [sequences(model, [p], a)[0] for p, a in dict.fromkeys(asked)]
    tree, paths = trie([ids for ids, _ in pairs], [start for _, start in pairs])
    ends = [0] * len(tree.segments)
    for node, segment in enumerate(tree.segments):
        ends[node] = len(segment) + (ends[tree.parents[node]] if tree.parents[node] >= 0 else 0)
    own = {n for path, (_, start) in zip(paths, pairs, strict=True) for n in path if ends[n] > start}
    return len(plan_tree(tree, sorted(own)).ids)


@pytest.mark.parametrize("most", [10_000, 60, 7])
def test_the_same_numbers(model: Any, most: int) -> None:
    """Whatever fits: several rounds, the same prompts again, other answers behind them."""
    memory = PrefixCache(most)
    spent = [0, 0]
    for prompts in [*rounds(6), *rounds(2)]:
        for answer in ANSWERS:
            alone, without = forwarded(model, prompts, answer, None)
            found, tokens = forwarded(model, prompts, answer, memory)
            np.testing.assert_allclose(found, alone, **CLOSE)
            spent[0] += without
            spent[1] += tokens
            assert memory.tokens <= most
            assert without - tokens >= 0
    assert spent[0] - spent[1] == memory.recalled > 0
    held = [x.shape[2] for store in memory.stores for x in store.buffers]
    assert len(held) == 6  # keys and values of three layers
    assert max(held) <= most


def test_no_more_than_one_trie_of_everything(model: Any) -> None:
    memory = PrefixCache(10_000)
    asked = rounds(6)[:-1]
    spent = sum(forwarded(model, prompts, ANSWERS[0], memory)[1] for prompts in asked)
    assert spent <= union(model, [(p, ANSWERS[0]) for prompts in asked for p in prompts]) + len(asked)
    again, tokens = forwarded(model, asked[0], ANSWERS[0], memory)
    # of a prompt that is known, the token that the answer is read from, and the answer but for its last token
    assert tokens == sum(len(ids) - start for ids, start in sequences(model, list(dict.fromkeys(asked[0])), ANSWERS[0]))
    assert np.isfinite(again).all()


def test_least_recently_used_go_first(model: Any) -> None:
    one, other, third = ([Prompt(text=f"{word * 8} A:")] for word in ("alpha ", "beta ", "gamma "))
    probe = PrefixCache(1_000)
    whole = forwarded(model, one, " yes", probe)[1]
    memory = PrefixCache(2 * probe.tokens)
    for prompts in (one, other, one, third):
        forwarded(model, prompts, " yes", memory)
    assert memory.tokens == memory.most
    assert forwarded(model, one, " yes", memory)[1] < whole / 4  # used twice, still there
    assert forwarded(model, other, " yes", memory)[1] > whole / 2  # the one that had to go, but for its beginning


def test_a_failed_call_leaves_nothing_half_filled(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PrefixCache(10_000)
    prompts = rounds(1)[0]
    whole = PackedModel.forward
    passes = iter([True, False])

    def fails(self: PackedModel, *args: Any, **kwargs: Any) -> Any:
        if not next(passes):
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(PackedModel, "forward", fails)
    with pytest.raises(KeyboardInterrupt):
        model.score(prompts, [" yes"] * len(prompts), memory=memory)
    monkeypatch.setattr(PackedModel, "forward", whole)
    assert memory.tokens == 0
    found, _ = forwarded(model, prompts, " yes", memory)
    np.testing.assert_allclose(found, forwarded(model, prompts, " yes", None)[0], **CLOSE)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt2"])
def test_other_architectures(kind: str) -> None:
    """Sliding windows and learnt positions."""
    packed = PackedModel(build(kind))
    rng, memory = random.Random(1), PrefixCache(200)
    for _ in range(5):
        drawn = [[3, *(rng.randrange(4, 8) for _ in range(rng.randrange(5, 25)))] for _ in range(6)]
        tree, paths = trie([[*ids, 9, 10, 11] for ids in drawn], [len(ids) for ids in drawn])
        laid = plan_tree(tree, sorted({path[-1] for path in paths}))
        np.testing.assert_allclose(packed.log_probs(laid, 11, memory=memory), packed.log_probs(laid, 11), **CLOSE)
    assert memory.recalled > 0


def test_bound_and_refusals(tiny_lm: Path, model: Any) -> None:
    assert model.prefix_cache().most * model.packed.kept <= 2 * 2**30
    assert model.packed.kept == 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    with load_model(f"transformers:{tiny_lm}", dtype="float32", max_prefix_tokens=0, device="cpu") as none:
        assert none.prefix_cache() is None
    with pytest.raises(InputError, match="max_prefix_tokens"):
        load_model(f"transformers:{tiny_lm}", dtype="float32", max_prefix_tokens=-1)
    with pytest.raises(CapabilityError, match="unsteered"):
        model.score([Prompt(text="x")], [" y"], memory=PrefixCache(5), steering=Steering(mode="instaboost", bonus=1.0))


SHOTS = "Q: " + " A: yes Q: ".join(WORDS * 6) + " A: no Q: "  # what every prompt of a program begins with


def behind_shots(*words: str) -> list[Prompt]:
    return [Prompt(text=f"{SHOTS}{word} A:") for word in words]


def test_a_shared_beginning_is_forwarded_once_and_changes_nothing(model: Any) -> None:
    """Equal to separate calls, and to the last bit the same whatever was asked before."""
    calls = [behind_shots("alpha", "beta"), behind_shots("gamma", "delta"), behind_shots("eta eta", "eta theta")]
    plain = [forwarded(model, prompts, ANSWERS[1], None) for prompts in calls]
    with model.sharing():
        together = [forwarded(model, prompts, ANSWERS[1], None) for prompts in calls]
    alone = []
    for prompts in calls:
        with model.sharing():
            alone.append(forwarded(model, prompts, ANSWERS[1], None))
    for (expected, whole), (found, fewer), (first, _) in zip(plain, together, alone, strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_array_equal(found, first)
        assert fewer <= whole + 1  # the token from which nothing is read is passed twice
    assert together[1][1] < plain[1][1] / 3
    assert forwarded(model, calls[1], ANSWERS[1], None)[1] == plain[1][1]  # nothing is kept behind the block


def test_sharing_is_bounded_and_leaves_the_rest_alone(tiny_lm: Path, model: Any) -> None:
    """Short or lone prompts, another beginning, no room; blocks within blocks."""
    with model.sharing(), model.sharing():
        for prompts in ([Prompt(text="a b"), Prompt(text="a c")], behind_shots("alpha"), behind_shots("beta", "beta")):
            assert forwarded(model, prompts, ANSWERS[0], None)[1] == forwarded(model, prompts, ANSWERS[0], None)[1] > 0
        assert not len(model.beginnings)
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    with load_model(f"transformers:{tiny_lm}", max_prefix_tokens=1600, **options) as small, small.sharing():
        for first in WORDS:
            prompts = [Prompt(text=first + p.text) for p in behind_shots("alpha", "beta")]
            forwarded(small, prompts, ANSWERS[0], None)
            assert 0 < len(small.beginnings) <= 1600
    with load_model(f"transformers:{tiny_lm}", max_prefix_tokens=0, **options) as none, none.sharing():
        assert len(none.score(behind_shots("alpha", "beta"), [ANSWERS[0]] * 2)) == 2
