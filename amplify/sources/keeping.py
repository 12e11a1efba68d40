"""Which documents stay in the context, and in which order, once they have scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from amplify.errors import InputError, UnknownNameError

Operation = Literal["rerank", "prune", "distil"]
ROUNDING = 1e-6
"""Share of the largest score that sums of marginals which cancel leave at most: it is no effect."""


def ranked(scores: Sequence[float]) -> list[int]:
    """Numbers of the documents, highest score first.

    Those that rounding alone may tell apart keep their order, whatever processor added them up.
    """
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    falls = -np.diff(values[order], prepend=np.inf) > ROUNDING * np.abs(values).max(initial=0.0)
    return [int(i) for i in order[np.lexsort((order, np.cumsum(falls)))]]


def keep(
    operation: Operation,
    scores: Sequence[float],
    high: Sequence[float] | None = None,
    *,
    k: int = 0,
    threshold: float = 0.0,
) -> list[int]:
    """Numbers of the documents that stay, in the order in which they are to stand.

    Args:
        operation: "rerank" puts the highest score first; "prune" takes out what is surely worth less than `threshold`
            and leaves the order as it was; "distil" keeps the `k` highest scores, in their own order.
        scores: one per document, [documents]. Equal scores keep their order.
        high: upper ends of their 95 % intervals, [documents]; the scores themselves where they are exact.
        k: how many documents stay: needed by "distil"; after "rerank" the first k, 0 for all of them.
        threshold: in units of the scores.

    Raises:
        UnknownNameError: no such use. InputError: a k below 1 where it is needed.

    Example:
        >>> keep("rerank", [0.5, 2.0, -1.0]), keep("distil", [0.5, 2.0, -1.0], k=2), keep("prune", [0.5, 2.0, -1.0])
        ([1, 0, 2], [0, 1], [0, 1])
    """
    if operation not in get_args(Operation):
        raise UnknownNameError("operation", operation, get_args(Operation))
    if k < 0 or (operation == "distil" and k < 1):
        raise InputError(f"k is the number of documents to keep, 1 or more, got {k}")
    values = np.asarray(scores, dtype=np.float64)
    order = ranked(scores)
    if operation == "rerank":
        return order[: k or None]
    if operation == "distil":
        return sorted(order[:k])
    top = values if high is None else np.asarray(high, dtype=np.float64)
    kept = [int(i) for i in np.flatnonzero(top >= threshold - ROUNDING * np.abs(values).max())]
    return kept or order[:1]  # an empty context would answer another question
