"""`amplify.explain`: which words of one input made a model answer so, by any explainer, on a proxy or a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amplify.attribution.baselines import random_scores, tfidf_scores
from amplify.attribution.perturbation import Estimate, estimate, exact
from amplify.attribution.registry import METHODS
from amplify.attribution.subjects import PromptSubject, ProxySubject, Subject, prompt_subject, proxy_subject
from amplify.attribution.words import Spans, word_spans
from amplify.backends.base import Generator
from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.layout import input_text
from amplify.proxies import CARD, Proxy, load_proxy, versions
from amplify.values import Attribution, Example, Prompt

if TYPE_CHECKING:
    from amplify.attribution.gate import Choice

Model = str | Path | Proxy | Generator
Given = str | Example | Prompt
SHARED = ("grad_norm", "grad_x_input")  # of a proxy: one forward and one backward for both


def explain(
    text: Given,
    target: str | None = None,
    *,
    foil: str | None = None,
    model: Model,
    method: str = "integrated_gradients",
    budget: int = 128,
    seed: int = 0,
    removal: str = "delete",
    players: Spans | None = None,
    corpus: Sequence[str] = (),
    truncate: bool = False,
) -> Attribution:
    """Score how much each word of an input spoke for a target (against a foil).

    Args:
        text: the input: a text, for proxies also an `Example`, for language models also a `Prompt`. Of a chat only
            the words of the user's last message are scored.
        target: a label of the proxy (None: the one it gives), or what the language model is to write next.
        foil: another label or continuation; the scores then explain the difference.
        model: folder of a proxy or the proxy, a backend or its spec ("transformers:smollm2-135m"). What is named is
            opened anew in each call: open it once where there are many, or use `explain_many`.
        method: of `METHODS`; "auto" for the most faithful of a pool, with a proxy on held-out examples of its task
            (measured once and kept, see `amplify.attribution.gate.choose`), with a language model on the inputs
            explained (measured in each call, see `choose_on`). What was measured stands in `meta["auto"]`.
        budget: model evaluations at most.
        seed: of sampled methods.
        removal: how perturbation leaves a word out: "delete", "pad", "mask" or "attention" (see `games`).
        players: what is scored, as characters [start, end) of the text: sentences, phrases, or only some words.
            Default: every word.
        corpus: texts that the baseline `tfidf` counts documents in.
        truncate: with an encoder, explain what it reads of a text longer than its window, instead of refusing.

    Returns:
        The scores; `low` and `high` are 95 % intervals of what was sampled.

    Raises:
        UnknownNameError: no such method or removal.
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
        removal=removal,
        players=[players],
        corpus=corpus,
        truncate=truncate,
    ).values()
    return found[0]


