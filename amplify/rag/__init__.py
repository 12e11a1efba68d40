"""Retrieval and what attributions do with it; adapters for LangChain, LlamaIndex and Haystack.

Each adapter is a module of its own, so that no host framework is imported unless it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amplify.lazy import lazily

if TYPE_CHECKING:
    from amplify.rag.compress import Citer, DocumentCompressor, ScoredDocument

__all__ = ["Citer", "DocumentCompressor", "ScoredDocument"]

__getattr__ = lazily(__name__, dict.fromkeys(__all__, "compress"))
