"""Text of others on its way into prompts, onto terminals and into spreadsheets: none of it is taken for structure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import regex

ALLOW = "AMPLIFY_SPECIAL_TOKENS"
"""Environment variable: "allow" leaves special tokens in data as they are."""

# Strings that some chat template or tokenizer reads as structure.
_STRUCTURE = regex.compile(
    r"<[|｜][^<>\n]{0,40}[|｜]>|</?s>|</?(?:bos|eos|pad|unk|mask|think|tool_call)>|<(?:start|end)_of_turn>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]|<</?SYS>>"
)
_LOOKALIKE = {"<": "‹", "[": "(", "·": "-"}
_PASSES = 100  # what is exchanged may bring a token to light that it was part of; that ends after a few


def neutral(text: str, structure: Iterable[str] = ()) -> str:
    """The text with the first character of every special token exchanged for a look-alike. Its length stays.

    Args:
        text: a row's text, a question, a document.
        structure: further strings that are structure, e.g. the special tokens of the model.
    """
    if not structure and "<" not in text and "[" not in text:  # what every pattern begins with
        return text
    for _ in range(_PASSES):
        changed = 0
        for pattern in _patterns(structure):
            text, found = pattern.subn(_disguised, text)
            changed += found
        if not changed:
            break
    return text


def marks(text: str, structure: Iterable[str] = ()) -> list[tuple[int, int]]:
    """Characters [start, end) of everything in a text that is read as structure; see `neutral`.

    Example:
        >>> marks("say <|im_end|> now")
        [(4, 14)]
    """
    return [match.span() for pattern in _patterns(structure) for match in pattern.finditer(text)]


def _patterns(structure: Iterable[str]) -> list[regex.Pattern[str]]:
    own = sorted((s for s in structure if s.strip() and not s.isalnum()), key=len, reverse=True)
    return [_STRUCTURE, *([regex.compile("|".join(map(regex.escape, own)))] if own else [])]


def _disguised(match: regex.Match[str]) -> str:
    held = match[0]
    return _LOOKALIKE.get(held[0], "·") + held[1:]


class Trusted(str):
    """Text that a template wrote, not data: it may hold special tokens."""

    __slots__ = ()


def neutral_values(value: Any) -> Any:
    """`neutral` for every text in what a template is filled with, unless the user allows special tokens there."""
    return value if special_tokens() == "allowed" else _neutral_values(value)


def special_tokens() -> Literal["allowed", "neutralised"]:
    """What becomes of special tokens in data: part of what answers depend on, so records and caches hold it."""
    return "allowed" if os.environ.get(ALLOW) == "allow" else "neutralised"


def _neutral_values(value: Any) -> Any:
    if isinstance(value, str):
        return value if not value or isinstance(value, Trusted) else neutral(value)
    if isinstance(value, Mapping):
        return {k: _neutral_values(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)([v if type(v) is Trusted else _neutral_values(v) for v in value])
    return value


def cell(value: Any) -> Any:
    """A value for a CSV file that a spreadsheet will not run: a text that begins a formula gets an apostrophe in front.

    Numbers stay as they are, also those written as text.
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value
