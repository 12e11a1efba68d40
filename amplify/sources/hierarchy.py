"""Documents, then sentences, then words: what scores high is opened, under one budget (TextGenSHAP, section 3).

A part that is opened gives way to its children: they come and go while the rest of its document, and the other
documents, come and go as well. Their scores are the Owen values of that nested game (`shapley.owen`), and everything
that the levels above have asked belongs to its sample: coalitions in which the children came and went together. A
part's children share out the part's own score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from amplify.errors import InputError
from amplify.shapley.budget import PrefixCost
from amplify.shapley.estimate import Guide, estimate
from amplify.shapley.exact import MAX_SOURCES, Index
from amplify.shapley.game import Coalitions, Floats
from amplify.shapley.given import given_scores
from amplify.shapley.owen import owen_scores
from amplify.sources.context import Context, Part, Selection, words
from amplify.sources.orders import random_order, random_order_scores
from amplify.sources.parts import Ask, Explained, Sample, Scored, SelectionGame, Unit
from amplify.text import sentences

Refine = Literal["documents", "sentences", "words"]
Opens = Literal["for", "either"]
REFINEMENTS: tuple[Refine, ...] = ("documents", "sentences", "words")
NORMAL = 1.96
FEW = 16  # documents that are always scored one by one
ENOUGH = 12  # evaluations with which a part of any size may be opened; a small one needs two more than it has children
SLIGHT = 0.05  # of the highest score of all: the best part of a column below that is not opened for its sake
DIRECT = 3  # evaluations a document below which more than that are first scored in groups
PRICED = 1.5  # the same where prices are given
SPENT = 0.16  # what those evaluations cost at most, in evaluations of everything


@dataclass(frozen=True)
class Settings:
    """How sources are scored.

    Attributes:
        index: "shapley" or "banzhaf".
        estimator: for the documents; parts of documents are always scored by a Gaussian process, or exactly.
        budget: distinct prompts over all levels.
        granularity: the finest level.
        order: of the documents in a prompt: their own, or drawn anew for each coalition.
        thresholds: a document (sentence) is opened when its score, less one standard error (half width / 1.96, which is
            more where few values say how far they vary), reaches this in any column. The best one is always opened, and
            then the best one of each column where its score reaches it.
        opens: which parts are opened: those that speak "for" a column, or "either" way, by the size of their score.
        relative: thresholds are shares of |v(N) - v(empty)|, not absolute; None: as the value has it.
        seed: of every sample.
    """

    index: str = "shapley"
    estimator: str = "auto"
    budget: int = 64
    granularity: Refine = "words"
    order: Literal["fixed", "random"] = "fixed"
    thresholds: tuple[float, float] = (0.1, 0.1)
    opens: Opens = "for"
    relative: bool | None = None
    seed: int = 0


def explain(
    ask: Ask,
    context: Context,
    settings: Settings,
    *,
    guide: Guide | None = None,
    also: Callable[[], Ask | None] | None = None,
    prices: Callable[[], PrefixCost | None] | None = None,
) -> Explained:
    """Score the documents, then the parts of those that matter.

    Args:
        ask: the game: values of selections, [m, columns].
        context: its documents.
        settings: how.
        guide: see `estimate`; documents in fixed order only.
        also: asked once the documents have been sampled for further columns of the game (None: there are none), which
            are scored from the same sample; parts of documents are then opened and sampled for all columns.
        prices: of coalitions, where the prompts that share a beginning pay for it once. Many documents under a small
            budget are then scored one by one, from coalitions that tell most for their price, and not in groups; None
            where they are not known.

    Raises:
        InputError: a budget too small, or an estimator that does not fit the order.
    """
    hierarchy = _Hierarchy(ask, context, settings)
    top, ends, used, meta = hierarchy.documents(guide, prices)
    if also is not None and (more := also()) is not None:
        top, ends = hierarchy.beside(top, ends, more)
    levels = hierarchy.below(top, ends)
    meta["opened"] = {name: len({s.document for s in level.parts}) for name, level in levels.items()}
    return Explained(levels, ends, used, meta)


Top = tuple[Scored, Floats, str, dict[str, Any]]  # documents, the game's two ends, the estimator, what to know


class _Hierarchy:
    """One descent: the game, and what was asked of it."""

    def __init__(self, ask: Ask, context: Context, settings: Settings) -> None:
        self.context, self.settings = context, settings
        self.index: Index = settings.index  # type: ignore[assignment]
        self.rng = np.random.default_rng([settings.seed, 2])
        n = len(context.documents)
        self.play = SelectionGame(
            ask, (lambda: self.rng.permutation(n).tolist()) if settings.order == "random" else None
        )

    def documents(self, guide: Guide | None, prices: Callable[[], PrefixCost | None] | None) -> Top:
        """The first level: half of the budget where there is something to open, else all of it."""
        settings, n = self.settings, len(self.context.documents)
        budget = max(2, round(settings.budget / 2)) if self._opens() else settings.budget
        if settings.estimator == "exact" and budget < settings.budget and budget < 2**n:
            raise InputError(
                f"exact values of {n} documents need 2^{n} = {2**n} evaluations; with "
                f"granularity={settings.granularity!r} the documents get {budget} of the budget of "
                f"{settings.budget}. Raise budget=, or use granularity='documents' or estimator='auto'"
            )
        if settings.order == "random":
            return *random_order(self.play, self.context, self.index, settings.estimator, budget, self.rng), {}
        if n > max(FEW, budget // DIRECT) and settings.estimator == "auto" and guide is None:
            free = prices() if prices is not None and n <= budget / PRICED else None
            if free is None:
                return self._grouped(budget)
            guide = Guide(cost=softly(free, budget))
        scored, used, meta = self._sampled([(s,) for s in self.context.sources], budget, guide)
        return scored, self.play.of([(), self.context.everything()]), used, meta

    def beside(self, top: Scored, ends: Floats, more: Ask) -> tuple[Scored, Floats]:
        """The documents with further columns, from the sample there is; parts are sampled for all columns from here."""
        self.play.add(more)
        if self.play.noisy:
            return self._beside_random(top, ends, more)
        wider: dict[int, Sample] = {}
        found: dict[int, tuple[Floats, Floats]] = {}
        for key, sample in {id(sample): sample for sample, _ in top.origin}.items():
            values = np.asarray(more(sample.selections), dtype=np.float64)
            wider[key] = replace(sample, values=np.hstack([sample.values, values]))
            found[key] = given_scores(sample.asked, values, sample.owen(self.index))
        scores = np.stack([found[id(sample)][0][k] for sample, k in top.origin])
        half = np.stack([found[id(sample)][1][k] for sample, k in top.origin])
        new = np.asarray(more([(), self.context.everything()]), dtype=np.float64)
        if self.index == "shapley":
            scores, half = _summing(scores, half, new[1] - new[0])
        origin = [(wider[id(sample)], k) for sample, k in top.origin]
        both = Scored(top.parts, np.hstack([top.scores, scores]), np.hstack([top.half, half]), origin)
        return both, np.hstack([ends, new])

    def _beside_random(self, top: Scored, ends: Floats, more: Ask) -> tuple[Scored, Floats]:
        sample, n = top.origin[0][0], len(top.parts)
        flat = np.asarray(more(sample.selections), dtype=np.float64)
        values = flat.reshape(-1, n + 1, flat.shape[1])
        # who joined first is held by the most prefixes
        orders = np.argsort(-sample.asked.reshape(len(values), n + 1, n).sum(axis=1), axis=1)
        scores, half, _ = random_order_scores(orders, values, self.index, self.settings.estimator)
        wide = replace(sample, values=np.hstack([sample.values, flat]))
        both = Scored(
            top.parts, np.hstack([top.scores, scores]), np.hstack([top.half, half]), [(wide, k) for k in range(n)]
        )
        return both, np.hstack([ends, values[:, [0, -1]].mean(axis=0)])

    def below(self, top: Scored, ends: Floats) -> dict[str, Scored]:
        """All levels: the documents, and the sentences and words of those that matter."""
        settings = self.settings
        scale = np.abs(ends[1] - ends[0]) if settings.relative is not False else np.ones(ends.shape[1])
        levels, above = {"documents": top}, top
        finer = REFINEMENTS[1 : REFINEMENTS.index(settings.granularity) + 1]
        for name, cut, threshold in zip(finer, (sentences, words), settings.thresholds, strict=False):
            left = settings.budget - len(self.play.asked)
            above = self._open_level(above, cut, left if name == finer[-1] else left // 2, threshold * scale)
            if not above.parts:
                break
            levels[name] = above
        return levels

    def _opens(self) -> bool:
        """Whether any document has parts at the levels asked for."""
        names = REFINEMENTS[: REFINEMENTS.index(self.settings.granularity) + 1]
        cuts = [cut for name, cut in (("sentences", sentences), ("words", words)) if name in names]
        return any(len(cut(text, 0, len(text))) > 1 for cut in cuts for text in self.context.documents)

    def _grouped(self, budget: int) -> Top:
        """Many documents under a small budget: neighbours in groups first, then the documents of the best groups.

        The documents of a group that is not opened get equal shares of its score.
        """
        documents = list(self.context.sources)
        count = max(4, min(len(documents) // 2, budget // (2 * DIRECT)))
        groups = [tuple(documents[i] for i in part) for part in np.array_split(np.arange(len(documents)), count)]
        top, used, meta = self._sampled(groups, max(2, budget // 2))
        ends = self.play.of([(), self.context.everything()])
        inside = [sample.inside(k, [(s,) for s in groups[k]]) for sample, k in top.origin]
        left = budget - len(self.play.asked)
        opened = _openings(list(map(len, groups)), [np.inf] * count, top, left, 0.0 * top.scores[0], True)
        found = []
        for g, group in enumerate(groups):
            if g in opened:
                found.append(self._open_part(inside[g], top.scores[g], top.half[g], opened[g]))
                continue
            share = np.repeat(top.scores[g][None] / len(group), len(group), axis=0)
            # an equal share may be off by all that the group's score is
            wide = np.repeat((top.half[g] + np.abs(top.scores[g]))[None], len(group), axis=0)
            found.append(Scored(list(group), share, wide, [(inside[g], k) for k in range(len(group))]))
        meta = {**meta, "groups": [len(g) for g in groups], "groups_opened": sorted(opened)}
        return _joined(found), ends, f"grouped {used}", meta

    def _open_level(
        self, above: Scored, cut: Callable[[str, int, int], list[tuple[int, int]]], budget: int, threshold: Floats
    ) -> Scored:
        """The children of the parts above that matter."""
        inside = []
        for part, (sample, k) in zip(above.parts, above.origin, strict=True):
            pieces = cut(self.context.documents[part.document], part.start, part.end)
            inside.append(sample.inside(k, [(Part(part.document, a, b),) for a, b in pieces]))
        sizes = [len(sample.blocks[-1]) for sample in inside]
        judged = above if self.settings.opens == "for" else replace(above, scores=np.abs(above.scores))
        opened = _openings(sizes, [_missing(sample) for sample in inside], judged, budget, threshold)
        found = []
        for i in sorted(opened):
            if sizes[i] == 1:
                found.append(Scored([above.parts[i]], above.scores[[i]], above.half[[i]], [above.origin[i]]))
            else:
                found.append(self._open_part(inside[i], above.scores[i], above.half[i], opened[i]))
        return _joined(found) if found else Scored([], above.scores[:0], above.half[:0], [])

    def _open_part(self, sample: Sample, total: Floats, total_half: Floats, budget: int) -> Scored:
        """Scores of a part's children, which share out its own.

        Args:
            sample: what is known of the children.
            total, total_half: the part's score and half width, [columns] each.
            budget: evaluations.
        """
        selections: list[Selection] = []

        def value(rows: Coalitions) -> Floats:
            new = [self.play.held(sample.units, row) for row in rows.tolist()]
            selections.extend(new)
            return self.play.of(new)

        found = owen_scores(
            value, sample.owen(self.index), sample.asked, sample.values, budget, self.rng, self.play.noisy
        )
        scores, half = found.scores, found.half
        if self.index == "shapley":
            scores, half = _summing(scores, half, total, total_half)
        whole = sample.with_(found.asked, selections, found.values)
        parts = [source for unit in sample.blocks[-1] for source in unit]
        return Scored(parts, scores, half, [(whole, k) for k in range(len(parts))])

    def _sampled(
        self, units: Sequence[Unit], budget: int, guide: Guide | None = None
    ) -> tuple[Scored, str, dict[str, Any]]:
        """Scores of whole documents (or groups of them) by `estimate`, and what it asked."""
        rows: list[Coalitions] = []
        selections: list[Selection] = []
        values: list[Floats] = []

        def value(held: Coalitions) -> Floats:
            new = [self.play.held(units, row) for row in held.tolist()]
            rows.append(held)
            selections.extend(new)
            values.append(self.play.of(new))
            return values[-1]

        estimator = self.settings.estimator if len(units) == len(self.context.documents) else "auto"
        found = estimate(value, len(units), self.index, estimator, budget, self.settings.seed, guide=guide)
        sample = Sample((tuple(units),), np.concatenate(rows), tuple(selections), np.concatenate(values))
        half = (found.high - found.low) / 2
        scored = Scored([unit[0] for unit in units], found.scores, half, [(sample, k) for k in range(len(units))])
        return scored, found.estimator, dict(found.meta)


def softly(free: PrefixCost, budget: int) -> PrefixCost:
    """Prices under which so many evaluations together cost `SPENT` of what they would if each were of everything."""
    whole = free.head + sum(free.sources) + free.each
    return replace(free, limit=max(SPENT * budget * whole, whole + free.each), soft=True)


def _summing(scores: Floats, half: Floats, total: Floats, total_half: Floats | float = 0.0) -> tuple[Floats, Floats]:
    """Scores and half widths whose sum is the total: what they differ by goes where least is known. Exact ones stay.

    Args:
        scores, half: [n, columns].
        total, total_half: what they are to sum to, and how well that is known, [columns].
    """
    doubt = np.where(np.isfinite(half), half, 1e12) ** 2
    share = doubt / np.maximum(doubt.sum(axis=0), 1e-300)
    gap = share * (total - scores.sum(axis=0))
    return scores + gap, np.sqrt(half**2 + gap**2 + (share * total_half) ** 2)


def _joined(found: Sequence[Scored]) -> Scored:
    return Scored(
        [part for each in found for part in each.parts],
        np.concatenate([each.scores for each in found]),
        np.concatenate([each.half for each in found]),
        [origin for each in found for origin in each.origin],
    )


def _missing(sample: Sample) -> float:
    """How many evaluations make the scores of a sample's last block exact."""
    n = sample.asked.shape[1]
    return 2**n - len(np.unique(sample.asked, axis=0)) if n <= MAX_SOURCES else np.inf


