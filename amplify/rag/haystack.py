"""Haystack: a ranker between retriever and prompt builder, and a citer behind the generator."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from amplify.errors import InputError, extras
from amplify.models.base import LanguageModel
from amplify.rag.compress import Citer, DocumentCompressor, Handle
from amplify.sources.keeping import Operation

with extras():
    from haystack import Document, GeneratedAnswer, component, default_from_dict, default_to_dict
    from haystack.dataclasses import ChatMessage


@component
class ShapleyRanker:
    """Re-ranks, prunes or distils retrieved documents by their Shapley values for the model's own answer.

    Documents come back as copies with the value as their score, and its 95 % interval and share of what all documents
    do in their meta (`shapley_low`, `shapley_high`, `shapley_share`).
    """

    def __init__(
        self,
        model: LanguageModel | str,
        operation: Operation = "rerank",
        top_k: int = 0,
        threshold: float = 0.0,
        budget: int = 64,
        value: str = "logprob",
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Check the options; a model given as a string is opened by `warm_up`.

        Args:
            model: an open amplify model, or the string that opens one, e.g. "transformers:smollm2-135m".
            operation: "rerank" (highest first), "prune" (without what surely speaks against the answer) or "distil"
                (the best `top_k`, in their own order).
            top_k: how many stay at most; needed by "distil", else 0 for all.
            threshold: "prune" drops a document when the upper end of its interval is under this.
            budget, value, seed: see `amplify.attribute_sources`.
            options: any further option of it, by name; and `importance`, the file of an `amplify.SourceImportance`.

        Raises:
            InputError: values that make no sense.
        """
        self._handle = Handle(model)
        self._options = {
            "operation": operation, "top_k": top_k, "threshold": threshold, "budget": budget, "value": value,
            "seed": seed, "options": dict(options or {}),
        }  # fmt: skip
        self._compress = DocumentCompressor(
            self._handle, operation, top_k, threshold, budget=budget, value=value, seed=seed, **(options or {})
        )

    def warm_up(self) -> None:
        """Open the model."""
        self._handle.open()

    def close(self) -> None:
        """Let go of the model; one that was given open stays open."""
        self._handle.close()

    def to_dict(self) -> dict[str, Any]:
        """For a saved pipeline; the model as the string that opens it."""
        return dict(default_to_dict(self, model=self._handle.id, **self._options))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ShapleyRanker:
        """The inverse of `to_dict`."""
        made: ShapleyRanker = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """The documents that stay, in their new order.

        Args:
            query: what was searched for.
            documents: what was found, text only.
            top_k: instead of the one given at first.

        Raises:
            InputError: a document without text. ContextLengthError: they do not fit the model's window.
        """
        if any(d.content is None for d in documents):
            raise InputError("ShapleyRanker reads text: leave out documents without content")
        kept = self._compress(query, [str(d.content) for d in documents], top_k, documents)
        return {
            "documents": [
                replace(
                    documents[k.number],
                    score=k.score,
                    meta={
                        **documents[k.number].meta,
                        "shapley_low": k.low,
                        "shapley_high": k.high,
                        "shapley_share": k.share,
                    },
                )
                for k in kept
            ]
        }


@component
class ShapleyCiter:
    """Attaches citations to what a generator replied: connect its replies, the documents, and the prompt it read.

    Answers come out as `GeneratedAnswer`, with `citations`, `claims` and `attribution` in their meta.
    """

    def __init__(self, model: LanguageModel | str, options: dict[str, Any] | None = None) -> None:
        """Check the options; a model given as a string is opened by `warm_up`.

        Args:
            model: an open amplify model, or the string that opens one.
            options: of `amplify.attribute_sources`, by name.

        Raises:
            InputError: values that make no sense.
        """
        self._handle, self._options = Handle(model), dict(options or {})
        self._cite = Citer(self._handle, **self._options)

    def warm_up(self) -> None:
        """Open the model."""
        self._handle.open()

    def close(self) -> None:
        """Let go of the model; one that was given open stays open."""
        self._handle.close()

    def to_dict(self) -> dict[str, Any]:
        """For a saved pipeline; the model as the string that opens it."""
        return dict(default_to_dict(self, model=self._handle.id, options=self._options))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ShapleyCiter:
        """The inverse of `to_dict`."""
        made: ShapleyCiter = default_from_dict(cls, data)
        return made

    @component.output_types(answers=list[GeneratedAnswer])
    def run(
        self,
        query: str,
        documents: list[Document],
        replies: list[str] | list[ChatMessage],
        prompt: str | list[ChatMessage] | None = None,
    ) -> dict[str, list[GeneratedAnswer]]:
        """Every reply with its citations.

        Args:
            query: what was asked.
            documents: what was retrieved.
            replies: what the generator said.
            prompt: what it read; the documents are found in it. Without it a prompt is made of query and documents.
        """
        messages = None
        if prompt is not None:
            said = [ChatMessage.from_user(prompt)] if isinstance(prompt, str) else prompt
            messages = [{"role": m.role.value, "content": m.text or ""} for m in said]
        answers = []
        for reply in replies:
            text = reply if isinstance(reply, str) else reply.text or ""
            meta: dict[str, Any] = {}
            if text.strip() and documents:
                question = query if messages is None else None
                found = self._cite(text, [copy(d) for d in documents], question=question, messages=messages)
                meta = {"citations": found.citations, "claims": found.claims, "attribution": found}
            answers.append(GeneratedAnswer(data=text, query=query, documents=documents, meta=meta))
        return {"answers": answers}
