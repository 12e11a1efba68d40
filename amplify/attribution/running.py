"""Named explainers on inputs of an open model: games are shared between methods, gradients between inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from amplify.attribution.opening import check_able
from amplify.attribution.perturbation import Estimate, exact
from amplify.attribution.registry import METHODS, Case, Game
from amplify.attribution.subjects import ProxySubject, Subject
from amplify.attribution.words import word_spans
from amplify.errors import InputError
from amplify.models.base import LanguageModel
from amplify.progress import tracked
from amplify.proxies import Proxy, versions
from amplify.text import input_text
from amplify.types import Attribution


def run(
    model: Proxy | LanguageModel,
    subjects: Sequence[Subject],
    methods: Sequence[str],
    *,
    budget: int = 128,
    seed: int = 0,
    masking: str = "delete",
    corpus: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, list[Attribution]]:
    """Explain inputs of an open model by methods of `METHODS`: see `amplify.attribution.explaining.explain_many`.

    Args:
        model: that of the subjects.
        subjects: what `opening.subject` gave.
        methods: their names, no "auto".
    """
    check_able(model, methods)
    corpus = corpus or [s.text for s in subjects]
    results: dict[str, list[Attribution]] = {name: [] for name in methods}
    together = _shared_pass(subjects, [name for name in methods if METHODS[name].together])
    for one in tracked(subjects, unit="text", shown=progress):
        game = Game(one, masking)
        for name in methods:
            if name in together:
                results[name].append(together[name][len(results[name])])
            else:
                results[name].append(_explain(Case(one, game, budget, seed, corpus), name))
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


def _explain(case: Case, name: str) -> Attribution:
    method = METHODS[name]
    case.meta |= {"versions": versions(), **case.subject.meta}
    found = method.score(case)
    if not isinstance(found, Estimate):
        scores = np.asarray(found, dtype=np.float64)
        if scores.shape != (len(case.words),):
            raise InputError(
                f"{name} gives scores of shape {scores.shape} for {len(case.words)} words: one each is needed"
            )
        found = exact(scores, case.calls)
    if method.kind == "perturbation":
        case.meta["masking"] = case.game.masking
    return attribution(case.subject, name, found, seed=case.seed if method.sampled else None, meta=case.meta)


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
            f"check the weights of {case.model_name}"
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
        model=case.model_name,
        budget=found.calls,
        seed=seed,
        meta=meta,
        signed=METHODS[method].signed,
    )
