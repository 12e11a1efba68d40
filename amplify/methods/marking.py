"""Where the emphasis of a prompt stands: marked while templates are rendered, and found again in what they made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from amplify.errors import InputError
from amplify.values import Example, Span

_OPEN, _CLOSE = "\ue010", "\ue011"  # private-use characters around an emphasised value while a template is rendered


def emphasised(variables: Mapping[str, Any], emphasis: str) -> dict[str, Any]:
    """The template's variables with the emphasised value between two marks, which `unmarked` finds again.

    Raises:
        InputError: a field that the example does not have.
    """
    out = dict(variables)
    if not emphasis:
        return out
    if emphasis.startswith("fields."):
        name = emphasis.removeprefix("fields.")
        if name not in out["fields"]:
            raise InputError(f"the emphasis {emphasis!r} names a field that the example lacks")
        out["fields"] = {**out["fields"], name: f"{_OPEN}{out['fields'][name]}{_CLOSE}"}
    elif emphasis == "first_sentence":
        end = first_sentence(out["text"])
        out["text"] = marked(out["text"], 0, end)
    else:
        out[emphasis] = f"{_OPEN}{out[emphasis]}{_CLOSE}"
    return out


def marked_input(example: Example) -> Example:
    """The example with its text and each option between marks: `Form.prompt` gives their places as its emphasis."""
    options = tuple(f"{_OPEN}{option}{_CLOSE}" for option in example.options)
    return replace(example, text=f"{_OPEN}{example.text}{_CLOSE}", options=options)


def marked(text: str, start: int, end: int) -> str:
    """The text with the characters [start, end) between the marks that `unmarked` finds again."""
    return f"{text[:start]}{_OPEN}{text[start:end]}{_CLOSE}{text[end:]}"


def unmarked(text: str, marks: str = "", message: int | None = None) -> tuple[str, tuple[Span, ...]]:
    """The text without the marks, and the spans between them; `marks` is written in their place."""
    plain, spans, start = "", [], 0
    for part in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if part == _OPEN:
            start = len(plain)
            plain += marks
        elif part == _CLOSE:
            plain += marks
            if len(plain) > start:
                spans.append(Span(start, len(plain), message=message))
        else:
            plain += part
    return plain, tuple(spans)


_SENTENCE = re.compile(r"(?<!\b(?:Dr|Mr|Ms|St|Jr|Sr))(?<!\bMrs)(?<!\bProf)(?<!\b[A-Z])[.!?][\"'”’)]*(?=\s|$)")


def first_sentence(text: str) -> int:
    """Where the first sentence of a text ends (titles and initials do not end one)."""
    found = _SENTENCE.search(text)
    return found.end() if found else len(text)
