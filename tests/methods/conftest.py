from collections.abc import Iterator
from pathlib import Path

import pytest
from method_fakes import reviews

import amplify
from amplify.models.base import LanguageModel
from amplify.tasks import Task
from amplify.types import Example


@pytest.fixture
def sentiment() -> Task:
    return Task(
        name="sentiment",
        instruction="Is the review positive or negative?",
        train=reviews("train", 40),
        validation=reviews("validation", 20),
        test=reviews("test", 6),
        labels=("positive", "negative"),
        input_name="Review",
    )


@pytest.fixture
def quiz() -> Task:
    def one(split: str, i: int) -> Example:
        options = ("red", "green", "blue")
        return Example(f"{split}{i}", f"Which colour is {split} number {i}?", "ABC"[i % 3], tuple("ABC"), options)

    pools = {s: tuple(one(s, i) for i in range(9)) for s in ("train", "validation", "test")}
    return Task(name="quiz", instruction="Choose.", **pools)


@pytest.fixture
def words() -> Task:
    pools = {
        s: tuple(Example(f"{s}{i}", f"Sort {s} {i}", answers=(f"a b {i}", f"b a {i}")) for i in range(4))
        for s in ("train", "validation", "test")
    }
    return Task(name="words", instruction="Sort the words.", metric="exact_match", **pools)


@pytest.fixture(scope="module")
def white(tiny_lm: Path) -> Iterator[LanguageModel]:
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as opened:
        yield opened
