"""Tasks: YAML, CSV, JSONL or a hub data set becomes labelled splits and the words around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amplify.values import Demonstration, Example


@dataclass(frozen=True)
class Task:
    """A labelled task.

    Attributes:
        name: e.g. "bbh/snarks".
        instruction: what the model is told to do, one or two sentences, label names included.
        train: pool for random shots and for fine-tuning a proxy.
        validation: pool from which shots are selected by score (AMPLIFY chooses what the model gets wrong here).
        test: what is evaluated.
        labels: the fixed label set; empty where every example brings its own `choices`, or answers are free text.
        input_name: what an input is called in prompts, e.g. "Review".
        metric: name in `amplify.metrics`.
        cot: human chain-of-thought demonstrations, empty where there are none.
        source, revision, licence, citation: provenance.
    """

    name: str
    instruction: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    input_name: str = "Question"
    metric: str = "accuracy"
    cot: tuple[Demonstration, ...] = ()
    source: str = ""
    revision: str = ""
    licence: str = ""
    citation: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The answers to choose from: the example's own choices, else the fixed set, else ()."""
        return example.choices or self.labels

    @property
    def fingerprint(self) -> str:
        """SHA-256 over instruction, labels and every example, so that a resumed run can tell a changed task."""
        raise NotImplementedError


def load_task(task: str | Path, **options: Any) -> Task:
    """A task by name, YAML file, CSV/JSONL file, or datasets id with a field map."""
    raise NotImplementedError
