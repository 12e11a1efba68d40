"""A labelled task: its splits, the words around them, and what every user of one relies on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from amplify.errors import InputError
from amplify.tasks.rows import content, listed, plain_json
from amplify.types import Demonstration, Example


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
        answer_prefix: the words before an answer in prompts, e.g. "Sentiment:".
        metric: name in `amplify.metrics`.
        cot: human chain-of-thought demonstrations, empty where there are none. None of them is in `test`.
        template: question template of `prompts/` that this task is asked with. Such a prompt holds nothing else: no
            system message, and the whole text that is written is the answer. "" for the common templates.
        layout: "chat" or "text" where the task asks for one of them ("text": the prompt is continued, not answered).
        emphasis: what steering emphasises in a prompt: "instruction", "text", "first_sentence" or "fields.NAME".
        max_tokens: room that an answer needs, 0 for the method's own.
        stop: strings that end an answer, () for the method's own.
        source, revision, licence, citation: provenance.
        fields: what else a reader of a result must know, e.g. how many rows were left out, and why.

    Example:
        >>> task = amplify.load_task("support_tickets")
        >>> task.labels, len(task.test)
        (('billing', 'technical', 'shipping', 'account', 'cancellation'), 150)
    """

    name: str
    instruction: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    input_name: str = "Question"
    answer_prefix: str = "The answer is"
    metric: str = "accuracy"
    cot: tuple[Demonstration, ...] = ()
    template: str = ""
    layout: str = ""
    emphasis: str = ""
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    source: str = ""
    revision: str = ""
    licence: str = ""
    citation: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate(self)

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The answers to choose from: the example's own choices, else the fixed set, else ()."""
        return example.choices or self.labels

    @property
    def fingerprint(self) -> str:
        """SHA-256 over instruction, labels and every example, so that a resumed run can tell a changed task."""
        aside = ("source", "revision", "licence", "citation", "fields")
        optional = ("template", "layout", "emphasis", "max_tokens", "stop")
        kept = {k: v for k, v in vars(self).items() if k not in aside and (v or k not in optional)}
        plain = ", ".join(f'"{key}": {spelt(kept[key])}' for key in sorted(kept))
        return hashlib.sha256(f"{{{plain}}}".encode("utf-8", "backslashreplace")).hexdigest()


def spelt(value: Any) -> str:
    """JSON with sorted keys. Examples, of which there may be many, are written without a detour over dictionaries."""
    if isinstance(value, tuple) and value and isinstance(value[0], Example):
        return f"[{', '.join(map(spelt, value))}]"
    if not isinstance(value, Example):
        return json.dumps(value, default=_plain, sort_keys=True, ensure_ascii=False)
    fields = spelt(value.fields) if value.fields else "{}"
    label = "null" if value.label is None else plain_json(value.label)
    return (
        f'{{"answers": {listed(value.answers)}, "choices": {listed(value.choices)}, "fields": {fields}, '
        f'"id": {plain_json(value.id)}, "label": {label}, "options": {listed(value.options)}, '
        f'"text": {plain_json(value.text)}}}'
    )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclass_fields(value)}
    return str(value)


def validate(task: Task) -> None:
    """Check what every user of a task relies on.

    Raises:
        InputError: an empty test split, an id used twice, a label outside its set, a text in two splits, or a
            chain-of-thought exemplar in the test split.
    """
    if task.emphasis not in ("", "instruction", "text", "first_sentence") and not task.emphasis.startswith("fields."):
        raise InputError(
            f"task {task.name}: emphasis is instruction, text, first_sentence or fields.NAME, not {task.emphasis!r}"
        )
    if not task.test:
        raise InputError(f"task {task.name}: the test split is empty")
    seen: dict[str, str] = {}
    placed: dict[tuple[str, ...], Example] = {}
    labels = frozenset(task.labels)
    for split in ("train", "validation", "test"):
        for example in getattr(task, split):
            plain = example.label in labels and not example.choices and not example.options  # as most are
            if wrong := "" if plain and example.text.strip() else _wrong(task, example):
                raise InputError(f"task {task.name}, {split} example {example.id!r}: {wrong}")
            other = placed.setdefault(content(example), example)
            if other is not example and (place := seen[other.id]) != split:
                raise InputError(
                    f"task {task.name}, {split} example {example.id!r}: the same text is in {place} (id {other.id!r}); "
                    "a text belongs to one split only"
                )
            if example.id in seen:
                raise InputError(
                    f"task {task.name}, {split} example {example.id!r}: the id is used twice (also in "
                    f"{seen[example.id]}); ids must be unique"
                )
            seen[example.id] = split
    for shot in task.cot:
        if (copy := placed.get(content(shot.example))) and seen[copy.id] == "test":
            raise InputError(
                f"task {task.name}: the chain-of-thought exemplar {shot.example.id!r} is in the test split"
            )


def _wrong(task: Task, example: Example) -> str:
    """What is wrong with one example, or ""."""
    if not example.text.strip():
        return "the text is empty"
    allowed = task.labels_of(example)
    if allowed and example.label not in allowed:
        return f"the label {example.label!r} is none of {', '.join(allowed)}"
    if example.options and len(example.options) != len(example.choices):
        return f"{len(example.choices)} choices but {len(example.options)} options"
    # a question whose documents alone are judged needs no answer
    if not allowed and example.label is None and not example.answers and not example.fields.get("evidence"):
        return "there is no label"
    return ""
