"""`amplify.explain`: which words of one input made a model answer so, by any explainer, or by several side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from amplify import codec, files
from amplify.attribution.auto import Choice, Trial, choose_on, chosen_for
from amplify.attribution.explainers import AUTO, METHODS, run
from amplify.attribution.inputs import Given, Model, opened, subject
from amplify.attribution.words import Spans
from amplify.errors import CapabilityError, InputError, extras
from amplify.models.base import LanguageModel
from amplify.proxies import Proxy
from amplify.render import attribution_html, page_template
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
            (measured once and kept, see `amplify.attribution.auto.choose`), with a language model on the inputs
            explained (measured in each call, see `choose_on`). What was measured stands in `meta["auto"]`.
        budget: model evaluations at most.
        seed: of sampled methods.
        masking: how perturbation leaves a word out: "delete", "pad", "mask" or "attention" (see `masking`).
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

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> found = amplify.explain("Name the capital of France", " Paris", model=model, method="occlusion")
        >>> dict(zip(found.words, found.scores))
        {'Name': 0.0, 'the': 0.0, 'capital': 2.0, 'of': 0.0, 'France': 0.0}
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

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> texts = ["Name the capital of France", "the capital is where?"]
        >>> found = amplify.explain_many(texts, [" Paris", " Paris"], model=model, methods=["occlusion", "kernel_shap"])
        >>> [a.top(1) for a in found["kernel_shap"]] == [["capital"], ["capital"]]
        True
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
    return choose_on(model, texts, targets, foils, segments, Trial(budget=budget, seed=seed))


Case = tuple[Given, str | None, str | None]
"""An input, the target and the foil."""


@dataclass(frozen=True)
class Comparison:
    """What several explainers found.

    Attributes:
        found: method -> one attribution per input, or why there is none.
        note: what "auto" stood for, and why; "" where it was not asked for.
    """

    found: dict[str, list[Attribution | str]]
    note: str = ""

    def agreement(self) -> dict[tuple[str, str], float]:
        """Spearman's rank correlation of the word scores of two methods, averaged over the inputs that both explain.

        Unsigned methods are compared by size: the absolute scores of both. NaN where ranks do not exist.
        """
        from scipy.stats import spearmanr

        result = {}
        for one, other in combinations(self.found, 2):
            unsigned = not all(METHODS[name].signed for name in (one, other))
            ranks = []
            for a, b in zip(self.found[one], self.found[other], strict=True):
                if isinstance(a, str) or isinstance(b, str) or len(a.scores) < 2:
                    continue
                x, y = (np.abs(s.scores) if unsigned else np.array(s.scores) for s in (a, b))
                if np.ptp(x) > 0 and np.ptp(y) > 0:
                    ranks.append(float(spearmanr(x, y).statistic))
            result[one, other] = float(np.mean(ranks)) if ranks else float("nan")
        return result

    def write(self, folder: str | Path) -> Path:
        """Write `attributions.jsonl` and `explanations.html`; returns the page."""
        folder, lines = files.make_folder(folder), []
        for name, items in self.found.items():
            for i, a in enumerate(items):
                line = {"input": i, "method": name} | ({"error": a} if isinstance(a, str) else codec.encode(a))
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        files.write(folder / "attributions.jsonl", "".join(lines))
        page = folder / "explanations.html"
        files.write(page, self.to_html())
        return page

    def to_html(self) -> str:
        """One self-contained page: what each method is, how far they agree, and every input under each of them."""
        names, agree = list(self.found), self.agreement()

        def agreement(one: str, other: str) -> str:
            value = agree.get((one, other), agree.get((other, one)))
            return "" if value is None else "–" if np.isnan(value) else f"{value:.2f}"

        page = page_template("amplify.attribution", "explanations.html.jinja", shown=attribution_html)
        return page.render(
            names=names,
            about=METHODS,
            costs={name: _mean_cost(items) for name, items in self.found.items()},
            agreement=agreement,
            inputs=[list(zip(names, row, strict=True)) for row in zip(*self.found.values(), strict=True)],
            note=self.note,
        )


def compare(
    cases: Sequence[Case],
    model: Model,
    methods: Sequence[str] | None = None,
    *,
    budget: int = 128,
    seed: int = 0,
    masking: str = "delete",
    truncate: bool = False,
    progress: bool = False,
) -> Comparison:
    """Explain inputs by several methods; where a method cannot explain an input, the reason stands in its place.

    Args:
        cases: an input, its target and its foil each.
        model: see `explain`.
        methods: names; None for all of `METHODS`, "auto" for the one that it chooses.
        budget, seed, masking, truncate: see `explain`.
        progress: show a bar.

    Raises:
        UnknownNameError: no such method.
        InputError: an input that cannot be explained at all, or no method that can explain any.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> found = compare([("Name the capital", " Paris", None)], model, ["occlusion", "lime", "grad_norm"])
        >>> found.agreement()["occlusion", "lime"] > 0.8, found.found["grad_norm"][0][:38]
        (True, 'grad_norm looks inside the model, whic')
    """
    names = list(dict.fromkeys(methods or METHODS))
    for name in names:
        if name != "auto":
            METHODS.find(name, AUTO)
    with opened(model) as one:

        def run(name: str, some: Sequence[Case], shown: bool) -> list[Attribution]:
            return explain_many(
                [text for text, _, _ in some],
                [target for _, target, _ in some],
                foils=[foil for _, _, foil in some],
                model=one,
                methods=[name],
                budget=budget,
                seed=seed,
                masking=masking,
                truncate=truncate,
                corpus=tuple(corpus),
                progress=shown,
            )[name]

        corpus: list[str] = []
        for number, case in enumerate(cases, 1):
            try:
                corpus.append(run("random", [case], False)[0].text)  # which costs nothing, and checks every input
            except InputError as error:
                raise InputError(f"input {number}: {error}" if len(cases) > 1 else str(error)) from error
        found: dict[str, list[Attribution | str]] = {}
        note = ""
        if "auto" in names:
            choice = chosen(one, *map(list, zip(*cases, strict=True)), budget=budget, seed=seed)
            names = list(dict.fromkeys(choice.method if name == "auto" else name for name in names))
            note = choice.note
        for name in names:
            try:
                found[name] = list(run(name, cases, progress))
            except CapabilityError as error:
                found[name] = [str(error)] * len(cases)
            except InputError:  # of some input: the others may be explained
                found[name] = [_or_why_not(partial(run, name, [case], False)) for case in cases]
    problems = {a for items in found.values() for a in items if isinstance(a, str)}
    if not any(isinstance(a, Attribution) for items in found.values() for a in items):
        raise InputError("; ".join(sorted(problems)))
    return Comparison(found, note)


def _or_why_not(attempt: Callable[[], list[Attribution]]) -> Attribution | str:
    try:
        return attempt()[0]
    except (InputError, CapabilityError) as error:
        return str(error)


def _mean_cost(items: Sequence[Attribution | str]) -> str:
    costs = [a.budget for a in items if not isinstance(a, str)]
    return f"{np.mean(costs):,.0f}" if costs else "–"
