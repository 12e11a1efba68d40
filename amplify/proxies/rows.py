"""What a proxy forwards for an example: token sequences, where their tokens come from, and which labels they score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from amplify.errors import ContextLengthError, InputError
from amplify.templates import Template
from amplify.text import input_text, option_spans
from amplify.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOT = "\ue000"  # a private-use character: marks where the input goes into a causal prompt


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence through a proxy.

    Attributes:
        ids: tokens forwarded.
        types: token type of each, () where the model has none.
        offsets: characters [start, end) of `input_text(example)` that each token covers; (0, 0) for special,
            template and label tokens.
        answers: indices into `labels_of(example)` of the labels that this row scores.
        targets: for causal proxies, per answer the (position, next token) pairs whose log-probabilities are summed.
        unread: characters of the input that did not fit into the model's window.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    answers: tuple[int, ...]
    targets: tuple[tuple[tuple[int, int], ...], ...] = ()
    unread: int = 0


class Reader(Protocol):
    """What rows are cut for: the parts of a `Proxy` that say how it reads."""

    @property
    def name(self) -> str:
        """Told in errors."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The fixed label set; empty where examples bring their own choices."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Gives tokens and their offsets."""

    @property
    def card(self) -> Mapping[str, Any]:
        """With the prompt template of a causal proxy and what it is filled with."""

    @property
    def window(self) -> int:
        """Longest sequence in tokens."""

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The labels to score, in order."""


def encoder_rows(proxy: Reader, example: Example) -> list[Row]:
    """One row for a fixed label set; one (input, option) row per choice otherwise."""
    if proxy.labels and example.choices and example.choices != proxy.labels:
        raise InputError(
            f"example {example.id!r} brings its own choices {example.choices}, but this proxy was trained on the "
            f"fixed labels {proxy.labels}"
        )
    if proxy.labels:
        return [_encoder_row(proxy, example, None, tuple(range(len(proxy.labels))))]
    return [_encoder_row(proxy, example, i, (i,)) for i in range(len(example.choices))]


def _encoder_row(proxy: Reader, example: Example, option: int | None, answers: tuple[int, ...]) -> Row:
    tokenizer, text = proxy.tokenizer, example.text
    shift = (0, 0)
    if option is None:
        text = input_text(example)
        encoded = tokenizer(text, truncation=True, max_length=proxy.window, return_offsets_mapping=True)
    else:
        second = (example.options or example.choices)[option]
        shift = (0, option_spans(example)[option][0] if example.options else -1)
        encoded = tokenizer(
            text, second, truncation="longest_first", max_length=proxy.window, return_offsets_mapping=True
        )
    offsets, read = [], 0
    for (start, end), part in zip(encoded["offset_mapping"], encoded.sequence_ids(0), strict=True):
        seen = part is not None and shift[part] >= 0
        offsets.append((start + shift[part], end + shift[part]) if seen else (0, 0))
        read = max(read, end if part == 0 else 0)
    types = tuple(encoded.get("token_type_ids", ()))
    unread = max(len(text.rstrip()) - read, 0)
    return Row(tuple(encoded["input_ids"]), types, tuple(offsets), answers, unread=unread)


def _causal_prompt(card: Mapping[str, Any], text: str) -> tuple[str, int]:
    """The prompt, and where the input starts in it."""
    values = {"instruction": card["instruction"], "input_name": card["input_name"], "text": _SLOT}
    rendered = Template("of the proxy", card["template"]).render(values)
    if rendered.count(_SLOT) != 1:
        raise InputError("the prompt template of a causal proxy must use {{ text }} exactly once")
    return rendered.replace(_SLOT, text), rendered.index(_SLOT)


def causal_rows(proxy: Reader, example: Example) -> list[Row]:
    """Labels whose sequences differ in their last token only share a row; that token is never forwarded."""
    text = input_text(example)
    prompt, at = _causal_prompt(proxy.card, text)
    shared: dict[tuple[int, ...], tuple[list[tuple[int, int]], list[int], list[tuple[tuple[int, int], ...]]]] = {}
    for answer, label in enumerate(proxy.labels_of(example)):
        encoded = proxy.tokenizer(f"{prompt} {label}", return_offsets_mapping=True)
        ids, places = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        while places and places[-1][1] <= places[-1][0]:  # an end token that the tokenizer adds
            ids.pop(), places.pop()
        target = [i for i, (_, end) in enumerate(places) if end > len(prompt)]
        if not target or target[0] == 0:
            raise InputError(f"label {label!r} has no token of its own behind the prompt of example {example.id!r}")
        if len(ids) - 1 > proxy.window:
            raise ContextLengthError(
                f"example {example.id!r} needs {len(ids) - 1} tokens, the proxy {proxy.name} reads {proxy.window}: "
                "shorten the input or take a proxy with a longer window"
            )
        offsets = [
            (max(a - at, 0), min(b - at, len(text))) if a < at + len(text) and b > at else (0, 0) for a, b in places
        ]
        _, answers, targets = shared.setdefault(tuple(ids[:-1]), (offsets[:-1], [], []))
        answers.append(answer)
        targets.append(tuple((i - 1, ids[i]) for i in target))
    return [
        Row(ids, (), tuple(offsets), tuple(answers), tuple(targets))
        for ids, (offsets, answers, targets) in shared.items()
    ]
