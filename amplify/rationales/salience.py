"""The words and phrases that an attribution weighs most, by three searches.

After saliency map verbalisation (Feldhus et al. 2023, arXiv 2210.07222).

All of them measure *coverage*: of the weight that speaks for the target (the scores above 0), the share that lies in a
word or phrase. Candidates are kept whose coverage reaches the 75th percentile of all candidates, without overlap. They
differ in what a candidate is:

| search        | candidates                                                                                   |
|---------------|----------------------------------------------------------------------------------------------|
| `convolution` | every window of a fixed number of words                                                      |
| `span`        | every maximal stretch that holds more weight than its number of words would lead one to think |
| `total_order` | every word                                                                                   |

What they return stands in the text, word for word, with the share that the attribution gives it: a sentence that cites
it cannot say more than the attribution does. `phrases` merges the top words where they are neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.types import Attribution

PERCENTILE = 75.0
WIDTH = 3
_PHRASE_ENDS = re.compile(r"[.!?;:\n…]")  # a phrase does not reach beyond its clause


@dataclass(frozen=True, slots=True)
class Phrase:
    """A stretch of the text explained.

    Attributes:
        text: as it stands there.
        start, end: its characters [start, end).
        coverage: share in [0, 1] of the weight that speaks for the target.
    """

    text: str
    start: int
    end: int
    coverage: float


def shares(attribution: Attribution) -> npt.NDArray[np.float64]:
    """Each word's share of the weight that speaks for the target, shape (words,); all 0 where no word does."""
    weight = np.maximum(np.asarray(attribution.scores, dtype=np.float64), 0.0)
    return weight / total if (total := weight.sum()) > 0 else weight


def convolution(attribution: Attribution, k: int, *, width: int = WIDTH) -> list[Phrase]:
    """Windows of `width` words (fewer where a clause has fewer), slid over the text, best first, at most k.

    Words without weight at the ends of a window are cut off: they add nothing to its coverage.

    Raises:
        InputError: no word speaks for the target.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> [(p.text, round(p.coverage, 2)) for p in convolution(found, k=2)]
        [('lovely music', 1.0)]
    """
    weight = _weights(attribution)
    windows = [
        (a, min(a + width, stop))
        for start, stop in _clauses(attribution)
        for a in range(start, max(stop - width, start) + 1)
    ]
    return _kept(attribution, weight, [_trimmed(window, weight) for window in windows], k)


def span(attribution: Attribution, k: int) -> list[Phrase]:
    """Stretches of any length that hold more weight than as many words would if it were spread evenly, at most k.

    These are the maximal scoring subsequences (Ruzzo & Tompa 1999) of a word's share less 1 / number of words.

    Raises:
        InputError: no word speaks for the target.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> [(p.text, round(p.coverage, 2)) for p in span(found, k=2)]
        [('lovely', 0.67)]
    """
    weight = _weights(attribution)
    excess = weight - 1 / len(weight)
    if not (excess > 1e-12).any():  # evenly spread: no stretch stands out, each word speaks for itself
        return total_order(attribution, k)
    found = [
        (start + a, start + b)
        for start, stop in _clauses(attribution)
        for a, b in maximal_stretches(excess[start:stop].tolist())
    ]
    return _kept(attribution, weight, found, k)


def total_order(attribution: Attribution, k: int) -> list[Phrase]:
    """Single words in the order of their weight, at most k; a word that occurs again counts where it weighs most.

    Raises:
        InputError: no word speaks for the target.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> [(p.text, round(p.coverage, 2)) for p in total_order(found, k=2)]
        [('lovely', 0.67)]
    """
    weight = _weights(attribution)
    ranked = _kept(attribution, weight, [(i, i + 1) for i in range(len(weight))], len(weight))
    first: dict[str, Phrase] = {}
    for phrase in ranked:
        first.setdefault(phrase.text.casefold(), phrase)
    return list(first.values())[:k]


