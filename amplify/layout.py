"""How an example's input is laid out as one text: what proxies read and what attributions point into."""

from __future__ import annotations

from amplify.values import Example


def _lines(example: Example) -> list[tuple[str, str]]:
    """One (label shown, option text) pair per option; none where a choice is its own text."""
    shown = [choice if choice.startswith("(") else f"({choice})" for choice in example.choices]
    return list(zip(shown, example.options, strict=True)) if example.options else []


def input_text(example: Example) -> str:
    """The question, then one line per option: "(A) first option". The text alone where there are no option texts."""
    return "\n".join([example.text, *(f"{label} {option}" for label, option in _lines(example))])


def option_spans(example: Example) -> tuple[tuple[int, int], ...]:
    """Characters [start, end) of each option's text in `input_text(example)`."""
    spans, at = [], len(example.text)
    for label, option in _lines(example):
        start = at + 1 + len(label) + 1
        at = start + len(option)
        spans.append((start, at))
    return tuple(spans)
