"""LangChain: a document compressor, for `ContextualCompressionRetriever` and any chain that takes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from amplify.errors import extras
from amplify.rag.compress import Compression

with extras():
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict, PrivateAttr


class ShapleyCompressor(BaseDocumentCompressor):
    """Re-ranks, prunes or distils retrieved documents by their Shapley values for the model's own answer.

    Documents come back as copies with `relevance_score`, `relevance_low` and `relevance_high` (95 % interval) in their
    metadata; None where a document could not be scored.

    Attributes:
        model: an open amplify model, or the string that opens one, e.g. "transformers:smollm2-135m".
        operation: "rerank" (highest first), "prune" (without what surely speaks against the answer) or "distil" (the
            best `top_n`, in their own order).
        top_n: how many stay; needed by "distil", 0 for all of a new order.
        threshold: "prune" drops a document when the upper end of its interval is under this.
        budget, value, seed: see `amplify.attribute_sources`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: Any
    operation: Literal["rerank", "prune", "distil"] = "rerank"
    top_n: int = 0
    threshold: float = 0.0
    budget: int = 64
    value: Literal["logprob", "votes"] = "logprob"
    seed: int = 0

    _compress: Compression = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check the options before anything is asked."""
        self._compress = Compression(
            self.model, self.operation, self.top_n, self.threshold, budget=self.budget, value=self.value, seed=self.seed
        )

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The documents that stay, in their new order; `acompress_documents` runs this in a thread.

        Raises:
            ContextLengthError: the documents do not fit the model's window.
        """
        kept = self._compress(query, [d.page_content for d in documents])
        return [
            documents[k.number].model_copy(
                update={
                    "metadata": {
                        **documents[k.number].metadata,
                        "relevance_score": k.score,
                        "relevance_low": k.low,
                        "relevance_high": k.high,
                    }
                }
            )
            for k in kept
        ]