def phrases(attribution: Attribution, k: int) -> list[Phrase]:
    """The k words with the highest scores, neighbours joined ("lovely music"), the phrase with the best word first.

    Raises:
        InputError: no words.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> [(p.text, round(p.coverage, 2)) for p in phrases(found, k=2)]
        [('lovely music', 1.0)]
    """
    if not attribution.words:
        raise InputError(f"there is no word to cite in {attribution.text[:80]!r}: a rationale needs at least one")
    weight = shares(attribution)
    best: dict[str, int] = {}
    for i in sorted(range(len(weight)), key=lambda i: (-attribution.scores[i], i)):
        best.setdefault(attribution.words[i].casefold(), i)
    groups: list[list[int]] = []
    for i in sorted(list(best.values())[:k]):
        beside = groups and attribution.text[attribution.spans[groups[-1][-1]][1] : attribution.spans[i][0]].isspace()
        groups[-1].append(i) if beside else groups.append([i])
    groups.sort(key=lambda group: -max(attribution.scores[i] for i in group))
    return [_phrase(attribution, weight, (group[0], group[-1] + 1)) for group in groups]


SEARCHES: dict[str, Callable[[Attribution, int], list[Phrase]]] = {
    "convolution": convolution,
    "span": span,
    "total_order": total_order,
    "phrases": phrases,
}
"""Rationale template -> how what it cites is found; other templates cite the top words."""


def maximal_stretches(scores: Sequence[float]) -> list[tuple[int, int]]:
    """All maximal scoring subsequences [start, end) in order (Ruzzo & Tompa 1999).

    The best contiguous stretch, then the best ones to its left and to its right, and so on; sums above 0 only.

    Example:
        >>> maximal_stretches([1.0, -3.0, 2.0, -1.0, 3.0])
        [(0, 1), (2, 5)]
    """
    found: list[tuple[int, int, float, float]] = []  # start, end, sum before the start, sum up to the end
    total = 0.0
    for i, score in enumerate(scores):
        before, total = total, total + score
        if score <= 0:
            continue
        start, low = i, before
        while True:
            j = next((j for j in range(len(found) - 1, -1, -1) if found[j][2] < low), None)
            if j is None or found[j][3] >= total:
                found.append((start, i + 1, low, total))
                break
            start, low = found[j][0], found[j][2]
            del found[j:]
    return [(start, end) for start, end, _, _ in found]


def _weights(attribution: Attribution) -> npt.NDArray[np.float64]:
    weight = shares(attribution)
    if not weight.any():
        raise InputError(f"no word of {attribution.text[:80]!r} speaks for {attribution.target!r}: nothing to cite")
    return weight


def _clauses(attribution: Attribution) -> list[tuple[int, int]]:
    """Words [start, stop) between which no clause ends."""
    gaps = zip(attribution.spans, attribution.spans[1:], strict=False)
    ends = [i for i, ((_, a), (b, _)) in enumerate(gaps, start=1) if _PHRASE_ENDS.search(attribution.text[a:b])]
    return list(zip([0, *ends], [*ends, len(attribution.words)], strict=True))


def _trimmed(window: tuple[int, int], weight: npt.NDArray[np.float64]) -> tuple[int, int]:
    inside = np.flatnonzero(weight[slice(*window)])
    return (window[0] + int(inside[0]), window[0] + int(inside[-1]) + 1) if len(inside) else window


def _kept(
    attribution: Attribution, weight: npt.NDArray[np.float64], candidates: Sequence[tuple[int, int]], k: int
) -> list[Phrase]:
    """Those whose coverage reaches the 75th percentile: highest first, then shortest, then first; none over another."""
    coverage = {c: float(weight[slice(*c)].sum()) for c in candidates}
    least = float(np.percentile([coverage[c] for c in candidates], PERCENTILE)) - 1e-12
    chosen: list[tuple[int, int]] = []
    for c in sorted(coverage, key=lambda c: (-round(coverage[c], 12), c[1] - c[0], c[0])):
        if coverage[c] > 0 and coverage[c] >= least and all(c[1] <= a or b <= c[0] for a, b in chosen):
            chosen.append(c)
    return [_phrase(attribution, weight, c) for c in chosen[:k]]


def _phrase(attribution: Attribution, weight: npt.NDArray[np.float64], words: tuple[int, int]) -> Phrase:
    start, end = attribution.spans[words[0]][0], attribution.spans[words[1] - 1][1]
    return Phrase(attribution.text[start:end], start, end, float(weight[slice(*words)].sum()))
