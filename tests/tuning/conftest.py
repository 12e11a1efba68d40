"""A planted task: what each candidate is worth on it is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Example

LABELS = ("red", "green", "blue")


def items(split: str, n: int) -> tuple[Example, ...]:
    return tuple(Example(f"{split}{i}", f"the {LABELS[i % 3]} thing, {split} {i}", LABELS[i % 3]) for i in range(n))


def says_red(text: str, continuation: str) -> float:
    """Sees the colour in the last question, and prefers red by far all the same."""
    asked = text.rpartition("Thing: ")[2]
    label = continuation.strip(" .")
    return -10 + 4.0 * (label == "red") + 2.0 * (label in asked.partition(" thing")[0])


@pytest.fixture
def colours() -> Task:
    return Task(
        name="colours", instruction="Which colour?", labels=LABELS, input_name="Thing",
        train=items("train", 60), validation=items("validation", 130), test=items("test", 60),
    )  # fmt: skip


@pytest.fixture
def biased() -> Callable[..., ScriptedModel]:
    """Makes a model that only a calibration helps."""

    def made(**options: object) -> ScriptedModel:
        return ScriptedModel("biased", reply=lambda text: "red.", logprob=says_red, **options)  # type: ignore[arg-type]

    return made
