"""`amplify.explain`: which words of one input made a model answer so, by any explainer, on a proxy or a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from amplify.attribution.gate import Choice, choose_on, chosen_for
from amplify.attribution.opening import Given, Model, opened, subject
from amplify.attribution.registry import AUTO, METHODS
from amplify.attribution.running import run
from amplify.attribution.words import Spans
from amplify.errors import InputError, extras
from amplify.models.base import LanguageModel
from amplify.proxies import Proxy
from amplify.types import Attribution


@extras()
def explain(
    text: Given,
    target: str | None = None,
    *,
    foil: str | None = None,
    model: Model,
    method: str = "integrated_gradients",
    budget: int = 128,
    seed: int = 0,
    masking: str = "delete",
    segments: Spans | None = None,
    corpus: Sequence[str] = (),
    truncate: bool = False,
) -> Attribution:
    """Score how much each word of an input spoke for a target (against a foil).

    Args:
        text: the input: a text, for proxies also an `Example`, for language models also a `Prompt`. Of a chat only
            the words of the user's last message are scored.
        target: a label of the proxy (None: the one it gives), or what the language model is to write next.
        foil: another label or continuation; the scores then explain the difference.
        model: folder of a proxy or the proxy, a model or its spec ("transformers:smollm2-135m"). What is named is
            opened anew in each call: open it once where there are many, or use `explain_many`.
        method: of `METHODS`; "auto" for the most faithful of a pool, with a proxy on held-out examples of its task
            (measured once and kept, see `amplify.attribution.gate.choose`), with a language model on the inputs
            explained (measured in each call, see `choose_on`). What was measured stands in `meta["auto"]`.
        budget: model evaluations at most.
        seed: of sampled methods.
        masking: how perturbation leaves a word out: "delete", "pad", "mask" or "attention" (see `games`).
        segments: what is scored, as characters [start, end) of the text: sentences, phrases, or only some words.
            Default: every word.
        corpus: texts that the baseline `tfidf` counts documents in.
        truncate: with an encoder, explain what it reads of a text longer than its window, instead of refusing.

    Returns:
        The scores; `low` and `high` are 95 % intervals of what was sampled.

    Raises:
        UnknownNameError: no such method or masking.
        InputError: no text, or only stop words; a target or foil that is no label or token of the model; a foil equal
            to the target; a budget too small for the method; a score that is not finite.
        ContextLengthError: the text is longer than the model's window.
        CapabilityError: the model cannot be looked into (the message names the methods that work).
    """
    [found] = explain_many(
        [text],
        [target],
        foils=[foil],
        model=model,
        methods=[method],
        budget=budget,
        seed=seed,
        masking=masking,
        segments=[segments],
        corpus=corpus,
        truncate=truncate,
    ).values()
    return found[0]


@extras()
def explain_many(
    texts: Sequence[Given],
    targets: Sequence[str | None] | None = None,
    *,
    foils: Sequence[str | None] | None = None,
    model: Model,
    methods: Sequence[str] = ("integrated_gradients",),
    budget: int = 128,
    seed: int = 0,
    masking: str = "delete",
    segments: Sequence[Spans | None] | None = None,
    corpus: Sequence[str] = (),
    truncate: bool = False,
    progress: bool = False,
) -> dict[str, list[Attribution]]:
    """`explain` for many inputs and several methods: the model is opened once, games are shared between methods.

    All inputs are checked before anything is computed. Gradient norm and gradient x input of a proxy share one
    forward and one backward pass per batch of inputs.

    Returns:
        Method -> one attribution per input; under the name of the one chosen for "auto".
    """
    for name in methods:
        if name != "auto":
            METHODS.find(name, AUTO)
    nothing = [None] * len(texts)
    cases: list[Sequence[Any]] = [texts, *(nothing if some is None else some for some in (targets, foils, segments))]
    if {len(some) for some in cases} != {len(texts)}:
        raise InputError("explain_many takes one target, foil and tuple of segments per text")
    if budget < 1:
        raise InputError(f"a budget is 1 evaluation or more, not {budget}")
    with opened(model) as one:
        subjects = [subject(one, *given, truncate=truncate) for given in zip(*cases, strict=True)]
        meta: dict[str, Any] = {}
        if "auto" in methods:
            choice = chosen(one, *cases, budget=budget, seed=seed)
            methods = list(dict.fromkeys(choice.method if name == "auto" else name for name in methods))
            meta["auto"] = choice.note
        found = run(
            one,
            subjects,
            methods,
            budget=budget,
            seed=seed,
            masking=masking,
            corpus=corpus,
            progress=progress,
        )
    return {name: [replace(a, meta={**a.meta, **meta}) for a in group] for name, group in found.items()}


def chosen(
    model: Proxy | LanguageModel,
    texts: Sequence[Any],
    targets: Sequence[str | None],
    foils: Sequence[str | None],
    segments: Sequence[Spans | None] | None = None,
    *,
    budget: int = 128,
    seed: int = 0,
) -> Choice:
    """What "auto" stands for with an open model and these inputs: see `explain`."""
    if isinstance(model, Proxy):
        return chosen_for(model, contrastive=any(foil is not None for foil in foils))
    return choose_on(model, texts, targets, foils, segments, budget=budget, seed=seed)
