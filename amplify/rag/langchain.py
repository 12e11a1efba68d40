"""LangChain: a document compressor before the answer, and a runnable that cites after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from amplify.errors import InputError, extras
from amplify.rag.compress import Citer, DocumentCompressor, Handle

with extras():
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.messages import BaseMessage, convert_to_openai_messages
    from langchain_core.prompt_values import PromptValue
    from langchain_core.runnables import RunnableConfig, RunnableSerializable
    from pydantic import ConfigDict, Field, PrivateAttr, model_validator


class ShapleyCompressor(BaseDocumentCompressor):
    """Re-ranks, prunes or distils retrieved documents by their Shapley values for the model's own answer.

    Documents come back as copies with `relevance_score`, `relevance_low` and `relevance_high` (95 % interval) and
    `relevance_share` (of what all documents do) in their metadata; None where a document could not be scored.

    Attributes:
        model: an open amplify model, or the string that opens one, e.g. "transformers:smollm2-135m".
        operation: "rerank" (highest first), "prune" (without what surely speaks against the answer) or "distil" (the
            best `top_n`, in their own order).
        top_n: how many stay at most; needed by "distil", else 0 for all.
        threshold: "prune" drops a document when the upper end of its interval is under this.
        budget, value, seed: see `amplify.attribute_sources`.
        options: any further option of it, by name, e.g. {"prompt": "my_rag.jinja", "stop": ["."]}; and `importance`,
            see `amplify.source_importance`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    model: Any
    operation: Literal["rerank", "prune", "distil"] = "rerank"
    top_n: int = 0
    threshold: float = 0.0
    budget: int = 64
    value: Literal["logprob", "votes"] = "logprob"
    seed: int = 0
    options: dict[str, Any] = Field(default_factory=dict)

    _handle: Handle | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Check the options before anything is asked, and again when one is assigned."""
        self._compression()
        return self

    def _compression(self) -> DocumentCompressor:
        if self._handle is None or self._handle.given is not self.model:
            self._handle = Handle(self.model)
        return DocumentCompressor(
            self._handle, self.operation, self.top_n, self.threshold, budget=self.budget, value=self.value,
            seed=self.seed, **self.options,
        )  # fmt: skip

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The documents that stay, in their new order; `acompress_documents` runs this in a thread.

        Raises:
            ContextLengthError: the documents do not fit the model's window.
        """
        kept = self._compression()(query, [d.page_content for d in documents], documents=documents)
        return [
            documents[k.number].model_copy(
                update={
                    "metadata": {
                        **documents[k.number].metadata,
                        "relevance_score": k.score,
                        "relevance_low": k.low,
                        "relevance_high": k.high,
                        "relevance_share": k.share,
                    }
                }
            )
            for k in kept
        ]

    def close(self) -> None:
        """Let go of the model; one that was given open stays open."""
        if self._handle is not None:
            self._handle.close()


class ShapleyCiter(RunnableSerializable[dict[str, Any], dict[str, Any]]):
    """Attaches citations to an answer: the last step of a chain.

    What comes in is a dictionary with `answer` (a text or a message) and `documents` (or `context`, as retrieval chains
    call it), and with `messages` (a list, or a prompt value: what the chain's model read) or `question` (or `input`).
    It goes out with `citations` (`amplify.Citation`), `claims` and `attribution` beside.

    Attributes:
        model: an open amplify model, or the string that opens one.
        options: of `amplify.attribute_sources`, by name.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    model: Any
    options: dict[str, Any] = Field(default_factory=dict)

    _handle: Handle | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._citer()
        return self

    def _citer(self) -> Citer:
        if self._handle is None or self._handle.given is not self.model:
            self._handle = Handle(self.model)
        return Citer(self._handle, **self.options)

    def invoke(self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """The input with its citations; `ainvoke` runs this in a thread.

        Raises:
            InputError: something of the input is missing; says what.
        """
        return self._call_with_config(self._cited, input, config)

    def _cited(self, given: dict[str, Any]) -> dict[str, Any]:
        answer = given.get("answer")
        said = answer.text if isinstance(answer, BaseMessage) else answer
        documents = given.get("documents", given.get("context"))
        messages = given.get("messages")
        if isinstance(messages, PromptValue):
            messages = messages.to_messages()
        if not isinstance(said, str) or documents is None:
            raise InputError("ShapleyCiter reads a dictionary with an 'answer' and 'documents' (or 'context')")
        citer = self._citer()
        if messages is not None:
            found = citer(said, documents, messages=convert_to_openai_messages(list(messages)))
        else:
            found = citer(said, documents, question=given.get("question", given.get("input")))
        return {**given, "citations": found.citations, "claims": found.claims, "attribution": found}

    def close(self) -> None:
        """Let go of the model; one that was given open stays open."""
        if self._handle is not None:
            self._handle.close()
