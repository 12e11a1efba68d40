"""Documents, then sentences, then words: what scores high is opened, under one budget (TextGenSHAP, section 3).

A refined part is expanded in its own place: its children are present or absent while the rest of the documents stays
as it was in coalitions that the level above has asked. That is the Owen value of the ordered union, and what the parent
sampled is its two ends: the part absent, and the part whole. A part's children share out the part's own score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from amplify.errors import InputError
from amplify.textgenshap.costs import PrefixCost
from amplify.textgenshap.estimate import estimate
from amplify.textgenshap.exact import Index, log_binomial, marginal_weights
from amplify.textgenshap.given import given_each, given_scores
from amplify.textgenshap.intervals import BORROWED, half_width, mean_deviation
from amplify.textgenshap.orders import random_order
from amplify.textgenshap.parts import CONTEXTS, Around, Explained, Key, Play, Scored, Trace, spread_over
from amplify.textgenshap.sources import Context, Source, sentences, words
from amplify.textgenshap.value import Coalitions, Floats, Value

Refine = Literal["documents", "sentences", "words"]
REFINEMENTS: tuple[Refine, ...] = ("documents", "sentences", "words")
SHARES = {"documents": (1.0,), "sentences": (0.5, 0.5), "words": (0.5, 0.25, 0.25)}  # of the budget, by level
NORMAL = 1.96
FEW = 16  # documents that are always scored one by one
ENOUGH = 12  # evaluations with which a part of any size may be opened; a small one needs two more than it has children
DIRECT = 3  # evaluations a document below which more than that are first scored in groups


def explain(
    play: Play,
    context: Context,
    *,
    index: Index = "shapley",
    estimator: str = "auto",
    budget: int = 64,
    refine: Refine = "words",
    order: Literal["fixed", "random"] = "fixed",
    thresholds: tuple[float, float] = (0.1, 0.1),
    relative: bool = True,
    seed: int = 0,
    control: Value | None = None,
    cost: PrefixCost | None = None,
    trace: Trace | None = None,
    also: Callable[[], Play | None] | None = None,
) -> Explained:
    """Score the documents, then the parts of those that matter.

    Args:
        play: the game.
        context: its documents.
        index: "shapley" or "banzhaf".
        estimator: for the documents; parts of documents are always scored with "auto".
        budget: distinct prompts over all levels.
        refine: the finest level.
        order: of the documents in a prompt: their own, or drawn anew for each coalition.
        thresholds: a document (sentence) is opened when its score, less one standard error (half width / 1.96, which is
            more where few values say how far they vary), reaches this in any column. The best one is always opened.
        relative: thresholds are shares of |v(N) - v(empty)|, not absolute.
        seed: of every sample.
        control, cost: see `estimate`; documents in fixed order only.
        trace: score another column of the game from the sample of an earlier call, which costs nothing.
        also: asked once the documents have been sampled for further columns of the game (None: there are none), which
            are scored from the same sample; parts of documents are then opened and sampled for all columns.

    Raises:
        InputError: a budget too small, or an estimator that does not fit the order.
    """
    rng = np.random.default_rng([seed, 2])
    shares = SHARES[refine]
    replay = trace is not None
    trace = {} if trace is None else dict(trace)
    first = max(2, round(budget * shares[0]))
    left = budget - first
    meta: dict[str, Any] = {}
    n = len(context.documents)
    if estimator == "exact" and first < budget and first < 2**n:
        raise InputError(
            f"exact values of {n} documents need 2^{n} = {2**n} evaluations; with refine={refine!r} the documents get "
            f"{first} of the budget of {budget}. Raise budget=, or use refine='documents' or estimator='auto'"
        )
    if order == "random":
        top, ends, used = random_order(play, context, index, estimator, first, rng)
    elif n > max(FEW, first // DIRECT) and estimator == "auto" and cost is None and control is None:
        top, ends, used, meta = _grouped(play, context, index, first, seed, rng, trace, replay)
    else:
        top, ends, used, meta = _fixed_order(
            play, context, index, estimator, first, seed, rng, control, cost, trace, replay
        )
    if also is not None and (more := also()) is not None:
        seen = explain(
            more, context, index=index, estimator=estimator, budget=budget, refine=refine, order=order, seed=seed,
            trace=trace,
        )  # fmt: skip
        top, ends, play = _beside(top, seen.levels["documents"]), np.hstack([ends, seen.ends]), play.beside(more)
    levels = {"documents": top}
    scale = np.abs(ends[1] - ends[0]) if relative else np.ones(ends.shape[1])
    for name, cut, share, threshold in zip(REFINEMENTS[1:], (sentences, words), shares[1:], thresholds, strict=False):
        above = levels[REFINEMENTS[REFINEMENTS.index(name) - 1]]
        own = min(left, round(budget * share))
        left -= own
        below = _open_level(play, context, above, cut, name, index, own, threshold * scale, seed, rng, trace, replay)
        if not below.parts:
            break
        levels[name] = below
    meta["opened"] = {name: len({s.document for s in level.parts}) for name, level in levels.items()}
    return Explained(levels, ends, used, trace, meta)


def _beside(a: Scored, b: Scored) -> Scored:
    return replace(a, scores=np.hstack([a.scores, b.scores]), half=np.hstack([a.half, b.half]))


ROOT = Source(-1, 0, 0)


def _fixed_order(
    play: Play,
    context: Context,
    index: Index,
    estimator: str,
    budget: int,
    seed: int,
    rng: np.random.Generator,
    control: Value | None,
    cost: PrefixCost | None,
    trace: Trace,
    replay: bool,
) -> tuple[Scored, Floats, str, dict[str, Any]]:
    parts = list(context.sources)
    n, rank = len(parts), tuple(range(len(parts)))
    nothing = Around((), rank)

    def value(held: Coalitions) -> Floats:
        return play.of([nothing.with_([p for p, h in zip(parts, row, strict=True) if h]) for row in held])

    scores, half, used, sampled = _sampled(
        value, n, index, estimator, budget, seed, control, trace, ("documents", ROOT), replay, cost=cost
    )
    asked, _ = trace["documents", ROOT]
    held = _seen_twice(asked, index, rng, CONTEXTS)
    around = [
        [Around(tuple(p for p, h in zip(parts, row, strict=True) if h), rank) for row in held[i]] for i in range(n)
    ]
    return Scored(parts, scores, half, around), _ends(play, context), used, dict(sampled)


def _ends(play: Play, context: Context) -> Floats:
    return play.of([(), context.everything()])


def _sampled(
    value: Value,
    n: int,
    index: Index,
    estimator: str,
    budget: int,
    seed: int,
    control: Value | None,
    trace: Trace,
    key: Key,
    replay: bool,
    contexts: int = 1,
    cost: PrefixCost | None = None,
) -> tuple[Floats, Floats, str, Mapping[str, Any]]:
    """Scores and half widths [n, columns] by `estimate`, what it asked written down; or from what was written down."""
    if replay:
        known, _ = trace[key]
        scores, half = given_scores(known, np.asarray(value(known)), index)
        return scores, half, "given", {}
    asked: list[Coalitions] = []

    def watched(held: Coalitions) -> Floats:
        asked.append(held)
        return np.asarray(value(held), dtype=np.float64)

    found = estimate(watched, n, index, estimator, budget, seed, control=control, cost=cost)
    trace[key] = (np.concatenate(asked), contexts)
    return found.scores.reshape(n, -1), ((found.high - found.low) / 2).reshape(n, -1), found.estimator, found.meta


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


def _grouped(
    play: Play,
    context: Context,
    index: Index,
    budget: int,
    seed: int,
    rng: np.random.Generator,
    trace: Trace,
    replay: bool,
) -> tuple[Scored, Floats, str, dict[str, Any]]:
    """Many documents under a small budget: neighbours in groups first, then the documents of the best groups.

    The documents of a group that is not opened get equal shares of its score.
    """
    documents = list(context.sources)
    count = max(4, min(len(documents) // 2, budget // (2 * DIRECT)))
    groups = [[documents[i] for i in part] for part in np.array_split(np.arange(len(documents)), count)]
    rank = tuple(range(len(documents)))
    nothing = Around((), rank)

    def members(row: Coalitions) -> list[Source]:
        return [d for group, held in zip(groups, row, strict=True) if held for d in group]

    def value(held: Coalitions) -> Floats:
        return play.of([nothing.with_(members(row)) for row in held])

    half_budget = max(2, budget // 2)
    scores, half, used, sampled = _sampled(
        value, count, index, "auto", half_budget, seed, None, trace, ("groups", ROOT), replay
    )
    seen = _seen_twice(trace["groups", ROOT][0], index, rng, CONTEXTS)
    around = [[Around(tuple(members(row)), rank) for row in seen[g]] for g in range(count)]
    ends = _ends(play, context)
    left = budget - half_budget
    parts: list[Source] = []
    tables, halves, contexts = [], [], []
    opened = {g: 0 for g, group in enumerate(groups) if ("group", group[0]) in trace}
    if not replay:
        opened = _openings([len(g) for g in groups], scores, half, left, 0.0 * scores[0], all_above=True)
    for g, group in enumerate(groups):
        inside = None
        if g in opened:
            inside = _open_part(
                play, group, around[g], index, opened[g], scores[g], half[g], seed, rng, trace, ("group", group[0]),
                replay,
            )  # fmt: skip
        if inside is None:
            opened.pop(g, None)
            t = np.repeat(scores[g][None] / len(group), len(group), axis=0)
            # an equal share may be off by all that the group's score is
            h = np.repeat((half[g] + np.abs(scores[g]))[None], len(group), axis=0)
            inside = t, h, [around[g] for _ in group]
        parts += group
        tables.append(inside[0])
        halves.append(inside[1])
        contexts += inside[2]
    meta = {**sampled, "groups": [len(g) for g in groups], "groups_opened": sorted(opened)}
    return Scored(parts, np.concatenate(tables), np.concatenate(halves), contexts), ends, f"grouped {used}", meta


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


def _open_level(
    play: Play,
    context: Context,
    above: Scored,
    cut: Callable[[str, int, int], list[tuple[int, int]]],
    name: str,
    index: Index,
    budget: int,
    threshold: Floats,
    seed: int,
    rng: np.random.Generator,
    trace: Trace,
    replay: bool,
) -> Scored:
    children = [
        [Source(p.document, a, b) for a, b in cut(context.documents[p.document], p.start, p.end)] for p in above.parts
    ]
    if replay:
        opened = {i: 0 for i, p in enumerate(above.parts) if (name, p) in trace}
    else:
        opened = _openings([len(c) for c in children], above.scores, above.half, budget, threshold)
    parts: list[Source] = []
    tables, halves, contexts = [], [], []
    for i in sorted(opened):
        inside = _open_part(
            play, children[i], above.around[i], index, opened[i], above.scores[i], above.half[i], seed, rng, trace,
            (name, above.parts[i]), replay,
        )  # fmt: skip
        if inside is None:
            continue
        parts += children[i]
        tables.append(inside[0])
        halves.append(inside[1])
        contexts += inside[2]
    if not parts:
        return Scored([], above.scores[:0], above.half[:0], [])
    return Scored(parts, np.concatenate(tables), np.concatenate(halves), contexts)


def _open_part(
    play: Play,
    children: list[Source],
    around: list[Around],
    index: Index,
    budget: int,
    total: Floats,
    total_half: Floats,
    seed: int,
    rng: np.random.Generator,
    trace: Trace,
    key: Key,
    replay: bool,
) -> tuple[Floats, Floats, list[list[Around]]] | None:
    """Scores of a part's children: their game inside a few contexts of the part, averaged. None: too small a budget.

    The contexts stay the same for every subset of children, so differences between subsets are not blurred by them;
    how much the scores vary over contexts goes into the intervals.
    """
    s = len(children)
    if s == 1:
        trace[key] = (np.array([[False], [True]]), len(around))
        return total[None], total_half[None], [around]
    around = spread_over(around, trace[key][1] if replay else max(2, budget // (2 * (s + 2))))
    missing = sum(not play.known(a.with_(p)) for a in around for p in ((), children))
    if not replay and missing > budget:
        return None

    def each(held: Coalitions) -> Floats:
        rows = [a.with_([c for c, h in zip(children, row, strict=True) if h]) for row in held for a in around]
        return play.of(rows).reshape(len(held), len(around), -1)

    own = 2 + max(0, budget - missing) // len(around)
    scores, half, _, _ = _sampled(
        lambda held: each(held).mean(axis=1), s, index, "auto", own, seed, None, trace, key, replay, len(around)
    )
    asked, _ = trace[key]
    values = each(asked)
    between = half_width(mean_deviation(given_each(asked, values, index)), len(around) - 1 + BORROWED)
    gap = total - scores.sum(axis=0) if index == "shapley" else np.zeros_like(total)
    # the contexts are a sample of those behind the part's own score: what they miss is shared out equally
    spread = np.sqrt(half**2 + between**2 + (total_half / s) ** 2 + (gap / s) ** 2)
    inside = []
    for seen in _seen_twice(asked, index, rng, len(around)):
        rows = [seen[k] for k in rng.permutation(len(seen))]
        siblings = [tuple(c for c, h in zip(children, row, strict=True) if h) for row in rows]
        inside.append([Around((*a.present, *t), a.rank) for a, t in zip(around, siblings, strict=True)])
    return scores + gap / s, spread, inside
