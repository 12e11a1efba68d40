"""Token trees against brute force: one plain forward pass per branch.

float32 agrees to 1e-4: the same sums in another order, over a vocabulary of a few hundred and a few layers.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplify.errors import CapabilityError, InputError
from amplify.models.tree.tree import TokenTree, plan_tree, trie

VOCAB = 97
TOLERANCE = 1e-4
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
SMALL |= {"max_position_embeddings": 256, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1}
SMALL |= {"eos_token_id": 2}
GROUPED = SMALL | {"num_key_value_heads": 2, "num_hidden_layers": 3, "head_dim": 8}


def build(kind: str, attention: str | None = None) -> Any:
    import torch
    import transformers as t

    configs = {
        "llama": lambda: t.LlamaConfig(**GROUPED),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3
        ),
        "mistral": lambda: t.MistralConfig(**GROUPED, sliding_window=5),
        "qwen2": lambda: t.Qwen2Config(
            **SMALL,
            num_key_value_heads=2,
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        ),
        "gemma2": lambda: t.Gemma2Config(**GROUPED, sliding_window=4, query_pre_attn_scalar=8),
        "gemma3": lambda: t.Gemma3TextConfig(
            **GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
        ),
        "phi3-longrope": lambda: t.Phi3Config(
            **{**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2},
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
        ),
        "bloom": lambda: t.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
        "mamba": lambda: t.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
    }
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(configs[kind](), attn_implementation=attention)
    return model.float().eval().requires_grad_(False)


def brute(model: Any, tree: TokenTree, node: int) -> list[float]:
    """Log-probabilities of a node's tokens from one full pass over its branch, its mask written token by token."""
    import torch

    path = tree.path(node)
    owner = [n for n in path for _ in tree.segments[n]]
    ids = [t for n in path for t in tree.segments[n]]
    positions: list[int] = []
    for n in path:
        start = tree.positions.get(n, positions_after(tree, n))
        positions += range(start, start + len(tree.segments[n]))
    size = len(ids)
    mask = torch.full((size, size), torch.finfo(torch.float32).min)
    config = model.config
    for q in range(size):
        for k in range(q + 1):
            if owner[k] not in tree.hidden.get(owner[q], frozenset()):
                mask[q, k] = 0.0
    masks: Any = mask[None, None]
    window = getattr(config, "sliding_window", None)
    if window is not None:
        at = torch.tensor(positions)
        near = at[None, :] > at[:, None] - window
        sliding = mask.masked_fill(~near, torch.finfo(torch.float32).min)[None, None]
        kinds = getattr(config, "layer_types", None)
        masks = {"full_attention": masks, "sliding_attention": sliding} if kinds else sliding
    plain = not tree.hidden and not tree.positions
    extra = {} if plain else {"attention_mask": masks, "position_ids": torch.tensor([positions])}
    with torch.inference_mode():
        # without hidden ancestors and positions, nothing but the ids: the architecture's own masks and positions
        logits = model(input_ids=torch.tensor([ids]), use_cache=False, **extra).logits[0].log_softmax(-1)
    result = []
    seen = [i for i, n in enumerate(owner) if n != node and n not in tree.hidden.get(node, frozenset())]
    reader = seen[-1]
    for i, n in enumerate(owner):
        if n == node:
            result.append(float(logits[reader, ids[i]]))
            reader = i
    return result


def positions_after(tree: TokenTree, node: int) -> int:
    parent = tree.parents[node]
    if parent < 0:
        return 0
    return tree.positions.get(parent, positions_after(tree, parent)) + len(tree.segments[parent])


