"""A game as the hierarchy sees it, and what it makes of it: parts of documents with scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from amplify.shapley.game import Coalitions, Floats
from amplify.sources.context import Selection, Source, select

T = TypeVar("T")
CONTEXTS = 12  # kept of each part; its children are scored in some of them


@dataclass(frozen=True)
class Play:
    """A game as this module sees it.

    Attributes:
        of: values of selections, [m, columns].
        known: whether a selection has been asked already (and so costs nothing).
    """

    of: Callable[[Sequence[Selection]], Floats]
    known: Callable[[Selection], bool]

    def beside(self, other: Play) -> Play:
        """The columns of two games with one memory."""
        return Play(lambda s: np.hstack([self.of(s), other.of(s)]), self.known)


@dataclass(frozen=True)
class Around:
    """What else is in the prompt while a part's children come and go: other parts, and the documents' order.

    Attributes:
        present: parts, none overlapping.
        rank: place of each document.
    """

    present: tuple[Source, ...]
    rank: tuple[int, ...]

    def with_(self, parts: Sequence[Source]) -> Selection:
        """The selection that holds these parts as well."""
        everything = [*self.present, *parts]
        return select([self.rank[s.document] for s in everything], everything)


@dataclass
class Scored:
    """Parts with their scores.

    Attributes:
        parts: the sources scored.
        scores, half: scores and half widths of their 95 % intervals, [parts, columns].
        around: for each part, contexts in which it was seen both absent and present.
    """

    parts: list[Source]
    scores: Floats
    half: Floats
    around: list[list[Around]]


Key = tuple[str, Source]
Trace = dict[Key, tuple[Coalitions, int]]  # of each part opened: what was asked of its children, in how many contexts


@dataclass
class Explained:
    """All levels.

    Attributes:
        levels: by name, coarse to fine.
        ends: value of the empty and of the full context, [2, columns].
        estimator: what scored the documents.
        trace: what was asked, so that other columns of the same game can be scored from the same sample.
        meta: how documents were grouped, how many parts were refined.
    """

    levels: dict[str, Scored]
    ends: Floats
    estimator: str
    trace: Trace
    meta: dict[str, Any] = field(default_factory=dict)


def spread_over(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items (or all), evenly spread over them."""
    count = min(count, len(items))
    return [items[int((k + 0.5) * len(items) / count)] for k in range(count)]
