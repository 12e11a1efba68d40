"""Strict reading of an answer: what is not plainly one of the labels is unparsed, never guessed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import regex

from amplify.text import bare, split_reasoning

MARKER = "The answer is"

# Other scripts' punctuation, character by character, as the ASCII sign that says the same. The full stop of a script
# without blanks becomes a line separator: it ends its sentence whatever stands behind it.
_SIGNS = str.maketrans(
    {code + 0xFEE0: chr(code) for code in range(0x21, 0x7F)}  # full width: ！ to ～, letters and digits included
    | dict.fromkeys(map(ord, "。｡！។။།።"), "\n")
    | dict.fromkeys(map(ord, "।॥۔։"), ".")
    | dict.fromkeys(map(ord, "？؟⁇"), "?")
    | dict.fromkeys(map(ord, "、，､،"), ",")
    | dict.fromkeys(map(ord, "；؛"), ";")
    | dict.fromkeys(map(ord, "“”„‟«»「」『』《》｢｣〝〞"), '"')
    | dict.fromkeys(map(ord, "‘’‚‛‹›"), "'")
    | dict.fromkeys(map(ord, "【〔〖〈"), "[")
    | dict.fromkeys(map(ord, "】〕〗〉"), "]")
    | dict.fromkeys(map(ord, "−﹣"), "-")
)
_MARKUP = re.compile(
    r"\\(?:boxed|text(?:bf|it|rm)?|math(?:bf|it|rm)|displaystyle)\b|\\(?=[()\[\]])|</?(?:answer|label|strong|b|em|i)>"
)
# scripts that put no blank between words: each character is a token of its own
_DENSE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_TOKEN = regex.compile(
    rf"(?P<gap>[\s_]+|(?<=[\p{{L}}\p{{N}}])[-‐‑](?=[\p{{L}}\p{{N}}]))"
    rf"|(?P<dense>{_DENSE})|(?P<word>[[\p{{L}}\p{{M}}\p{{N}}]--{_DENSE}]+)|\X",
    flags=regex.V1,
)
_OPEN, _CLOSE = frozenset("*`~\"'([{<$:="), frozenset("*`~\"')]}>$")
_PAUSE = frozenset(",;:()–—-")
_NAMED = frozenset(("option", "choice", "letter", "answer"))  # what may stand before the letter of an option
# what may stand before a label and changes nothing; "likely" and "probably" do
_SURE = frozenset(
    ("indeed", "clearly", "definitely", "certainly", "obviously", "evidently", "undoubtedly", "therefore")
)
_WHY = (("and", "here", "is", "why"), ("and", "here", "'", "s", "why"))

_REASON = re.compile(
    r"[\s,;(–—-]*+(?:(?:because|since|as(?! well)|due|given|based|for)\b|因为|因為|由于|由於)", re.IGNORECASE
)
_NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|whether|if|unless|isn|doubt)\b|n't\b|[不没沒未非]|是否", re.IGNORECASE
)
_HEDGED = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|unsure|uncertain|unclear|depends|either|both)\b"
    r"|(?:n't|\bnot|\bcannot)\s+(?:know|tell|say|sure|certain|determine|decide)\b|也许|可能|或者",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:no|not|none|never|neither|nor|false|wrong|incorrect|untrue|invalid|disagrees?)\b|[不否非无無]"
)
# where a sentence begins, as far as a denial reaches: "it is not good, so the answer is negative" denies no answer
_TURN = re.compile(
    r"[.!?]\s|[\n\u2028]|[,;:]\s*+(?:and\s+)?(?:so|thus|therefore|hence|then)\b|所以|因此", re.IGNORECASE
)
_ANNOUNCED = regex.compile(
    r"(?<!wrong )(?<!incorrect )(?<!other )(?<!opposite )(?<!false )"
    r"\b(?:answer|choice|option|label|category|class|prediction|verdict|conclusion)"
    r"(?:\s+is\b|[\"'*_`\s]*+[:=]|['\"*_`\s]*+is\b)",
    flags=regex.IGNORECASE,
)


def shown(label: str, with_options: bool) -> str:
    """The label as prompts write it: "(A)" for the letter of an option, else as it is."""
    bare = not re.fullmatch(r"[(\[].*[)\]]", label)
    return f"({label})" if with_options and bare else label


def split_answer(text: str, marker: str = MARKER) -> tuple[str, str] | None:
    """What stands before the last `marker` and what stands behind it; None where the text has no marker."""
    found = list(_marker(marker).finditer(text.translate(_SIGNS)))
    return (text[: found[-1].start()].strip(), text[found[-1].end() :]) if found else None


def parse_label(
    text: str, labels: Sequence[str], *, options: Sequence[str] = (), marker: str = MARKER, reasons: bool = False
) -> str | None:
    """The label that the text gives as its answer, or None (see `Reader`).

    Args:
        text: all that the model wrote, the beginning that was written for it included.
        labels: the answers to choose from.
        options: the texts behind the labels "(A)", "(B)", ...; one of them, given whole, counts as its label.
        marker: the words that announce the answer.
        reasons: the text gives its reasons first, so that one without an announcement has to be the label alone.

    Returns:
        one of `labels`, exactly as given there.
    """
    return _reader(tuple(labels), tuple(options), marker).read(text, reasons=reasons)


def parse_text(text: str, *, marker: str = MARKER) -> str | None:
    """A free-text answer: the line behind the last marker (without one: the first line), bare; None where empty."""
    text = split_reasoning(text)[1]
    parts = split_answer(text, marker)
    return bare((parts[1] if parts else text).strip().partition("\n")[0]) or None


class _Token(NamedTuple):
    """A word, or a sign, of a text.

    Attributes:
        gap: what parts it from the token before: "" nothing, "\\n", " ", "_" or "-".
        text: the token itself.
        kind: "word", "dense" (a character of a script without blanks) or "" (a sign).
        start, end: where it stands.
    """

    gap: str
    text: str
    kind: str
    start: int
    end: int


class _Said(NamedTuple):
    """A label, whether its sentence goes on, and what stands behind that sentence."""

    label: str
    more: bool
    rest: str


class Reader:
    """Reads which of some labels a text gives as its answer. Made once for a set of labels; one answer takes time
    linear in its length, however many labels there are.

    The label must stand directly behind the marker (quotes, brackets, Markdown and LaTeX aside; case, underscores,
    hyphens and Unicode's composition ignored as far as the labels still differ), end as a whole word, and be alone: a
    sentence that names a second label, hedges, denies or asks is unparsed, and so is a text whose answers contradict
    each other. Where the marker is not there, another announcement counts ("Answer: B", "The correct answer is (B).");
    a text without any must begin with the label and name no other. What a thinking model writes inside its reasoning
    blocks is not read.

    Args:
        labels: the answers to choose from.
        options: the texts behind the labels "(A)", "(B)", ...: "B) show", "(B)" and "show" all say "B".
        marker: the words that announce the answer.
    """

    def __init__(self, labels: Sequence[str], options: Sequence[str] = (), marker: str = MARKER) -> None:
        self._marker = _marker(marker)
        self._options = bool(options)
        letters = [label.strip("()[]") if options else label for label in labels]
        # the loosest comparison under which the labels still differ
        for self._fold, self._exact in ((True, False), (False, False), (True, True), (False, True)):
            if len({self._key(letter) for letter in letters}) == len(set(labels)):
                break
        self._spellings: dict[Any, Any] = {}
        self._denials = {label for label in labels if _DENIAL.search(label.replace("_", " ").casefold())}
        for label, letter in zip(labels, letters, strict=True):
            self._add(letter, label, letter=bool(options))
        if len({self._key(option) for option in options}) == len(options):
            for label, option in zip(labels, options, strict=False):
                self._add(option, label, letter=False)

    def read(self, text: str, *, reasons: bool = False) -> str | None:
        """The label that the text gives as its answer, exactly as it was given to the reader; None where it does not.

        Args:
            text: all that the model wrote, the beginning that was written for it included.
            reasons: the text gives its reasons first: unannounced, the label must be all of it.
        """
        text = self._folded(split_reasoning(text)[1])
        announced = False
        for pattern in (self._marker, _ANNOUNCED):
            clauses = list(_announced(text, pattern))
            announced = announced or bool(clauses)
            said = {label for clause in clauses if clause is not None for label in self._lines(clause)}
            if said:
                return said.pop() if len(said) == 1 else None
        return None if announced else self._whole(text, reasons)

    def _lines(self, clause: str) -> Iterator[str]:
        """The label that a clause begins with, and one that a second sentence on its line says."""
        said = self._said(clause)
        if said is not None:
            yield said.label
            if (second := self._said(said.rest.partition("\n")[0])) is not None:
                yield second.label

    def _whole(self, text: str, alone: bool) -> str | None:
        """The label that an unannounced text begins with, if all the rest neither names another, denies nor asks."""
        said = self._said(text)
        if said is None or (alone and (said.more or said.rest.strip())):
            return None
        label, rest = said.label, said.rest
        if "?" in rest or _NEGATED.search(rest) or _HEDGED.search(rest) or self._names_other(rest, label):
            return None
        return label

    def _said(self, clause: str) -> _Said | None:
        """What a clause begins with; None where that is no label, or not a label alone."""
        tokens = list(_lex(clause))
        at, bracketed = 0, False
        while at < len(tokens):
            for end, label, letter in self._matches(tokens, at):
                own_end = self._end(tokens, end, label, letter, bracketed)
                if own_end is not None:
                    return self._alone(clause, tokens, own_end, label, tokens[at:end])
            token = tokens[at]
            word = token.text.casefold()
            if word not in _OPEN and word not in _SURE and not (self._options and word in _NAMED):
                return None
            at, bracketed = at + 1, token.text in ("(", "[")
        return None

    def _end(self, tokens: Sequence[_Token], at: int, label: str, letter: bool, bracketed: bool) -> int | None:
        """Where a label that was found before token `at` ends, closing signs included; None if it goes on as a word."""
        if not _edge(tokens, at):
            return None
        end = at
        while end < len(tokens) and not tokens[end].gap and tokens[end].text in _CLOSE:
            end += 1
        if end > at and not _edge(tokens, end):
            return None
        if not letter:
            return end
        # the letter of an option may be the word "a" or "I": bare, it must end its clause or go on with its own text
        closed = bracketed and end > at and tokens[at].text in (")", "]")
        next_ = tokens[end] if end < len(tokens) else None
        stops = end > at or next_ is None or next_.gap == "\n" or next_.text in (".", ":", ",", ";", "!", "?", "–", "—")
        behind = end
        while (
            behind < len(tokens) and not tokens[behind].kind and tokens[behind].text in (".", ":", ",", "–", "—", "-")
        ):
            behind += 1
        texts = [(stop, of) for stop, of, short in self._matches(tokens, behind) if not short and _edge(tokens, stop)]
        for stop, of in texts:
            if of == label:
                return self._end(tokens, stop, label, False, False)
        if texts and behind < len(tokens) and (next_ is None or next_.gap != "\n"):
            return None  # the letter of one option with the text of another
        reason = next_ is not None and next_.text.casefold() in ("because", "since", "as")
        return end if closed or stops or reason or _why(tokens, end) else None

    def _alone(
        self, clause: str, tokens: Sequence[_Token], at: int, label: str, spelt: Sequence[_Token]
    ) -> _Said | None:
        """The label that ends before token `at`, if its sentence goes on to say nothing else."""
        begin = tokens[at - 1].end
        stop, after, question = _sentence_end(tokens, at)
        sentence = clause[begin : tokens[stop].start if stop < len(tokens) else len(clause)]
        rest = clause[tokens[after].start :] if after < len(tokens) else ""
        if question:
            return None
        said = _Said(label, stop > at, rest)
        if stop == at or _REASON.match(sentence) or _why(tokens, at) or self._not_another(tokens[at:stop], label):
            return said
        if self._options:
            joined = re.search(r"\b(?:or|and|not)\b", sentence, re.IGNORECASE)
            return None if joined or self._names_other(sentence, label, letters=True) else said
        if tokens[at].text not in _PAUSE:
            return None  # "positive review", "billing or refund": the label is not all of the answer
        if self._goes_on(spelt, tokens[at:stop]):
            return None
        denied = label not in self._denials and _NEGATED.search(sentence)
        return None if denied or _HEDGED.search(sentence) or self._names_other(sentence, label) else said

    def _goes_on(self, spelt: Sequence[_Token], rest: Sequence[_Token]) -> bool:
        """Whether a label and what stands behind a pause are together a longer one: "positive, mixed" where that is."""
        words = [token for token in rest if token.text not in _PAUSE]
        whole = [*spelt, *(token._replace(gap=" ") for token in words[:1]), *words[1:]]
        return any(end > len(spelt) for end, _, _ in self._matches(whole, 0))

    def _not_another(self, tokens: Sequence[_Token], label: str) -> bool:
        """Whether the rest of a sentence says ", not (A)" of another option, and no more."""
        said = [token.text.casefold() for token in tokens[:2]]
        if not self._options or len(said) < 2 or said[0] not in ",;–—-" or said[1] != "not":
            return False
        at = 2
        while at < len(tokens) and tokens[at].text in _OPEN:
            at += 1
        return any(
            other != label and all(token.text in _CLOSE for token in tokens[end:])
            for end, other, _ in self._matches(tokens, at)
        )

    def _names_other(self, text: str, label: str, *, letters: bool = False) -> bool:
        """Whether a text names another label: by its letter in brackets or (unless `letters`) by its words.

        "false, not true" names no other label.
        """
        tokens = list(_lex(text))
        at = 0
        while at < len(tokens):
            found = [
                (end, other)
                for end, other, letter in self._matches(tokens, at)
                if (_listed(tokens, at) if letter else not letters and _begins(tokens, at) and _ends(tokens, end))
            ]
            end, other = found[0] if found else (at + 1, label)
            denied = label in self._denials and at > 0 and tokens[at - 1].text.casefold() == "not"
            if other != label and not denied:
                return True
            at = end
        return False

    def _folded(self, text: str) -> str:
        plain = _plain(text)
        return unicodedata.normalize("NFC", plain.casefold()) if self._fold else plain

    def _key(self, spelling: str) -> tuple[tuple[str | bool, str], ...]:
        return tuple(self._step(i, token) for i, token in enumerate(_lex(self._folded(spelling))))

    def _step(self, i: int, token: _Token) -> tuple[str | bool, str]:
        return "" if i == 0 else token.gap if self._exact else bool(token.gap), token.text

    def _add(self, spelling: str, label: str, *, letter: bool) -> None:
        node = self._spellings
        key = self._key(spelling)
        if not key:
            return
        for step in key:
            node = node.setdefault(step, {})
        node.setdefault(None, (label, letter))

    def _matches(self, tokens: Sequence[_Token], at: int) -> list[tuple[int, str, bool]]:
        """(token behind it, label, whether it is a letter) of every spelling that begins at a token, longest first."""
        node, found = self._spellings, []
        for i in range(at, len(tokens)):
            node = node.get(self._step(i - at, tokens[i]), {})
            if None in node:
                found.append((i + 1, *node[None]))
            if not node:
                break
        return found[::-1]


@lru_cache(maxsize=256)
def _reader(labels: tuple[str, ...], options: tuple[str, ...], marker: str) -> Reader:
    return Reader(labels, options, marker)


def _plain(text: str) -> str:
    """The text with other scripts' signs as ASCII ones, composed, without LaTeX commands and tags."""
    return _MARKUP.sub(" ", unicodedata.normalize("NFC", text).translate(_SIGNS))


@lru_cache(maxsize=256)
def _marker(marker: str) -> regex.Pattern[str]:
    words = marker.translate(_SIGNS).split()
    spaced = r"\s+".join(map(re.escape, words)) if words else r"\A"
    inside = rf"(?![[\p{{L}}\p{{M}}\p{{N}}]--{_DENSE}])"  # "isolated": a script without blanks needs none here either
    ends = bool(words) and words[-1][-1].isalnum() and not regex.match(_DENSE, words[-1][-1])
    return regex.compile(spaced + (inside if ends else ""), flags=regex.V1 | regex.IGNORECASE)


def _announced(text: str, marker: regex.Pattern[str]) -> Iterator[str | None]:
    """What follows each marker, up to the next; None where the sentence before it denies, doubts or asks."""
    at, denied = 0, False
    matches = list(marker.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    for match, end in zip(matches, ends, strict=False):
        before = text[at : match.start()]
        turns = [turn.end() for turn in _TURN.finditer(before)]
        denied = bool(_NEGATED.search(before, turns[-1] if turns else 0)) or (denied and not turns)
        at = match.end()
        yield None if denied else text[at:end]


def _gap(between: str) -> str:
    """What parts two tokens: a line break before a blank before an underscore or a hyphen."""
    if "\n" in between or "\u2028" in between:
        return "\n"
    return " " if between.strip("_-‐‑") else "_" if between[0] == "_" else "-"


def _lex(text: str) -> Iterator[_Token]:
    gap = ""
    for found in _TOKEN.finditer(text):
        kind, token = found.lastgroup or "", found[0]
        if kind == "gap":
            gap = _gap(token)
            continue
        yield _Token(gap, token, kind, found.start(), found.end())
        gap = ""


def _edge(tokens: Sequence[_Token], at: int) -> bool:
    """Whether a label may end before token `at`: not in "positively", "4.5", "pro/con", "on-site", "billing's"."""
    if at >= len(tokens):
        return True
    token = tokens[at]
    if token.kind:
        return token.gap in (" ", "\n")
    if token.gap:
        return True
    after = tokens[at + 1] if at + 1 < len(tokens) and not tokens[at + 1].gap else None
    if token.text == "%":
        return False
    if after is None:
        return True
    if token.text in "-–/\\'&+@=":
        return not (after.kind or after.text in "(\"'*")
    return not (after.kind and (token.text == "." or (token.text in ",:" and after.text[0].isdigit())))


def _begins(tokens: Sequence[_Token], at: int) -> bool:
    dense = tokens[at].kind == "dense"
    return dense or at == 0 or bool(tokens[at].gap) or not tokens[at - 1].kind or not tokens[at].kind


def _ends(tokens: Sequence[_Token], at: int) -> bool:
    return tokens[at - 1].kind == "dense" or at >= len(tokens) or bool(tokens[at].gap) or not tokens[at].kind


def _listed(tokens: Sequence[_Token], at: int) -> bool:
    """Whether the letter at a token stands in brackets, or as one of several: "A, B", "A / B"."""
    before, after = tokens[at - 1].text if at else "", tokens[at + 1].text if at + 1 < len(tokens) else "."
    return (before in ("(", "[") and after in (")", "]")) or (before in (",", "/", "&", ";") and not after[0].isalnum())


def _why(tokens: Sequence[_Token], at: int) -> bool:
    """Whether a sentence goes on at a token with nothing but "and here is why"."""
    for words in _WHY:
        end = at + len(words)
        if tuple(token.text.casefold() for token in tokens[at:end]) == words:
            return end == len(tokens) or tokens[end].gap == "\n" or tokens[end].text in (".", ":", "!")
    return False


def _sentence_end(tokens: Sequence[_Token], at: int) -> tuple[int, int, bool]:
    """Where the sentence that goes on at token `at` stops, the token behind its stop, and whether it asks."""
    for i in range(at, len(tokens)):
        if tokens[i].gap == "\n":
            return i, i, False
        if tokens[i].text not in (".", "!", "?"):
            continue
        after = i + 1
        while after < len(tokens) and not tokens[after].gap and tokens[after].text in (".", "!", "?"):
            after += 1
        asks = any(token.text == "?" for token in tokens[i:after])
        if asks or after == len(tokens) or tokens[after].gap or tokens[after].text in _CLOSE:
            return i, after, asks
    return len(tokens), len(tokens), False
