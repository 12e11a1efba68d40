"""Frames: what makes documents a prompt. A template, a function of the user's, or a conversation that has happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar, Literal

import regex

from amplify.errors import InputError
from amplify.sources.context import Context, Layout
from amplify.sources.document import Document, Source, as_message
from amplify.templates import Template
from amplify.types import Message, Prompt

Start = tuple[int | None, int]
Makes = Callable[[list[Document]], Any]  # documents -> messages, a Prompt, or the text of one user message


@dataclass(frozen=True)
class TemplateFrame:
    """A question and a template that writes every document once, in order.

    Attributes:
        question: as it stands in prompts.
        template: variables `question`, `documents` (a list of texts), and beside it `titles` and `ids`.
        layout: one user message, or one raw text (for base models).
        titles, ids: of all documents, by number; "" where they have none.
    """

    question: str
    template: Template
    layout: Layout = "chat"
    titles: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    tidy: ClassVar[bool] = True

    def prompt(self, texts: Mapping[int, str]) -> Prompt:
        """See `Frame`."""
        named = {
            name: [own[d] if d < len(own) else "" for d in texts]
            for name, own in (("titles", self.titles), ("ids", self.ids))
        }
        content = self.template.render({"question": self.question, "documents": list(texts.values()), **named})
        return Prompt(text=content) if self.layout == "text" else Prompt(messages=(Message("user", content),))

    def starts(self, texts: Mapping[int, str]) -> list[Start]:
        """See `Frame`."""
        return _starts(self.prompt, texts, f"template {self.template.name!r}")

    def identity(self) -> Mapping[str, Any]:
        """See `Frame`."""
        return {"question": self.question, "template": self.template.source, "layout": self.layout}


@dataclass(frozen=True)
class MadeFrame:
    """A function of the user's that makes messages of documents.

    Attributes:
        make: documents -> messages, a Prompt, or the text of one user message; called for every prompt.
        documents: all of them, for their ids, titles and metadata.
    """

    make: Makes
    documents: tuple[Document, ...]
    tidy: ClassVar[bool] = False

    def prompt(self, texts: Mapping[int, str]) -> Prompt:
        """See `Frame`."""
        made = self.make([replace(self.documents[d], text=text) for d, text in texts.items()])
        if isinstance(made, Prompt):
            return replace(made, emphasis=())
        if isinstance(made, str):
            return Prompt(messages=(Message("user", made),))
        if isinstance(made, Mapping) or not isinstance(made, Sequence) or not made:
            raise InputError(f"prompt= makes messages of documents; it gave a {type(made).__name__}")
        return Prompt(messages=tuple(as_message(item, i) for i, item in enumerate(made)))

    def starts(self, texts: Mapping[int, str]) -> list[Start]:
        """See `Frame`."""
        return _starts(self.prompt, texts, "prompt=")

    def identity(self) -> Mapping[str, Any]:
        """See `Frame`."""
        made = self.prompt({d: document.text for d, document in enumerate(self.documents)})
        return {"messages": [m.to_dict() for m in made.messages], "text": made.text}


@dataclass(frozen=True)
class Conversation:
    """Messages as a model saw them, of which spans are sources. What is left out loses its text.

    A message of the system, the user or the assistant goes altogether where all of its text is left out; a tool's
    stays, empty, since its call stays.

    Attributes:
        messages: all of them.
        sources: the span of each document, none overlapping; None for one that is not judged.
    """

    messages: tuple[Message, ...]
    sources: tuple[Source | None, ...]
    tidy: ClassVar[bool] = False

    def prompt(self, texts: Mapping[int, str]) -> Prompt:
        """See `Frame`."""
        kept = []
        for number, message in enumerate(self.messages):
            found = [(i, s) for i, s in enumerate(self.sources) if s is not None and s.message == number]
            own = sorted(found, key=lambda each: each[1].start)
            content, at = [], 0
            for i, s in own:
                content += [message.content[at : s.start], texts.get(i, "")]
                at = s.end
            text = "".join([*content, message.content[at:]])
            gone = own and not text.strip() and message.role != "tool" and not message.extra
            if not gone or number == len(self.messages) - 1:
                kept.append(replace(message, content=text))
        return Prompt(messages=tuple(kept))

    def starts(self, texts: Mapping[int, str]) -> list[Start]:
        """See `Frame`: in the whole prompt, where every message is."""
        return [(s.message, s.start) for i in texts if (s := self.sources[i]) is not None]

    def identity(self) -> Mapping[str, Any]:
        """See `Frame`."""
        return {
            "messages": [m.to_dict() for m in self.messages],
            "sources": [[s.message, s.start, s.end] for s in self.sources if s is not None],
        }


def asking(
    question: str,
    documents: Sequence[str],
    template: Template,
    layout: Literal["chat", "text"] = "chat",
) -> Context:
    """A question about documents, as they stand in prompts (see `harmless`)."""
    return Context(tuple(documents), TemplateFrame(question, template, layout))


def _starts(make: Callable[[Mapping[int, str]], Prompt], texts: Mapping[int, str], what: str) -> list[Start]:
    """Where a frame writes each document, found by writing marks in their place.

    Raises:
        InputError: it leaves a document out, writes it twice or changes it.
    """
    marks = {d: f"\ue000{k}\ue001" for k, d in enumerate(texts)}  # `harmless` leaves none of these in a text
    frame, whole = make(marks), make(texts)
    found: list[tuple[int, int | None, int]] = []  # which document, message, character
    ways = zip_longest(_contents(frame), _contents(whole), fillvalue=(None, None))
    values = list(texts.values())
    for (message, around), (_, content) in ways:
        if around is None or content is None:
            raise InputError(f"{what} makes other messages of other documents; it may only place their texts")
        first, *rest = regex.split("\ue000([0-9]+)\ue001", around)
        parts, here = [first], len(first)
        for number, fixed in zip(rest[::2], rest[1::2], strict=True):
            text = values[int(number)]
            found.append((int(number), message, here))
            here += len(text) + len(fixed)
            parts += [text, fixed]
        if "".join(parts) != content and [k for k, _, _ in found] == list(range(len(found))):
            raise InputError(f"{what} changes the documents' text; it may only place it")
    if [k for k, _, _ in found] != list(range(len(texts))):
        wrong = next((i for i, (k, _, _) in enumerate(found) if k != i), len(found))
        raise InputError(f"{what} must write every document once, in order: see document {min(wrong, len(texts) - 1)}")
    return [(message, start) for _, message, start in found]


def _contents(prompt: Prompt) -> list[tuple[int | None, str]]:
    if prompt.text is not None:
        return [(None, prompt.text)]
    return [(i, m.content) for i, m in enumerate(prompt.messages)]
