"""What is asked: documents of a question, or spans of messages, as a context that is ready for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amplify import templates
from amplify.errors import InputError
from amplify.sources.context import Context, Part, harmless
from amplify.sources.document import (
    Document,
    Told,
    as_documents,
    as_messages,
    check_marks,
    check_sources,
    passages,
    placed,
    tell_apart,
    turns,
)
from amplify.sources.frames import Conversation, MadeFrame, TemplateFrame
from amplify.sources.options import Options
from amplify.templates import Template


@dataclass(frozen=True)
class Asked:
    """What is to be explained, ready for a model.

    Attributes:
        context: sources in their prompt.
        originals: all documents as they were given.
        told: which of them are judged.
        question: for people to read.
    """

    context: Context
    originals: tuple[Document, ...]
    told: Told
    question: str = ""


def asked_of(
    question: Any, documents: Any, messages: Any, sources: Any, prompt: Any, chosen: Options,
    structure: Sequence[str] = (),
) -> Asked:  # fmt: skip
    """What the arguments of `attribute_sources` ask.

    Args:
        question, documents, messages, sources, prompt: see there; documents may be read more than once.
        chosen: its options.
        structure: special tokens of the model.

    Raises:
        InputError: they make no sense, alone or together.
    """
    if messages is None:
        return from_documents(question, documents, prompt, chosen, structure)
    if question is not None or prompt != "default" or (documents is not None and sources != "messages"):
        raise InputError("give a question with documents, or messages= with sources= or documents=, not both")
    return from_messages(messages, sources, documents, chosen, structure)


def from_messages(
    messages: Sequence[Any], sources: Any, documents: Any, chosen: Options, structure: Sequence[str] = ()
) -> Asked:
    """Spans of a conversation as sources: those given, those where documents stand, or every message but the last.

    Raises:
        InputError: messages or spans that make no sense, or options that need documents which could stand elsewhere.
    """
    said = as_messages(messages)
    if chosen.order == "random" or chosen.chosen == "blocks" or chosen.control_variate or chosen.layout == "text":
        raise InputError("messages stay where they are: order='random', blocks and layout='text' are for documents")
    if documents is not None:
        originals = as_documents(documents)
        spans, told = placed(said, originals)
        texts = tuple(said[s.message].content[s.start : s.end] if s else "" for s in spans)
        originals = tuple(replace(d, text=t) if t else d for d, t in zip(originals, texts, strict=True))
    else:
        spans = [*(turns(said) if sources == "messages" else check_sources(sources, said))]
        texts = tuple(said[s.message].content[s.start : s.end] for s in spans if s)
        originals = tuple(Document(t, s.id, s.title, s.metadata) for t, s in zip(texts, spans, strict=True) if s)
        told = Told(dict.fromkeys(range(len(texts)), 0), {}, ())
    names = tuple(d.named(i) for i, d in enumerate(originals))
    check_marks(spans, names, said, structure)
    players = _players(texts, list(told.starts), told.starts)
    if len(players) < 2:
        raise InputError("the only source is a single sentence: there is nothing to compare it with")
    context = Context(texts, Conversation(said, tuple(spans)), players, names)
    question = next((m.content for m in reversed(said) if m.role == "user"), said[-1].content)
    return Asked(context, originals, told, question)


def from_documents(question: Any, documents: Any, prompt: Any, chosen: Options, structure: Sequence[str]) -> Asked:
    """Documents of a question as sources.

    Raises:
        InputError: a question, documents or a prompt that make no sense; says which.
    """
    if question is None and not callable(prompt):
        raise InputError("the question is missing")
    if question is not None and not isinstance(question, str):
        raise InputError(f"the question is a text, not a {type(question).__name__}")
    if question is not None and not question.strip():
        raise InputError("the question is empty")
    if documents is None:
        raise InputError("documents= is missing: a list of texts or documents (or give messages=)")
    originals = as_documents(documents)
    names = tuple(d.named(i) for i, d in enumerate(originals))
    if callable(prompt) and not isinstance(prompt, Template):
        texts = tuple(d.text for d in originals)
        frame: Any = MadeFrame(prompt, originals)
    else:
        texts = tuple(harmless(d.text, structure) for d in originals)
        template = prompt if isinstance(prompt, Template) else templates.load("sources", prompt)
        frame = TemplateFrame(
            harmless(question or "", structure),
            template,
            chosen.layout,
            tuple(harmless(d.title, structure) for d in originals),
            tuple(harmless(d.id, structure) for d in originals),
        )
        if not template.writes("question", {"question": "", "documents": ["."], "titles": [""], "ids": [""]}):
            raise InputError(f"template {template.name!r} does not write {{{{ question }}}}, so it would not be asked")
    told = tell_apart(originals, texts)
    kept = [i for i in range(len(texts)) if i not in told.left_out]
    if not kept:
        raise InputError("every document is empty: there is nothing to explain an answer by")
    players = _players([d.text for d in originals], kept, told.starts)
    if len(players) < 2:
        raise InputError(
            "; ".join([*told.notes, f"{names[kept[0]]} is a single sentence and stands alone"])
            + ": there is nothing to compare it with. Give two or more documents"
        )
    if len(kept) == 1 and (chosen.order == "random" or chosen.chosen == "blocks" or chosen.control_variate):
        raise InputError("one document alone is cut into passages, which stay in their order: use order='fixed'")
    context = Context(texts, frame, players, names)
    context.places()  # what is wrong with a template is said before anything is asked
    return Asked(context, originals, told, question or "")


def _players(texts: Sequence[str], kept: Sequence[int], starts: Mapping[int, int]) -> tuple[Part, ...]:
    """Each document whole, but for what it begins with of another one; one alone in passages."""
    if len(kept) == 1:
        [only] = kept
        return tuple(Part(only, a, b) for a, b in passages(texts[only]))
    return tuple(Part(i, starts.get(i, 0), len(texts[i])) for i in kept)
