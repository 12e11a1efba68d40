"""What every model is: prompts in, completions or log-probabilities out, a whole batch at a time.

The protocols, the checks that every model makes before it starts any work, and a start for a model of your own.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable

from amplify.errors import CapabilityError, ContextLengthError, InputError, ModelError
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from amplify.models.tree.tree import TokenTree
    from amplify.steering import Steering

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Usage:
    """What a model has done since it was opened. Differences of two snapshots are the cost of what lay between.

    Attributes:
        calls: prompts generated from, plus (prompt, continuation) pairs scored.
        prompt_tokens: tokens of those prompts, each counted in full however it was served.
        completion_tokens: tokens generated or scored as continuations.
        forwarded_tokens: tokens that really went through the model, shared prefixes once and padding included;
            equal to prompt + completion tokens where the model cannot tell.

    Example:
        >>> model = amplify.load_model("scripted:say=yes")
        >>> before = model.usage.snapshot()
        >>> _ = model.generate([amplify.Prompt(text="Well?")], amplify.Sampling())
        >>> model.usage.since(before).calls
        1
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    forwarded_tokens: int = 0

    def __post_init__(self) -> None:
        self._lock, self._by_thread = threading.Lock(), threading.local()

    def add(
        self, *, calls: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0, forwarded_tokens: int = 0
    ) -> None:
        """Count something more, from any thread."""
        with self._lock:
            for counted in (self, self._own()):
                counted.calls += calls
                counted.prompt_tokens += prompt_tokens
                counted.completion_tokens += completion_tokens
                counted.forwarded_tokens += forwarded_tokens

    def add_call(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one call whose tokens all went through the model, as far as one can tell."""
        tokens = prompt_tokens + completion_tokens
        self.add(calls=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, forwarded_tokens=tokens)

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def mine(self) -> Usage:
        """What was counted by calls from this thread: where others use the same model, the cost of one's own work."""
        return replace(self._own())

    def _own(self) -> Usage:
        if not hasattr(self._by_thread, "usage"):
            self._by_thread.usage = Usage()
        own: Usage = self._by_thread.usage
        return own

    def snapshot(self) -> Usage:
        """A copy that later calls do not change."""
        with self._lock:
            return Usage(**asdict(self))

    def since(self, before: Usage) -> Usage:
        """What was added after `before` was taken."""
        return Usage(*(now - then for now, then in zip(asdict(self).values(), asdict(before).values(), strict=True)))


@runtime_checkable
class LanguageModel(Protocol):
    """Every model.

    Attributes:
        id: the string that opens it again, e.g. "transformers:smollm2-135m". Never holds a secret.
        usage: running counts.
        max_context: tokens of prompt and completion together, or None where the server does not say.

    Example:
        >>> isinstance(amplify.load_model("scripted:say=yes"), LanguageModel)
        True
    """

    id: str
    usage: Usage
    max_context: int | None

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order.

        Raises:
            ContextLengthError: a prompt leaves no room for `sampling.max_tokens`; raised before any work.
            ModelError: the model or server failed after all retries. Its `completed` attribute maps prompt
                index to the completions there are.
            CapabilityError: steering asked of a model that has none.
        """
        ...

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each rendered prompt, its prefix included (an estimate where `describe()` says so)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Model, revision or hash, dtype, device and versions, for the header of a run."""
        ...

    def close(self) -> None:
        """Free the model or the connection. Calling it twice is fine."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class ScoringModel(LanguageModel, Protocol):
    """A model that gives log-probabilities of a given continuation.

    Example:
        >>> isinstance(amplify.load_model("scripted:first_option"), ScoringModel)
        True
    """

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """Log-probabilities of `continuations[i]` after `prompts[i]`, in order; the two have equal length.

        Raises:
            InputError: an empty continuation, or unequal lengths.
            ContextLengthError: prompt and continuation exceed the window.
        """
        ...


@runtime_checkable
class Tokenized(LanguageModel, Protocol):
    """A model whose tokenizer is here.

    Example:
        >>> isinstance(amplify.load_model("scripted:say=yes"), Tokenized)
        False
    """

    tokenizer: PreTrainedTokenizerBase


@runtime_checkable
class LocalModel(ScoringModel, Tokenized, Protocol):
    """A model in this process: gradients, attention, trees.

    Example:
        >>> isinstance(amplify.load_model("scripted:say=yes"), LocalModel)
        False
    """

    @property
    def module(self) -> PreTrainedModel:
        """What is called, in evaluation mode. Whoever runs or changes it holds its lock (`amplify.locks`)."""
        ...

    def score_tree(
        self, tree: TokenTree, wanted: Sequence[int], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """Log-probabilities of the wanted nodes' tokens, each given its ancestors only (see `TokenTree`)."""
        ...

    def sharing(self) -> AbstractContextManager[None]:
        """While it lasts, what the prompts of several calls begin with is computed once."""
        ...


def sharing(model: LanguageModel) -> AbstractContextManager[None]:
    """See `LocalModel.sharing`; nothing for another model (servers share beginnings by themselves)."""
    return model.sharing() if isinstance(model, LocalModel) else nullcontext()


@runtime_checkable
class Spread(LanguageModel, Protocol):
    """A model that is open in several workers.

    Attributes:
        workers: how many.

    Example:
        >>> isinstance(amplify.load_model("scripted:say=yes"), Spread)
        False
    """

    workers: int

    def each(self, function: Callable[[Any, T], R], items: Iterable[T]) -> Iterator[R]:
        """`function(model, item)` for each item at one of the workers, with its own model; results as they come."""
        ...


def each(model: LanguageModel, function: Callable[[Any, T], R], items: Iterable[T]) -> Iterator[R]:
    """`function(model, item)` for each item: at the workers of a model that has some (in any order), else here."""
    if isinstance(model, Spread):
        return model.each(function, items)
    return (function(model, item) for item in items)


def need_scoring(model: LanguageModel, what: str) -> ScoringModel:
    """The model as a ScoringModel, or a CapabilityError that names those that qualify.

    Example:
        >>> need_scoring(amplify.load_model("scripted:first_option"), "score mode").id
        'scripted:first_option'
    """
    if isinstance(model, ScoringModel):
        return model
    raise CapabilityError(
        f"{what} needs log-probabilities of a given text, which {model.id!r} does not give. "
        "Use a transformers: or vllm: model (or an openai: server whose completions API echoes log-probabilities)."
    )


def need_local(model: LanguageModel, what: str) -> LocalModel:
    """The model as a LocalModel, or a CapabilityError that names those that qualify.

    Example:
        >>> need_local(amplify.load_model("scripted:say=yes"), "gradients")
        Traceback (most recent call last):
        amplify.errors.CapabilityError: ...
    """
    if isinstance(model, LocalModel):
        return model
    raise CapabilityError(
        f"{what} looks inside the model, which {model.id!r} does not allow. Use a transformers: model."
    )


def check_window(tokens: Sequence[int], room: int, max_context: int | None) -> None:
    """Refuse a batch in which a prompt does not fit; every model does.

    What can say more than this, before anything is asked, looks for itself: which documents would have to go
    (`sources.context.check_documents_fit`), how many shots (`methods.program.check_shots_fit`), or which method of a
    run would fail in the middle of it (`evaluation.run`).

    Args:
        tokens: tokens of each prompt (with its continuation, when scoring).
        room: tokens that must be left free for the completion.
        max_context: the window, or None where it is not known.

    Raises:
        ContextLengthError: naming the first prompt that does not fit, and how many do not.
    """
    if max_context is None:
        return
    long = [i for i, n in enumerate(tokens) if n + room > max_context]
    if long:
        i = long[0]
        asked = f" + max_tokens={room}" if room else ""
        raise ContextLengthError(
            f"prompt {i} has {tokens[i]} tokens{asked}, which is more than the window of {max_context}"
            f"{f' ({len(long)} of {len(tokens)} prompts do not fit)' if len(long) > 1 else ''}: "
            "use fewer or shorter demonstrations or documents, a smaller max_tokens, or a model with a longer window"
        )


def check_pairs(prompts: Sequence[Prompt], continuations: Sequence[str]) -> None:
    """Refuse continuations that cannot be scored.

    Raises:
        InputError: unequal lengths, or an empty continuation.
    """
    if len(prompts) != len(continuations):
        raise InputError(f"score needs one continuation per prompt: {len(prompts)} prompts, {len(continuations)} given")
    for i, text in enumerate(continuations):
        if not text:
            raise InputError(f"continuation {i} is empty: there is nothing to score")


def check_targets(starts: Sequence[int]) -> None:
    """Refuse continuations that begin with the first token of all, which no model gives a probability.

    Args:
        starts: index of each target's first token.

    Raises:
        InputError: a start at 0.
    """
    for i, start in enumerate(starts):
        if start == 0:
            raise InputError(f"prompt {i} puts no token before its continuation, so the first has no probability")


def check_numbers(logprobs: Sequence[float], spec: str) -> None:
    """Refuse log-probabilities that are no numbers, so that none becomes an answer or is kept.

    Raises:
        ModelError: one is NaN.
    """
    if any(map(math.isnan, logprobs)):
        raise ModelError(f"{spec} gave a log-probability that is no number: check the weights and dtype of the model")


def several(
    model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling, steering: Steering | None
) -> list[Completion]:
    """`sampling.n` answers to each prompt, by a model that gives one: greedy ones are the same, others drawn alone.

    Raises:
        ModelError: as the model does; its `completed` counts answers, n for each prompt.
    """
    one = replace(sampling, n=1)
    if sampling.temperature:
        return model.generate([p for p in prompts for _ in range(sampling.n)], one, steering=steering)
    try:
        return [c for c in model.generate(prompts, one, steering=steering) for _ in range(sampling.n)]
    except ModelError as error:
        n = sampling.n
        error.completed = {n * i + k: c for i, c in error.completed.items() for k in range(n)}
        raise


def own_seed(seed: int, index: int) -> int:
    """A seed for prompt number `index` of a batch, so that equal prompts draw different samples."""
    return (seed * 1_000_003 + index) % 2**31


def refuse_steering(steering: Steering | None, spec: str, why: str = "") -> None:
    """Refuse steering where a model has none.

    Raises:
        CapabilityError: steering was asked for.
    """
    if steering is not None:
        raise CapabilityError(
            f"{spec!r} cannot steer attention{f' ({why})' if why else ''}. Use a transformers: or vllm: model."
        )


_CHARACTERS = 4  # per token, where there is no tokenizer


class SimpleModel(ABC):
    """A language model that answers one prompt at a time.

    Override `complete`; `count_tokens` where there is a tokenizer, `describe` for the header of runs, and `close` where
    something must be freed. A model that gives log-probabilities also has a `score`, see `amplify.models.ScoringModel`.

    Example:
        >>> import amplify
        >>> from amplify.models import SimpleModel
        >>> class Shout(SimpleModel):
        ...     def complete(self, prompt, sampling):
        ...         return prompt.messages[-1].content.upper()
        >>> asked = amplify.Prompt(messages=(amplify.Message("user", "hello"),))
        >>> Shout("it").generate([asked], amplify.Sampling())[0].text
        'HELLO'
    """

    max_context: int | None = None

    def __init__(self, name: str) -> None:
        """A model by its name, what stands behind the colon of its id."""
        self.name = self.id = name
        self.usage = Usage()

    @abstractmethod
    def complete(self, prompt: Prompt, sampling: Sampling) -> str:
        """What the model writes behind the prompt (and behind its `prefix`, the begun answer)."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """Completions in the order of the prompts, each cut at the first stop string.

        Raises:
            CapabilityError: steering or log-probabilities were asked for.
            ModelError: `complete` failed; what was answered before is in its `completed`.
        """
        refuse_steering(steering, self.id)
        if sampling.logprobs:
            raise CapabilityError(f"{self.id!r} gives no log-probabilities: use a transformers: or vllm: model")
        if sampling.n > 1:
            return several(self, prompts, sampling, steering)
        done: dict[int, Completion] = {}
        for i, (prompt, size) in enumerate(zip(prompts, self.count_tokens(prompts), strict=True)):
            try:
                text = self.complete(prompt, sampling)
            except Exception as error:
                raise ModelError(
                    f"{self.id} failed on prompt {i}: {type(error).__name__}: {error}. {len(done)} of {len(prompts)} "
                    "were answered and are kept",
                    done,
                ) from error
            for stop in sampling.stop:
                text = text.partition(stop)[0]
            written = _tokens(text)
            done[i] = Completion(text, "stop", size, written)
            self.usage.add_call(size, written)
        return list(done.values())

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """An estimate: one token for four characters."""
        return [_tokens((p.text or "") + "".join(m.content for m in p.messages) + p.prefix) for p in prompts]

    def describe(self) -> dict[str, Any]:
        """The name, and that tokens are estimated."""
        return {"model": self.name, "token_counts": f"estimated as one per {_CHARACTERS} characters"}

    def close(self) -> None:  # noqa: B027  nothing to free is what most have
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _tokens(text: str) -> int:
    return -(-len(text) // _CHARACTERS)
