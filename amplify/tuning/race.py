"""A race: candidates on common items, in growing batches, the hopeless ones dropped by paired tests and by rank.

Nothing here knows a model: an entrant is a function from items to scores. (F-Race, Birattari et al. 2002; successive
halving, Jamieson & Talwalkar 2016.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from amplify.evaluation.statistics import sign_flip
from amplify.tuning.budget import BudgetSpentError

Floats = npt.NDArray[np.float64]
Score = Callable[[int, Sequence[int]], list[float]]  # (entrant, items) -> a score from 0 to 1 for each
LEVEL = 0.05
FOLDS = 5
NOT_TRIED = "not tried: the budget"


class CannotRunError(Exception):
    """This entrant leaves the race; the message says why."""


@dataclass
class Runner:
    """An entrant's way through the race.

    Attributes:
        index: its place among the entrants; of equally complex ones the earlier is taken.
        plain: what one would do without the search. The best of these is never dropped.
        complexity: how much it takes, for the choice of the simplest.
        scores: of the items so far.
        out: why it left, "" while it runs.
        round: the last round that it finished, from 1; 0 for none.
    """

    index: int
    plain: bool
    complexity: int
    scores: list[float] = field(default_factory=list)
    out: str = ""
    round: int = 0

    def mean(self, n: int) -> float:
        """Mean score of the first n items."""
        return float(np.mean(self.scores[:n]))


@dataclass(frozen=True)
class Race:
    """How a race went.

    Attributes:
        runners: every entrant, in the order given.
        n: items that the finalists have in common.
        rounds: items after each round.
        ended: why it ended.
    """

    runners: tuple[Runner, ...]
    n: int
    rounds: tuple[int, ...]
    ended: str

    @property
    def finalists(self) -> list[Runner]:
        """Those that answered all n items and did not leave."""
        return [r for r in self.runners if not r.out and len(r.scores) >= self.n]


def run(runners: Sequence[Runner], score: Score, items: int, first: int) -> Race:
    """Race the runners over the items 0 … items - 1, in this order.

    The first round has `first` items, every further one as many as all before it. After each round those leave that a
    paired test puts behind the leader (one-sided, at `LEVEL`), then the worse half of what is left, while more than two
    are; the best plain runner stays.

    Args:
        runners: who takes part; they are changed.
        score: asks an entrant; a CannotRunError takes it out, a BudgetSpentError ends the race.
        items: how many there are.
        first: of the first round.
    """
    rounds: list[int] = []
    done = 0
    ended = "all items were used"
    while done < items:
        upto = min(items, max(first, 2 * done))
        running = [r for r in runners if not r.out]
        try:
            for runner in running:
                try:
                    runner.scores += score(runner.index, range(done, upto))
                    runner.round = len(rounds) + 1
                except CannotRunError as why:
                    runner.out = str(why)
        except BudgetSpentError as spent:
            ended = f"the budget: {spent}"
            if not done:  # whoever had no first round was not tried
                for runner in running:
                    if len(runner.scores) < upto:
                        runner.out = runner.out or NOT_TRIED
                rounds.append(upto)
                done = upto
            else:
                for runner in running:
                    runner.scores = runner.scores[:done]
            break
        rounds.append(upto)
        done = upto
        drop([r for r in runners if not r.out], done)
        if len([r for r in runners if not r.out]) < 2:
            ended = "one is left"
            break
    return Race(tuple(runners), done, tuple(rounds), ended)


def drop(running: Sequence[Runner], n: int) -> None:
    """Let those leave that the first n items put behind; see `run`."""
    ranked = sorted(running, key=lambda r: (-r.mean(n), r.complexity, r.index))
    if len(ranked) < 2:
        return
    best_plain = next((r for r in ranked if r.plain), None)
    leader = ranked[0]
    staying = [leader]
    for runner in ranked[1:]:
        behind = np.array(leader.scores[:n]) - np.array(runner.scores[:n])
        if runner is not best_plain and behind.mean() > 0 and sign_flip(behind).p / 2 <= LEVEL:
            runner.out = f"behind the leader after {n} items (p {sign_flip(behind).p / 2:.3f})"
        else:
            staying.append(runner)
    keep = max(2, math.ceil(len(ranked) / 2))
    for place, runner in enumerate(staying):
        if place >= keep and runner is not best_plain:
            runner.out = f"in the worse half after {n} items"


def choose(runners: Sequence[Runner], items: Sequence[int]) -> Runner:
    """The simplest runner within one standard error of the best on these items.

    The standard error is that of the paired difference to the best. Of equally complex ones the better is taken.
    """
    table = {r.index: np.array(r.scores)[list(items)] for r in runners}
    best = max(runners, key=lambda r: (table[r.index].mean(), -r.complexity, -r.index))
    near = []
    for runner in runners:
        behind = table[best.index] - table[runner.index]
        error = behind.std(ddof=1) / math.sqrt(len(behind)) if len(behind) > 1 else 0.0
        if behind.mean() <= error + 1e-12:
            near.append(runner)
    return min(near, key=lambda r: (r.complexity, -table[r.index].mean(), r.index))


def cross_fitted(runners: Sequence[Runner], n: int) -> tuple[float, float]:
    """What the choice is worth on items that it was not made by.

    Args:
        runners: the finalists, a plain one among them.
        n: items; they fall into `FOLDS` folds in turn.

    Returns:
        Mean score of the runner chosen on the other folds, and of the best plain runner by the other folds.
    """
    mine, plain = np.zeros(n), np.zeros(n)
    folds = np.arange(n) % min(FOLDS, n)
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(outside):
            outside = inside
        chosen = choose(runners, outside.tolist())
        base = best_plain(runners, outside.tolist())
        mine[inside], plain[inside] = np.array(chosen.scores)[inside], np.array(base.scores)[inside]
    return float(mine.mean()), float(plain.mean())


def best_plain(runners: Sequence[Runner], items: Sequence[int]) -> Runner:
    """The plain runner with the highest mean on these items; of equals the simpler."""
    plain = [r for r in runners if r.plain]
    return max(plain, key=lambda r: (float(np.mean(np.array(r.scores)[list(items)])), -r.complexity, -r.index))
