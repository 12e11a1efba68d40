"""Models whose replies are kept, so that nothing is asked twice: after a failure, within a search, across runs.

One machine for three uses: a cache that a user names keeps the replies of all runs; a run or `apply` without one keeps
what a server answered of the batch at hand; a search keeps everything it asked, with what it cost. A reply is told by
the request, the model with its weights, tokenizer and dtype, the engine and its versions, and amplify's own version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import amplify
from amplify import codec, files
from amplify.errors import InputError, ModelError
from amplify.models.base import LanguageModel, LocalModel, ScoringModel, Tokenized, Usage
from amplify.models.cache import Cache, Reply
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs
from amplify.untrusted import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from amplify.models.tree.tree import TokenTree
    from amplify.steering import Steering

PIPELINE = 1  # how prompts become what a model reads: raised where that changes within a version of amplify


class Meter(Protocol):
    """Who pays for what is asked (`amplify.tuning.budget.Ledger`)."""

    def before(self, tokens: float, calls: int) -> None:
        """So much is to be asked at most. What it raises ends the call before anything is."""

    def said(self, key: str, reply: Reply) -> None:
        """A reply is given, new or kept."""

    def clock(self) -> float:
        """The time in seconds."""


class CachedGenerator:
    """A model whose replies are kept; made by `cached`.

    Calls and tokens of a reply that was kept count in `usage` like those of one that was asked, forwarded tokens do
    not: an evaluation gives the same records either way.

    Attributes:
        inner: the model itself.
        cache: where replies are.
        passing: whether replies are kept for the batch at hand alone (`keeping`).
        closes: what was opened for it, and is closed with it.
    """

    passing = False

    def __init__(self, inner: Any, cache: Cache, about: str, meter: Meter | None) -> None:
        self.inner, self.cache, self._about, self._meter = inner, cache, about, meter
        self.id: str = inner.id
        self.usage: Usage = inner.usage
        self.max_context: int | None = inner.max_context
        self.closes: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel.generate`."""
        return self.generate_by(
            lambda rest: self.inner.generate(rest, sampling, steering=steering), prompts, sampling, steering
        )

    def generate_by(
        self,
        ask: Callable[[list[Prompt]], list[Completion]],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        steering: Steering | None = None,
    ) -> list[Completion]:
        """The completions that `ask`, another way to those of `generate`, gives for the prompts not known.

        Answers drawn at random go by the seed and by their prompt's place in the call; without a seed they are drawn
        anew each time.
        """
        drawn = sampling.temperature > 0
        if drawn and sampling.seed is None and self._meter is None:
            return ask(list(prompts))
        keys = [self._key("generate", prompt, sampling, steering) for prompt in prompts]
        if drawn:
            keys = [files.digest([keys, i]) for i in range(len(keys))]
        sizes = self.inner.count_tokens(prompts) if self._meter is not None else []

        def made(i: int, own: list[Completion]) -> Reply:
            tokens = own[0].prompt_tokens + sum(c.completion_tokens for c in own)
            return Reply(answers=tuple(own), prompt_tokens=own[0].prompt_tokens, tokens=tokens)

        found = self._replies(
            keys,
            _Asks(
                lambda rest: ask([prompts[i] for i in rest]),
                made,
                lambda rest: sum(sizes[i] + sampling.n * sampling.max_tokens for i in rest),
                each=sampling.n,
                parts=sampling.n,
                together=drawn and isinstance(self.inner, LocalModel),
            ),
        )
        return [answer for reply in found for answer in reply.answers]

    def _key(self, what: str, *request: Any) -> str:
        return files.digest(codec.encode([self._about, what, *request]))

    def _replies(self, keys: Sequence[str], asks: _Asks) -> list[Reply]:
        """The replies to requests by their keys; what is new is asked together, and kept also where it fails half way.

        Raises:
            ModelError: as the model does; its `completed` has what was known as well.
        """
        known = self.cache.read(keys)
        if any(len(reply.parts) != asks.parts for reply in known.values()):
            raise self.cache.damaged("a reply has more or fewer parts than were asked for")
        if asks.together and len(known) < len(set(keys)):
            known = {}
        kept = [key for key in keys if key in known]
        for key in kept:
            self._give(key, known[key], fresh=False)
        places: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in known:
                places.setdefault(key, i)
        if not places and keys:
            return [known[key] for key in keys]
        failure = self._ask(keys, list(places.values()), asks, known)
        if failure is not None:
            parts = {i: known[key].parts for i, key in enumerate(keys) if key in known}
            failure.completed = {asks.each * i + k: part for i, own in parts.items() for k, part in enumerate(own)}
            raise failure
        for i, key in enumerate(keys):
            if key in places:
                self._give(key, known[key], fresh=places[key] == i)
        return [known[key] for key in keys]

    def _ask(self, keys: Sequence[str], rest: list[int], asks: _Asks, known: dict[str, Reply]) -> ModelError | None:
        """Ask for the rest and keep it; the time and the forwarded tokens are shared among replies by their tokens."""
        clock = time.perf_counter if self._meter is None else self._meter.clock
        if self._meter is not None and rest:
            self._meter.before(asks.most(rest), len(rest))
        before, start = self.usage.snapshot(), clock()
        failure = None
        try:
            flat = dict(enumerate(asks.ask(rest)))
        except ModelError as error:
            failure, flat = error, dict(error.completed)
        seconds, forwarded = clock() - start, self.usage.since(before).forwarded_tokens
        new = {}
        for place, i in enumerate(rest):
            own = [flat[k] for k in range(asks.each * place, asks.each * (place + 1)) if k in flat]
            if len(own) == asks.each:
                new[keys[i]] = asks.made(i, own)
        whole = sum(reply.tokens for reply in new.values()) or 1.0
        for key, reply in new.items():
            share = reply.tokens / whole
            known[key] = replace(reply, seconds=seconds * share, forwarded=forwarded * share)
        self.cache.write({key: known[key] for key in new if known[key].sound})
        if failure is not None and self._meter is not None:
            for key in new:
                self._meter.said(key, known[key])
        return failure

    def _give(self, key: str, reply: Reply, *, fresh: bool) -> None:
        self.cache.count(fresh=fresh)
        if not fresh and self._meter is None:  # what a search counts, it counts by its meter
            written = sum(len(p.logprobs) if isinstance(p, TokenLogProbs) else p.completion_tokens for p in reply.parts)
            self.usage.add(calls=len(reply.parts), prompt_tokens=reply.prompt_tokens, completion_tokens=written)
        if self._meter is not None:
            self._meter.said(key, reply)

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `LanguageModel`."""
        return self.inner.count_tokens(prompts)

    def describe(self) -> dict[str, Any]:
        """See `LanguageModel`."""
        return self.inner.describe()

    def close(self) -> None:
        """Close what was opened for it."""
        while self.closes:
            self.closes.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Asks:
    """How the requests of one call are asked.

    Attributes:
        ask: places in the call -> what the model gives, `each` parts a request.
        made: place, its parts -> the reply to keep.
        most: tokens that asking places takes at most.
        each: what the model gives for a reply.
        parts: completions or log-probabilities of a reply.
        together: whether what the model gives depends on all places asked with it.
    """

    ask: Callable[[list[int]], list[Any]]
    made: Callable[[int, list[Any]], Reply]
    most: Callable[[list[int]], float]
    each: int = 1
    parts: int = 1
    together: bool = False


class CachedScorer(CachedGenerator):
    """The same for a model that scores."""

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None, **more: Any
    ) -> list[TokenLogProbs]:
        """See `ScoringModel.score`; further keywords, which change no number, go to the model."""
        if len(prompts) != len(continuations):
            return self.inner.score(prompts, continuations, steering=steering)
        told = {prompt: codec.encode(prompt) for prompt in dict.fromkeys(prompts)}  # once for all its continuations
        how = codec.encode(steering)
        keys = [
            files.digest([self._about, "score", told[prompt], end, how])
            for prompt, end in zip(prompts, continuations, strict=True)
        ]
        counted: dict[Prompt, int] = {}
        scored: set[Prompt] = set()

        def size(rest: Sequence[int]) -> int:
            new = [p for p in dict.fromkeys(prompts[i] for i in rest) if p not in counted]
            counted.update(zip(new, self.inner.count_tokens(new), strict=True))
            return sum(counted[p] for p in {prompts[i] for i in rest})

        def ask(rest: list[int]) -> list[TokenLogProbs]:
            size(rest)
            return self.inner.score(
                [prompts[i] for i in rest], [continuations[i] for i in rest], steering=steering, **more
            )

        def made(i: int, own: list[TokenLogProbs]) -> Reply:
            first = prompts[i] not in scored
            scored.add(prompts[i])
            n = counted[prompts[i]]
            return Reply(logprobs=tuple(own), prompt_tokens=n, tokens=n * first + len(own[0].logprobs))

        most = lambda rest: size(rest) + sum(len(continuations[i]) + 1 for i in rest)  # noqa: E731
        return [reply.logprobs[0] for reply in self._replies(keys, _Asks(ask, made, most))]


class CachedLocal(CachedScorer):
    """The same for a model in this process. What looks inside it is not kept."""

    @property
    def module(self) -> PreTrainedModel:
        """See `LocalModel`."""
        module: PreTrainedModel = self.inner.module
        return module

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See `LocalModel`."""
        tokenizer: PreTrainedTokenizerBase = self.inner.tokenizer
        return tokenizer

    def score_tree(
        self, tree: TokenTree, wanted: Sequence[int], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `LocalModel`. Kept as one reply, where nobody pays by request."""

        def ask(_: list[int]) -> list[list[TokenLogProbs]]:
            return [self.inner.score_tree(tree, wanted, steering=steering)]

        if self._meter is not None or not wanted:
            return self.inner.score_tree(tree, wanted, steering=steering)
        made = lambda _, own: Reply(logprobs=tuple(own[0]))  # noqa: E731
        [reply] = self._replies(
            [self._key("tree", tree, list(wanted), steering)], _Asks(ask, made, lambda _: 0.0, parts=len(wanted))
        )
        return list(reply.logprobs)

    def sharing(self) -> AbstractContextManager[None]:
        """See `LocalModel`."""
        shared: AbstractContextManager[None] = self.inner.sharing()
        return shared


def cached(
    model: LanguageModel,
    cache: Cache | str | Path,
    *,
    about: Any = None,
    meter: Meter | None = None,
) -> CachedGenerator:
    """A model that is asked nothing twice.

    Args:
        model: an open model.
        cache: where replies are kept, open or as the place of a `Cache`, which is then closed with what is returned.
        about: what replies depend on beside the request, as JSON values; None for `identity` of the model.
        meter: who pays for what is asked.

    Returns:
        A model that can what the given one can, and leaves it open when it is closed. One that has a cache already goes
        by the new one.

    Raises:
        InputError: a model that does not say what it is.

    Example:
        >>> with cached(amplify.load_model("scripted:say=yes"), "kept") as model:
        ...     model.generate([amplify.Prompt(text="Well?")], amplify.Sampling())[0].text
        'yes'
    """
    who, store = origin(model), cache if isinstance(cache, Cache) else Cache(cache)
    kind = CachedGenerator
    if isinstance(who, ScoringModel):
        kind = CachedLocal if isinstance(who, LocalModel) else CachedScorer
    made = kind(who, store, files.digest(codec.encode(identity(who) if about is None else about)), meter)
    made.closes = [] if store is cache else [store]
    return made


@contextmanager
def caching(model: LanguageModel, cache: Cache | str | Path | None) -> Iterator[LanguageModel]:
    """An open model with a cache for as long as the block lasts, or as it is where there is none."""
    if cache is None:
        yield model
        return
    with cached(model, cache) as kept:
        yield kept


def identity(model: LanguageModel) -> dict[str, Any]:
    """All that a model's replies depend on beside the request: what it says of itself, and what amplify adds.

    Raises:
        InputError: it does not say what it is (`describe()["model"]`), so that another one's replies could be taken
            for its own.
    """
    from amplify.models.chat_template import switches_of  # it imports Jinja

    described = model.describe()
    if not described.get("model"):
        raise InputError(
            f"{model.id!r} does not say what it is, so its replies cannot be kept for later runs: give it a name of "
            "its own (another one for another behaviour), or use no cache"
        )
    held: dict[str, Any] = {
        "pipeline": PIPELINE,
        "amplify": amplify.__version__,
        "special_tokens": special_tokens(),
        "model": {"id": model.id, **described},
    }
    if (tokenizer := tokenizer_of(model)) is not None:
        spelt = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
        held["tokenizer"] = files.digest([tokenizer.chat_template, codec.encode(switches_of(tokenizer)), spelt])
    if isinstance(model, LocalModel):
        held["config"] = model.module.config.to_json_string(use_diff=False)
    return held


def origin(model: LanguageModel) -> LanguageModel:
    """The model itself, for what is remembered of a model while it is open."""
    return model.inner if isinstance(model, CachedGenerator) else model


def tokenizer_of(model: LanguageModel) -> Any:
    """The tokenizer of a model that has one here, else None."""
    who = origin(model)
    return who.tokenizer if isinstance(who, Tokenized) else None


@contextmanager
def keeping(model: LanguageModel, path: Path, of: str) -> Iterator[LanguageModel]:
    """The model with a memory of the batch at hand, in a file that is gone once all work is done.

    A batch is redone whole; what a server answered before it failed is not asked again. A model of this process answers
    a batch whole or not at all, and one that has a cache needs no other: both stay as they are.

    Args:
        model: a model.
        path: of the file, ending in .sqlite; what stands in it of other work is not used.
        of: the work's name: the same where answers may be used again, so it tells configurations apart.

    Raises:
        RunError, WriteError: see `Cache`.
    """
    if isinstance(model, LocalModel | CachedGenerator):
        yield model
        return
    cache = Cache(path, shared=False)
    kept: Any = cached(model, cache, about=of)
    kept.passing = True
    try:
        yield kept
    except BaseException:
        cache.close() if len(cache) else cache.remove()
        raise
    cache.remove()


def begun(model: LanguageModel) -> int:
    """How many replies `keeping` holds of a batch that failed."""
    return len(model.cache) if isinstance(model, CachedGenerator) and model.passing else 0


def forget(model: LanguageModel) -> None:
    """A batch is whole and written down: what `keeping` holds of it is forgotten."""
    if isinstance(model, CachedGenerator) and model.passing:
        model.cache.clear()
