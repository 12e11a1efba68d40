"""The one call: which documents, sentences and words made this answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

import amplify
from amplify.errors import AmplifyError, EmptyAnswerError, InputError
from amplify.metrics import normalize
from amplify.models import opened
from amplify.models.base import LanguageModel, LocalModel, need_local, need_scoring
from amplify.models.cached import CachedGenerator, caching
from amplify.shapley.budget import PrefixCost
from amplify.shapley.estimate import Guide
from amplify.shapley.game import Coalitions, Floats
from amplify.sources.asked import Asked, asked_of
from amplify.sources.ballots import votes
from amplify.sources.context import Context, check_documents_fit, special_tokens
from amplify.sources.document import Source
from amplify.sources.engines import blocks_tree
from amplify.sources.frames import Conversation, Makes
from amplify.sources.games import LogProbGame, Memory, VoteGame, fixed_order
from amplify.sources.hierarchy import explain
from amplify.sources.options import LONGEST, LONGEST_VOTE, Named, Options, options
from amplify.sources.parts import Explained
from amplify.sources.result import Cost, SourceAttribution, level
from amplify.templates import Template
from amplify.types import Prompt, Sampling

if TYPE_CHECKING:
    from amplify.models.tree.kv_cache import PrefixCache

MOST_PROMPTS = 12  # doublings: with a budget of tokens so many prompts are enough
LEAST = 16  # tokens that the window must leave for an answer of the model's own


def attribute_sources(
    question: str | None = None,
    documents: Iterable[Any] | None = None,
    model: LanguageModel | str | None = None,
    answer: str | None = None,
    *,
    messages: Sequence[Any] | None = None,
    sources: Sequence[Source | Mapping[str, Any]] | str = "messages",
    prompt: str | Template | Makes = "default",
    budget: int = 64,
    **more: Unpack[Named],
) -> SourceAttribution:
    """Score sources, and the sentences and words of those that matter, by what they did to an answer.

    Either a question with documents, or messages of which spans are the sources (or in which the documents stand).

    Args:
        question: the question.
        documents: texts, dictionaries with a "text", `amplify.Document`, or a host's own documents. Empty ones and
            copies are left out, and the result says so (`left_out`, `notes`). One alone is cut into passages. With
            messages, the documents that stand in them.
        model: who answers, open or as the id that opens it for this call. A log-probability game needs a
            `ScoringModel`; votes work with any.
        answer: the text to explain. The model's own greedy answer to all sources unless given.
        messages: a conversation up to the question, as the model saw it: `Message` or dictionaries with role and
            content, tool calls and results included. It is sent as it is.
        sources: spans of the messages (`amplify.Source`), or "messages" for every message but the last one.
        prompt: for a question with documents, what makes a prompt of them: NAME of `prompts/sources_NAME.jinja`, a path
            to a .jinja file, a `Template`, or a function from a list of `Document` to messages (or to the text of one
            user message), which is called with the documents that are there.
        budget: distinct prompts asked, all levels together (the answer's own generation not counted). With finer levels
            the documents get half of it; what a level does not use goes to the next.
        **more: see `amplify.sources.options.Options`: value, index, engine, estimator, granularity, order, seed,
            thresholds, opens, max_tokens, stop, layout, inclusion_probability, control_variate, tokens, cache,
            progress.

    Raises:
        InputError: sources, answer, budget or names that make no sense together; the message says what to change.
        ContextLengthError: the sources do not fit the window; says by how much and which.
        CapabilityError: the model cannot do what the value or engine needs.
        ModelError: the model or server failed; values so far are in `cache`.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "two years" in text else -9.0)
        >>> documents = ["The warranty is two years.", "Shipping is free."]
        >>> found = amplify.attribute_sources("How long is the warranty?", documents, model, "Two years.")
        >>> [(c.text, c.verdict) for c in found.claims], [c.text for c in found.citations]
        ([('Two years.', 'supported')], ['The warranty is two years.'])
    """
    chosen = options({"budget": budget, **more})
    if model is None:
        raise InputError("model= is missing: an open model, or the id that opens one")
    if answer is not None and not isinstance(answer, str):
        raise InputError(f"the answer is a text, not a {type(answer).__name__}")
    if answer is not None and not answer.strip():
        raise InputError("the answer is empty: leave answer out to explain the model's own")
    given: Any = documents
    if isinstance(documents, Iterable) and not isinstance(documents, str | Mapping):
        given = tuple(documents)  # it is read twice where the model is opened here

    if isinstance(model, str):
        # what is wrong with the input is said before a model is loaded
        asked_of(question, given, messages, sources, prompt, chosen)
    with opened(model) as who, caching(who, chosen.cache) as kept:
        asked = asked_of(question, given, messages, sources, prompt, chosen, special_tokens(who))
        return explained(asked, kept, answer, chosen)


def explained(asked: Asked, model: LanguageModel, answer: str | None, chosen: Options) -> SourceAttribution:
    """SelectionGame the game of what is asked, and say what came out; see `attribute_sources`."""
    begun, before = time.perf_counter(), model.usage.mine
    context, logprob = asked.context, chosen.value == "logprob"
    if logprob:
        need_scoring(model, "value='logprob'")
    if chosen.control_variate:
        need_local(model, "control_variate=True")
    priced = need_local(model, "tokens=") if chosen.tokens is not None else None
    given = answer is not None and logprob
    sampling, notes = sampling_of(context, model, chosen, answer if given else None), list(asked.told.notes)
    if answer is not None and not logprob and not normalize(answer):
        raise InputError(f"the answer {answer!r} has no word that votes compare (case, articles and punctuation aside)")
    own = answer is None
    if answer is None and logprob:
        done = model.generate([context.prompt(context.everything())], sampling)[0]
        answer = done.text
        if not answer.strip():
            raise EmptyAnswerError("the model's own answer to all sources is empty: give answer=, or ask otherwise")
        if done.finish_reason == "length":
            notes.append(f"the model's answer was cut after {sampling.max_tokens} tokens: max_tokens= sets how many")
    if answer is not None and logprob:
        answer = context.continued(answer)
    memory = Memory(chosen.progress, model.cache.path if isinstance(model, CachedGenerator) else None)
    settings = replace(chosen, relative=chosen.shares)
    spans: tuple[tuple[int, int], ...] = ()
    if logprob:
        assert answer is not None
        game = LogProbGame(context, model, answer, chosen.chosen, memory)
        found = _probabilities(game, settings, priced)
        columns, spans = game.columns, game.spans
    else:
        ballot = VoteGame(context, model, sampling, chosen.chosen, memory)
        found, columns = votes(ballot, answer, settings)
        answer = columns[0]
    levels = {
        name: level(each.parts, asked.originals, each.scores, each.scores - each.half, each.scores + each.half)
        for name, each in found.levels.items()
    }
    spent = model.usage.mine.since(before)
    return SourceAttribution(
        question=asked.question,
        answer=answer.strip(),
        documents=levels["documents"],
        sentences=levels.get("sentences"),
        words=levels.get("words"),
        values=found.ends,
        columns=columns,
        cost=Cost(len(memory.used), spent.forwarded_tokens, time.perf_counter() - begun),
        value=chosen.value,
        index=chosen.index,
        engine=chosen.chosen,
        estimator=found.estimator,
        order=chosen.order,
        budget=chosen.budget,
        seed=chosen.seed,
        prompt=context.prompt(context.everything()),
        places=context.places(),
        originals=asked.originals,
        spans=spans,
        left_out=asked.told.left_out,
        notes=tuple(notes),
        meta={**found.meta, "own_answer": own, "model": model.describe(), "amplify": amplify.__version__},
    )


def sampling_of(context: Context, model: LanguageModel, chosen: Options, given: str | None) -> Sampling:
    """How to decode an answer (None), after a check that sources and answer fit the window."""
    if given is not None:
        check_documents_fit(context, model, model.count_tokens([Prompt(text=given)])[0], "the answer")
    usual = LONGEST if chosen.value == "logprob" else LONGEST_VOTE
    most = chosen.max_tokens or usual
    if given is None:
        check_documents_fit(context, model, chosen.max_tokens or min(usual, LEAST), "an answer")
        if chosen.max_tokens is None and model.max_context is not None:
            [tokens] = model.count_tokens([context.prompt(context.everything())])
            most = max(1, min(usual, model.max_context - tokens))
    return Sampling(max_tokens=most, stop=chosen.stop)


def _probabilities(game: LogProbGame, settings: Options, priced: LocalModel | None) -> Explained:
    helper, cost = None, None
    if settings.control_variate:
        helper = _Counted(LogProbGame(game.context, game.model, game.answer, "blocks"))
    if priced is not None and settings.tokens is not None:
        cost = _prices(game.context, priced, game.answer, settings.tokens)
        _check_room(cost, game.beginnings)
        settings = replace(
            settings, tokens=None, budget=max(settings.budget, 2 ** min(len(game.context.sources), MOST_PROMPTS))
        )
    guide = Guide(control_variate=helper, cost=cost) if helper or cost else None
    prices = None
    conversation = isinstance(game.context.frame, Conversation)  # most of a long prompt is what came before
    if conversation and settings.chosen == "trie" and isinstance(local := game.model, LocalModel):
        prices = partial(_free_prices, game.context, local, game.answer)
    found = explain(game.of, game.context, settings, guide=guide, prices=prices)
    if helper and "control_variate" in found.meta:
        found.meta["control_variate"]["tokens"] = helper.tokens
    return found


def _prices(context: Context, model: LocalModel, answer: str, tokens: float) -> PrefixCost:
    """Tokens of the prompt's head, of each document, and of what follows them."""
    head, *documents, rest, said = blocks_tree(context, model.tokenizer, [context.everything()], answer)[0].segments
    each = len(rest) + len(said) - 1  # nothing is predicted from the last token
    return PrefixCost(tuple(map(len, documents)), each, tokens, len(head))


def _free_prices(context: Context, model: LocalModel, answer: str) -> PrefixCost | None:
    """Prices without a limit; None where the model's template does not tell where each source stands."""
    try:
        found = _prices(context, model, answer, np.inf)
    except AmplifyError:
        return None
    return found if len(found.sources) == len(context.sources) else None


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
