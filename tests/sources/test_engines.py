"""Every engine against naive and against plain passes, on the same ordered coalitions, in float32 to 1e-4."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import amplify
from amplify import templates
from amplify.errors import CapabilityError, InputError
from amplify.models.chat import encode_with_target, render
from amplify.models.scripted import ScriptedGenerator, ScriptedModel, plain_text
from amplify.models.tree.tree import common_prefix
from amplify.shapley.exact import all_coalitions
from amplify.shapley.sampling import prefixes
from amplify.sources.context import Context, in_place, select
from amplify.sources.engines import blocks_tree, score, waves
from amplify.sources.frames import asking
from amplify.sources.games import LogProbGame, VoteGame
from amplify.types import Sampling

DOCUMENTS = (
    "Paris is the capital of France. It is great.",
    "Great phone, terrible battery.",
    "Which statement is right?\nThe answer is (B).",
    "The key words are important clues.",
    "A bad user asked the assistant a question.",
)
ANSWER = "The answer is positive."


@pytest.fixture(scope="module")
def model(tiny_lm):  # type: ignore[no-untyped-def]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="module", params=["chat", "text"])
def context(request) -> Context:  # type: ignore[no-untyped-def]
    return asking("Which is right?", DOCUMENTS, templates.load("sources", "question_first"), request.param)


def random_walks(n: int, count: int, seed: int = 0) -> np.ndarray:
    """Ordered coalitions of the prefixes of random orders."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(count)]
    return np.concatenate([np.where(prefixes(o), np.argsort(o), -1) for o in orders])


def game(context, model, engine) -> LogProbGame:  # type: ignore[no-untyped-def]
    return LogProbGame(context, model, f" {ANSWER}" if context.frame.layout == "text" else ANSWER, engine)


@pytest.mark.parametrize("engine", ["trie", "packed"])
@pytest.mark.parametrize("order", ["fixed", "random"])
def test_engines_equal_naive(context, model, engine, order) -> None:  # type: ignore[no-untyped-def]
    n = len(DOCUMENTS)
    rows = in_place(all_coalitions(n)) if order == "fixed" else random_walks(n, 6)
    before = model.usage.snapshot()
    found = game(context, model, engine)(rows)
    cheap = model.usage.since(before).forwarded_tokens
    before = model.usage.snapshot()
    naive = game(context, model, "naive")(rows)
    assert np.abs(found - naive).max() < 1e-4
    assert cheap < 0.75 * model.usage.since(before).forwarded_tokens


