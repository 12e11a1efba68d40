"""An example's documents on their way to an answer: as texts, in a context, scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from amplify.documents import keep
from amplify.errors import InputError
from amplify.models.base import LanguageModel, Usage
from amplify.types import Example, Sources

if TYPE_CHECKING:
    from amplify.sources.context import Context
    from amplify.sources.result import SourceAttribution


@dataclass(frozen=True)
class Reading:
    """An example on its way to its answer.

    Attributes:
        example: what is asked.
        every: its documents as texts.
        numbers: the documents in the context, by their place in the example.
        context: question and documents as the prompt has them.
        sources: what is known of all of the example's documents.
        values, high: score of each document in the context and the upper end of its 95 % interval; None before they
            are scored, and where there was nothing to score (one document, or a model that said nothing).
        result: the whole attribution, for Shapley values.
        spent: what scoring took.
    """

    example: Example
    every: tuple[str, ...]
    numbers: tuple[int, ...]
    context: Context
    sources: Sources
    values: list[float] | None = None
    high: list[float] | None = None
    result: SourceAttribution | None = None
    spent: Usage = field(default_factory=Usage)

    def only(self, kept: Sequence[int]) -> Context:
        """The context with these of its documents, in this order."""
        return self.context.only(kept)

    def ranked(self, scores: Sequence[float], cited: tuple[tuple[int, ...], ...]) -> Sources:
        """What is known of the example's documents when those in the context have scores."""
        order = [self.numbers[i] for i in keep("rerank", scores)]
        rest = [i for i in self.sources.ranking if i not in self.numbers]
        own = dict(zip(self.numbers, scores, strict=True))
        return Sources((*order, *rest), self.numbers, tuple(own.get(i) for i in range(len(self.every))), cited)


def texts(example: Example) -> list[str]:
    """Each document as one text, its title on a line of its own.

    Raises:
        InputError: the example has none, or they are neither texts nor objects with a text.
    """
    documents = example.fields.get("documents")
    if not isinstance(documents, list | tuple) or not documents:
        raise InputError(f"example {example.id!r} brings no list of documents in its field 'documents'")
    found = []
    for i, document in enumerate(documents):
        if isinstance(document, Mapping) and isinstance(document.get("text"), str):
            title = str(document.get("title") or "").strip()
            found.append(f"{title}\n{document['text']}" if title else document["text"])
        elif isinstance(document, str):
            found.append(document)
        else:
            raise InputError(f"example {example.id!r}: document {i} is neither a text nor an object with a text")
    return found


def is_title(example: Example, document: int, start: int) -> bool:
    """Whether a sentence is the document's title, which is no evidence to point at."""
    given = example.fields["documents"][document]
    return start == 0 and not isinstance(given, str) and bool(given.get("title"))


# attributions of this process, so that methods that use the same one pay for it once
_known: WeakKeyDictionary[Any, dict[Any, tuple[SourceAttribution, Usage]]] = WeakKeyDictionary()
_MOST = 2048


def attribution(
    model: LanguageModel, read: Reading, answer: str, options: Mapping[str, Any]
) -> tuple[SourceAttribution, Usage]:
    """The attribution of an answer, and what it took (when it was made)."""
    from amplify.sources.asked import Asked
    from amplify.sources.attribute import explained
    from amplify.sources.document import Document, Told
    from amplify.sources.options import options as as_options

    documents = tuple(Document(read.every[i], str(i)) for i in read.numbers)
    told = Told(dict.fromkeys(range(len(documents)), 0), {}, ())
    asked = Asked(read.context, documents, told, read.example.text)
    key = (read.context, answer, *options.values())
    made = _known.setdefault(model, {})
    found = made.get(key)
    if found is None:
        before = model.usage.mine
        result = explained(asked, model, answer, as_options(options))
        if len(made) >= _MOST:
            made.clear()
        made[key] = found = (result, model.usage.mine.since(before))
    return found


def leave_one_out(read: Reading, answer: str, model: LanguageModel) -> Reading:
    """Score each document by what the answer's log-probability loses without it."""
    import numpy as np

    from amplify.shapley import leave_one_out as leave_one_out_of
    from amplify.sources.context import in_place
    from amplify.sources.games import LogProbGame

    before = model.usage.snapshot()
    n = len(read.numbers)
    game = LogProbGame(read.context, model, read.context.continued(answer))
    losses = leave_one_out_of(lambda kept: game(in_place(kept)), n)
    parts = [losses[:, c] for c in (range(1, losses.shape[1]) if losses.shape[1] > 1 else [0])]
    cited = tuple(tuple(read.numbers[i] for i in np.argsort(-p, kind="stable") if p[i] > 0) for p in parts)
    scores = losses[:, 0].tolist()
    return replace(
        read, values=scores, high=scores, spent=model.usage.since(before), sources=read.ranked(scores, cited)
    )
