"""Checks that every model makes before it starts any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from amplify.errors import CapabilityError, ContextLengthError, InputError, ModelError
from amplify.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.models.base import LanguageModel
    from amplify.steering import Steering


def check_window(tokens: Sequence[int], room: int, max_context: int | None) -> None:
    """Refuse a batch in which a prompt does not fit.

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
