"""Strict reading of an answer: what is not plainly one of the labels is unparsed, never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MARKER = "The answer is"

_OPEN = r"[*_`~\"'“‘«(\[<{$\s]*"
_CLOSE = r"[*_`~\"'”’»)\]>}$]*"
# directly behind a label there may be no further word part: "positively", "4.5", "pro/con", "on-site", "billing's"
_EDGE = r"(?![\w%]|[-–/\\'’&+@=][\w(\"'*]|[.,:]\d|\.\w)"
_REASON = re.compile(r"\s*[,;(–—-]*\s*(?:because|since|as|due|given|based|for)\b", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:not|never|neither|nor|cannot|whether|if|unless|isn|doubt)\b|n['’]t\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|[*_`\"'”’)])|\n")


def shown(label: str, with_options: bool) -> str:
    """The label as prompts write it: "(A)" for the letter of an option, else as it is."""
    bare = not re.fullmatch(r"[(\[].*[)\]]", label)
    return f"({label})" if with_options and bare else label


def split_answer(text: str, marker: str = MARKER) -> tuple[str, str] | None:
    """What stands before the last `marker` and what stands behind it; None where the text has no marker."""
    found = list(_marker(marker).finditer(text))
    return (text[: found[-1].start()].strip(), text[found[-1].end() :]) if found else None


def parse_label(text: str, labels: Sequence[str], *, options: Sequence[str] = (), marker: str = MARKER) -> str | None:
    """The label that the text gives as its answer, or None.

    The label must stand directly behind the marker (quotes, brackets and markdown aside, case and underscores
    ignored), end as a whole word, and be alone: a sentence that names a second label, denies or asks is unparsed, and
    so is a text whose answers contradict each other. A text without any marker must consist of the label alone.

    Args:
        text: all that the model wrote, the beginning that was written for it included.
        labels: the answers to choose from.
        options: the texts behind the labels "(A)", "(B)", ...; one of them, given whole, counts as its label.
        marker: the words that announce the answer.

    Returns:
        one of `labels`, exactly as given there.
    """
    found = {value for tail in _tails(text, marker) if (value := _label_at(tail, labels, options)) is not None}
    if not _marker(marker).search(text):
        found = {value} if (value := _whole(text, labels, options)) is not None else set()
    return found.pop() if len(found) == 1 else None


def parse_text(text: str, *, marker: str = MARKER) -> str | None:
    """A free-text answer: the line behind the last marker (without one: the first line), bare; None where empty."""
    parts = split_answer(text, marker)
    line = (parts[1] if parts else text).strip().partition("\n")[0].strip()
    bare = line.removesuffix(".").strip().strip('*_`"“”«»').strip().removesuffix(".").strip()
    return bare or None


def _marker(marker: str) -> re.Pattern[str]:
    words = marker.split()
    spaced = r"\s+".join(map(re.escape, words)) if words else r"\A"
    return re.compile(spaced + (r"(?!\w)" if words and words[-1][-1].isalnum() else ""), re.IGNORECASE)


def _tails(text: str, marker: str) -> Iterator[str]:
    for match in _marker(marker).finditer(text):
        sentence = re.split(r"[.!?]\s|\n", text[: match.start()])[-1]
        if not _NEGATED.search(sentence):
            yield text[match.end() :]


def _patterns(labels: Sequence[str], options: Sequence[str]) -> list[tuple[str, re.Pattern[str]]]:
    """Every spelling that counts as a label, longest first."""
    fold = len({label.casefold() for label in labels}) == len(set(labels))
    spellings: list[tuple[str, str, bool]] = []
    for label in labels:
        inner = label.strip("()[]") if options else label
        spellings.append((label, _flexible(inner), bool(options)))
    if len({o.casefold() for o in options}) == len(options):
        spellings += [(label, _flexible(option), False) for label, option in zip(labels, options, strict=False)]
    compiled = []
    for label, spelling, letter in sorted(spellings, key=lambda s: -len(s[1])):
        # the bare letter of an option may be the word "a" or "I": unless in brackets it must end its clause
        end = r"(?=\s*(?:[).\]:,;*_`\"'”’!]|\n|$))" if letter else ""
        bracketed = rf"|[*_`\"'\s]*[(\[]{spelling}[)\]]{_CLOSE}" if letter else ""
        pattern = rf"\s*:?(?:{_OPEN}{spelling}{end}{_CLOSE}{_EDGE}{bracketed})"
        compiled.append((label, re.compile(pattern, re.IGNORECASE if fold else 0)))
    return compiled


def _flexible(spelling: str) -> str:
    return r"[\s_]+".join(re.escape(part) for part in re.split(r"[\s_]+", spelling.strip()))


def _label_at(tail: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    for label, pattern in _patterns(labels, options):
        if match := pattern.match(tail):
            return label if _alone(tail[match.end() :], label, labels, options) else None
    return None


def _alone(rest: str, label: str, labels: Sequence[str], options: Sequence[str]) -> bool:
    """Whether the sentence that goes on with `rest` still says nothing but `label`."""
    end = _SENTENCE_END.search(rest)
    sentence = rest[: end.start()] if end else rest
    if end and end[0] == "?":
        return False
    if not sentence.strip() or _REASON.match(sentence):
        return True
    others = [other for other in labels if other != label]
    if options:
        letters = [re.escape(other.strip("()[]")) for other in others]
        return not re.search(rf"[(\[](?:{'|'.join(letters)})[)\]]|\b(?:or|and|not)\b", sentence) if letters else True
    if not re.match(r"\s*[,;:()–—-]", sentence):
        return False  # "positive review", "billing or refund": the label is not all of the answer
    names = "|".join(_flexible(other) for other in others)
    return not (_NEGATED.search(sentence) or (names and re.search(rf"\b(?:{names})\b", sentence, re.IGNORECASE)))


def _whole(text: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    for label, pattern in _patterns(labels, options):
        if (match := pattern.match(text)) and not text[match.end() :].strip(" .!*_`\"'\n"):
            return label
    return None
