"""What a source is before any prompt: a document with an id and a title, a host's own object, a span of a message."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

from amplify.errors import InputError
from amplify.text import sentences
from amplify.types import Message, Prompt
from amplify.untrusted import marks

OVERLAP = 40  # characters that the end of one chunk and the beginning of another have in common, at least
PASSAGES = 10  # that a document alone is cut into, about


def _check_named(given: Any, kind: str, texts: Sequence[str]) -> None:
    for name in texts:
        if not isinstance(getattr(given, name), str):
            raise InputError(f"a {kind}'s {name} is a text, not a {type(getattr(given, name)).__name__}")
    if not isinstance(given.metadata, Mapping):
        raise InputError(f"a {kind}'s metadata are names with values, not a {type(given.metadata).__name__}")


@dataclass(frozen=True)
class Document:
    """A text that may stand in a prompt.

    Attributes:
        text: what is scored.
        id: tells it apart in citations; its number where it has none.
        title: what people call it, e.g. a file's name.
        metadata: whatever else comes with it; carried along.

    Example:
        >>> amplify.Document("The museum opened in 1931.", id="faq-7", title="Museum").named(0)
        'Museum'
    """

    text: str
    id: str = ""
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_named(self, "document", ("text", "id", "title"))

    def __str__(self) -> str:
        return self.text

    def named(self, number: int) -> str:
        """What it is called in messages, given its number: its title, its id, else "document 3"."""
        return self.title or self.id or f"document {number}"


@dataclass(frozen=True)
class Source:
    """Characters [start, end) of the content of message number `message`: what a conversation may be without.

    Attributes:
        message, start, end: the place.
        id, title, metadata: see `Document`.

    Raises:
        InputError: a place that is no whole number, or a name that is no text.

    Example:
        >>> messages = [{"role": "user", "content": "It is in Rome. Bees fly. Where is it?"}]
        >>> spans = [amplify.Source(0, 0, 14, title="Guide"), amplify.Source(0, 15, 24)]
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> why = amplify.attribute_sources(messages=messages, sources=spans, answer="Rome", model=model)
        >>> why.documents.scores.round(2).tolist()
        [4.9, 0.0]
    """

    message: int
    start: int
    end: int
    id: str = ""
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("message", "start", "end"):
            place = getattr(self, name)
            if isinstance(place, bool) or not isinstance(place, int | Integral):
                raise InputError(f"a source's {name} is a whole number, not {place!r}")
        _check_named(self, "source", ("id", "title"))


@runtime_checkable
class _LangChain(Protocol):
    page_content: str
    metadata: dict[str, Any]


@runtime_checkable
class _Haystack(Protocol):
    content: str | None
    meta: dict[str, Any]


@runtime_checkable
class _Node(Protocol):
    node_id: str
    metadata: dict[str, Any]

    def get_content(self) -> str: ...


@runtime_checkable
class _ScoredNode(Protocol):
    node: Any
    score: float | None


def as_documents(given: Any) -> tuple[Document, ...]:
    """Texts, dictionaries, documents and nodes of LangChain, LlamaIndex and Haystack, as documents.

    Raises:
        InputError: a single text, nothing, or something that has no text; says which one.
    """
    if isinstance(given, str):
        raise InputError("documents is a list, one entry per document; for one text give [text]: it is cut into parts")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise InputError(f"documents is a list of texts or documents, not a {type(given).__name__}")
    found = tuple(_document(item, i) for i, item in enumerate(given))
    if not found:
        raise InputError("there are no documents: give at least one")
    return found


def _document(item: Any, number: int) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(str(item))
    if isinstance(item, _ScoredNode):
        item = item.node
    if isinstance(item, Mapping):
        text = next((item[key] for key in ("text", "content", "page_content") if key in item), None)
        metadata = item.get("metadata", item.get("meta", {}))
        if isinstance(text, str):
            title = str(item.get("title") or "").strip()
            return Document(text, str(item.get("id") or ""), title or _title(metadata), _mapping(metadata))
    elif isinstance(item, _LangChain):
        return Document(item.page_content, str(getattr(item, "id", "") or ""), _title(item.metadata), item.metadata)
    elif isinstance(item, _Node):
        return Document(item.get_content(), item.node_id, _title(item.metadata), item.metadata)
    elif isinstance(item, _Haystack) and isinstance(item.content, str):
        return Document(item.content, str(getattr(item, "id", "") or ""), _title(item.meta), item.meta)
    raise InputError(
        f"document {number} is a {type(item).__name__} without a text: documents are texts, dictionaries with a "
        "'text', amplify.Document, or documents of LangChain, LlamaIndex or Haystack"
    )


def _mapping(metadata: Any) -> Mapping[str, Any]:
    return metadata if isinstance(metadata, Mapping) else {}


def _title(metadata: Any) -> str:
    held = _mapping(metadata)
    return next((str(held[key]) for key in ("title", "file_name", "source", "url") if held.get(key)), "")


def as_message(item: Any, number: int) -> Message:
    """A message, or a dictionary as chat APIs have it: content as a text, as text parts, or None beside tool calls.

    Raises:
        InputError: neither; says which one.
    """
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        raise InputError(f"message {number} is no message: it has a role and a content")
    content = item.get("content")
    if isinstance(content, list | tuple):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(f"message {number} holds a part that is no text")
        content = "".join(str(part) for part in parts)
    extra = {key: value for key, value in item.items() if key not in ("role", "content") and value is not None}
    if content is None and extra.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise InputError(f"message {number} has no content that is a text")
    return Message(str(item["role"]), content, extra)  # type: ignore[arg-type]


def as_messages(given: Any) -> tuple[Message, ...]:
    """The messages of a conversation that an answer is to follow.

    Raises:
        InputError: none, one that is no message, or a last one that no answer follows.
    """
    if isinstance(given, Prompt):
        given = given.messages
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InputError("messages is a list of messages, each with a role and a content")
    found = tuple(as_message(item, i) for i, item in enumerate(given))
    if not found:
        raise InputError("there are no messages")
    if found[-1].role not in ("user", "tool"):
        raise InputError(
            f"the last message is the {found[-1].role}'s, which no answer follows: give messages up to the question "
            "(or a tool's result), and what came then as answer="
        )
    calls = [c.get("id") for m in found for c in m.extra.get("tool_calls") or () if isinstance(c, Mapping)]
    results = [m.extra.get("tool_call_id") for m in found if m.role == "tool"]
    if missing := [c for c in calls if c is not None and c not in results]:
        raise InputError(f"the tool call {missing[0]!r} has no result among the messages")
    if strays := [r for r in results if r is not None and r not in calls]:
        raise InputError(f"the tool result {strays[0]!r} belongs to no call among the messages")
    return found


def turns(messages: Sequence[Message]) -> list[Source]:
    """Every message that has a text as a source, but the last one, which asks. One that stands alone is cut."""
    chosen = [i for i, m in enumerate(messages[:-1]) if m.content.strip()]
    if messages[-1].role == "tool":
        chosen.append(len(messages) - 1)
    if not chosen:
        last = len(messages) - 1
        return [Source(last, a, b, title=f"part {k + 1}") for k, (a, b) in enumerate(passages(messages[last].content))]
    return [
        Source(i, 0, len(messages[i].content), f"message-{i}", f"{messages[i].role}, message {i + 1}") for i in chosen
    ]


def check_sources(sources: Sequence[Any], messages: Sequence[Message]) -> list[Source]:
    """Sources in the order of the conversation.

    Raises:
        InputError: none, one outside of its message, empty, or two that overlap; says which.
    """
    if isinstance(sources, str) or not isinstance(sources, Iterable):
        raise InputError('sources is "messages", or a list of amplify.Source(message, start, end)')
    found = [s if isinstance(s, Source) else _source(s, i) for i, s in enumerate(sources)]
    if not found:
        raise InputError("there are no sources: give spans of messages, or sources='messages'")
    for i, s in enumerate(found):
        name = s.title or s.id or f"source {i}"
        if not 0 <= s.message < len(messages):
            raise InputError(f"{name} is in message {s.message}; there are {len(messages)}, counted from 0")
        content = messages[s.message].content
        if s.start == s.end:
            raise InputError(f"{name} is empty: characters [{s.start}, {s.end}) of message {s.message}")
        if not 0 <= s.start < s.end <= len(content):
            raise InputError(
                f"{name} is characters [{s.start}, {s.end}) of message {s.message}, which has {len(content)}"
            )
        if not content[s.start : s.end].strip():
            raise InputError(f"{name} is blank: leave it out")
    ordered = sorted(found, key=lambda s: (s.message, s.start))
    for a, b in itertools.pairwise(ordered):
        if a.message == b.message and b.start < a.end:
            raise InputError(
                f"sources overlap in message {a.message}: [{a.start}, {a.end}) and [{b.start}, {b.end}). "
                "Each character belongs to one source"
            )
    return ordered


def check_marks(
    sources: Sequence[Source | None], names: Sequence[str], messages: Sequence[Message], structure: Iterable[str]
) -> None:
    """Raise InputError where a source begins or ends in the middle of what a tokenizer reads as one special token.

    Args:
        sources: spans of the messages; None for what is not judged.
        names: what they are called.
        messages: the conversation.
        structure: special tokens of the model.
    """
    judged = [(source, name) for source, name in zip(sources, names, strict=True) if source is not None]
    known = list(structure)
    found = {m: marks(messages[m].content, known) for m in {source.message for source, _ in judged}}
    for source, name in judged:
        for start, end in found[source.message]:
            if start < source.start < end or start < source.end < end:
                raise InputError(
                    f"{name} cuts {messages[source.message].content[start:end]!r}, characters [{start}, {end}) of "
                    f"message {source.message}, which is read as one mark: put its end before or behind it"
                )


def _source(item: Any, number: int) -> Source:
    if not isinstance(item, Mapping):
        raise InputError(f"source {number} is a {type(item).__name__}: sources are amplify.Source(message, start, end)")
    try:
        return Source(**item)
    except (InputError, TypeError) as error:
        raise InputError(f"source {number} is no amplify.Source: {error}") from error


def passages(text: str) -> list[tuple[int, int]]:
    """Cut a text into about `PASSAGES` parts of whole paragraphs, or of whole sentences where those are too few."""
    ends = [b for _, b in sentences(text)]
    breaks = [b for b in ends[:-1] if text[:b].rstrip(" \t").endswith("\n\n")]
    cuts = breaks if len(breaks) >= 2 else ends[:-1]
    if len(cuts) >= PASSAGES:
        wanted = [len(text) * (k + 1) / PASSAGES for k in range(PASSAGES - 1)]
        cuts = sorted({min(cuts, key=lambda c: abs(c - w)) for w in wanted})
    edges = [0, *cuts, len(text)]
    return [(a, b) for a, b in itertools.pairwise(edges) if text[a:b].strip()]


@dataclass(frozen=True)
class Told:
    """Which documents are judged, and from which character on.

    Attributes:
        starts: number of the document -> its first character that is its own.
        left_out: number -> the document that it is a copy or a part of; None where it is empty.
        notes: what was done, in sentences.
    """

    starts: Mapping[int, int]
    left_out: Mapping[int, int | None]
    notes: tuple[str, ...]


def tell_apart(documents: Sequence[Document], read: Sequence[str]) -> Told:
    """Documents of which each says something of its own: equal ones would hide each other.

    Empty ones are left out, and those that another one holds whole. Where one goes on from the end of another, as
    chunks of a text do, what they have in common belongs to the earlier one.

    Args:
        documents: for their names.
        read: their texts as they stand in prompts.
    """
    bare = [" ".join(text.split()) for text in read]
    left_out: dict[int, int | None] = {}
    starts: dict[int, int] = {}
    notes: list[str] = []
    seen: dict[str, int] = {}
    for i, text in enumerate(bare):
        name = documents[i].named(i)
        if not text:
            left_out[i] = None
            notes.append(f"{name} is empty and left out")
        elif (twin := seen.setdefault(text, i)) != i:
            left_out[i] = twin
            notes.append(f"{name} is a copy of {documents[twin].named(twin)}: they count as one")
    kept = {i: bare[i] for i in range(len(bare)) if i not in left_out}
    for j, at, i in _beginnings(kept):
        if j not in left_out and i not in left_out and bare[j].startswith(bare[i], at):
            left_out[i] = j
            notes.append(f"{documents[i].named(i)} stands whole in {documents[j].named(j)}: they count as one")
    own = {i: read[i] for i in kept if i not in left_out}
    starts = dict.fromkeys(own, 0)
    for j, at, i in _beginnings(own):
        length = len(read[j]) - at
        if at > 0 and starts[j] == 0 == starts[i] and length < len(read[i]) and read[i].startswith(read[j][at:]):
            starts[i] = length
            notes.append(
                f"{documents[i].named(i)} begins with the last {length} characters of {documents[j].named(j)}, "
                "which count for that one"
            )
    return Told(starts, left_out, tuple(notes))


def _beginnings(texts: Mapping[int, str]) -> Iterator[tuple[int, int, int]]:
    """Where in a text the first OVERLAP characters of another one stand: (text, character, the other one)."""
    begins: dict[str, list[int]] = {}
    for i, text in texts.items():
        if len(text) >= OVERLAP:
            begins.setdefault(text[:OVERLAP], []).append(i)
    for j, text in texts.items():
        for at in range(len(text) - OVERLAP + 1):
            for i in begins.get(text[at : at + OVERLAP], ()):
                if i != j:
                    yield j, at, i


def placed(messages: Sequence[Message], documents: Sequence[Document]) -> tuple[list[Source | None], Told]:
    """Where documents stand in a conversation, and which of them stand nowhere of their own.

    Raises:
        InputError: a document's text does not stand in any message as it is; says which.
    """
    spans: list[Source | None] = []
    left_out: dict[int, int | None] = {}
    notes = []
    for i, document in enumerate(documents):
        name, bare = document.named(i), document.text.strip()
        spans.append(None)
        if not bare:
            left_out[i] = None
            notes.append(f"{name} is empty and left out")
            continue
        taken = [s for s in spans if s is not None]
        places = [(m, at) for m, message in enumerate(messages) for at in _occurrences(message.content, bare)]
        if not places:
            raise InputError(
                f"{name} does not stand in the messages as it is: give its place, "
                "sources=[amplify.Source(message, start, end), ...]"
            )
        free = [
            (m, at)
            for m, at in places
            if not any(s.message == m and at < s.end and s.start < at + len(bare) for s in taken)
        ]
        if free:
            m, at = free[0]
            if len(free) > 1:
                notes.append(
                    f"{name} stands in the messages {len(free)} times: judged is the first place (message {m}), the "
                    "others stay; give sources=[amplify.Source(message, start, end), ...] to judge others"
                )
            spans[-1] = Source(m, at, at + len(bare), document.id, document.title, document.metadata)
            continue
        holder = next(
            (j for j, s in enumerate(spans) if s and (s.message, s.start) <= places[0] and places[0][1] < s.end), 0
        )
        left_out[i] = holder
        notes.append(f"{name} stands in {documents[holder].named(holder)}: they count as one")
    starts = {i: 0 for i, s in enumerate(spans) if s is not None}
    if not starts:
        raise InputError("every document is empty: there is nothing to explain an answer by")
    return spans, Told(starts, left_out, tuple(notes))


def _occurrences(text: str, part: str) -> list[int]:
    at, found = text.find(part), []
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found
