"""Answers recognised in one pass are those that plain decoding gives."""

from __future__ import annotations

import random

import pytest

import amplify
from amplify.errors import ContextLengthError, InputError
from amplify.models.tree.speculative import DraftCache, copied, generate_speculative
from amplify.types import Prompt, Sampling

WORDS = [
    "good",
    "bad",
    "great",
    "terrible",
    "key",
    "words",
    "answer",
    "Paris",
    "capital",
    "phone",
    "battery",
    "statement",
    "right",
]


@pytest.fixture(scope="module")
def model(tiny_lm):  # type: ignore[no-untyped-def]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as opened:
        yield opened


def related(count: int) -> list[Prompt]:
    rng = random.Random(0)
    return [Prompt(text="The answer is " + " ".join(rng.choices(WORDS, k=rng.randint(0, 6)))) for _ in range(count)]


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=6), Sampling(max_tokens=12, stop=("e",))])
def test_known_answers_are_those_of_plain_decoding(model, sampling) -> None:  # type: ignore[no-untyped-def]
    prompts = related(40)
    plain = model.generate(prompts, sampling)
    known = DraftCache()
    assert generate_speculative(model, prompts, sampling, known) == plain
    assert known.plain == sum(c.completion_tokens for c in plain)
    assert len(prompts) <= known.steps <= known.plain
    # a second time everything is known: one pass each
    before = known.steps
    assert generate_speculative(model, prompts, sampling, known) == plain
    assert known.steps == before + len(prompts)
    assert generate_speculative(model, [], sampling, known) == []


def test_small_memory_changes_nothing(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    prompts, sampling = related(12), Sampling(max_tokens=6)
    with amplify.load_model(
        f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=3, max_cache_tokens=30
    ) as small:
        known = DraftCache()
        assert generate_speculative(small, prompts, sampling, known) == small.generate(prompts, sampling)
        assert set(known.answers) == {tuple(small.tokenizer(p.text).input_ids) for p in prompts}


def test_a_seen_answer_takes_one_step(model) -> None:  # type: ignore[no-untyped-def]
    first, known = DraftCache(), DraftCache()
    generate_speculative(model, [Prompt(text="The answer is")], Sampling(max_tokens=8), first)
    generate_speculative(model, [Prompt(text="The answer is")] * 20, Sampling(max_tokens=8), known)
    assert known.plain == 20 * first.plain
    assert known.steps == first.steps + 19  # the first batch is one prompt


def test_drafts_are_answers_of_similar_prompts_first() -> None:
    known = DraftCache({(1, 2, 3): (7, 8), (1, 2, 4): (7, 9, 5, 6), (9,): (7, 1), (1, 2, 5): (3,)})
    assert known.propose((1, 2, 4, 4), ()) == [(7, 9, 5, 6), (3,)]
    assert known.propose((1, 2, 3), (7,)) == [(8,), (9, 5, 6)]
    assert known.propose((9, 9), (7, 9)) == [(5, 6)]
    assert known.propose((6, 5, 6), (4,)) == []
    assert known.propose((0, 5, 4, 2), (5,)) == [(6,)]  # behind this token in an answer, before where the prompt has it


def longest_match(written: tuple[int, ...], answers: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """`copied`, place by place."""
    for n in range(min(3, len(written)), 0, -1):
        for source in (*answers, written):
            for at in range(len(source) - n - 1, -1, -1):
                if source[at : at + n] == written[-n:]:
                    return [source[at + n : at + n + 16]]
    return []


def test_copied_is_what_followed_the_last_tokens() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(300):
        sources = [tuple(rng.choices(range(8), k=rng.randint(1, 30))) for _ in range(rng.randint(1, 4))]
        assert copied(sources[0], sources[1:]) == longest_match(sources[0], sources[1:])
        found += bool(copied(sources[0], sources[1:]))
    assert 100 < found < 300


def test_refusals(model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="temperature"):
        generate_speculative(model, related(2), Sampling(temperature=1.0), DraftCache())
    with pytest.raises(ContextLengthError):
        generate_speculative(model, [Prompt(text="good " * 2000)], Sampling(), DraftCache())
