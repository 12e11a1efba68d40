"""Votes: scores for every answer that any coalition gave, by marginals or by the credit for changing an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from amplify.errors import EmptyAnswerError
from amplify.metrics import normalize
from amplify.shapley.exact import MAX_SOURCES, all_coalitions
from amplify.shapley.game import Floats
from amplify.shapley.sampling import prefixes
from amplify.shapley.votes import (
    exact_credit,
    flipped_credit,
    penrose_weights,
    sampled_flips,
    sampled_orders,
    shubik_weights,
    walked_shubik,
)
from amplify.sources.context import Selection, in_place, select
from amplify.sources.games import VoteGame
from amplify.sources.hierarchy import explain
from amplify.sources.options import CREDITS, Options
from amplify.sources.parts import Ask, Explained, Scored

OTHERS = 8  # answers scored beside the one in question: those that most coalitions gave


def votes(game: VoteGame, answer: str | None, settings: Options) -> tuple[Explained, tuple[str, ...]]:
    """Scores for every answer that any coalition gave, the one in question first."""
    own = game.ask([game.context.everything()])[0]
    wanted = own if answer is None else normalize(answer)
    if not wanted:
        raise EmptyAnswerError("the model's own answer to all sources is empty: give answer=, or ask otherwise")
    if settings.order == "random":  # all documents in their own order have been asked above
        settings = replace(settings, budget=max(2, settings.budget - 1))
    if settings.index in CREDITS:
        return _credited(game, wanted, answer, settings)
    others: list[str] = []

    def also() -> Ask | None:
        others.extend([c for c in game.frequent(OTHERS + 1) if c != wanted][:OTHERS])
        return (lambda s: game.votes(s, others)) if others else None

    found = explain(lambda s: game.votes(s, [wanted]), game.context, settings, also=also)
    return found, tuple(game.answers.get(c, answer or c) for c in (wanted, *others))


def _credited(game: VoteGame, wanted: str, answer: str | None, settings: Options) -> tuple[Explained, tuple[str, ...]]:
    parts = list(game.context.sources)
    n, budget, shubik = len(parts), settings.budget, settings.index == "shapley_shubik"
    rng = np.random.default_rng([settings.seed, 2])
    exact = settings.order == "fixed" and n <= MAX_SOURCES and 2**n <= budget
    chance = settings.inclusion_probability

    def rows(orders: Any) -> list[Selection]:
        held = np.concatenate([prefixes(o) for o in orders])
        if settings.order == "fixed":
            return [select(row, parts) for row in in_place(held).tolist()]
        rank = np.repeat(np.argsort(orders, axis=1), n + 1, axis=0)
        return [select(row, parts) for row in np.where(held, rank, -1).tolist()]

    def counts(score: Callable[[list[str]], tuple[Floats, Floats]]) -> tuple[Explained, tuple[str, ...]]:
        candidates = [wanted, *[c for c in game.frequent(OTHERS + 1) if c != wanted][:OTHERS]]
        scores, half = score(candidates)
        ends = game.votes([(), game.context.everything()], candidates)
        columns = tuple(game.answers.get(c, answer or c) for c in candidates)
        used = "exact" if exact else "permutation"
        return Explained({"documents": Scored(parts, scores, half, [])}, ends, used, {}), columns

    if exact:
        said = game.ask([select(row, parts) for row in in_place(all_coalitions(n)).tolist()])
        weights = shubik_weights(n) if shubik else penrose_weights(n, chance)

        def known(candidates: list[str]) -> tuple[Floats, Floats]:
            scores = exact_credit(said, n, candidates, weights)
            return scores, np.zeros_like(scores)

        return counts(known)
    if not shubik:
        flips = sampled_flips(n, budget, chance, rng)
        said = game.ask([select(row, parts) for row in in_place(flips.reshape(-1, n)).tolist()])
        return counts(lambda c: flipped_credit(flips, np.array(said, object).reshape(len(flips), n + 1), c))
    orders = sampled_orders(n, budget, lambda order: rows(order[None]), rng)
    said = game.ask(rows(orders))
    return counts(lambda c: walked_shubik(orders, np.array(said, object).reshape(len(orders), n + 1), c))
