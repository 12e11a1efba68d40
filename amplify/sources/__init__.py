"""Which sources made the answer: games over coalitions of documents, sentences and words of a context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amplify.lazy import lazily

if TYPE_CHECKING:
    from amplify.sources.attribute import attribute_sources
    from amplify.sources.claims import Citation, Claim
    from amplify.sources.document import Document, Source
    from amplify.sources.importance import SourceImportance, source_importance
    from amplify.sources.keeping import keep
    from amplify.sources.log import ExplainedLog, explain_log
    from amplify.sources.lookback import Lookback
    from amplify.sources.loop import Loop, answer_in_loop
    from amplify.sources.result import Cost, Level, SourceAttribution

__all__ = [
    "Citation",
    "Claim",
    "Cost",
    "Document",
    "ExplainedLog",
    "Level",
    "Lookback",
    "Loop",
    "Source",
    "SourceAttribution",
    "SourceImportance",
    "answer_in_loop",
    "attribute_sources",
    "explain_log",
    "keep",
    "source_importance",
]

__getattr__ = lazily(
    __name__,
    {
        "Citation": "claims",
        "Claim": "claims",
        "Cost": "result",
        "Document": "document",
        "ExplainedLog": "log",
        "Level": "result",
        "Lookback": "lookback",
        "Loop": "loop",
        "Source": "document",
        "SourceAttribution": "result",
        "SourceImportance": "importance",
        "answer_in_loop": "loop",
        "attribute_sources": "attribute",
        "explain_log": "log",
        "keep": "keeping",
        "source_importance": "importance",
    },
)
