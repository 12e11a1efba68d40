"""The search for heads: every head alone, alone by successive halving, and those that help together.

PASTA (arXiv 2311.02262, section 3.2) steers one head at a time on every sample and ranks heads by task score. Here the
score is a log-probability margin, which tells more per sample than right or wrong, and the search spends its runs where
they matter: single heads by successive halving (Jamieson and Talwalkar 2016), then heads that help *together*, block by
block down the ranking. A run is one head set on one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.head_search.margins import HeadSet

Floats = npt.NDArray[np.float64]
Score = Callable[[Sequence[HeadSet], Sequence[int]], Floats]  # head sets, sample numbers -> margins [sets, samples]
Combine = Literal["intersection", "union", "mean"]
PLAIN: HeadSet = frozenset()


@dataclass(frozen=True)
class Ranking:
    """Heads from best to worst.

    Attributes:
        heads: all of the model's.
        gains: mean margin gained over the plain model by steering that head alone.
        samples: on how many samples each head was tried alone.
        runs: head sets times samples that it took.
    """

    heads: tuple[tuple[int, int], ...]
    gains: Mapping[tuple[int, int], float]
    samples: Mapping[tuple[int, int], int]
    runs: int

    def top(self, k: int) -> HeadSet:
        """The k best heads."""
        return frozenset(self.heads[:k])


def exhaustive(score: Score, layers: int, heads: int, samples: int) -> Ranking:
    """Every head alone on every sample (PASTA's profiling).

    Args:
        score: margins of head sets on samples.
        layers, heads: of the model.
        samples: how many there are.
    """
    everyone = [(layer, head) for layer in range(layers) for head in range(heads)]
    numbers = list(range(samples))
    plain = score([PLAIN], numbers)[0]
    gains = (score([frozenset({h}) for h in everyone], numbers) - plain).mean(1)
    order = np.argsort(-gains, kind="stable")
    return Ranking(
        tuple(everyone[i] for i in order),
        {h: float(g) for h, g in zip(everyone, gains, strict=True)},
        dict.fromkeys(everyone, samples),
        (len(everyone) + 1) * samples,
    )


def halving(score: Score, layers: int, heads: int, samples: int, *, alone: int = 4) -> Ranking:
    """Every head on one sample, the better half on another, the better quarter on two more, and so on.

    To try whole layers first costs less and sees less: a layer's helpful heads hide behind its harmful ones.

    Args:
        score, layers, heads, samples: see `exhaustive`.
        alone: samples on which the best heads are tried, each by itself.
    """
    alive = [(layer, head) for layer in range(layers) for head in range(heads)]
    last = min(alone, samples)
    base = score([PLAIN], list(range(samples)))[0]
    runs = samples
    sums = dict.fromkeys(alive, 0.0)
    tried = dict.fromkeys(alive, 0)
    seen, reach = 0, 1
    while seen < last:
        fresh = list(range(seen, reach))
        found = (score([frozenset({h}) for h in alive], fresh) - base[fresh]).sum(1)
        runs += len(alive) * len(fresh)
        for h, total in zip(alive, found, strict=True):
            sums[h] += float(total)
            tried[h] = reach
        alive = sorted(alive, key=lambda h: -sums[h])[: max(1, (len(alive) + 1) // 2)]
        seen, reach = reach, min(2 * reach, last)
    gains = {h: sums[h] / tried[h] for h in sums}
    # those that fell out keep their rank behind those that stayed
    order = sorted(gains, key=lambda h: (-tried[h], -gains[h], h))
    return Ranking(tuple(order), gains, tried, runs)


@dataclass(frozen=True)
class Joint:
    """A head set chosen to help together.

    Attributes:
        heads: the set.
        gain: mean margin gained over the plain model.
        curve: (size of the set that was tried, its gain, whether it was kept), in the order of the search.
        runs: head sets times samples that it took.
    """

    heads: HeadSet
    gain: float
    curve: tuple[tuple[int, float, bool], ...]
    runs: int


def joint(
    scores: Sequence[Score], order: Sequence[tuple[int, int]], samples: Sequence[int], *, block: int = 4, most: int = 48
) -> Joint:
    """Greedy forward selection: go down the ranking in blocks and keep each that raises the gain.

    Args:
        scores: of one task, or of several; then the gain is the mean over tasks, each in units of its own spread of
            margins over samples, so that no task drowns another.
        order: heads from best to worst.
        samples: of each task.
        block: heads tried at a time.
        most: how far down the ranking to go.

    Returns:
        The set; at least the first block, whatever it gains.
    """
    bases = [score([PLAIN], list(range(n)))[0] for score, n in zip(scores, samples, strict=True)]
    units = [float(base.std()) or 1.0 for base in bases] if len(scores) > 1 else [1.0]
    runs = sum(samples)

    def gain(heads: HeadSet) -> float:
        parts = [
            (score([heads], list(range(n)))[0] - base).mean() / unit
            for score, n, base, unit in zip(scores, samples, bases, units, strict=True)
        ]
        return float(np.mean(parts))

    chosen, best = PLAIN, -np.inf
    curve: list[tuple[int, float, bool]] = []
    for start in range(0, min(most, len(order)), block):
        trial = chosen | frozenset(order[start : min(start + block, most)])
        found = gain(trial)
        runs += sum(samples)
        curve.append((len(trial), found, found > best))
        if found > best:
            chosen, best = trial, found
    return Joint(chosen, best, tuple(curve), runs)


def combine(rankings: Sequence[Ranking], how: Combine, size: int) -> tuple[tuple[int, int], ...]:
    """One order of heads from several tasks' rankings.

    Args:
        rankings: one a task.
        how: "intersection": heads in the top k of every task, for the smallest k that gives `size` of them (PASTA's
            multi-task profile); "union": the best size/tasks of each; "mean": the lowest mean rank.
        size: heads wanted.
    """
    ranks = [{h: i for i, h in enumerate(r.heads)} for r in rankings]
    mean = {h: float(np.mean([rank[h] for rank in ranks])) for h in ranks[0]}
    if how == "mean":
        return tuple(sorted(mean, key=lambda h: (mean[h], h))[:size])
    if how == "union":
        found: set[tuple[int, int]] = set()
        k = 0
        while len(found) < min(size, len(mean)):
            found |= {r.heads[k] for r in rankings}
            k += 1
        return tuple(sorted(found, key=lambda h: (mean[h], h)))
    if how != "intersection":
        raise InputError(f"combine is intersection, union or mean, not {how!r}")
    worst = {h: max(rank[h] for rank in ranks) for h in ranks[0]}
    return tuple(sorted(worst, key=lambda h: (worst[h], mean[h], h))[:size])
