"""Ragas: attributed answers as samples of its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amplify.errors import InputError, extras
from amplify.sources.result import SourceAttribution

if TYPE_CHECKING:
    from ragas import EvaluationDataset

__all__ = ["ragas_rows", "to_ragas"]


def ragas_rows(
    results: Sequence[SourceAttribution],
    references: Sequence[str] | None = None,
    *,
    top_k: int | None = None,
) -> list[dict[str, Any]]:
    """Attributed answers in the columns of a Ragas sample of one turn, as JSON values. Needs no Ragas.

    Args:
        results: of `amplify.attribute_sources`.
        references: the right answer to each, where there are.
        top_k: only so many contexts, those of highest score; None: all, in their order.

    Returns:
        For each: `user_input`, `response`, `retrieved_contexts`, `retrieved_context_ids`, and `reference` where given.

    Raises:
        InputError: not as many references as results, or a result without a question of its own.

    Example:
        >>> import amplify
        >>> from amplify.bridges.ragas import ragas_rows
        >>> result = amplify.attribute_sources(
        ...     "Where is it?", ["It is in Rome.", "Bees fly."], "scripted:say=Rome", granularity="documents")
        >>> ragas_rows([result])[0]["retrieved_contexts"]
        ['It is in Rome.', 'Bees fly.']
    """
    if references is not None and len(references) != len(results):
        raise InputError(f"there are {len(results)} results and {len(references)} references: give one for each")
    rows = []
    for number, result in enumerate(results):
        question = result.question or next(
            (m.content for m in reversed(result.prompt.messages) if m.role == "user"), ""
        )
        if not question:
            raise InputError(f"result {number} has neither a question nor a user's message, which Ragas asks for")
        kept = list(range(len(result.sources))) if top_k is None else result.ranking()[:top_k]
        row: dict[str, Any] = {
            "user_input": question,
            "response": result.answer,
            "retrieved_contexts": [result.sources[k].text for k in kept],
            "retrieved_context_ids": [result.sources[k].id for k in kept],
        }
        rows.append(row if references is None else {**row, "reference": references[number]})
    return rows


@extras()
def to_ragas(
    results: Sequence[SourceAttribution], references: Sequence[str] | None = None, *, top_k: int | None = None
) -> EvaluationDataset:
    """Attributed answers as a `ragas.EvaluationDataset`; see `ragas_rows`.

    Raises:
        MissingExtraError: ragas is not installed.

    Example:
        >>> import amplify
        >>> from amplify.bridges.ragas import to_ragas
        >>> result = amplify.attribute_sources(
        ...     "Where is it?", ["It is in Rome.", "Bees fly."], "scripted:say=Rome", granularity="documents")
        >>> to_ragas([result], ["In Rome."])[0].reference
        'In Rome.'
    """
    from ragas import EvaluationDataset

    return EvaluationDataset.from_list(ragas_rows(results, references, top_k=top_k))