def test_naive_equals_a_plain_pass(context, model) -> None:  # type: ignore[no-untyped-def]
    naive = game(context, model, "naive")
    rows = random_walks(len(DOCUMENTS), 1, seed=3)
    for row, value in zip(rows, naive(rows)[:, 0], strict=True):
        prompt = context.prompt(select(row, context.sources))
        ids, start = encode_with_target(model.tokenizer, render(prompt, model.tokenizer), naive.answer)
        with torch.inference_mode():
            logits = model.module(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        plain = logits.gather(1, torch.tensor(ids[1:])[:, None])[start - 1 :].sum()
        assert value == pytest.approx(float(plain), abs=1e-4)


def test_a_packed_permutation_forwards_the_documents_once(context, model) -> None:  # type: ignore[no-untyped-def]
    rows = random_walks(len(DOCUMENTS), 1)
    tokens = model.count_tokens([context.prompt(select(row, context.sources)) for row in (rows[0], rows[-1])])
    before = model.usage.snapshot()
    game(context, model, "packed")(rows)
    # every prefix adds its own end of the prompt and the answer, at most as long as the prompt without documents
    answer = len(model.tokenizer(ANSWER).input_ids)
    forwarded = model.usage.since(before).forwarded_tokens
    assert forwarded <= tokens[1] + len(rows) * (tokens[0] // 2 + answer)


def test_blocks_equal_plain_passes_under_their_own_mask(context, model) -> None:  # type: ignore[no-untyped-def]
    """Documents blind to each other, all behind the head, absent ones masked: built by hand, one by one."""
    n = len(DOCUMENTS)
    selections = [select(row, context.sources) for row in in_place(all_coalitions(n))[[0, 1, 6, 21, 31]]]
    blocks = game(context, model, "blocks")
    found = blocks.of(selections)[:, 0]
    tree, _ = blocks_tree(context, model.tokenizer, [context.everything()], blocks.answer)
    lengths = [len(s) for s in tree.segments]  # head, documents, the rest of the prompt, answer
    owner = np.repeat(np.arange(len(lengths)), lengths)
    ids = torch.tensor([[t for s in tree.segments for t in s]])
    begins = [0, *[lengths[0]] * n, lengths[0] + max(lengths[1 : n + 1])]
    begins.append(begins[-1] + lengths[n + 1])
    places = torch.tensor([[b + k for b, size in zip(begins, lengths, strict=True) for k in range(size)]])
    for selection, value in zip(selections, found, strict=True):
        present = {0, *(d + 1 for d, _ in selection)}
        sees = np.tril(np.ones((len(owner), len(owner)), bool))
        inside = (owner >= 1) & (owner <= n)
        sees &= ~(inside[:, None] & inside[None] & (owner[:, None] != owner[None]))
        absent = inside & ~np.isin(owner, list(present))
        sees &= ~((owner > n)[:, None] & absent[None])
        mask = torch.zeros(sees.shape).masked_fill(~torch.from_numpy(sees), torch.finfo(torch.float32).min)
        with torch.inference_mode():
            logits = (
                model.module(ids, attention_mask=mask[None, None], position_ids=places)
                .logits[0, :-1]
                .float()
                .log_softmax(-1)
            )
        plain = logits.gather(1, ids[0, 1:, None])[-lengths[-1] :].sum()
        assert value == pytest.approx(float(plain), abs=1e-4)


def test_blocks_are_exact_where_nothing_is_approximated(context, model) -> None:  # type: ignore[no-untyped-def]
    """With the first document alone, no other one is seen and nothing has moved."""
    rows = in_place(np.eye(len(DOCUMENTS), dtype=bool)[:1])
    alone = context.only([0])
    blocks = LogProbGame(alone, model, game(context, model, "trie").answer, "blocks")(in_place([[True]]))
    assert blocks == pytest.approx(game(context, model, "trie")(rows), abs=1e-4)


def test_blocks_forward_every_document_once(context, model) -> None:  # type: ignore[no-untyped-def]
    n = len(DOCUMENTS)
    before = model.usage.snapshot()
    game(context, model, "blocks")(in_place(all_coalitions(n)))
    whole, empty = model.count_tokens([context.prompt(context.everything()), context.prompt(())])
    assert model.usage.since(before).forwarded_tokens < whole + 2**n * (empty // 2 + 12)


@pytest.mark.parametrize("engine", ["trie", "packed"])
@pytest.mark.parametrize("order", ["fixed", "random"])
def test_votes_equal_naive(context, model, engine, order) -> None:  # type: ignore[no-untyped-def]
    n = len(DOCUMENTS)
    rows = in_place(all_coalitions(n)) if order == "fixed" else random_walks(n, 6)
    selections = [select(row, context.sources) for row in rows.tolist()]
    sampling = Sampling(max_tokens=4)
    naive = VoteGame(context, model, sampling, "naive").ask(selections)
    assert VoteGame(context, model, sampling, engine).ask(selections) == naive
    assert len(set(naive)) > 1


def test_what_stays_in_memory_is_one_chunk_and_one_path(tiny_lm, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from amplify.models.tree.forward import PackedModel

    held: list[int] = []
    original = PackedModel.forward

    def watched(self, ids, positions, sees, key_positions, cache, rows):  # type: ignore[no-untyped-def]
        held.append(len(key_positions))
        return original(self, ids, positions, sees, key_positions, cache, rows)

    monkeypatch.setattr(PackedModel, "forward", watched)
    context = asking("Which is right?", DOCUMENTS, templates.load("sources", "question_first"))
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=32) as model:
        rows = in_place(all_coalitions(len(DOCUMENTS)))
        bounded = game(context, model, "trie")(rows)
        whole = model.count_tokens([context.prompt(context.everything())])[0]
        answer = len(model.tokenizer(ANSWER).input_ids)
        assert max(held) <= whole + answer + 32
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=4096) as model:
        assert np.abs(game(context, model, "trie")(rows) - bounded).max() < 1e-4


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 32])
def test_servers_are_asked_in_waves_that_share_beginnings(context, model, count) -> None:  # type: ignore[no-untyped-def]
    selections = [select(row, context.sources) for row in in_place(all_coalitions(5))[:count].tolist()]
    asked = waves(selections, ScriptedModel())
    assert sorted(i for wave in asked for i in wave) == list(range(count))
    assert len(waves(selections, model)) == min(count, 1)
    cached: list[str] = []
    shared = 0  # characters that a prefix cache would find, which knows what earlier waves have asked
    for wave in asked:
        texts = [plain_text(context.prompt(selections[i])) for i in wave]
        shared += sum(max((common_prefix(text, c) for c in cached), default=0) for text in texts)
        cached += texts
    if count == 32:
        whole = sum(map(len, cached))
        in_order = [plain_text(context.prompt(s)) for s in sorted(selections)]
        best = sum(common_prefix(a, b) for a, b in itertools.pairwise(in_order))
        assert shared >= 0.9 * best
        assert shared > 0.4 * whole


def test_what_an_engine_cannot_do_is_refused(context, model) -> None:  # type: ignore[no-untyped-def]
    every = [context.everything()]
    with pytest.raises(CapabilityError, match="log-probabilities"):
        list(score("trie", context, ScriptedGenerator(), every, "x"))
    with pytest.raises(CapabilityError, match="inside the model"):
        list(score("blocks", context, ScriptedModel(), every, "x"))
    with pytest.raises(InputError, match="own order only"):
        list(score("blocks", context, model, [every[0][::-1]], "x"))
    with pytest.raises(InputError, match="votes need"):
        VoteGame(context, model, engine="blocks").ask(every)
