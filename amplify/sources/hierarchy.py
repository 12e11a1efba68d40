"""Documents, then sentences, then words: what scores high is opened, under one budget (TextGenSHAP, section 3).

A refined part is expanded in its own place: its children are present or absent while the rest of the documents stays
as it was in coalitions that the level above has asked. That is the Owen value of the ordered union, and what the parent
sampled is its two ends: the part absent, and the part whole. A part's children share out the part's own score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from amplify.errors import InputError
from amplify.shapley.budget import PrefixCost
from amplify.shapley.estimate import estimate
from amplify.shapley.exact import Index, log_binomial, marginal_weights
from amplify.shapley.game import Coalitions, Floats, Value
from amplify.shapley.given import given_each, given_scores
from amplify.shapley.intervals import BORROWED, half_width, mean_deviation
from amplify.sources.context import Context, Source, words
from amplify.sources.orders import random_order
from amplify.sources.parts import CONTEXTS, Around, Explained, Key, Play, Scored, Trace, spread_over
from amplify.text import sentences

Refine = Literal["documents", "sentences", "words"]
REFINEMENTS: tuple[Refine, ...] = ("documents", "sentences", "words")
SHARES = {"documents": (1.0,), "sentences": (0.5, 0.5), "words": (0.5, 0.25, 0.25)}  # of the budget, by level
NORMAL = 1.96
FEW = 16  # documents that are always scored one by one
ENOUGH = 12  # evaluations with which a part of any size may be opened; a small one needs two more than it has children
DIRECT = 3  # evaluations a document below which more than that are first scored in groups


@dataclass(frozen=True)
class Settings:
    """How sources are scored.

    Attributes:
        index: "shapley" or "banzhaf".
        estimator: for the documents; parts of documents are always scored with "auto".
        budget: distinct prompts over all levels.
        granularity: the finest level.
        order: of the documents in a prompt: their own, or drawn anew for each coalition.
        thresholds: a document (sentence) is opened when its score, less one standard error (half width / 1.96, which is
            more where few values say how far they vary), reaches this in any column. The best one is always opened.
        relative: thresholds are shares of |v(N) - v(empty)|, not absolute.
        seed: of every sample.
    """

    index: str = "shapley"
    estimator: str = "auto"
    budget: int = 64
    granularity: Refine = "words"
    order: Literal["fixed", "random"] = "fixed"
    thresholds: tuple[float, float] = (0.1, 0.1)
    relative: bool = True
    seed: int = 0


def explain(
    play: Play,
    context: Context,
    settings: Settings,
    *,
    control_variate: Value | None = None,
    cost: PrefixCost | None = None,
    trace: Trace | None = None,
    also: Callable[[], Play | None] | None = None,
) -> Explained:
    """Score the documents, then the parts of those that matter.

    Args:
        play: the game.
        context: its documents.
        settings: how.
        control_variate, cost: see `estimate`; documents in fixed order only.
        trace: score another column of the game from the sample of an earlier call, which costs nothing.
        also: asked once the documents have been sampled for further columns of the game (None: there are none), which
            are scored from the same sample; parts of documents are then opened and sampled for all columns.

    Raises:
        InputError: a budget too small, or an estimator that does not fit the order.
    """
    hierarchy = _Hierarchy(play, context, settings, trace)
    top, ends, used, meta = hierarchy.documents(control_variate, cost)
    if also is not None and (more := also()) is not None:
        seen = explain(more, context, settings, trace=hierarchy.trace)
        same = seen.levels["documents"]
        top = replace(top, scores=np.hstack([top.scores, same.scores]), half=np.hstack([top.half, same.half]))
        hierarchy.play, ends = play.beside(more), np.hstack([ends, seen.ends])
    levels = hierarchy.below(top, ends)
    meta["opened"] = {name: len({s.document for s in level.parts}) for name, level in levels.items()}
    return Explained(levels, ends, used, hierarchy.trace, meta)


Inside = tuple[Floats, Floats, list[list[Around]]]  # of a part's children: scores, half widths, contexts
Top = tuple[Scored, Floats, str, dict[str, Any]]  # documents, the game's two ends, the estimator, what to know


class _Hierarchy:
    """One descent: the game, its sample so far (`trace`), and whether that sample is only read again."""

    def __init__(self, play: Play, context: Context, settings: Settings, trace: Trace | None) -> None:
        self.play, self.context, self.settings = play, context, settings
        self.index: Index = settings.index  # type: ignore[assignment]
        self.replay = trace is not None
        self.trace: Trace = {} if trace is None else dict(trace)
        self.rng = np.random.default_rng([settings.seed, 2])
        self.rank = tuple(range(len(context.documents)))

    def documents(self, control_variate: Value | None, cost: PrefixCost | None) -> Top:
        """The first level, under its share of the budget."""
        settings, n = self.settings, len(self.context.documents)
        budget = max(2, round(settings.budget * SHARES[settings.granularity][0]))
        if settings.estimator == "exact" and budget < settings.budget and budget < 2**n:
            raise InputError(
                f"exact values of {n} documents need 2^{n} = {2**n} evaluations; with "
                f"granularity={settings.granularity!r} the documents get {budget} of the budget of "
                f"{settings.budget}. Raise budget=, or use granularity='documents' or estimator='auto'"
            )
        if settings.order == "random":
            return *random_order(self.play, self.context, self.index, settings.estimator, budget, self.rng), {}
        if n > max(FEW, budget // DIRECT) and settings.estimator == "auto" and cost is None and control_variate is None:
            return self._grouped(budget)
        return self._one_by_one(budget, control_variate, cost)

    def below(self, top: Scored, ends: Floats) -> dict[str, Scored]:
        """All levels: the documents, and the sentences and words of those that matter."""
        settings = self.settings
        shares = SHARES[settings.granularity]
        left = settings.budget - max(2, round(settings.budget * shares[0]))
        scale = np.abs(ends[1] - ends[0]) if settings.relative else np.ones(ends.shape[1])
        levels, above = {"documents": top}, top
        finer = zip(REFINEMENTS[1:], (sentences, words), shares[1:], settings.thresholds, strict=False)
        for name, cut, share, threshold in finer:
            own = min(left, round(settings.budget * share))
            left -= own
            above = self._open_level(above, cut, name, own, threshold * scale)
            if not above.parts:
                break
            levels[name] = above
        return levels

    def _one_by_one(self, budget: int, control_variate: Value | None, cost: PrefixCost | None) -> Top:
        groups = [[source] for source in self.context.sources]
        scores, half, used, sampled = self._sampled(
            self._value(groups),
            len(groups),
            ("documents", ROOT),
            budget,
            self.settings.estimator,
            control_variate,
            cost,
        )
        around = self._contexts(groups, ("documents", ROOT))
        top = Scored([source for [source] in groups], scores, half, around)
        return top, self.play.of([(), self.context.everything()]), used, dict(sampled)

    def _grouped(self, budget: int) -> Top:
        """Many documents under a small budget: neighbours in groups first, then the documents of the best groups.

        The documents of a group that is not opened get equal shares of its score.
        """
        documents = list(self.context.sources)
        count = max(4, min(len(documents) // 2, budget // (2 * DIRECT)))
        groups = [[documents[i] for i in part] for part in np.array_split(np.arange(len(documents)), count)]
        half_budget = max(2, budget // 2)
        scores, half, used, sampled = self._sampled(self._value(groups), count, ("groups", ROOT), half_budget)
        around = self._contexts(groups, ("groups", ROOT))
        ends = self.play.of([(), self.context.everything()])
        if self.replay:
            opened = {g: 0 for g, group in enumerate(groups) if ("group", group[0]) in self.trace}
        else:
            opened = _openings(list(map(len, groups)), scores, half, budget - half_budget, 0.0 * scores[0], True)
        found: list[Inside] = []
        for g, group in enumerate(groups):
            inside = None
            if g in opened:
                inside = self._open_part(("group", group[0]), group, around[g], opened[g], (scores[g], half[g]))
            if inside is None:
                opened.pop(g, None)
                share = np.repeat(scores[g][None] / len(group), len(group), axis=0)
                # an equal share may be off by all that the group's score is
                wide = np.repeat((half[g] + np.abs(scores[g]))[None], len(group), axis=0)
                inside = share, wide, [around[g] for _ in group]
            found.append(inside)
        meta = {**sampled, "groups": [len(g) for g in groups], "groups_opened": sorted(opened)}
        return _joined(documents, found), ends, f"grouped {used}", meta

    def _open_level(
        self,
        above: Scored,
        cut: Callable[[str, int, int], list[tuple[int, int]]],
        name: str,
        budget: int,
        threshold: Floats,
    ) -> Scored:
        """The children of the parts above that matter."""
        children = [
            [Source(p.document, a, b) for a, b in cut(self.context.documents[p.document], p.start, p.end)]
            for p in above.parts
        ]
        if self.replay:
            opened = {i: 0 for i, p in enumerate(above.parts) if (name, p) in self.trace}
        else:
            opened = _openings([len(c) for c in children], above.scores, above.half, budget, threshold)
        parts: list[Source] = []
        found: list[Inside] = []
        for i in sorted(opened):
            own = above.scores[i], above.half[i]
            inside = self._open_part((name, above.parts[i]), children[i], above.around[i], opened[i], own)
            if inside is not None:
                parts += children[i]
                found.append(inside)
        return _joined(parts, found) if parts else Scored([], above.scores[:0], above.half[:0], [])

    def _open_part(
        self, key: Key, children: list[Source], around: list[Around], budget: int, own: tuple[Floats, Floats]
    ) -> Inside | None:
        """Scores of a part's children: their game inside a few contexts of the part, averaged.

        The contexts stay the same for every subset of children, so differences between subsets are not blurred by them;
        how much the scores vary over contexts goes into the intervals.

        Args:
            key: the part's place in the trace.
            children: what it is cut into.
            around: contexts of the part.
            budget: evaluations.
            own: the part's score and half width, [columns] each.

        Returns:
            None: too small a budget.
        """
        (total, total_half), s = own, len(children)
        if s == 1:
            self.trace[key] = (np.array([[False], [True]]), len(around))
            return total[None], total_half[None], [around]
        around = spread_over(around, self.trace[key][1] if self.replay else max(2, budget // (2 * (s + 2))))
        missing = sum(not self.play.known(a.with_(p)) for a in around for p in ((), children))
        if not self.replay and missing > budget:
            return None

        def each(held: Coalitions) -> Floats:
            rows = [a.with_([c for c, h in zip(children, row, strict=True) if h]) for row in held for a in around]
            return self.play.of(rows).reshape(len(held), len(around), -1)

        asks = 2 + max(0, budget - missing) // len(around)
        scores, half, _, _ = self._sampled(lambda held: each(held).mean(axis=1), s, key, asks, contexts=len(around))
        asked, _ = self.trace[key]
        between = half_width(mean_deviation(given_each(asked, each(asked), self.index)), len(around) - 1 + BORROWED)
        gap = total - scores.sum(axis=0) if self.index == "shapley" else np.zeros_like(total)
        # the contexts are a sample of those behind the part's own score: what they miss is shared out equally
        spread = np.sqrt(half**2 + between**2 + (total_half / s) ** 2 + (gap / s) ** 2)
        inside = []
        for seen in _seen_twice(asked, self.index, self.rng, len(around)):
            rows = [seen[k] for k in self.rng.permutation(len(seen))]
            siblings = [tuple(c for c, h in zip(children, row, strict=True) if h) for row in rows]
            inside.append([Around((*a.present, *t), a.rank) for a, t in zip(around, siblings, strict=True)])
        return scores + gap / s, spread, inside

    def _value(self, groups: Sequence[Sequence[Source]]) -> Value:
        """The game of whole groups of documents, all else absent."""
        nothing = Around((), self.rank)

        def value(held: Coalitions) -> Floats:
            return self.play.of([nothing.with_(_members(groups, row)) for row in held])

        return value

    def _contexts(self, groups: Sequence[Sequence[Source]], key: Key) -> list[list[Around]]:
        """For each group, contexts in which it was asked both absent and present."""
        seen = _seen_twice(self.trace[key][0], self.index, self.rng, CONTEXTS)
        return [[Around(tuple(_members(groups, row)), self.rank) for row in rows] for rows in seen]

    def _sampled(
        self,
        value: Value,
        n: int,
        key: Key,
        budget: int,
        estimator: str = "auto",
        control_variate: Value | None = None,
        cost: PrefixCost | None = None,
        contexts: int = 1,
    ) -> tuple[Floats, Floats, str, Mapping[str, Any]]:
        """Scores and half widths [n, columns] by `estimate`, what it asked written down; or from what was written."""
        if self.replay:
            known, _ = self.trace[key]
            scores, half = given_scores(known, np.asarray(value(known)), self.index)
            return scores, half, "given", {}
        asked: list[Coalitions] = []

        def watched(held: Coalitions) -> Floats:
            asked.append(held)
            return np.asarray(value(held), dtype=np.float64)

        found = estimate(
            watched, n, self.index, estimator, budget, self.settings.seed, control_variate=control_variate, cost=cost
        )
        self.trace[key] = (np.concatenate(asked), contexts)
        return found.scores.reshape(n, -1), ((found.high - found.low) / 2).reshape(n, -1), found.estimator, found.meta


ROOT = Source(-1, 0, 0)


def _members(groups: Sequence[Sequence[Source]], row: Coalitions) -> list[Source]:
    return [source for group, held in zip(groups, row, strict=True) if held for source in group]


def _joined(parts: list[Source], found: Sequence[Inside]) -> Scored:
    scores, half, around = zip(*found, strict=True)
    return Scored(parts, np.concatenate(scores), np.concatenate(half), [one for each in around for one in each])


def _seen_twice(asked: Coalitions, index: Index, rng: np.random.Generator, most: int) -> list[list[Coalitions]]:
    """For each source, `most` coalitions without it that were asked with it too, distributed as the index has them.

    A Shapley value averages over sizes evenly and within each size evenly; so do these, by systematic sampling (some
    may come twice). Where nothing was asked both ways: the empty coalition, and all the others.
    """
    n = asked.shape[1]
    known = {row.tobytes() for row in asked}
    sizes = np.arange(n)
    chance = np.exp(log_binomial(n - 1, sizes)) * marginal_weights(n, index)  # of each size
    found: list[list[Coalitions]] = []
    for i in range(n):
        single = sizes == i
        rows = [row for row in asked if not row[i] and (row | single).tobytes() in known]
        rows = list({row.tobytes(): row for row in rows}.values()) or [np.zeros(n, bool), ~single]
        rows = sorted((rows[k] for k in rng.permutation(len(rows))), key=lambda row: int(row.sum()))
        size = np.array([row.sum() for row in rows])
        upto = np.cumsum(chance[size] / np.bincount(size, minlength=n)[size])
        places = (np.arange(most) + 0.5) / most * upto[-1]
        found.append([rows[k] for k in np.searchsorted(upto, places)])
    return found


def _openings(
    sizes: Sequence[int], scores: Floats, half: Floats, budget: int, threshold: Floats, all_above: bool = False
) -> dict[int, int]:
    """Which parts to open and with how many evaluations: part -> evaluations.

    Args:
        sizes: children of each part.
        scores, half: of the parts, [parts, columns].
        budget: evaluations for all of them.
        threshold: what a score less its standard error must reach, [columns].
        all_above: open from the top as many as the budget allows, whatever their score.
    """
    surely = (scores - half / NORMAL - threshold).max(axis=1)
    ranked = sorted(range(len(sizes)), key=lambda i: -scores[i].max())
    wanted = [i for i in ranked if all_above or surely[i] > 0] or ranked[:1]
    wanted = [i for i in wanted if sizes[i] > 1] + [i for i in wanted if sizes[i] == 1]
    opened = {i: 0 for i in wanted if sizes[i] == 1}
    several = [i for i in wanted if sizes[i] > 1]
    while several:
        total = sum(sizes[i] for i in several)
        share = {i: budget * sizes[i] // total for i in several}
        enough = min(share.values()) >= min(2 + max(sizes[i] for i in several), ENOUGH)
        if enough or (len(several) == 1 and budget >= 2):
            return opened | share
        several.pop()
    return opened
