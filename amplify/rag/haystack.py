"""Haystack: a ranker component, to stand between a retriever and a prompt builder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from amplify.documents import Operation
from amplify.errors import InputError, extras
from amplify.models.base import LanguageModel
from amplify.rag.compress import Compression

with extras():
    from haystack import Document, component, default_from_dict, default_to_dict


@component
class ShapleyRanker:
    """Re-ranks, prunes or distils retrieved documents by their Shapley values for the model's own answer.

    Documents come back as copies with the value as their score and its 95 % interval in their meta
    (`shapley_low`, `shapley_high`).
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
    ) -> None:
        """Check the options; a model given as a string is opened by `warm_up`.

        Args:
            model: an open amplify model, or the string that opens one, e.g. "transformers:smollm2-135m".
            operation: "rerank" (highest first), "prune" (without what surely speaks against the answer) or "distil"
                (the best `top_k`, in their own order).
            top_k: how many stay; needed by "distil", 0 for all of a new order.
            threshold: "prune" drops a document when the upper end of its interval is under this.
            budget, value, seed: see `amplify.attribute_sources`.

        Raises:
            InputError: values that make no sense.
        """
        self._options = {
            "operation": operation, "top_k": top_k, "threshold": threshold, "budget": budget, "value": value,
            "seed": seed,
        }  # fmt: skip
        self._compress = Compression(model, operation, top_k, threshold, budget=budget, value=value, seed=seed)

    def warm_up(self) -> None:
        """Open the model."""
        self._compress.open()

    def to_dict(self) -> dict[str, Any]:
        """For a saved pipeline; the model as the string that opens it."""
        return dict(default_to_dict(self, model=self._compress.spec, **self._options))

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
        kept = self._compress(query, [str(d.content) for d in documents], top_k)
        return {
            "documents": [
                replace(
                    documents[k.number],
                    score=k.score,
                    meta={**documents[k.number].meta, "shapley_low": k.low, "shapley_high": k.high},
                )
                for k in kept
            ]
        }
