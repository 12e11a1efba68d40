"""The one call: which documents, sentences and words made this answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import amplify
from amplify import templates
from amplify.errors import InputError, UnknownNameError
from amplify.metrics import normalize
from amplify.models.base import LanguageModel, LocalModel, need_local, need_scoring
from amplify.shapley.budget import PrefixCost
from amplify.shapley.estimators import ESTIMATORS
from amplify.shapley.exact import MAX_SOURCES, all_coalitions
from amplify.shapley.game import Coalitions, Floats
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
from amplify.sources.context import (
    Context,
    Layout,
    Selection,
    check_documents,
    check_window,
    harmless,
    in_place,
    select,
    special_tokens,
)
from amplify.sources.engines import ENGINES, Engine, blocks_tree
from amplify.sources.games import LogProbGame, Memory, VoteGame, fixed_order
from amplify.sources.hierarchy import REFINEMENTS, Settings, explain
from amplify.sources.parts import Ask, Explained, Scored
from amplify.sources.result import Cost, SourceAttribution, level
from amplify.templates import Template
from amplify.types import Prompt, Sampling

if TYPE_CHECKING:
    from amplify.models.tree.kv_cache import PrefixCache

VALUES = ("logprob", "votes")
ORDERS = ("fixed", "random")
OTHERS = 8  # answers scored beside the one in question: those that most coalitions gave
MOST_PROMPTS = 12  # doublings: with a budget of tokens so many prompts are enough
CREDITS = ("shapley_shubik", "penrose_banzhaf")  # for changes to an answer, whatever it was before
INDICES = ("shapley", "banzhaf", *CREDITS, "append")


def attribute_sources(
    question: str,
    documents: Sequence[str],
    model: LanguageModel,
    answer: str | None = None,
    value: str = "logprob",
    index: str = "shapley",
    engine: str = "auto",
    estimator: str = "auto",
    budget: int = 64,
    granularity: str = "words",
    order: str = "fixed",
    seed: int = 0,
    *,
    thresholds: tuple[float, float] = (0.1, 0.1),
    max_tokens: int = 16,
    stop: Sequence[str] = (),
    template: str | Template = "default",
    layout: Layout = "chat",
    inclusion_probability: float = 0.5,
    control_variate: bool = False,
    tokens: int | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> SourceAttribution:
    """Score documents, and the sentences and words of those that matter, by what they did to an answer.

    Args:
        question: the question.
        documents: two or more texts, all different.
        model: who answers. A log-probability game needs a `ScoringModel`; votes work with any.
        answer: the text to explain. The model's own greedy answer to all documents unless given.
        value: "logprob", log-probability of the answer (natural log, summed over tokens, and for each of its sentences
            where there are several); or "votes", 1 where the greedy answer is the one in question, and likewise
            for the eight other answers that most coalitions of documents gave.
        index: "shapley" or "banzhaf" (votes: the signed form); "shapley_shubik" or "penrose_banzhaf", the credit for
            changes *to* an answer only, as TextGenSHAP counts votes; "append" for random orders, see
            `orders.random_order_scores`.
        engine: "naive", "trie", "packed" or "blocks" (see `engines`); "auto" takes the cheapest exact one.
        estimator: see `estimate`; "auto" is exact where 2^n fits the documents' share of the budget.
        budget: distinct prompts asked, all levels together (the answer's own generation not counted). With sentences
            the documents get half of it, with words the rest is split again.
        granularity: the finest level: "documents", "sentences" or "words".
        order: documents in "fixed" order, or in an order drawn anew for each coalition ("random").
        seed: of every sample.
        thresholds: see `hierarchy.explain`; for votes absolute, for log-probabilities shares of |v(N) - v(empty)|.
        max_tokens, stop: where decoded answers end.
        template: NAME of `prompts/sources_NAME.jinja`, a path to a .jinja file, or a `Template`.
        layout: one user message, or "text" for models without a chat template.
        inclusion_probability: of each other document, for "penrose_banzhaf"; TextGenSHAP also takes 0.1.
        control_variate: use block encoding (engine "blocks") as a control variate; needs a `LocalModel`, fixed order,
            "logprob". It is asked for up to 1,024 coalitions beside the budget: its calls, tokens, correlation and
            slope are in `meta["control_variate"]`. Worth it where documents are long beside
            the answer, which it forwards each time.
        tokens: forward about so many tokens instead of asking `budget` prompts. What is asked is then chosen by what it
            tells for the tokens that it adds to those that earlier prompts share with it; the same error takes more
            prompts and fewer tokens. The answer's own generation is not counted. Needs a `LocalModel` that keeps as
            many tokens (`max_prefix_tokens`), fixed order, "logprob", granularity="documents" and engine="trie".
        cache: file that keeps every value as soon as it is known; the same call goes on where a stopped one was.
        progress: say on standard error how many prompts are asked.

    Raises:
        InputError: documents, answer, budget or names that make no sense together; the message says what to change.
        ContextLengthError: the documents do not fit the window; says by how much and which.
        CapabilityError: the model cannot do what the value or engine needs.
        ModelError: the model or server failed; values so far are in `cache`.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "Paris" in text else -4.0)
        >>> documents = ["Rome is in Italy.", "Paris is the capital of France.", "Cats sleep."]
        >>> options = {"answer": "Paris", "granularity": "documents"}
        >>> found = amplify.attribute_sources("What is the capital?", documents, model, **options)
        >>> found.documents.scores
        array([0., 3., 0.])
    """
    if isinstance(model, str):
        raise InputError(f"model is an open model: amplify.load_model({model!r})")
    begun, before = time.perf_counter(), model.usage.mine
    for name, given_text in (("question", question), ("answer", "" if answer is None else answer)):
        if not isinstance(given_text, str):
            raise InputError(f"{name} is a text, not a {type(given_text).__name__}")
    structure = special_tokens(model)
    check_documents(documents, structure)
    _check_names(value, index, engine, estimator, granularity, order, budget)
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is a whole number from 0, got {seed!r}")
    if len(thresholds) != 2 or not np.isfinite(thresholds).all():
        raise InputError(f"thresholds are two numbers, for documents and for sentences; got {thresholds!r}")
    if not 0 < inclusion_probability < 1:
        raise InputError(f"inclusion_probability is a probability between 0 and 1, got {inclusion_probability!r}")
    if not question.strip():
        raise InputError("the question is empty")
    chosen: Engine = ("packed" if order == "random" else "trie") if engine == "auto" else engine  # type: ignore[assignment]
    if value == "logprob":
        need_scoring(model, "value='logprob'")
    if control_variate:
        if value != "logprob" or order != "fixed":
            raise InputError("control_variate=True encodes documents once, in fixed order, for value='logprob'")
        need_local(model, "control_variate=True")
    priced: LocalModel | None = None
    if tokens is not None:
        if value != "logprob" or order != "fixed" or granularity != "documents" or chosen != "trie":
            raise InputError(
                "tokens= is for documents in fixed order whose prompts share their beginnings: use value='logprob', "
                "order='fixed', granularity='documents' and engine='trie'"
            )
        priced = need_local(model, "tokens=")
    context = Context(
        harmless(question, structure),
        tuple(harmless(d, structure) for d in documents),
        template if isinstance(template, Template) else templates.load("sources", template),
        layout,
    )
    if not context.template.writes("question", {"question": "", "documents": context.documents[:2]}):
        raise InputError(
            f"template {context.template.name!r} does not write {{{{ question }}}}, so it would not be asked"
        )
    context.places(context.everything())
    sampling = Sampling(max_tokens=max_tokens, stop=tuple(stop))
    given = answer is not None and value == "logprob" and bool(answer.strip())
    room = model.count_tokens([Prompt(text=str(answer))])[0] if given else max_tokens
    check_window(context, model, room, "the answer" if given else "an answer")
    own = answer is None
    if answer is None and value == "logprob":
        answer = model.generate([context.prompt(context.everything())], sampling)[0].text
        if not answer.strip():
            raise InputError("the model's own answer to all documents is empty: give answer=, or ask otherwise")
    if answer is not None and not answer.strip():
        raise InputError("the answer is empty: leave answer out to explain the model's own")
    if answer is not None and value == "votes" and not normalize(answer):
        raise InputError(f"the answer {answer!r} has no word that votes compare (case, articles and punctuation aside)")
    if answer is not None and layout == "text" and not answer[0].isspace():
        answer = f" {answer}"
    identity = {
        "question": context.question, "documents": context.documents, "template": context.template.source,
        "layout": layout, "value": value, "model": model.describe(),
        "asked": answer if value == "logprob" else [max_tokens, *stop], "exact": chosen != "blocks",
        "amplify": amplify.__version__,
    }  # fmt: skip
    memory = Memory(identity, cache, progress)
    settings = Settings(index, estimator, budget, granularity, order, thresholds, value == "logprob", seed)  # type: ignore[arg-type]
    if value == "logprob":
        assert answer is not None
        game = LogProbGame(context, model, answer, chosen, memory)
        helper = _Counted(LogProbGame(context, model, answer, "blocks")) if control_variate else None
        cost = None
        if priced is not None and tokens is not None:
            cost = _prices(context, priced, answer, tokens)
            _check_room(cost, game.beginnings)
            settings = replace(settings, budget=max(budget, 2 ** min(len(documents), MOST_PROMPTS)))
        explained = explain(game.of, context, settings, control_variate=helper, cost=cost)
        if helper and "control_variate" in explained.meta:
            explained.meta["control_variate"]["tokens"] = helper.tokens
        columns: tuple[str, ...] = game.columns
    else:
        ballot = VoteGame(context, model, sampling, chosen, memory)
        explained, columns = _votes(ballot, answer, settings, inclusion_probability)
        answer = columns[0]
    levels = {
        name: level(found.parts, tuple(documents), found.scores, found.scores - found.half, found.scores + found.half)
        for name, found in explained.levels.items()
    }
    spent = model.usage.mine.since(before)
    return SourceAttribution(
        question=question,
        answer=answer.strip(),
        documents=levels["documents"],
        sentences=levels.get("sentences"),
        words=levels.get("words"),
        values=explained.ends,
        columns=columns,
        cost=Cost(len(memory.used), spent.forwarded_tokens, time.perf_counter() - begun),
        value=value,
        index=index,
        engine=chosen,
        estimator=explained.estimator,
        order=order,
        budget=budget,
        seed=seed,
        template=context.template,
        layout=layout,
        originals=tuple(documents),
        meta={
            **explained.meta,
            "own_answer": own,
            "structure": structure,
            "model": model.describe(),
            "amplify": amplify.__version__,
        },
    )


def _prices(context: Context, model: LocalModel, answer: str, tokens: int) -> PrefixCost:
    """Tokens of the prompt's head, of each document, and of what follows them."""
    head, *documents, rest, said = blocks_tree(context, model.tokenizer, [context.everything()], answer)[0].segments
    each = len(rest) + len(said) - 1  # nothing is predicted from the last token
    return PrefixCost(tuple(map(len, documents)), each, tokens, len(head))


