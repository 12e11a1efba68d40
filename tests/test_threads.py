"""Calls from several threads and from asyncio give what the same calls give one after the other, to the last bit."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amplify
from amplify import Sampling, Steering, load_model, parse_emphasis
from amplify.attribution.explanations import explain
from amplify.errors import InputError
from amplify.head_search.margins import Item, Margins
from amplify.proxies import Proxy
from amplify.rag.compress import DocumentCompressor
from amplify.retrieval import Embedder
from amplify.types import Example

THREADS, ROUNDS = 4, 5
TEXT = "Great phone, terrible battery"
PROMPTS = [
    parse_emphasis("Great phone, **terrible battery**. The answer is", raw=True),
    parse_emphasis("Paris is the **capital** of France. The answer is", raw=True),
]
LABELS = [" positive", " negative"]
STEERED = Steering(heads={0: [1], 1: [0, 3], 2: [2]}, alpha=0.01)
DYNAMIC = Steering(heads={1: [0, 1]}, mode="spotlight", target=0.7)
DOCUMENTS = ["Great phone.", "Terrible battery.", "Paris is the capital of France."]

Calls = dict[str, Callable[[], Any]]


def calls_of(model: Any, proxy: Proxy) -> Calls:
    """Every kind of call there is on a model of this process."""
    few = Sampling(max_tokens=6)
    example = Example(id="e", text=TEXT)
    item = Item("i", PROMPTS[0], " positive", " negative")
    return {
        "generate": lambda: model.generate(PROMPTS, few),
        "sample": lambda: model.generate(PROMPTS, Sampling(max_tokens=6, temperature=1.0, seed=1)),
        "generate steered": lambda: model.generate(PROMPTS, few, steering=STEERED),
        "score": lambda: model.score(PROMPTS, LABELS),
        "score steered": lambda: model.score(PROMPTS, LABELS, steering=STEERED),
        "score steered dynamically": lambda: model.score(PROMPTS, LABELS, steering=DYNAMIC),
        "count": lambda: model.count_tokens(PROMPTS),
        "integrated gradients": lambda: explain(f"{TEXT}. It is", " good", foil=" bad", model=model, budget=10),
        "attention": lambda: explain(f"{TEXT}. It is", " good", model=model, method="attention_rollout"),
        "deep_lift": lambda: explain(f"{TEXT}. It is", " good", model=model, method="deep_lift"),
        "occlusion": lambda: explain(f"{TEXT}. It is", " good", model=model, method="occlusion"),
        "masked": lambda: explain(f"{TEXT}. It is", " good", model=model, method="occlusion", masking="attention"),
        "head search": lambda: Margins(model, [item], Steering(heads={0: (0,)}))(
            0, [frozenset(), frozenset({(1, 0)}), frozenset({(2, 1), (2, 3)})]
        ),
        "documents": lambda: amplify.attribute_sources(
            "Which?", DOCUMENTS, model, answer="Paris", budget=8
        ).documents.scores.tolist(),
        "adapter": lambda: DocumentCompressor(model, budget=8, max_tokens=4)("Which?", DOCUMENTS),
        "proxy": lambda: proxy.probabilities([example, dataclasses.replace(example, text="Great. " * 40)]),
        "proxy gradients": lambda: explain(TEXT, "good", foil="bad", model=proxy, method="grad_x_input"),
        "proxy attention": lambda: explain(TEXT, "good", model=proxy, method="raw_attention"),
        "proxy occlusion": lambda: explain(TEXT, "good", model=proxy, method="occlusion"),
    }


def plain(found: Any) -> Any:
    """A result without what tells times."""
    if isinstance(found, dict):
        return {k: plain(v) for k, v in found.items() if k != "seconds"}
    if isinstance(found, list):
        return [plain(v) for v in found]
    return found.tolist() if isinstance(found, np.ndarray) else found


def together(calls: Calls, order: Callable[[int], list[str]]) -> list[tuple[str, Any]]:
    """All calls from each of some threads, in orders of their own."""

    def run(thread: int) -> list[tuple[str, Any]]:
        return [(name, plain(calls[name]())) for name in order(thread)]

    with ThreadPoolExecutor(THREADS) as pool:
        return [one for found in pool.map(run, range(THREADS)) for one in found]


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Any:
    with load_model(f"transformers:{tiny_lm}", dtype="float32", device="cpu", max_batch_tokens=16) as model:
        yield model


@pytest.fixture(scope="module")
def proxy(tiny_encoder: Path) -> Proxy:
    """A classifier of random weights, marked as trained."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    card = {"body": {"name": "tiny"}, "columns": [0, 1], "task": "t"}
    return Proxy(tiny_encoder, "encoder", ("good", "bad"), True, "0" * 64, model, tokenizer, card)


