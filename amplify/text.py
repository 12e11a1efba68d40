"""Text as models write it."""

from __future__ import annotations

import re
from collections.abc import Iterator

# what thinking models write around their reasoning: <think> (DeepSeek-R1, Qwen3), <seed:think>, [THINK] (Magistral),
# <thought>, and what prompts ask others for (<thinking>, <reasoning>, <reflection>)
_BLOCK = re.compile(
    r"<(/?)(seed:think|think(?:ing)?|thoughts?|reasoning|reflection)>|\[(/?)(THINK)\]", re.IGNORECASE | re.ASCII
)


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
    """The closing tag of the reasoning block that a text ends in, e.g. "</think>"; "" where it ends in none."""
    last = ""
    for _, _, tag, closes in _tags(text):
        last = "" if closes else tag[0] + "/" + tag[1:]
    return last


def _tags(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """(start, end, the tag, whether it closes a block) of every tag."""
    for found in _BLOCK.finditer(text):
        yield found.start(), found.end(), found[0], bool(found[1] or found[3])
