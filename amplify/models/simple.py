"""A start for a model of your own: say how one prompt is answered, and everything else is there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from amplify.errors import CapabilityError, ModelError
from amplify.models.base import Usage
from amplify.models.checks import refuse_steering, several
from amplify.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.steering import Steering

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
            self.usage.add(calls=1, prompt_tokens=size, completion_tokens=written, forwarded_tokens=size + written)
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
