"""Text as models write it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import regex

from amplify.types import Example

# what thinking models write around their reasoning: <think> (DeepSeek-R1, Qwen3), <seed:think>, [THINK] (Magistral),
# <thought>, and what prompts ask others for (<thinking>, <reasoning>, <reflection>)
_BLOCK = re.compile(
    r"<(/?)(seed:think|think(?:ing)?|thoughts?|reasoning|reflection)>|\[(/?)(THINK)\]", re.IGNORECASE | re.ASCII
)

_ABBREVIATION = re.compile(r"\W*(?:[^\W\d]\.){2,}")  # U.S., D.C., p.m.
_MATH = re.compile(r"\$([^$]+)\$|\\\((.+)\\\)|\\boxed\{(.+)\}")

# Where a sentence ends: `. ! ? …` with white space behind and then anything but a small letter; the stops of other
# scripts (。 । ؟ ։ ።) as they are. Its own are what closes quotes, brackets and emphasis, and marks of citation.
_CITED = r"[\[【]\^?(?:\p{L}[\p{L} ]{0,15})?\d{1,3}(?:\s?[,;–-]\s?\d{1,3}){0,9}(?:†[^】\n]{0,40})?[\]】]"
_CLOSED = rf"""[\p{{Pe}}\p{{Pf}}"'*_]*+(?:(?:[^\S\n]?{_CITED})++|[¹²³⁰-⁹]*+)"""
_STOP = regex.compile(
    rf"(?<![.!?…])[.!?…]++{_CLOSED}(?:[^\S\n]++(?=[^\p{{Ll}}\s])|\s*+$)"
    rf"|[\p{{Sentence_Terminal}}--[.!?]]++{_CLOSED}[^\S\n]*+",
    flags=regex.V1,
)
# Full stops that end no sentence: of a title; of an abbreviation, but before words that begin many a sentence; of an
# abbreviation before its number; of a German date; between the letters of "z. B.".
_TITLE = regex.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|Gen|Col|Lt|Sgt|Capt|Gov|Sen|Rev|Hon|Mme|Mlle|Hr|Sra|vs|cf|ca|e\.\s?g|i\.\s?e|approx|incl|resp"
    r"|bzw|ggf|vgl|evtl|inkl|zzgl)\.\s*$"
)
_SHORT = regex.compile(r"(?:\b(?:etc|al|St|Sr|Jr|Inc|Ltd|Co|Corp|eds?|usw)|\b\p{Lu}|\b(?:\p{L}\.[^\S\n]?)+\p{L})\.\s*$")
_BEGINS = regex.compile(r"(?:The|This|That|These|It|He|She|They|We|You|In|On|At|But|And|However|If|When|There)\s")
_NUMBERED = regex.compile(
    r"\b(?:[Nn]os?|Nrn?|pp?|Figs?|Eqs?|[Vv]ols?|[Aa]rt|Abs|Abb|Tab|[Ss]ecs?|[Cc]h|Kap|Bd|[Nn]úm|[Pp]ág|est"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Okt|Nov|Dec|Dez)\.\s*$"
)
_NUMBER = regex.compile(r"\(?(?:\p{Nd}|\p{Lu}\p{Nd}|[IVX]+\b)")
_DAY = regex.compile(r"\b\d{1,2}\.\s*$")
_MONTH = regex.compile(r"(?:Jan(?:uar)?|Feb(?:ruar)?|März|April|Mai|Juni|Juli|Aug(?:ust)?|Sept|Okt|Nov|Dez)")
_LETTER = regex.compile(r"\b\p{Ll}\.\s*$")
_NEXT_LETTER = regex.compile(r"\p{L}\.")
_BEFORE_STOP = 16  # characters that tell an abbreviation
_MARK = regex.compile(r"[\s*_#>•–-]*(?:\d{1,3}(?:\.\d{1,3})*|\p{L}|[IVXivx]{1,5})\.[*_]*\s*")  # 1. a. **IV.** 2.1.
_LONGEST_MARK = 40
_WRAPPED = 40  # characters: a line as long as this was wrapped if the next one begins with a small letter
_GOES_ON = regex.compile(r"[^\S\n]*\p{Ll}(?![.)])")
_LINE = regex.compile(r"[^\n]*+\n|[^\n]++")
_FENCE = regex.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
_SAYS = regex.compile(r"[\p{L}\p{N}\p{So}]")


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


def sentences(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Cut characters [start, end) of a text in any script into sentences; together they hold every character.

    White space, closing quotes and citation marks belong to the sentence before them, a list's mark to the one behind.
    Titles, initials and common abbreviations (English, German, Spanish) end no sentence. A line break ends one, unless
    the line was wrapped: it is long, and the next one goes on with a small letter. A row of a table is a sentence, a
    fenced block of code is one, and what has no letter or digit (a rule, `|---|---|`) is part of the sentence before.

    Args:
        text: the text.
        start: where to begin, in characters.
        end: where to stop; the text's end by default.

    Returns:
        (start, end) of each sentence in characters of `text`, at least one.

    Example:
        >>> text = "1. Two years.[1] See p. 5, approx. 30 lines. 2. Five."
        >>> [text[a:b] for a, b in sentences(text)]
        ['1. Two years.[1] ', 'See p. 5, approx. 30 lines. ', '2. Five.']
    """
    part = text[start:end]
    cuts = [0]
    silent = 0  # up to here nothing was said since the last cut

    def cut(at: int) -> None:
        nonlocal silent
        if not _SAYS.search(part, max(cuts[-1], silent), at):
            silent = at
            if len(cuts) > 1:
                cuts[-1] = at
        elif at - cuts[-1] > _LONGEST_MARK or not _MARK.fullmatch(part, cuts[-1], at):
            cuts.append(at)

    fence = ""
    for found in _LINE.finditer(part):
        line, begin, stop = found[0], found.start(), found.end()
        if fence:
            fence = "" if line.strip().startswith(fence) else fence
        elif opens := _FENCE.match(line):
            fence = opens[1]
        elif not line.lstrip().startswith("|"):
            for mark in _STOP.finditer(line):
                if mark.end() < len(line) and not _goes_on(line, mark.start(), mark.end()):
                    cut(begin + mark.end())
            if len(line) >= _WRAPPED and (_GOES_ON.match(part, stop) or _TITLE.search(line[-_BEFORE_STOP:])):
                continue
        if not fence:
            cut(stop)
    if cuts[-1] < len(part) or len(cuts) == 1:
        cuts.append(len(part))
    return [(start + a, start + b) for a, b in pairwise(cuts)]


def _goes_on(line: str, stop: int, end: int) -> bool:
    """Whether the sentence goes on behind characters [stop, end) of its line: a stop and the space after it."""
    if line[stop:end].strip() != ".":
        return line[end - 1] in "」』）" and line[end] in "と、"  # what is quoted is a part of the sentence
    before = line[max(0, stop - _BEFORE_STOP) : end]
    return bool(
        _TITLE.search(before)
        or (_SHORT.search(before) and not _BEGINS.match(line, end))
        or (_NUMBERED.search(before) and _NUMBER.match(line, end))
        or (_DAY.search(before) and _MONTH.match(line, end))
        or (_LETTER.search(before) and _NEXT_LETTER.match(line, end))
    )
