"""What it costs to ask coalitions where a beginning that several share is paid once, as in a prefix trie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amplify.errors import InputError
from amplify.textgenshap.value import Coalitions, Floats


@dataclass(frozen=True)
class PrefixCost:
    """Sources stand in their own order behind a head; what two coalitions have in common up to a source is paid once.

    Attributes:
        sources: what each costs, in any unit (tokens). [n]
        each: what every coalition costs beside its sources (the question, the answer).
        head: what stands before the sources, paid once.
        limit: what may be spent in all.

    Raises:
        InputError: a cost below 0, an evaluation that costs nothing, or a limit below the two ends' cost.
    """

    sources: Sequence[float]
    each: float
    limit: float
    head: float = 0.0

    def __post_init__(self) -> None:
        if min(self.sources, default=0) < 0 or self.head < 0 or self.each <= 0:
            raise InputError("costs of sources and head are 0 or more, and an evaluation costs something")
        least = self.head + 2 * self.each + sum(self.sources)
        if self.limit < least:
            raise InputError(
                f"a limit of {self.limit:,.0f} is too low: the empty and the full coalition alone cost {least:,.0f}"
            )

    def of(self, coalitions: Coalitions) -> float:
        """What so many coalitions, bool[m, n], cost together."""
        held = np.unique(coalitions, axis=0)
        total = self.head + len(held) * self.each
        for j, cost in enumerate(self.sources):
            total += cost * len(np.unique(held[held[:, j], :j], axis=0)) if held[:, j].any() else 0.0
        return float(total)


class Bill:
    """What each of some candidates would cost on top of what has been asked.

    Attributes:
        costs: of each candidate, [m].
        spent: on what has been asked.
    """

    def __init__(self, cost: PrefixCost, candidates: Coalitions, asked: Coalitions) -> None:
        self._cost, self._candidates = cost, candidates
        self._lengths = np.asarray(cost.sources, dtype=np.float64)
        self._unpaid = candidates.copy()
        self.spent = cost.of(asked)
        for row in asked:
            self._share(row)

    @property
    def costs(self) -> Floats:
        """See the class."""
        return self._cost.each + self._unpaid @ self._lengths

    def pay(self, candidate: int) -> None:
        """Ask a candidate that has not been asked: what it shares with others is theirs for free from now on."""
        self.spent += float(self._cost.each + self._unpaid[candidate] @ self._lengths)
        self._share(self._candidates[candidate])

    def _share(self, row: Coalitions) -> None:
        self._unpaid &= ~np.logical_and.accumulate(self._candidates == row, axis=1)
