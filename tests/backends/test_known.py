"""Answers recognised in one pass are those that plain decoding gives."""

from __future__ import annotations

import random

import pytest

import amplify
from amplify.backends.known import KnownAnswers, generate_known
from amplify.errors import ContextLengthError, InputError
from amplify.values import Prompt, Sampling

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
def backend(tiny_lm):  # type: ignore[no-untyped-def]
    with amplify.open_backend(f"transformers:{tiny_lm}") as opened:
        yield opened


def related(count: int) -> list[Prompt]:
    rng = random.Random(0)
    return [Prompt(text="The answer is " + " ".join(rng.choices(WORDS, k=rng.randint(0, 6)))) for _ in range(count)]


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=6), Sampling(max_tokens=12, stop=("e",))])
def test_known_answers_are_those_of_plain_decoding(backend, sampling) -> None:  # type: ignore[no-untyped-def]
    prompts = related(40)
    plain = backend.generate(prompts, sampling)
    known = KnownAnswers()
    assert generate_known(backend, prompts, sampling, known) == plain
    assert known.plain == sum(c.completion_tokens for c in plain)
    # a second time everything is known: no step is decoded
    before = known.decoded
    assert generate_known(backend, prompts, sampling, known) == plain
    assert known.decoded == before


def test_a_seen_answer_costs_no_decoding(backend) -> None:  # type: ignore[no-untyped-def]
    prompts = [Prompt(text="The answer is")] * 20
    known = KnownAnswers()
    generate_known(backend, prompts, Sampling(max_tokens=8), known)
    # both prompts of the first round are the same, and decoded side by side
    assert known.decoded == 2 * len(next(iter(known.counts)))
    assert known.plain == 20 * len(next(iter(known.counts)))


def test_refusals(backend) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="temperature"):
        generate_known(backend, related(2), Sampling(temperature=1.0), KnownAnswers())
    with pytest.raises(ContextLengthError):
        generate_known(backend, [Prompt(text="good " * 2000)], Sampling(), KnownAnswers())