def _check_room(cost: PrefixCost, beginnings: PrefixCache | None) -> None:
    """A beginning counts once only if it is still there when it comes again."""
    room = beginnings.most if beginnings else 0
    different = cost.head + sum(tokens * 2**place for place, tokens in enumerate(cost.sources))
    wanted = int(min(cost.limit, different))
    if room < wanted:
        raise InputError(
            f"tokens={cost.limit:,} counts on the model to keep {wanted:,} tokens of its prompts' beginnings, and it "
            f"keeps {room:,}: open it with max_prefix_tokens={wanted}, or give budget= instead"
        )


class _Counted:
    """A control_variate as a `Value`, with the tokens that it made the model forward."""

    def __init__(self, game: LogProbGame) -> None:
        self.model, self.value, self.tokens = game.model, fixed_order(game), 0

    def __call__(self, held: Coalitions) -> Floats:
        before = self.model.usage.mine
        values = self.value(held)
        self.tokens += self.model.usage.mine.since(before).forwarded_tokens
        return values


def _votes(
    game: VoteGame, answer: str | None, settings: Settings, inclusion_probability: float
) -> tuple[Explained, tuple[str, ...]]:
    """Scores for every answer that any coalition gave, the one in question first."""
    own = game.ask([game.context.everything()])[0]
    wanted = own if answer is None else normalize(answer)
    if settings.order == "random":  # all documents in their own order have been asked above
        settings = replace(settings, budget=settings.budget - 1)
    if settings.index in CREDITS:
        return _credited(game, wanted, answer, settings, inclusion_probability)
    others: list[str] = []

    def also() -> Ask | None:
        others.extend([c for c in game.frequent(OTHERS + 1) if c != wanted][:OTHERS])
        return (lambda s: game.votes(s, others)) if others else None

    found = explain(lambda s: game.votes(s, [wanted]), game.context, settings, also=also)
    return found, tuple(game.answers.get(c, answer or c) for c in (wanted, *others))


