"""How many evaluations an estimator needs, how many fit in memory, and what they cost where beginnings are shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from amplify.errors import InputError
from amplify.shapley.exact import MAX_SOURCES, UNASKED
from amplify.shapley.game import Coalitions, Floats

CELLS = 2**24
"""Entries of the largest table of coalitions x sources that is made: 128 MiB as float64, of which a fit holds a few."""

GRAM = 4096
"""Values that a Gaussian process is conditioned on at most: its matrices hold their square, its time is their cube."""

LEAST: dict[str, Callable[[int], int]] = {
    "exact": lambda n: 2**n,
    "permutation": lambda n: n + 1,
    "leave_one_out": lambda n: n + 1,
    # a coalition and its complement give one equation, and n - 1 are needed beside the two ends
    "kernel_shap": lambda n: 2 * n,
    "leverage_shap": lambda n: 2 * n,
    "regression_msr": lambda n: min(2 * n, 12),
    "lime": lambda n: 3,
}
PAIRED = ("kernel_shap", "leverage_shap", "regression_msr")


def least(estimator: str, n: int, index: str = "shapley") -> int:
    """Evaluations without which an estimator leaves scores of `n` sources undetermined.

    Example:
        >>> from amplify.shapley.budget import least
        >>> least("kernel_shap", 100)
        200
    """
    needed = LEAST[estimator](n) if estimator in LEAST else 2
    # the two ends hardly weigh in a Banzhaf value, so that one more pair is needed
    more = 2 if index == "banzhaf" and estimator in PAIRED else 0
    return min(needed + more, 2**n) if n < 63 else needed + more


def most(estimator: str, n: int) -> int:
    """The largest budget whose tables fit in memory (about 1 GB in all)."""
    if estimator in ("gaussian_process", "auto"):
        return min(GRAM, CELLS // 4 // n)
    if estimator == "regression_msr":  # which fits products of two sources
        return min(GRAM, 2 * CELLS // n**2)
    return CELLS // n


def check_budget(
    estimator: str, n: int, budget: int, index: str = "shapley", *, players: str = "sources", name: str = ""
) -> None:
    """Refuse a budget that determines nothing, that no memory holds, or that holds more than anybody means.

    A budget of all coalitions is the exact answer, which is asked for without a word up to 15 players only: beyond
    that it is hours of a model, and whoever wants them gives a number or says "exact".

    Args:
        estimator: its name.
        n: players.
        budget: evaluations.
        index: "shapley" or "banzhaf".
        players: what the players are called.
        name: what the estimator is called, where it is another name.

    Raises:
        InputError: says how many are needed, how many fit, or that all are more than may be meant.

    Example:
        >>> check_budget("kernel_shap", 12, 20)
        Traceback (most recent call last):
        amplify.errors.InputError: a budget of 20 evaluations is too small for kernel_shap: scores ...
    """
    needed, room, name = least(estimator, n, index), most(estimator, n), name or estimator
    budget = min(budget, needed if estimator == "leave_one_out" else 2 ** min(n, 62))  # which asks no more
    if needed > room:
        raise InputError(
            f"{n:,} {players} are too many for {name}: it needs {needed:,} evaluations, and the tables of "
            f"{room:,} fit in memory; score fewer {players}, e.g. in groups"
        )
    if budget < needed:
        raise InputError(
            f"a budget of {budget} evaluations is too small for {name}: scores of {n} {players} need {needed} or more"
        )
    if estimator != "exact" and n > UNASKED and budget == 2 ** min(n, 62):
        other = ', or name "exact"' if players == "sources" and n <= MAX_SOURCES else ""
        raise InputError(
            f"the budget holds all {budget:,} sets of {n:,} {players}, more than anything asks unless it is meant: "
            f"give {name} fewer{other}"
        )
    if budget > room:
        other = " (leverage_shap takes more)" if room < CELLS // n else ""
        other = " (exact asks all of them)" if n <= MAX_SOURCES and budget == 2**n else other
        raise InputError(
            f"a budget of {budget:,} evaluations of {n:,} {players} does not fit in memory with {name}: at most "
            f"{room:,} do{other}"
        )


@dataclass(frozen=True)
class PrefixCost:
    """Sources stand in their own order behind a head; what two coalitions have in common up to a source is paid once.

    Attributes:
        sources: what each costs, in any unit (tokens). [n]
        each: what every coalition costs beside its sources (the question, the answer).
        head: what stands before the sources, paid once.
        limit: what may be spent in all.
        soft: evaluations are counted, not paid: a whole budget of them is asked, chosen so that together they cost no
            more than `limit`, as near as may be. Else what tells most for its price is asked until the limit is spent.

    Raises:
        InputError: a cost below 0, an evaluation that costs nothing, or a limit below the two ends' cost.

    Example:
        >>> cost = PrefixCost([10, 20], each=1, limit=100)
        >>> cost.of(np.array([[True, True], [True, False]]))  # the first source is paid once
        32.0
    """

    sources: Sequence[float]
    each: float
    limit: float
    head: float = 0.0
    soft: bool = False

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


class CostTracker:
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
