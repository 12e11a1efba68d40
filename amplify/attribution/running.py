"""Named explainers on inputs of an open model: games are shared between methods, gradients between inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from amplify.attribution.baselines import random_scores, tfidf_scores
from amplify.attribution.opening import check_able
from amplify.attribution.perturbation import Estimate, estimate, exact
from amplify.attribution.registry import METHODS
from amplify.attribution.subjects import ProxySubject, Subject
from amplify.attribution.words import word_spans
from amplify.backends.base import Generator
from amplify.errors import InputError
from amplify.layout import input_text
from amplify.proxies import Proxy, versions
from amplify.values import Attribution

SHARED = ("grad_norm", "grad_x_input")  # of a proxy: one forward and one backward for both


def run(
    model: Proxy | Generator,
    subjects: Sequence[Subject],
    methods: Sequence[str],
    *,
    budget: int = 128,
    seed: int = 0,
    removal: str = "delete",
    corpus: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, list[Attribution]]:
    """Explain inputs of an open model by methods of `METHODS`: see `amplify.attribution.explaining.explain_many`.

    Args:
        model: that of the subjects.
        subjects: what `opening.subject` gave.
        methods: their names, no "auto".
    """
    from tqdm import tqdm

    check_able(model, methods)
    corpus = corpus or [s.text for s in subjects]
    results: dict[str, list[Attribution]] = {name: [] for name in methods}
    together = _shared_pass(subjects, [name for name in methods if name in SHARED])
    for case in tqdm(subjects, disable=None if progress else True, unit="text"):
        value = None
        for name in methods:
            if name in together:
                results[name].append(together[name][len(results[name])])
                continue
            if METHODS[name].kind == "perturbation" and value is None:
                value = case.value(removal)
            results[name].append(_explain(case, name, value, budget, seed, corpus, removal))
    return results


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