def explain_many(
    texts: Sequence[Given],
    targets: Sequence[str | None] | None = None,
    *,
    foils: Sequence[str | None] | None = None,
    model: Model,
    methods: Sequence[str] = ("integrated_gradients",),
    budget: int = 128,
    seed: int = 0,
    removal: str = "delete",
    players: Sequence[Spans | None] | None = None,
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
        if name not in METHODS and name != "auto":
            raise UnknownNameError("explainer", name, (*METHODS, "auto"))
    nothing = [None] * len(texts)
    cases: list[Sequence[Any]] = [texts, *(nothing if some is None else some for some in (targets, foils, players))]
    if {len(some) for some in cases} != {len(texts)}:
        raise InputError("explain_many takes one target, foil and tuple of players per text")
    if budget < 1:
        raise InputError(f"a budget is 1 evaluation or more, not {budget}")
    with opened(model) as one:
        subjects = [subject(one, *given, truncate=truncate) for given in zip(*cases, strict=True)]
        meta: dict[str, Any] = {}
        if "auto" in methods:
            choice = chosen(one, *cases, budget=budget, seed=seed)
            methods = list(dict.fromkeys(choice.method if name == "auto" else name for name in methods))
            meta["auto"] = choice.note
        _check_inside(one, methods)
        corpus = corpus or [s.text for s in subjects]
        from tqdm import tqdm

        results: dict[str, list[Attribution]] = {name: [] for name in methods}
        together = _shared_pass(subjects, [name for name in methods if name in SHARED])
        for case in tqdm(subjects, disable=None if progress else True, unit="text"):
            value = None
            for name in methods:
                if name in together:
                    found = together[name][len(results[name])]
                else:
                    if METHODS[name].kind == "perturbation" and value is None:
                        value = case.value(removal)
                    found = _explain(case, name, value, budget, seed, corpus, removal)
                results[name].append(replace(found, meta={**found.meta, **meta}))
        return results


def subject(
    model: Proxy | Generator,
    given: Given,
    target: str | None,
    foil: str | None,
    players: Spans | None = None,
    *,
    truncate: bool = False,
) -> ProxySubject | PromptSubject:
    """One input of an open model, checked."""
    if isinstance(model, Proxy):
        if isinstance(given, Prompt):
            raise InputError("a proxy explains a text or an Example; a Prompt needs a language model (model=backend)")
        return proxy_subject(model, given, target, foil, players=players, truncate=truncate)
    if isinstance(given, Example):
        raise InputError("a language model explains a text or a Prompt; render the example first, or use a proxy")
    return prompt_subject(model, given, target, foil, players=players)


@contextmanager
def opened(model: Model) -> Iterator[Proxy | Generator]:
    """A proxy or backend, loaded if it is only named (and closed again)."""
    if isinstance(model, Proxy):
        yield model
    elif isinstance(model, (str, Path)):
        from amplify.backends import KINDS, open_backend

        name = str(model)
        if (Path(model) / CARD).is_file() or name.partition(":")[0] not in KINDS:
            if not Path(model).is_dir():
                raise InputError(
                    f"{name!r} is neither a proxy folder nor a backend: give a folder that `amplify proxy` wrote, or "
                    "KIND:MODEL, e.g. transformers:smollm2-135m"
                )
            yield load_proxy(model)
        else:
            with open_backend(name) as backend:
                yield backend
    else:
        yield model


def able(model: Proxy | Generator) -> list[str]:
    """The methods that work with a model."""
    from amplify.backends.base import Scorer, WhiteBox

    if isinstance(model, (Proxy, WhiteBox)):
        return list(METHODS)
    scores = isinstance(model, Scorer)
    return [name for name, m in METHODS.items() if not m.inside and (scores or m.kind == "baseline")]


def _check_inside(model: Proxy | Generator, methods: Sequence[str]) -> None:
    names = able(model)
    for name in methods:
        if name not in names and not isinstance(model, Proxy):
            raise CapabilityError(
                f"{name} {'looks inside the model' if METHODS[name].inside else 'needs log-probabilities'}, which "
                f"{model.spec!r} does not give. What works with it: {', '.join(names)}. For the others use a "
                "transformers: backend or a proxy."
            )


def chosen(
    model: Proxy | Generator,
    texts: Sequence[Any],
    targets: Sequence[str | None],
    foils: Sequence[str | None],
    players: Sequence[Spans | None] | None = None,
    *,
    budget: int = 128,
    seed: int = 0,
) -> Choice:
    """What "auto" stands for with an open model and these inputs: see `explain`."""
    from amplify.attribution.gate import choose_on, chosen_for

    if isinstance(model, Proxy):
        return chosen_for(model, contrastive=any(foil is not None for foil in foils))
    return choose_on(model, texts, targets, foils, players, budget=budget, seed=seed)


def _shared_pass(subjects: Sequence[Subject], methods: Sequence[str]) -> dict[str, list[Attribution]]:
    """Gradient norm and gradient x input of a proxy's inputs, all by one pass; nothing where that is not possible."""
    from amplify.attribution.gradients import explain as explain_together

    cases = [s for s in subjects if isinstance(s, ProxySubject) and set(s.spans) <= set(word_spans(s.text))]
    if not methods or not cases or len(cases) < len(subjects):
        return {}
    kept = {id(s.example): set(s.spans) for s in cases}
    found = explain_together(
        cases[0].proxy,
        [s.example for s in cases],
        [s.target for s in cases],
        [s.foil for s in cases],
        methods,
        mask=lambda example: [span in kept[id(example)] for span in word_spans(input_text(example))],
    )
    return {
        name: [replace(a, meta={**a.meta, **s.meta}) for a, s in zip(found[name], cases, strict=True)]
        for name in methods
    }


def _explain(
    case: Subject, name: str, value: Any, budget: int, seed: int, corpus: Sequence[str], removal: str
) -> Attribution:
    method = METHODS[name]
    words = [case.text[a:b] for a, b in case.spans]
    meta: dict[str, Any] = {"versions": versions(), **case.meta}
    if method.kind == "perturbation":
        found = estimate(value, len(words), name, budget=budget, seed=seed)
        meta["removal"] = removal
    elif method.kind == "embedding":
        from amplify.attribution.embedded import embedded

        found, more = embedded(case.parts(), name, budget=budget, seed=seed)
        meta |= more
    elif method.kind == "attention":
        from amplify.attribution.attention import attention_scores

        found = exact(attention_scores(case.parts()[0], name), 1)
    elif name == "random":
        found = exact(random_scores(case.text, len(words), seed), 0)
        return attribution(case, name, found, seed=seed, meta=meta)
    else:
        found = exact(tfidf_scores(words, corpus), 0)
    return attribution(case, name, found, seed=seed if method.sampled else None, meta=meta)


def attribution(case: Subject, method: str, found: Estimate, *, seed: int | None, meta: dict[str, Any]) -> Attribution:
    """The scores with all that a reader must know of them.

    Raises:
        InputError: a score is not finite.
    """
    words, scores = tuple(case.text[a:b] for a, b in case.spans), found.scores
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(
            f"{method} gives the word {words[bad]!r} (number {bad + 1} of {len(words)}) the score {scores[bad]}: "
            f"check the weights of {case.model}"
        )
    return Attribution(
        text=case.text,
        words=words,
        spans=case.spans,
        scores=tuple(scores.tolist()),
        target=case.target,
        foil=case.foil if METHODS[method].contrastive else None,
        low=tuple(found.low.tolist()),
        high=tuple(found.high.tolist()),
        method=method,
        model=case.model,
        budget=found.calls,
        seed=seed,
        meta=meta,
        signed=METHODS[method].signed,
    )
