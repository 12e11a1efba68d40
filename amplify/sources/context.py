"""Question and documents as prompts: any part of the documents, in any order, and nothing in them breaks out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, zip_longest
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

from amplify.attribution.words import word_spans
from amplify.errors import ContextLengthError, InputError
from amplify.models.base import LanguageModel
from amplify.templates import Template
from amplify.types import Message, Prompt, Span
from amplify.untrusted import Trusted, neutral

Layout = Literal["chat", "text"]
Ordered = npt.NDArray[np.int64]  # [coalitions, sources]: -1 where the source is absent, else its place
Piece = tuple[int, tuple[tuple[int, int], ...]]  # a document and the character ranges of it that are there
Selection = tuple[Piece, ...]  # what stands in a prompt, in order

# Control, private-use and unpaired surrogate characters, and line breaks that are not "\n"; tabs stay.
_CONTROL = regex.compile(r"[\p{Cc}\p{Co}\p{Cs}\p{Zl}\p{Zp}--[\n\t]]", flags=regex.V1)
_BLANK = regex.compile(r"\n(?=[^\S\n]*\n)")


def harmless(text: str, structure: Iterable[str] = ()) -> str:
    """The text without anything that could be taken for a prompt's structure. Its length does not change.

    Control characters become blanks, blank lines disappear (they part the blocks of a prompt), and the first character
    of what a tokenizer would read as a special token is exchanged for a look-alike.

    Args:
        text: a question or a document.
        structure: further strings that are structure, e.g. the special tokens of the model.
    """
    return neutral(_BLANK.sub(" ", _CONTROL.sub(" ", text)), structure)


def special_tokens(model: LanguageModel) -> list[str]:
    """The strings that the model's tokenizer reads as special tokens; none where it has no tokenizer here."""
    tokenizer = getattr(model, "tokenizer", None)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [str(t.content) for t in added.values() if t.special]


@dataclass(frozen=True, order=True)
class Source:
    """A part of a document that can be present or absent: characters [start, end) of document number `document`."""

    document: int
    start: int
    end: int

    @cached_property
    def piece(self) -> Piece:
        """A selection's entry where nothing else of the document is there."""
        return self.document, ((self.start, self.end),)


