"""What every model is: prompts in, completions or log-probabilities out, a whole batch at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from amplify.errors import CapabilityError
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from amplify.models.tree import TokenTree
    from amplify.steering import Steering


@dataclass
class Usage:
    """What a model has done since it was opened. Differences of two snapshots are the cost of what lay between.

    Attributes:
        calls: prompts generated from, plus (prompt, continuation) pairs scored.
        prompt_tokens: tokens of those prompts, each counted in full however it was served.
        completion_tokens: tokens generated or scored as continuations.
        forwarded_tokens: tokens that really went through the model, shared prefixes once and padding included;
            equal to prompt + completion tokens where the model cannot tell.
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
    """A model that gives log-probabilities of a given continuation."""

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
class LocalModel(ScoringModel, Protocol):
    """A model in this process: gradients, attention, trees."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def module(self) -> PreTrainedModel:
        """What is called, in evaluation mode. Whoever runs or changes it holds its lock (`amplify.locks`)."""
        ...

    def score_tree(
        self, tree: TokenTree, wanted: Sequence[int], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """Log-probabilities of the wanted nodes' tokens, each given its ancestors only (see `TokenTree`)."""
        ...


def need_scoring(model: LanguageModel, what: str) -> ScoringModel:
    """The model as a ScoringModel, or a CapabilityError that names those that qualify."""
    if isinstance(model, ScoringModel):
        return model
    raise CapabilityError(
        f"{what} needs log-probabilities of a given text, which {model.id!r} does not give. "
        "Use a transformers: or vllm: model (or an openai: server whose completions API echoes log-probabilities)."
    )


def need_local(model: LanguageModel, what: str) -> LocalModel:
    """The model as a LocalModel, or a CapabilityError that names those that qualify."""
    if isinstance(model, LocalModel):
        return model
    raise CapabilityError(
        f"{what} looks inside the model, which {model.id!r} does not allow. Use a transformers: model."
    )
