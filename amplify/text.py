"""Text as models write it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from amplify.types import Example

# what thinking models write around their reasoning: <think> (DeepSeek-R1, Qwen3), <seed:think>, [THINK] (Magistral),
# <thought>, and what prompts ask others for (<thinking>, <reasoning>, <reflection>)
_BLOCK = re.compile(
    r"<(/?)(seed:think|think(?:ing)?|thoughts?|reasoning|reflection)>|\[(/?)(THINK)\]", re.IGNORECASE | re.ASCII
)

_ABBREVIATION = re.compile(r"\W*(?:[^\W\d]\.){2,}")  # U.S., D.C., p.m.
_MATH = re.compile(r"\$([^$]+)\$|\\\((.+)\\\)|\\boxed\{(.+)\}")


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str, str]:
    """Keep the reasoning blocks of a thinking model (`<think>…</think>` and the like) apart from its answer.

    What follows the last closing tag is the answer, with what stands outside of blocks before it. A closing tag
    without an opening one ends a block that the chat template opened: all before it is reasoning. A block that is
    never closed holds the rest of the text, so that a model which was cut off while thinking has answered nothing.

    Args:
        text: all that the model wrote.
        opened: the prompt ended inside a block (see `open_block`).

    Returns:
        The reasoning ("" for none), and the answer; a text without blocks is the answer as it stands.
    """
    reasoning: list[str] = []
    answer: list[str] = []
    at, inside, found = 0, opened, opened
    for start, end, _, closes in _tags(text):
        if closes and not inside:
            reasoning += answer
            answer = []
        (reasoning if inside or closes else answer).append(text[at:start])
        at, inside, found = end, not closes, True
    (reasoning if inside else answer).append(text[at:])
    return ("".join(reasoning).strip(), "".join(answer).strip()) if found else ("", text)


def open_block(text: str) -> str:
    """The closing tag of the reasoning block that a text is inside of at its end, e.g. "</think>"; "" where in none."""
    last = ""
    for _, _, tag, closes in _tags(text):
        last = "" if closes else f"{tag[0]}/{tag[1:]}"
    return last


def opens_block(prompt: str) -> str:
    """The closing tag of the reasoning block with whose opening tag a rendered prompt ends; "" where it does not.

    What users write inside a prompt is no part of this: chat templates put the tag last.
    """
    end = prompt[-40:].rstrip()
    last = [tag for _, stop, tag, closes in _tags(end) if stop == len(end) and not closes]
    return f"{last[0][0]}/{last[0][1:]}" if last else ""


def bare(line: str) -> str:
    """A short answer without what stands around it: a colon before, quotes, Markdown, `$…$`, `\\boxed{…}`, a full stop.

    The stop of an abbreviation with stops inside is its own: "U.S.", "Washington, D.C.".
    """
    line = re.sub(r"\A\s*+[:：](?=[\s\w\"'*$\\])", "", line).strip()
    for _ in range(4):  # as deep as answers are wrapped: **"$42$."**
        line = line.rstrip("。｡").strip().strip('*_`"“”«»「」『』').strip()
        if line.endswith(".") and not _ABBREVIATION.fullmatch(line.split()[-1]):
            line = line[:-1].strip()
        if math := _MATH.fullmatch(line):
            line = math[math.lastindex or 0].strip()
    return line


def _tags(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """(start, end, the tag, whether it closes a block) of every tag."""
    for found in _BLOCK.finditer(text):
        yield found.start(), found.end(), found[0], bool(found[1] or found[3])


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