def _credited(
    game: VoteGame, wanted: str, answer: str | None, settings: Settings, inclusion_probability: float
) -> tuple[Explained, tuple[str, ...]]:
    parts = list(game.context.sources)
    n, budget, shubik = len(parts), settings.budget, settings.index == "shapley_shubik"
    rng = np.random.default_rng([settings.seed, 2])
    exact = settings.order == "fixed" and n <= MAX_SOURCES and 2**n <= budget

    def rows(orders: Any) -> list[Selection]:
        held = np.concatenate([prefixes(o) for o in orders])
        if settings.order == "fixed":
            return [select(row, parts) for row in in_place(held).tolist()]
        rank = np.repeat(np.argsort(orders, axis=1), n + 1, axis=0)
        return [select(row, parts) for row in np.where(held, rank, -1).tolist()]

    if exact:
        said = game.ask([select(row, parts) for row in in_place(all_coalitions(n)).tolist()])
    elif not shubik:
        flips = sampled_flips(n, budget, inclusion_probability, rng)
        said = game.ask([select(row, parts) for row in in_place(flips.reshape(-1, n)).tolist()])
    else:
        orders = sampled_orders(n, budget, lambda order: rows(order[None]), rng)
        said = game.ask(rows(orders))
    candidates = [wanted, *[c for c in game.frequent(OTHERS + 1) if c != wanted][:OTHERS]]
    if exact:
        scores = exact_credit(
            said, n, candidates, shubik_weights(n) if shubik else penrose_weights(n, inclusion_probability)
        )
        half = np.zeros_like(scores)
    elif not shubik:
        scores, half = flipped_credit(flips, np.array(said, object).reshape(len(flips), n + 1), candidates)
    else:
        scores, half = walked_shubik(orders, np.array(said, object).reshape(len(orders), n + 1), candidates)
    top = Scored(parts, scores, half, [])
    ends = game.votes([(), game.context.everything()], candidates)
    columns = tuple(game.answers.get(c, answer or c) for c in candidates)
    return Explained({"documents": top}, ends, "exact" if exact else "permutation", {}), columns