def test_mixed_calls_from_threads_equal_those_one_after_the_other(model: Any, proxy: Proxy) -> None:
    calls = calls_of(model, proxy)
    wanted = {name: plain(call()) for name, call in calls.items()}
    again = {name: plain(call()) for name, call in calls.items()}
    assert again == wanted  # else there is nothing to compare with

    def order(thread: int) -> list[str]:
        drawn = np.random.default_rng(thread)
        return [str(name) for _ in range(ROUNDS) for name in drawn.permutation(list(calls))]

    before = model.usage.snapshot()
    found = together(calls, order)
    many = model.usage.since(before)
    assert len(found) == THREADS * ROUNDS * len(calls)
    assert [name for name, result in found if result != wanted[name]] == []
    # nothing is lost in counting either
    before = model.usage.snapshot()
    for call in calls.values():
        call()
    once = model.usage.since(before)
    for one, all_ in zip(dataclasses.astuple(once), dataclasses.astuple(many), strict=True):
        assert all_ == THREADS * ROUNDS * one


def test_two_models_and_a_wrapper_over_one_model_share_its_lock(model: Any) -> None:
    """A steered call through one, a plain one through the other."""
    from amplify.locks import lock_of

    other = amplify.TransformersModel(model.module, model.tokenizer, max_batch_tokens=16)
    assert lock_of(other.module.get_decoder()) is lock_of(model.module)
    calls: Calls = {
        "plain": lambda: model.score(PROMPTS, LABELS),
        "steered": lambda: other.score(PROMPTS, LABELS, steering=STEERED),
    }
    wanted = {name: call() for name, call in calls.items()}
    assert wanted["plain"] != wanted["steered"]
    found = together(calls, lambda thread: [("plain", "steered")[(thread + i) % 2] for i in range(20)])
    assert all(result == wanted[name] for name, result in found)


def test_adapters_over_one_model(model: Any) -> None:
    adapters = [
        DocumentCompressor(model, budget=8, max_tokens=4),
        DocumentCompressor(model, "prune", budget=8, max_tokens=4),
    ]
    calls: Calls = {str(i): lambda one=one: one("Which?", DOCUMENTS) for i, one in enumerate(adapters)}
    calls["beside"] = lambda: model.generate(PROMPTS, Sampling(max_tokens=4), steering=STEERED)
    wanted = {name: call() for name, call in calls.items()}
    found = together(calls, lambda thread: list(calls)[thread % 3 :] * 3)
    assert all(result == wanted[name] for name, result in found)


def test_asyncio(model: Any, proxy: Proxy) -> None:
    calls = {n: c for n, c in calls_of(model, proxy).items() if n in ("generate", "score steered", "deep_lift")}
    wanted = {name: plain(call()) for name, call in calls.items()}

    async def gather() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(call) for _ in range(6) for call in calls.values()))

    names = [name for _ in range(6) for name in calls]
    assert all(plain(r) == wanted[n] for n, r in zip(names, asyncio.run(gather()), strict=True))


def test_a_model_steered_by_hand_makes_other_threads_wait(model: Any) -> None:
    prompts = [PROMPTS[0]]
    wanted = model.score(PROMPTS, LABELS)
    with ThreadPoolExecutor(1) as pool:
        with amplify.steered(model.module, model.tokenizer, prompts, STEERED):
            beside = pool.submit(model.score, PROMPTS, LABELS)
            with pytest.raises(InputError, match="being steered already"):
                model.score(prompts, LABELS[:1], steering=STEERED)
            assert not beside.done()
        assert beside.result(60) == wanted


def test_an_embedder_in_threads(tiny_encoder: Path) -> None:
    embedder = Embedder(tiny_encoder)
    texts = [TEXT, "Paris. " * 30, "good"]
    wanted = embedder.embed(texts)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: embedder.embed(texts), range(24)))
    assert all(np.array_equal(one, wanted) for one in found)


def test_usage_loses_no_count() -> None:
    from amplify.models import Usage

    usage = Usage()

    def count(_: int) -> int:
        before = usage.mine.snapshot()
        for _ in range(2000):
            usage.add(calls=1, prompt_tokens=2)
        return usage.mine.since(before).calls

    with ThreadPoolExecutor(8) as pool:
        own = list(pool.map(count, range(8)))
    assert (usage.calls, usage.prompt_tokens) == (16_000, 32_000)
    assert own == [2000] * 8


def test_a_closed_model_says_so(tiny_lm: Path) -> None:
    from amplify.errors import ModelError

    with load_model(f"transformers:{tiny_lm}", dtype="float32") as closed:
        pass
    with pytest.raises(ModelError, match="closed"):
        closed.generate(PROMPTS, Sampling(max_tokens=1))