def _openings(
    sizes: Sequence[int],
    missing: Sequence[float],
    above: Scored,
    budget: int,
    threshold: Floats,
    all_above: bool = False,
) -> dict[int, int]:
    """Which parts to open and with how many evaluations: part -> evaluations.

    Args:
        sizes: children of each part.
        missing: evaluations that make them exact.
        above: the parts.
        budget: evaluations for all of them.
        threshold: what a score less its standard error must reach, [columns].
        all_above: open from the top as many as the budget allows, whatever their score.
    """
    scores = above.scores
    surely = (scores - above.half / NORMAL - threshold).max(axis=1)
    # the best of all, and then of each column in which it matters
    best = [int(k) for k in scores.argmax(axis=0)]
    matters = [c for c, k in enumerate(best) if scores[k, c] > max(threshold[c], SLIGHT * scores.max())]
    first = list(dict.fromkeys([best[0], *(best[c] for c in matters)]))
    rest = sorted(set(range(len(sizes))) - set(first), key=lambda i: -scores[i].max())
    wanted = [*first, *(i for i in rest if all_above or surely[i] > 0)]
    opened = {i: 0 for i in wanted if sizes[i] == 1}
    several = [i for i in wanted if sizes[i] > 1]
    while several:
        share = _shares({i: sizes[i] for i in several}, {i: missing[i] for i in several}, budget)
        if all(share[i] >= min(sizes[i], ENOUGH, missing[i]) for i in several) or len(several) == 1:
            return opened | ({} if min(share.values()) < 1 and missing[several[0]] > 0 else share)
        several.pop()
    return opened


def _shares(sizes: dict[int, int], missing: dict[int, float], budget: int) -> dict[int, int]:
    """A budget split in proportion to sizes; what a part has no use for goes to the others."""
    share: dict[int, int] = {}
    for i in sorted(sizes, key=lambda i: missing[i] / sizes[i]):
        left = sum(size for j, size in sizes.items() if j not in share)
        share[i] = int(min(missing[i], budget * sizes[i] // left))
        budget -= share[i]
    return share