def _check_names(
    value: str, index: str, engine: str, estimator: str, granularity: str, order: str, budget: int
) -> None:
    for kind, name, known in (
        ("value", value, VALUES), ("index", index, INDICES), ("engine", engine, ("auto", *ENGINES)),
        ("estimator", estimator, ("auto", *ESTIMATORS)), ("level", granularity, REFINEMENTS), ("order", order, ORDERS),
    ):  # fmt: skip
        if name not in known:
            raise UnknownNameError(kind, name, known)
    if not isinstance(budget, int | np.integer) or isinstance(budget, bool):
        raise InputError(f"the budget is a whole number of prompts, not {budget!r}")
    if budget < 2:
        raise InputError(f"the budget counts the empty and the full context, so it is at least 2; got {budget}")
    if index in CREDITS and value != "votes":
        raise InputError(f"index {index!r} counts votes: use value='votes', or index='shapley' or 'banzhaf'")
    if index == "penrose_banzhaf" and order != "fixed":
        raise InputError("index 'penrose_banzhaf' has no order of arrival: use order='fixed'")
    if index == "append" and order != "random":
        raise InputError("index 'append' is of random orders: use order='random', or index='shapley'")
    if index in (*CREDITS, "append") and granularity != "documents":
        raise InputError(f"index {index!r} scores whole documents: use granularity='documents'")
    if engine == "packed" and order != "random":
        raise InputError("engine 'packed' lays documents out in random orders: use order='random', or engine='trie'")
    if engine == "blocks" and (order != "fixed" or value != "logprob" or granularity != "documents"):
        raise InputError(
            "engine 'blocks' encodes whole documents once, in place: use order='fixed', value='logprob' and "
            "granularity='documents', or another engine"
        )