def random_tree(rng: random.Random, nodes: int, *, hidden: bool = False, moved: bool = False) -> TokenTree:
    segments = [tuple(rng.randrange(3, VOCAB) for _ in range(rng.choice([0, 1, 1, 2, 3, 6]))) for _ in range(nodes)]
    segments[0] = segments[0] or (5,)
    parents = [-1, *(rng.randrange(n) for n in range(1, nodes))]
    tree = TokenTree(tuple(segments), tuple(parents))
    unseen: dict[int, frozenset[int]] = {}
    places: dict[int, int] = {}
    for node in range(1, nodes):
        if hidden and rng.random() < 0.4:
            # the root stays visible, so that every node has a token before it
            unseen[node] = frozenset(a for a in tree.path(node)[1:-1] if rng.random() < 0.5)
        if moved and rng.random() < 0.3:
            places[node] = rng.randrange(0, 40)
    return TokenTree(tree.segments, tree.parents, unseen, places)


def compare(model: Any, tree: TokenTree, chunk: int) -> None:
    from amplify.models.tree.forward import PackedModel

    packed = PackedModel(model)
    wanted = [n for n in range(1, len(tree.segments)) if tree.segments[n]]
    laid = plan_tree(tree, wanted)
    flat = packed.log_probs(laid, chunk)
    assert packed.forwarded == len(laid.ids)  # each needed token once, nothing padded
    expected = [value for n in wanted for value in brute(model, tree, n)]
    np.testing.assert_allclose(flat, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral", "qwen2", "gemma2", "gemma3"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.mark.parametrize("seed", range(3))
def test_random_trees_equal_one_pass_per_branch(model: Any, seed: int) -> None:
    rng = random.Random(seed)
    compare(model, random_tree(rng, 25), chunk=rng.choice([1, 3, 7, 1000]))


@pytest.mark.parametrize("seed", range(3))
def test_hidden_ancestors_and_positions_equal_a_hand_made_mask(model: Any, seed: int) -> None:
    rng = random.Random(100 + seed)
    compare(model, random_tree(rng, 20, hidden=True, moved=True), chunk=rng.choice([2, 5, 1000]))


def test_eager_attention_agrees() -> None:
    compare(build("llama", "eager"), random_tree(random.Random(7), 20, hidden=True), chunk=6)


def test_hiding_changes_the_result() -> None:
    from amplify.models.tree.forward import PackedModel

    packed = PackedModel(build("llama"))
    segments, parents = ((5, 6), (7, 8), (9,)), (-1, 0, 1)
    seen = packed.log_probs(plan_tree(TokenTree(segments, parents), [2]), 100)
    unseen = packed.log_probs(plan_tree(TokenTree(segments, parents, {2: frozenset({1})}), [2]), 100)
    direct = packed.log_probs(plan_tree(TokenTree(((5, 6), (9,)), (-1, 0)), [1]), 100)
    assert abs(seen - unseen)[0] > 0.01
    # the first token of node 2 is read from the last token that it sees, which saw nothing hidden
    np.testing.assert_allclose(unseen, direct, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "reason"), [("bloom", "takes no position_ids"), ("mamba", "linear_attention layers")])
def test_architectures_that_cannot_be_packed_are_refused_with_a_reason(kind: str, reason: str) -> None:
    from amplify.models.tree.forward import PackedModel

    with pytest.raises(CapabilityError, match=reason):
        PackedModel(build(kind))


def test_a_model_that_ignores_the_mask_is_found_out() -> None:
    from amplify.models.tree.forward import PackedModel

    model = build("llama")
    forward = model.model.forward

    def deaf(*args: Any, attention_mask: Any = None, position_ids: Any = None, **more: Any) -> Any:
        return forward(*args, position_ids=position_ids, **more)

    model.model.forward = deaf
    with pytest.raises(CapabilityError, match="does not obey"):
        PackedModel(model)


def test_longrope_has_its_limit() -> None:
    from amplify.models.tree.forward import PackedModel

    packed = PackedModel(build("phi3-longrope"))
    assert packed.rope_limit == 64
    compare(packed.model, random_tree(random.Random(3), 15), chunk=9)


