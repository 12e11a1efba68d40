"""Retrievers over a list of documents: dense with exact search, and BM25."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from amplify.errors import InputError, extras
from amplify.registry import Table, register


class Hit(NamedTuple):
    """A document that was found: its number, and how well it fits (higher is better)."""

    document: int
    score: float


class Retriever(Protocol):
    """What finds documents for a question."""

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best documents, best first, ties by number."""
        ...


def _adopt(name: str, value: Any) -> Callable[[Sequence[str]], Retriever]:
    if not callable(value):
        raise InputError(f"the retriever {name!r} is a class or function of a list of documents, not {value!r}")
    return value


RETRIEVERS: Table[Callable[[Sequence[str]], Retriever]] = Table("retriever", _adopt)
"""Every retriever by name: a list of documents -> what searches it."""


@register("retriever", "minilm")
class DenseRetriever:
    """Cosine similarity of sentence embeddings, exact search over all documents."""

    def __init__(self, documents: Sequence[str], model: str | Path = "minilm", *, device: str | None = None) -> None:
        """Embed the documents.

        Args:
            documents: what is searched; text beyond the encoder's window is not read.
            model: encoder by alias, hub id or folder.
            device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.

        Raises:
            InputError: there are no documents.
        """
        from amplify.embeddings import open_embedder

        _some(documents)
        self._embedder = open_embedder(str(model), device)
        self._keys = self._embedder.embed(documents)

    def search(self, question: str, k: int) -> list[Hit]:
        """See `Retriever.search`."""
        from amplify.embeddings import nearest

        query = self._embedder.embed([question])
        found = nearest(query, self._keys, _bounded(k, len(self._keys)))[0]
        return [Hit(int(i), float(query[0] @ self._keys[i])) for i in found]


@register("retriever", "bm25")
class BM25Retriever:
    """BM25 (Robertson & Zaragoza 2009), as the package bm25s computes it; English stop words left out."""

    def __init__(self, documents: Sequence[str]) -> None:
        """Index the documents.

        Raises:
            InputError: there are no documents.
            MissingExtraError: bm25s is not installed.
        """
        with extras():
            import bm25s
        _some(documents)
        self._count = len(documents)
        self._tokenize: Any = bm25s.tokenize
        self._index: Any = bm25s.BM25()
        tokens = bm25s.tokenize(list(documents), return_ids=False, show_progress=False)
        self._empty = not any(tokens)  # nothing but stop words: bm25s cannot index that
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    def search(self, question: str, k: int) -> list[Hit]:
        """See `Retriever.search`."""
        k = _bounded(k, self._count)
        tokens = self._tokenize([question], return_ids=False, show_progress=False)[0]
        known = [] if self._empty else [t for t in tokens if t in self._index.vocab_dict]
        if not known:
            return [Hit(i, 0.0) for i in range(k)]
        scores = self._index.get_scores(known)
        order = np.argsort(-scores, kind="stable")[:k].tolist()
        return [Hit(i, float(scores[i])) for i in order]


def open_retriever(name: str, documents: Sequence[str]) -> Retriever:
    """A retriever by name, over documents.

    Raises:
        UnknownNameError: no such retriever.
    """
    return RETRIEVERS.find(name)(documents)


def _some(documents: Sequence[str]) -> None:
    if isinstance(documents, str) or not documents:
        raise InputError("a retriever searches a list of documents, at least one")


def _bounded(k: int, count: int) -> int:
    if k < 1:
        raise InputError(f"k is a number of documents, 1 or more, got {k}")
    return min(k, count)
