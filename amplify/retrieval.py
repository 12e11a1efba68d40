"""Sentence embeddings, and retrievers over a list of documents: dense with exact search, and BM25."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

import amplify
from amplify import hub
from amplify.errors import DataError, InputError, extras
from amplify.locks import PROCESS, lock_of, one_at_a_time
from amplify.models import pretrained
from amplify.models.cache import kept_numbers
from amplify.models.pretrained import Closed, batches
from amplify.registry import Table, register


class Embedder:
    """Mean-pooled, L2-normalised last hidden states of an encoder (Sentence-BERT; Reimers & Gurevych 2019)."""

    @extras()
    def __init__(self, model: str | Path = "minilm", *, device: str | None = None) -> None:
        """Load the encoder.

        Args:
            model: alias, hub id or folder.
            device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.

        Raises:
            UnknownNameError, DataError: no such model, or it cannot be read.
            InputError: no such device.
        """
        import torch
        from transformers import AutoModel

        place, folder, name = pretrained.device_of(device), hub.resolve(model), str(model)
        config = pretrained.config_of(folder, name)
        pretrained.refuse_encoder_decoder(config, name, "encoders (minilm …)")
        self.tokenizer: Any = pretrained.tokenizer_of(folder, name)
        self.module: Any = pretrained.model_of(AutoModel, folder, name, "an encoder", dtype=torch.float32)
        self.module.to(place).eval()
        self.name, self._folder = name, folder

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return isinstance(self.module, Closed)

    def close(self) -> None:
        """Free the encoder. Calling it twice is fine."""
        if not self.closed:
            with lock_of(self.module):  # whoever is in the middle of a call finishes it
                self.module = Closed(f"the encoder {self.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def embed(self, texts: Sequence[str], *, batch_tokens: int = 4096) -> npt.NDArray[np.float32]:
        """One unit vector per text, shape (texts, width). Text beyond the encoder's window is not read."""
        rows = _kept(self._folder, texts, lambda: self, batch_tokens)
        return np.array(rows, np.float32).reshape(len(texts), self.module.config.hidden_size)

    @one_at_a_time
    def _embed(self, texts: Sequence[str], batch_tokens: int) -> npt.NDArray[np.float32]:
        import torch

        limit = min(self.tokenizer.model_max_length, self.module.config.max_position_embeddings)
        encoded = [self.tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts]
        pretrained.check_tokens(encoded, self.tokenizer, self.module)
        out = np.zeros((len(texts), self.module.config.hidden_size), dtype=np.float32)
        for batch in batches([len(ids) for ids in encoded], batch_tokens):
            longest = max(len(encoded[i]) for i in batch)
            ids = np.full((len(batch), longest), self.tokenizer.pad_token_id or 0)
            mask = np.zeros((len(batch), longest), dtype=np.int64)
            for at, i in enumerate(batch):
                ids[at, : len(encoded[i])], mask[at, : len(encoded[i])] = encoded[i], 1
            with torch.inference_mode():
                device = self.module.device
                weights = torch.from_numpy(mask).to(device)
                hidden = self.module(input_ids=torch.from_numpy(ids).to(device), attention_mask=weights)
                states = hidden.last_hidden_state.float() * weights[..., None]
                mean = states.sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
                out[batch] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        if not np.isfinite(out).all():
            raise DataError("the embeddings hold what is no number: check the weights of the encoder")
        return out


def _kept(folder: Path, texts: Sequence[str], encoder: Callable[[], Embedder], batch_tokens: int = 4096) -> list[Any]:
    """Rows of texts by the encoder in a folder, which is asked for only where one of them is not kept."""
    by = [*hub.identity(folder).values(), amplify.__version__, version("torch"), version("transformers")]
    return kept_numbers(
        ["embedding", *by], texts, lambda new: list(encoder()._embed([texts[i] for i in new], batch_tokens))
    )


def embedded(texts: Sequence[str], model: str = "minilm") -> npt.NDArray[np.float32]:
    """One unit vector per text, by an encoder that is loaded only where one of them is not kept; see `Embedder.embed`.

    Args:
        texts: at least one.
        model: alias, hub id or folder.

    Example:
        >>> embedded(["great phone", "terrible battery"], encoder).shape  # the folder of an encoder
        (2, 32)
    """
    return np.array(_kept(hub.resolve(model), texts, lambda: open_embedder(model)), np.float32)


def open_embedder(model: str = "minilm", device: str | None = None) -> Embedder:
    """An encoder, loaded once for all who use it in this process; see `Embedder`."""
    with PROCESS:  # whoever comes second waits for the first's
        found = _loaded(model, device)
        if found.closed:  # by one of those who share it
            _loaded.cache_clear()
            found = _loaded(model, device)
        return found


@lru_cache(maxsize=2)
def _loaded(model: str, device: str | None) -> Embedder:
    return Embedder(model, device=device)


def nearest(queries: npt.NDArray[np.float32], keys: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Indices of the k keys with the largest inner product per query, best first, ties by index: shape (queries, k)."""
    if not 0 < k <= len(keys):
        raise InputError(f"cannot take {k} neighbours of {len(keys)} texts")
    return np.argsort(-(queries @ keys.T), axis=1, kind="stable")[:, :k]


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
        from amplify.retrieval import open_embedder

        _some(documents)
        self._embedder = open_embedder(str(model), device)
        self._keys = self._embedder.embed(documents)

    def search(self, question: str, k: int) -> list[Hit]:
        """See `Retriever.search`."""
        from amplify.retrieval import nearest

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