def test_memory_bound_is_one_path_and_one_chunk() -> None:
    """A comb of many long branches: the cache never holds more than the path and the chunk."""
    from amplify.models.tree.forward import PackedModel
    from amplify.models.tree.kv_cache import BranchCacheLayer

    packed = PackedModel(build("llama"))
    branches = 40
    segments = [(3,) * 10, *(tuple(4 + (b + i) % 50 for i in range(20)) for b in range(branches))]
    tree = TokenTree(tuple(segments), (-1, *([0] * branches)))
    most = 0
    update = BranchCacheLayer.update

    def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal most
        result = update(self, *args, **kwargs)
        most = max(most, result[0].shape[2])
        return result

    BranchCacheLayer.update = watch  # type: ignore[method-assign]
    try:
        packed.log_probs(plan_tree(tree, range(1, branches + 1)), chunk=16)
    finally:
        BranchCacheLayer.update = update  # type: ignore[method-assign]
    assert 16 < most <= 10 + 20 + 16
    assert sum(map(len, segments)) > 10 * most


def test_path_lengths_and_passes() -> None:
    """Lengths are those of the paths; keys held around a pass count, at no more than a quarter of its tokens."""
    from amplify.models.tree.forward import PackedModel

    rng = random.Random(5)
    tree = random_tree(rng, 60)
    laid = plan_tree(tree, [n for n in range(1, len(tree.segments)) if tree.segments[n]])
    lengths = laid.path_lengths()
    assert lengths.tolist() == [len(laid.path(i)) for i in range(len(laid.ids) + 1)]
    packed = PackedModel(build("llama"))
    chunk = 24
    cuts = list(packed.chunks(laid, chunk, kept=lengths))
    assert [b for b, _ in cuts] == [0, *(e for _, e in cuts[:-1])]
    assert cuts[-1][1] == len(laid.ids)
    assert all(3 * chunk // 4 <= e - b <= chunk for b, e in cuts[:-1])
    assert len(cuts) > 3
    held = sum(int(lengths[e]) for _, e in cuts)
    assert held < sum(int(lengths[e]) for _, e in packed.chunks(laid, chunk))


@pytest.mark.parametrize("scale", [None, 0.5])
def test_head_in_pieces(scale: float | None) -> None:
    """Few rows of logits at once; a model that does more to its logits than its head is run whole."""
    from amplify.models.tree.forward import PackedModel

    model = build("llama")
    if scale is not None:
        forward = model.forward

        def scaled(**more: Any) -> Any:
            found = forward(**more)
            found.logits = found.logits * scale
            return found

        scaled.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
        model.forward = scaled
    packed = PackedModel(model)
    assert (packed.head is None) == (scale is not None)
    tree = random_tree(random.Random(11), 20)
    laid = plan_tree(tree, [n for n in range(1, len(tree.segments)) if tree.segments[n]])
    whole = packed.log_probs(laid, 1000)
    rows: list[int] = []
    logits = packed.logits

    def watch(outputs: Any) -> Any:
        rows.append(len(outputs))
        return logits(outputs)

    packed.logits = watch  # type: ignore[method-assign]
    packed.inner = VOCAB  # a row's logits as large as a token of the pass: chunk // 2 rows at once
    np.testing.assert_allclose(packed.log_probs(laid, 8), whole, atol=1e-5)
    assert max(rows) == 4


def test_wanted_logits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from amplify.models.tree import forward as module

    monkeypatch.setattr(module, "LOGIT_BYTES", 4 * VOCAB * 3)  # three rows
    model = build("llama")
    seen: list[int] = []
    packed = module.PackedModel(model)
    forward = packed.forward

    def watch(*args: Any) -> Any:
        seen.append(len(args[-1]))
        return forward(*args)

    packed.forward = watch  # type: ignore[method-assign]
    tree = TokenTree(((3, 4), tuple(range(5, 25))), (-1, 0))
    packed.log_probs(plan_tree(tree, [1]), 1000)
    assert max(seen) == 3
    assert sum(seen) == 20


def test_tokens_that_predict_nothing_are_not_forwarded() -> None:
    tree = TokenTree(((1, 2, 3), (4,), (5, 6), (7, 8, 9)), (-1, 0, 0, 0))
    laid = plan_tree(tree, [1, 2])
    assert laid.ids.tolist() == [1, 2, 3, 5]
    assert laid.read_at.tolist() == [2, 2, 3]
    assert laid.targets.tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((((1,), (2,)), (-1, 1)), "comes before its children"),
        ((((1,), (2,)), (-1,)), "one parent per segment"),
        ((((1,), (2,), (3,)), (-1, 0, 0), {2: frozenset({1})}), "only its ancestors"),
        ((((1,),), (-1,), {}, {0: -2}), "position"),
    ],
)
def test_bad_trees_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenTree(*arguments)


