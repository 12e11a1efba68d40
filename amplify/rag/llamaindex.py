"""LlamaIndex: a node postprocessor, for `node_postprocessors=[…]` of a query engine."""

from __future__ import annotations

from typing import Any, Literal

from amplify.errors import InputError, extras
from amplify.rag.compress import Compression, Kept

with extras():
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

_INTERVAL = ("shapley_low", "shapley_high")


class ShapleyPostprocessor(BaseNodePostprocessor):
    """Re-ranks, prunes or distils retrieved nodes by their Shapley values for the model's own answer.

    Nodes come back as copies with the value as their score, and its 95 % interval in their metadata, kept out of what
    models and embeddings read. Nodes are read as a language model would be shown them (`MetadataMode.LLM`).

    Attributes:
        model: the string that opens the model; of one that was given open, its spec.
        operation: "rerank" (highest first), "prune" (without what surely speaks against the answer) or "distil" (the
            best `top_n`, in their own order).
        top_n: how many stay; needed by "distil", 0 for all of a new order.
        threshold: "prune" drops a node when the upper end of its interval is under this.
        budget, value, seed: see `amplify.attribute_sources`.
    """

    model: str = Field(default="")
    operation: Literal["rerank", "prune", "distil"] = Field(default="rerank")
    top_n: int = Field(default=0)
    threshold: float = Field(default=0.0)
    budget: int = Field(default=64)
    value: Literal["logprob", "votes"] = Field(default="logprob")
    seed: int = Field(default=0)

    _compress: Compression = PrivateAttr()

    def __init__(self, model: Any, **options: Any) -> None:
        """Check the options before anything is asked.

        Args:
            model: an open amplify model, or the string that opens one, e.g. "transformers:smollm2-135m".
            **options: the attributes of this class.

        Raises:
            InputError: values that make no sense.
        """
        super().__init__(model=model if isinstance(model, str) else model.id, **options)
        self._compress = Compression(
            model, self.operation, self.top_n, self.threshold, budget=self.budget, value=self.value, seed=self.seed
        )

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises it."""
        return "ShapleyPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("ShapleyPostprocessor needs the query: pass query_str= or query_bundle=")
        if not nodes:
            return []
        texts = [n.node.get_content(metadata_mode=MetadataMode.LLM) for n in nodes]
        return [_scored(nodes[k.number], k) for k in self._compress(query_bundle.query_str, texts)]


def _scored(given: NodeWithScore, kept: Kept) -> NodeWithScore:
    node = given.node.model_copy()
    node.metadata = {**node.metadata, **dict(zip(_INTERVAL, (kept.low, kept.high), strict=True))}
    for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
        own = getattr(node, name)
        setattr(node, name, [*own, *(key for key in _INTERVAL if key not in own)])
    return NodeWithScore(node=node, score=kept.score)
