"""Drafts change how fast greedy decoding goes, never what it writes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as t

from amplify.models.tree.forward import Limits, PackedModel
from amplify.models.tree.speculative import speculate

VOCAB = 40
SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,  # no near-ties, and answers that vary
}
LENGTH = 9


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request: pytest.FixtureRequest) -> Any:
    """Whole and sliding-window attention."""
    torch.manual_seed(0)
    config = t.LlamaConfig(**SIZE) if request.param == "llama" else t.MistralConfig(**SIZE, sliding_window=5)
    return t.AutoModelForCausalLM.from_config(config).eval()


def greedy(model: Any, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """One whole forward pass a token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(LENGTH):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def family(seed: int) -> list[tuple[int, ...]]:
    """Prompts that share beginnings; among them one token, a prompt that begins another, and the same prompt twice."""
    rng = random.Random(seed)
    stem = tuple(rng.randrange(VOCAB) for _ in range(12))
    some = [
        stem[: rng.randint(1, 12)] + tuple(rng.randrange(VOCAB) for _ in range(rng.randint(0, 6))) for _ in range(9)
    ]
    return [*some, stem[:1], stem[:7], stem, some[0]]


def run(
    model: Any, prompts: list[tuple[int, ...]], propose: Any, *, budget: int = 10_000, chunk: int = 64, first: int = 2
) -> tuple[list[Any], list[int]]:
    """Answers and steps of each prompt."""
    answers: dict[int, tuple[int, ...]] = {}
    steps: dict[int, int] = {}

    def done(i: int, new: tuple[int, ...], passes: int) -> None:
        assert i not in answers
        answers[i], steps[i] = new, passes

    speculate(
        PackedModel(model),
        prompts,
        propose=propose,
        complete=lambda i, new: len(new) == LENGTH,
        done=done,
        room=3 * LENGTH,
        first=first,
        limits=Limits(budget, chunk),
    )
    return [answers[i] for i in range(len(prompts))], [steps[i] for i in range(len(prompts))]


@pytest.mark.parametrize(("budget", "chunk", "first"), [(10_000, 64, 100), (10_000, 64, 1), (80, 7, 4), (1, 1, 2)])
def test_any_drafts_leave_greedy_answers_as_they_are(model: Any, budget: int, chunk: int, first: int) -> None:
    prompts = family(budget)
    plain = [greedy(model, p) for p in prompts]
    assert len(set(plain)) > 3
    rng = random.Random(1)

    def propose(i: int, new: tuple[int, ...]) -> list[tuple[int, ...]]:
        found = []
        for _ in range(rng.randint(0, 3)):  # right up to somewhere, then anything; also beyond the answer's end
            right = plain[i][len(new) : len(new) + rng.randint(0, 5)]
            found.append(right + tuple(rng.randrange(VOCAB) for _ in range(rng.randint(0 if right else 1, 4))))
        return found

    answers, steps = run(model, prompts, propose, budget=budget, chunk=chunk, first=first)
    assert answers == plain
    assert 1 <= min(steps) <= max(steps) <= LENGTH


def test_steps_are_what_drafts_leave(model: Any) -> None:
    prompts = family(0)
    plain = [greedy(model, p) for p in prompts]
    none = run(model, prompts, lambda i, new: [])
    wrong = run(model, prompts, lambda i, new: [((plain[i][len(new)] + 1) % VOCAB,) * 4])
    assert none == wrong == (plain, [LENGTH] * len(prompts))
    whole = run(model, prompts, lambda i, new: [(0, 0, 0), plain[i][len(new) :]])
    assert whole == (plain, [1] * len(prompts))
    # three right tokens a pass, then a wrong one that the model's own replaces
    fours = run(model, prompts, lambda i, new: [(*plain[i][len(new) : len(new) + 3], (plain[i] * 2)[len(new) + 3] ^ 1)])
    assert fours == (plain, [3] * len(prompts))


def test_the_cache_holds_no_more_than_its_budget(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, budget, most = family(3) * 3, 130, []
    whole = PackedModel.forward

    def watch(self: Any, ids: Any, positions: Any, sees: Any, key_positions: Any, *rest: Any) -> Any:
        most.append(len(key_positions))
        return whole(self, ids, positions, sees, key_positions, *rest)

    monkeypatch.setattr(PackedModel, "forward", watch)
    rng = random.Random(0)
    run(model, prompts, lambda i, new: [tuple(rng.choices(range(VOCAB), k=LENGTH)) for _ in range(2)], budget=budget)
    assert budget / 2 < max(most) <= budget
