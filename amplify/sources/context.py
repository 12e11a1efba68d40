"""Documents as prompts: any part of them, in any order, and nothing in them breaks out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import regex

from amplify.attribution.words import word_spans
from amplify.errors import ContextLengthError
from amplify.models.base import LanguageModel
from amplify.models.cached import tokenizer_of
from amplify.types import Prompt, Span
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
    tokenizer = tokenizer_of(model)
    added = tokenizer.added_tokens_decoder.values() if tokenizer is not None else ()
    return [str(t.content) for t in added if t.special]


@dataclass(frozen=True, order=True)
class Part:
    """A part of a document that can be present or absent: characters [start, end) of document number `document`."""

    document: int
    start: int
    end: int

    @cached_property
    def piece(self) -> Piece:
        """A selection's entry where nothing else of the document is there."""
        return self.document, ((self.start, self.end),)

    def within(self, other: Part) -> bool:
        """Whether it is a part of another one."""
        return self.document == other.document and other.start <= self.start and self.end <= other.end


def words(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut characters [start, end) of a text into words, each with the punctuation and blanks behind it."""
    begins = [start + a for a, _ in word_spans(text[start:end])]
    return list(pairwise([start, *begins[1:], end]))


def select(row: Sequence[int], sources: Sequence[Part]) -> Selection:
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


Place = tuple[int | None, int]  # a message (None: raw text), and where in it a document's character 0 would stand


class Frame(Protocol):
    """What stands around the documents of a prompt."""

    @property
    def tidy(self) -> bool:
        """Whether documents lose blanks at their ends and blank lines, which part a template's blocks."""
        ...

    def prompt(self, texts: Mapping[int, str]) -> Prompt:
        """The prompt with these documents: number -> text, in this order."""
        ...

    def starts(self, texts: Mapping[int, str]) -> list[tuple[int | None, int]]:
        """Where each of these documents begins: message (None: raw text) and character."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """All that prompts depend on beside the documents."""
        ...


@dataclass(frozen=True)
class Context:
    """Documents, and the frame that makes them a prompt.

    Attributes:
        documents: all of them, as they stand in prompts (see `harmless`); offsets are those of the originals.
        frame: what stands around them.
        players: the parts that are judged first, in order; () for every document whole.
        names: what the documents are called in messages.
    """

    documents: tuple[str, ...]
    frame: Frame
    players: tuple[Part, ...] = ()
    names: tuple[str, ...] = ()

    @cached_property
    def sources(self) -> tuple[Part, ...]:
        """The parts that are judged first: documents, or passages of one."""
        return self.players or tuple(Part(i, 0, len(d)) for i, d in enumerate(self.documents))

    def everything(self) -> Selection:
        """All of them in their order."""
        return select(range(len(self.sources)), self.sources)

    def name(self, document: int) -> str:
        """What a document is called in messages."""
        return self.names[document] if self.names else f"document {document}"

    def only(self, kept: Sequence[int]) -> Context:
        """The context with these of its documents, in this order."""
        return replace(
            self,
            documents=tuple(self.documents[i] for i in kept),
            players=(),
            names=tuple(self.names[i] for i in kept) if self.names else (),
        )

    def texts(self, selection: Selection) -> list[str]:
        """The documents of a selection, cut to what is there."""
        return list(self._texts(selection).values())

    @cached_property
    def _whole(self) -> tuple[str, ...]:
        """Every document as a prompt has it; one that is harmless as it is has not to be looked through each time."""
        if not self.frame.tidy:
            return self.documents
        texts = (_BLANK.sub("", document).strip() for document in self.documents)
        return tuple(Trusted(text) if neutral(text) == text else text for text in texts)

    def _texts(self, selection: Selection) -> dict[int, str]:
        return {
            d: self._whole[d] if ranges == ((0, len(self.documents[d])),) else self._cut(d, ranges)
            for d, ranges in selection
        }

    def _cut(self, document: int, ranges: Sequence[tuple[int, int]]) -> str:
        text = "".join(self.documents[document][a:b] for a, b in ranges)
        return _BLANK.sub("", text).strip() if self.frame.tidy else text

    def prompt(self, selection: Selection, marked: Sequence[Span] = ()) -> Prompt:
        """The prompt that holds a selection."""
        made = self.frame.prompt(self._texts(selection))
        return replace(made, emphasis=tuple(marked)) if marked else made

    def continued(self, answer: str) -> str:
        """An answer as it goes on behind the prompt: raw text that does not end in a blank needs one between."""
        text = self.prompt(self.everything()).text
        needs = text is not None and text and not text[-1].isspace() and answer and not answer[0].isspace()
        return f" {answer}" if needs else answer

    def places(self) -> dict[int, Place]:
        """For each document of the whole prompt, where its characters stand: add a character's number.

        Raises:
            InputError: the frame leaves a document out, writes it twice or changes it.
        """
        everything = self.everything()
        starts = self.frame.starts(self._texts(everything))
        found = {}
        for (document, ranges), (message, start) in zip(everything, starts, strict=True):
            first, text = ranges[0][0], self.documents[document]
            lead = len(text[first:]) - len(text[first:].lstrip()) if self.frame.tidy else 0
            found[document] = (message, start - first - lead)
        return found

    def marked(self, sources: Iterable[Part]) -> Prompt:
        """The prompt of all documents with some parts emphasised, for steering.

        Args:
            sources: parts to emphasise; blanks at their ends are left out.
        """
        return emphasised(self.prompt(self.everything()), self.places(), self.documents, sources)


def emphasised(prompt: Prompt, places: Mapping[int, Place], documents: Sequence[str], parts: Iterable[Part]) -> Prompt:
    """A prompt with some parts of its documents emphasised.

    Args:
        prompt: that of all documents.
        places: see `Context.places`.
        documents: their texts.
        parts: what to emphasise; blanks at their ends are left out.
    """
    spans = []
    for part in sorted(parts):
        text = documents[part.document][part.start : part.end]
        start = part.start + len(text) - len(text.lstrip())
        stop = part.start + len(text.rstrip())
        if start < stop:
            message, base = places[part.document]
            spans.append(Span(base + start, base + stop, message=message))
    return replace(prompt, emphasis=tuple(spans))


_CERTAIN = 20  # characters a token: a prompt of more is beyond any window, but for runs of one character


def check_documents_fit(context: Context, model: LanguageModel, room: int, what: str) -> None:
    """Refuse a context that does not fit the model's window, before any work.

    Args:
        context: documents in their frame.
        model: whose window.
        room: tokens that must be left for the answer.
        what: the answer, in words.

    Raises:
        ContextLengthError: by how much, and which documents would have to go.
    """
    if model.max_context is None:
        return
    everything, window = context.everything(), model.max_context
    full, characters = window - room, sum(map(len, context.documents))
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
    named = ", ".join(f"{context.name(everything[i][0])} ({sizes[i]} tokens)" for i in gone[:8])
    raise ContextLengthError(
        f"the prompt with all {len(sizes)} documents has {about}{whole} tokens, and {what} needs {room} more: "
        f"{about}{whole - full} more than the window of {window}. "
        + (f"Without {named}{' and more' if len(gone) > 8 else ''} it fits" if fits else "No choice fits")
        + "; or shorten them, or use a model with a longer window"
    )