@pytest.mark.parametrize(("wanted", "message"), [(9, "is wanted"), (1, "holds no token"), (0, "no token before")])
def test_bad_wishes_are_refused(wanted: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_tree(TokenTree(((1,), ()), (-1, 0)), [wanted])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40).map(tuple), min_size=1, max_size=12), st.data())
def test_trie_holds_every_sequence_and_every_prefix_once(sequences: list[tuple[int, ...]], data: Any) -> None:
    cuts = [data.draw(st.integers(0, len(s) - 1)) for s in sequences]
    tree, paths = trie(sequences, cuts)
    for sequence, path, cut in zip(sequences, paths, cuts, strict=True):
        assert tree.path(path[-1]) == path
        assert tuple(t for n in path for t in tree.segments[n]) == sequence
        ends = np.cumsum([len(tree.segments[n]) for n in path]).tolist()
        assert cut in (0, *ends)
    assert sum(map(len, tree.segments)) == len({s[: i + 1] for s in sequences for i in range(len(s))})


def test_a_deep_tree_needs_no_recursion() -> None:
    depth = 3000
    tree = TokenTree(((1,),) * depth, tuple(range(-1, depth - 1)))
    assert len(plan_tree(tree, [depth - 1]).ids) == depth - 1


@pytest.mark.skipif(not os.environ.get("AMPLIFY_TEST_CUDA"), reason="set AMPLIFY_TEST_CUDA=1 on a machine with a GPU")
def test_cuda_agrees_with_cpu() -> None:
    from amplify.models.tree.forward import PackedModel

    tree = random_tree(random.Random(1), 25, hidden=True)
    wanted = [n for n in range(1, 25) if tree.segments[n]]
    model = build("llama")
    here = PackedModel(model).log_probs(plan_tree(tree, wanted), 8)
    there = PackedModel(model.cuda()).log_probs(plan_tree(tree, wanted), 8)
    np.testing.assert_allclose(here, there, atol=1e-3)  # TF32 off; other kernels, other order of sums


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_last_block_works_for_what_is_read_alone(kind: str) -> None:
    """Where the model has such a block. What is read stays the same (see `compare`); the model is left as it was."""
    from amplify.models.tree.forward import PackedModel

    model = build(kind)
    packed = PackedModel(model)
    tree = random_tree(random.Random(2), 12)
    wanted = [n for n in range(1, len(tree.segments)) if tree.segments[n]][-3:]
    laid = plan_tree(tree, wanted)
    block = packed.last if packed.last is not None else model.get_decoder().h[-1].mlp
    rows = 0

    def watch(module: Any, given: Any, out: Any) -> None:
        nonlocal rows
        rows += given[0].shape[1]

    linear = next(m for m in block.modules() if not list(m.children()))
    handle = linear.register_forward_hook(watch)
    packed.log_probs(laid, chunk=len(laid.ids))
    handle.remove()
    assert rows == (len(np.unique(laid.read_at)) if kind == "llama" else len(laid.ids))
    assert "forward" not in vars(block)
