"""LlamaIndex: a node postprocessor before the answer, and a query engine that cites after it."""

from __future__ import annotations

from typing import Any, Literal, Self

from amplify.errors import InputError, extras
from amplify.rag.compress import Citer, DocumentCompressor, Handle, ScoredDocument

with extras():
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.base.response.schema import RESPONSE_TYPE
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, model_validator
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

_INTERVAL = ("shapley_low", "shapley_high", "shapley_share")


class ShapleyPostprocessor(BaseNodePostprocessor):
    """Re-ranks, prunes or distils retrieved nodes by their Shapley values for the model's own answer.

    Nodes come back as copies with the value as their score, and its 95 % interval and share in their metadata, kept out
    of what models and embeddings read. Nodes are read as a language model would be shown them (`MetadataMode.LLM`).

    Attributes:
        model: the string that opens the model; of one that was given open, its id.
        operation: "rerank" (highest first), "prune" (without what surely speaks against the answer) or "distil" (the
            best `top_n`, in their own order).
        top_n: how many stay at most; needed by "distil", else 0 for all.
        threshold: "prune" drops a node when the upper end of its interval is under this.
        budget, value, seed: see `amplify.attribute_sources`.
        options: any further option of it, by name; and `importance`, see `amplify.source_importance`.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model: str = Field(default="")
    operation: Literal["rerank", "prune", "distil"] = Field(default="rerank")
    top_n: int = Field(default=0)
    threshold: float = Field(default=0.0)
    budget: int = Field(default=64)
    value: Literal["logprob", "votes"] = Field(default="logprob")
    seed: int = Field(default=0)
    options: dict[str, Any] = Field(default_factory=dict)

    _handle: Handle | None = PrivateAttr(default=None)

    def __init__(self, model: Any, **options: Any) -> None:
        """Check the options before anything is asked.

        Args:
            model: an open amplify model, or the string that opens one, e.g. "transformers:smollm2-135m".
            **options: the attributes of this class.

        Raises:
            InputError: values that make no sense.
        """
        handle = Handle(model)
        options.pop("class_name", None)
        super().__init__(model=handle.id, **options)
        self._handle = handle
        self._compression()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self._handle is not None:
            self._compression()
        return self

    def _compression(self) -> DocumentCompressor:
        if self._handle is None or self._handle.id != self.model:
            self._handle = Handle(self.model)
        return DocumentCompressor(
            self._handle, self.operation, self.top_n, self.threshold, budget=self.budget, value=self.value,
            seed=self.seed, **self.options,
        )  # fmt: skip

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
        kept = self._compression()(query_bundle.query_str, texts, documents=nodes)
        return [_scored(nodes[k.number], k) for k in kept]

    def close(self) -> None:
        """Let go of the model; one that was given open stays open."""
        if self._handle is not None:
            self._handle.close()


def _scored(given: NodeWithScore, kept: ScoredDocument) -> NodeWithScore:
    node = given.node.model_copy()
    node.metadata = {**node.metadata, **dict(zip(_INTERVAL, (kept.low, kept.high, kept.share), strict=True))}
    for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
        own = getattr(node, name)
        setattr(node, name, [*own, *(key for key in _INTERVAL if key not in own)])
    return NodeWithScore(node=node, score=kept.score)


class CitedQueryEngine(BaseQueryEngine):
    """A query engine whose responses say what carries them.

    The prompt is the engine's own: its question-answering template, filled with the nodes as the engine's model reads
    them. Responses get `citations`, `claims` and `attribution` in their metadata.

    Args:
        engine: any query engine with a response synthesizer.
        model: an open amplify model, or the string that opens one.
        **options: of `amplify.attribute_sources`; `prompt` replaces the engine's own.
    """

    def __init__(self, engine: BaseQueryEngine, model: Any, **options: Any) -> None:
        super().__init__(callback_manager=engine.callback_manager)
        self.engine, self._own = engine, "prompt" not in options
        self._citer = Citer(model, **options)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return self.cited(self.engine.query(query_bundle), query_bundle)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        import asyncio

        response = await self.engine.aquery(query_bundle)
        return await asyncio.to_thread(self.cited, response, query_bundle)

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {"engine": self.engine}

    def cited(self, response: RESPONSE_TYPE, query: QueryBundle) -> RESPONSE_TYPE:
        """A response with citations in its metadata; one without nodes or text stays as it is."""
        answer, nodes = str(response), response.source_nodes
        if not answer.strip() or not nodes:
            return response
        texts = [n.node.get_content(metadata_mode=MetadataMode.LLM).strip() for n in nodes]
        documents = [
            {"text": text, "id": n.node.node_id, "metadata": n.node.metadata}
            for text, n in zip(texts, nodes, strict=True)
        ]
        prompt = self._prompt(query.query_str) if self._own else None
        found = self._citer(answer, documents, question=query.query_str, prompt=prompt)
        said = {"citations": found.citations, "claims": found.claims, "attribution": found}
        response.metadata = {**(response.metadata or {}), **said}
        return response

    def _prompt(self, question: str) -> Any:
        """The engine's own template as a function of the documents, or None where it has none."""
        prompts = self.engine.get_prompts()
        own = next((p for name, p in prompts.items() if name.endswith("text_qa_template")), None)
        if own is None:
            return None

        def made(documents: list[Any]) -> list[dict[str, str]]:
            context = "\n\n".join(d.text for d in documents)
            return [
                {"role": str(m.role.value), "content": str(m.content)}
                for m in own.format_messages(context_str=context, query_str=question)
            ]

        return made
