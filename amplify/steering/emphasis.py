"""Marks in a prompt become spans; the marks themselves are never sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from amplify.errors import InputError
from amplify.types import Message, Prompt, Span

_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_OPEN = re.compile(r"<em(?:\s+weight\s*=\s*(?P<quote>[\"']?)(?P<weight>[^\"'>\s]*)(?P=quote))?\s*>")
_TAG = re.compile(r"</?em\b")


def parse_emphasis(
    text: str | Sequence[Message | Mapping[str, str]], *, raw: bool = False, mark: str = "**", prefix: str = ""
) -> Prompt:
    r"""Read emphasis marks and take them out.

    `**words**` emphasises with the steering's own strength, `<em>words</em>` too, `<em weight=3>words</em>` with
    factor 3 (below 1 de-emphasises). A backslash before a mark keeps it as text.

    Args:
        text: the user's message, or several messages.
        raw: True for text that is sent as it is, without a chat template.
        mark: what stands before and after emphasised words.
        prefix: the beginning of the answer, which the model continues.

    Returns:
        A prompt whose `emphasis` holds the spans, in characters of the text without marks.

    Raises:
        InputError: unbalanced marks, nothing between two marks, or a weight that is no number above 0.

    Example:
        >>> prompt = amplify.parse_emphasis("Answer in **one word**.")
        >>> prompt.messages[0].content, prompt.emphasis
        ('Answer in one word.', (Span(start=10, end=18, weight=None, message=0),))
    """
    if not mark or mark.isspace() or "\\" in mark:
        raise InputError(f"a mark is one or more visible characters other than a backslash, got {mark!r}")
    if isinstance(text, str):
        plain, spans = _parse(text, mark, None if raw else 0)
        if raw:
            return Prompt(text=plain, emphasis=spans, prefix=prefix)
        return Prompt(messages=(Message("user", plain),), emphasis=spans, prefix=prefix)
    if raw:
        raise InputError("raw text is one string; messages go through the chat template")
    try:
        turns = [m if isinstance(m, Message) else Message(**m) for m in text]  # type: ignore[arg-type]
    except TypeError:
        raise InputError("text is a string, or messages with a role and a content each") from None
    parsed = [_parse(turn.content, mark, i) for i, turn in enumerate(turns)]
    messages = tuple(Message(turn.role, plain) for turn, (plain, _) in zip(turns, parsed, strict=True))
    return Prompt(messages=messages, emphasis=tuple(s for _, spans in parsed for s in spans), prefix=prefix)


def _parse(text: str, mark: str, message: int | None) -> tuple[str, tuple[Span, ...]]:
    """The text without marks, and its spans in order of their start."""
    plain: list[str] = []
    length = 0  # characters in `plain`
    marked: int | None = None  # where the open mark stands
    opened: list[tuple[int, float | None]] = []  # open <em>, innermost last
    spans: list[Span] = []

    def close(start: int, weight: float | None) -> None:
        if start == length:
            raise InputError(f"nothing is emphasised between two marks, near {_near(text, at)}")
        spans.append(Span(start, length, weight, message))

    special = re.compile(rf"[\\<]|{re.escape(mark)}")
    at = 0
    while at < len(text):
        found = special.search(text, at)
        literal = text[at : found.start() if found else len(text)] or text[at]
        if found is None or found.start() > at:
            pass
        elif literal == "\\" and (text.startswith(mark, at + 1) or _TAG.match(text, at + 1)):
            literal = text[at + 1 : at + 1 + (len(mark) if text.startswith(mark, at + 1) else 1)]
            at += 1
        elif text.startswith(mark, at):
            if marked is None:
                marked = length
            else:
                close(marked, None)
                marked = None
            at += len(mark)
            continue
        elif text.startswith("</em>", at):
            if not opened:
                raise InputError(f"</em> without <em>, near {_near(text, at)}")
            close(*opened.pop())
            at += len("</em>")
            continue
        elif tag := _OPEN.match(text, at):
            opened.append((length, _weight(tag["weight"])))
            at = tag.end()
            continue
        elif re.match(r"<em[\s>]", text[at : at + 4]):
            raise InputError(f"an emphasis tag is <em> or <em weight=FACTOR>, got {_near(text, at)}")
        plain.append(literal)
        length += len(literal)
        at += len(literal)
    if marked is not None:
        raise InputError(f"unbalanced {mark}: one is never closed. Write \\{mark} for the characters themselves")
    if opened:
        raise InputError("unbalanced <em>: </em> is missing")
    return "".join(plain), tuple(sorted(spans, key=lambda s: (s.start, s.end)))


def _weight(written: str | None) -> float | None:
    if written is None:
        return None
    if not re.fullmatch(_NUMBER, written) or not 0 < float(written) < float("inf"):
        shown = written if len(written) <= 40 else written[:40] + "…"
        raise InputError(f"an emphasis weight is a factor above 0, got {shown!r}")
    return float(written)


def _near(text: str, at: int) -> str:
    return repr(text[max(0, at - 15) : at + 25])