def words(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut characters [start, end) of a text into words, each with the punctuation and blanks behind it."""
    begins = [start + a for a, _ in word_spans(text[start:end])]
    return list(pairwise([start, *begins[1:], end]))


def select(row: Sequence[int], sources: Sequence[Source]) -> Selection:
    """What one ordered coalition puts into the prompt.

    Parts of one document stand together, in their own order, where the first of them (by place) is. Neighbouring parts
    become one range, so that equal prompts have equal selections at every level of detail.

    Args:
        row: place of each source, -1 where absent. [sources]
        sources: not overlapping.
    """
    order = sorted([i for i, place in enumerate(row) if place >= 0], key=row.__getitem__)
    alone = tuple([sources[i].piece for i in order])
    if len({document for document, _ in alone}) == len(alone):
        return alone
    held: dict[int, list[tuple[int, int]]] = {}
    for document, own in alone:
        held.setdefault(document, []).extend(own)
    pieces = []
    for document, ranges in held.items():
        merged: list[tuple[int, int]] = []
        for a, b in sorted(ranges):
            if merged and merged[-1][1] == a:
                merged[-1] = (merged[-1][0], b)
            else:
                merged.append((a, b))
        pieces.append((document, tuple(merged)))
    return tuple(pieces)


def in_place(coalitions: npt.ArrayLike) -> Ordered:
    """Coalitions bool[m, n] as ordered coalitions in the sources' own order."""
    held = np.atleast_2d(np.asarray(coalitions, dtype=bool))
    return np.where(held, np.cumsum(held, axis=1) - 1, -1).astype(np.int64)


@dataclass(frozen=True)
class Context:
    """A question, its documents, and the template that makes them a prompt.

    Attributes:
        question, documents: as they stand in prompts (see `harmless`); offsets are those of the originals.
        template: variables `question` and `documents` (a list of strings); writes every document once.
        layout: one user message, or one raw text (for base models).
    """

    question: str
    documents: tuple[str, ...]
    template: Template
    layout: Layout = "chat"

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Every document as one source."""
        return tuple(Source(i, 0, len(d)) for i, d in enumerate(self.documents))

    def everything(self) -> Selection:
        """All documents in their order."""
        return tuple(source.piece for source in self.sources)

    @cached_property
    def _whole(self) -> tuple[str, ...]:
        """Every document as a prompt has it; one that is harmless as it is has not to be looked through each time."""
        texts = (_BLANK.sub("", document).strip() for document in self.documents)
        return tuple(Trusted(text) if neutral(text) == text else text for text in texts)

    def texts(self, selection: Selection) -> list[str]:
        """The documents of a selection, cut to what is there."""
        return [
            self._whole[d] if ranges == self.sources[d].piece[1] else self._cut(d, ranges) for d, ranges in selection
        ]

    def _cut(self, document: int, ranges: Sequence[tuple[int, int]]) -> str:
        return _BLANK.sub("", "".join(self.documents[document][a:b] for a, b in ranges)).strip()

    def prompt(self, selection: Selection, marked: Sequence[Span] = ()) -> Prompt:
        """The prompt that holds a selection."""
        content = self.template.render({"question": self.question, "documents": self.texts(selection)})
        if self.layout == "text":
            return Prompt(text=content, emphasis=tuple(marked))
        return Prompt(messages=(Message("user", content),), emphasis=tuple(marked))

    def places(self, selection: Selection) -> list[tuple[int, int]]:
        """Characters [start, end) of each document of a selection in the template's text.

        Raises:
            InputError: the template leaves a document out, writes it twice or changes it.
        """
        texts = self.texts(selection)
        marks = [f"\ue000{i}\ue001" for i in range(len(texts))]  # `harmless` leaves none of these in a text
        frame = self.template.render({"question": self.question, "documents": marks})
        whole = self.template.render({"question": self.question, "documents": texts})
        first, *rest = regex.split("\ue000([0-9]+)\ue001", frame)
        numbers, between = rest[::2], rest[1::2]
        if numbers != [str(i) for i in range(len(texts))]:
            wrong = next(
                (i for i, (a, b) in enumerate(zip_longest(numbers, range(len(texts)))) if a != str(b)), len(texts) - 1
            )
            raise InputError(f"template {self.template.name!r} must write every document once, in order: see {wrong}")
        places, parts, here = [], [first], len(first)
        for text, fixed in zip(texts, between, strict=True):
            places.append((here, here + len(text)))
            here += len(text) + len(fixed)
            parts += [text, fixed]
        if "".join(parts) != whole:
            raise InputError(f"template {self.template.name!r} changes the documents' text; it may only place it")
        return places

    def marked(self, sources: Iterable[Source]) -> Prompt:
        """The prompt of all documents with some parts emphasised, for steering.

        Args:
            sources: parts to emphasise; blanks at their ends are left out.
        """
        places = self.places(self.everything())
        message = 0 if self.layout == "chat" else None
        spans = []
        for s in sorted(sources):
            text = self.documents[s.document]
            lead = len(text) - len(text.lstrip())
            part = text[s.start : s.end]
            start = s.start + len(part) - len(part.lstrip())
            stop = s.start + len(part.rstrip())
            if start < stop:
                base = places[s.document][0] - lead
                spans.append(Span(base + start, base + stop, message=message))
        return self.prompt(self.everything(), spans)


def check_documents(documents: Sequence[str], structure: Sequence[str] = ()) -> None:
    """Refuse documents that have no meaningful scores, as they stand in prompts (see `harmless`).

    Raises:
        InputError: none, one, one that is no text or empty, or two that are the same.
    """
    if isinstance(documents, str):
        raise InputError("documents is a list of strings, one per document; a single string was given")
    if not isinstance(documents, list | tuple):
        raise InputError(
            f"documents is a list of strings, not a {type(documents).__name__}; list(documents) makes one of it"
        )
    if not documents:
        raise InputError("there are no documents: give two or more to compare what they did to the answer")
    first: dict[str, int] = {}
    for i, document in enumerate(documents):
        if not isinstance(document, str):
            raise InputError(f"document {i} is a {type(document).__name__}; documents are strings")
        bare = " ".join(harmless(document, structure).split())
        if not bare:
            raise InputError(f"document {i} is empty: leave it out")
        if (twin := first.setdefault(bare, i)) != i:
            raise InputError(
                f"documents {twin} and {i} are the same: each would hide what the other does. Leave one of them out"
            )
    if len(documents) == 1:
        raise InputError(
            "there is one document, so nothing to compare it with: give two or more (for one text, cut it into parts)"
        )


_CERTAIN = 20  # characters a token: a prompt of more is beyond any window, but for runs of one character


def check_window(context: Context, model: LanguageModel, room: int, what: str) -> None:
    """Refuse a context that does not fit the model's window, before any work.

    Args:
        context: question and documents.
        model: whose window.
        room: tokens that must be left for the answer.
        what: the answer, in words.

    Raises:
        ContextLengthError: by how much, and which documents would have to go.
    """
    if model.max_context is None:
        return
    everything, window = context.everything(), model.max_context
    full, characters = window - room, sum(map(len, context.documents)) + len(context.question)
    whole = 0
    if characters <= _CERTAIN * window:
        whole = model.count_tokens([context.prompt(everything)])[0]
        if whole <= full:
            return
    # each document is read once, alone, a few at a time: all of them together may be far more than any window
    frame = model.count_tokens([context.prompt(())])[0]
    sizes: list[int] = []
    for start in range(0, len(everything), 32):
        alone = [context.prompt((piece,)) for piece in everything[start : start + 32]]
        sizes += [tokens - frame for tokens in model.count_tokens(alone)]
    about = "" if whole else "about "
    whole = whole or frame + sum(sizes)
    if whole <= full:  # long runs of one character are few tokens
        return
    longest = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    gone: list[int] = []
    freed = 0
    while freed < whole - full and len(gone) < len(longest):
        gone.append(longest[len(gone)])
        freed += sizes[gone[-1]]
    # what remains is counted together: tokens may join at the seams
    while len(gone) < len(longest):
        left = tuple(everything[i] for i in sorted(set(longest) - set(gone)))
        if model.count_tokens([context.prompt(left)])[0] <= full:
            break
        gone.append(longest[len(gone)])
    fits = len(gone) < len(longest)
    named = ", ".join(f"document {i} ({sizes[i]} tokens)" for i in gone[:8])
    raise ContextLengthError(
        f"the prompt with all {len(sizes)} documents has {about}{whole} tokens, and {what} needs {room} more: "
        f"{about}{whole - full} more than the window of {window}. "
        + (f"Without {named}{' and more' if len(gone) > 8 else ''} it fits" if fits else "No choice fits")
        + "; or shorten them, or use a model with a longer window"
    )
