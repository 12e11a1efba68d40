"""A game as the hierarchy sees it, and what it makes of it: parts of documents with scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amplify.shapley.exact import Index, Owen
from amplify.shapley.game import Coalitions, Floats
from amplify.sources.context import Part, Selection, select

Ask = Callable[[Sequence[Selection]], Floats]  # values of selections, [m, columns]
Unit = tuple[Part, ...]  # what comes and goes as one


class SelectionGame:
    """A game that counts the different selections it was asked.

    Args:
        ask: values of selections, [m, columns].
        ranks: draws the places of the documents for one coalition; None leaves them in their order.
    """

    def __init__(self, ask: Ask, ranks: Callable[[], Sequence[int]] | None = None) -> None:
        self._asks, self._ranks = [ask], ranks
        self.asked: set[Selection] = set()

    def add(self, ask: Ask) -> None:
        """From now on with the columns of another game that has the same memory."""
        self._asks.append(ask)

    def of(self, selections: Sequence[Selection]) -> Floats:
        """Values of selections, [m, columns]."""
        self.asked |= set(selections)
        return np.hstack([np.asarray(ask(selections), dtype=np.float64) for ask in self._asks])

    def held(self, units: Sequence[Unit], row: Sequence[bool], ranks: Sequence[int] | None = None) -> Selection:
        """The selection that holds these units, documents at these places (else in their own, or at drawn ones)."""
        sources = [source for unit, is_held in zip(units, row, strict=True) if is_held for source in unit]
        if ranks is None and self._ranks is not None:
            ranks = self._ranks()
        return select([s.document if ranks is None else ranks[s.document] for s in sources], sources)

    @property
    def noisy(self) -> bool:
        """Whether the value of a coalition is a sample (of the documents' orders)."""
        return self._ranks is not None


@dataclass(frozen=True)
class Sample:
    """What was asked of units in nested blocks: the documents, then beside each other the parts of one of them, …

    Attributes:
        blocks: units, outermost block first; the last block's are scored.
        asked: bool[m, all units].
        selections: what stood in the prompt of each.
        values: [m, columns].
    """

    blocks: tuple[tuple[Unit, ...], ...]
    asked: Coalitions
    selections: tuple[Selection, ...]
    values: Floats

    @property
    def units(self) -> list[Unit]:
        """All of them, as the columns of `asked` have them."""
        return [unit for block in self.blocks for unit in block]

    def owen(self, index: Index) -> Owen:
        """What the last block's scores are."""
        return Owen(tuple(map(len, self.blocks)), index)

    def inside(self, k: int, children: Sequence[Unit]) -> Sample:
        """The same of what unit k of the last block consists of: so far its children came and went together."""
        column = sum(map(len, self.blocks[:-1])) + k
        beside = self.blocks[-1][:k] + self.blocks[-1][k + 1 :]
        own = np.repeat(self.asked[:, [column]], len(children), axis=1)
        blocks = (*self.blocks[:-1], *([beside] if beside else []), tuple(children))
        asked = np.hstack([np.delete(self.asked, column, axis=1), own])
        return Sample(blocks, asked, self.selections, self.values)

    def with_(self, asked: Coalitions, selections: Sequence[Selection], values: Floats) -> Sample:
        """The same with more of it."""
        return Sample(
            self.blocks,
            np.concatenate([self.asked, asked]),
            (*self.selections, *selections),
            np.concatenate([self.values, values]),
        )


@dataclass(frozen=True)
class Scored:
    """Parts with their scores.

    Attributes:
        parts: the sources scored.
        scores, half: scores and half widths of their 95 % intervals, [parts, columns].
        origin: for each part, the sample that its score is from, and its place in the last block.
    """

    parts: list[Part]
    scores: Floats
    half: Floats
    origin: list[tuple[Sample, int]]


@dataclass(frozen=True)
class Explained:
    """All levels.

    Attributes:
        levels: by name, coarse to fine.
        ends: value of the empty and of the full context, [2, columns].
        estimator: what scored the documents.
        meta: how documents were grouped, how many parts were refined.
    """

    levels: dict[str, Scored]
    ends: Floats
    estimator: str
    meta: dict[str, Any] = field(default_factory=dict)
