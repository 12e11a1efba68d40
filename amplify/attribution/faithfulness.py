"""Does an explanation name what the model goes by? Delete words by its order and look, beside random orders.

Every metric is a question about the model with some words deleted, never about the explanation's looks. Beside each
explainer stand two references over the same words of the same inputs: random scores, and direct occlusion (each word
left out by itself). What a metric is worth was measured on planted words: see
`faithfulness_metrics.KEPT` and docs/faithfulness.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from amplify.attribution.deletion import Deletion, deletion
from amplify.attribution.faithfulness_metrics import DEFAULT, METRICS, View
from amplify.attribution.faithfulness_table import OCCLUSION, RANDOM, Faithfulness, rows_of
from amplify.attribution.opening import Model, opened
from amplify.attribution.perturbation import Coalitions, Floats
from amplify.attribution.words import without_words
from amplify.errors import InputError, UnknownNameError, extras
from amplify.proxies import Proxy
from amplify.streams import stream
from amplify.types import Attribution, Example, Prompt

if TYPE_CHECKING:
    from amplify.models.base import LanguageModel


@extras()
def faithfulness(
    explanations: Sequence[Attribution] | Mapping[str, Sequence[Attribution]],
    model: Model,
    metrics: Sequence[str] = DEFAULT,
    *,
    examples: Sequence[Example | Prompt] | None = None,
    k: int = 5,
    masks: int = 32,
    draws: int = 5,
    seed: int = 0,
) -> Faithfulness:
    """Measure explanations against random scores and direct occlusion on the same words of the same inputs.

    Args:
        explanations: of one explainer or of several: attributions (told apart by `method`), or name -> attributions.
            Several explainers explain the same inputs in the same order.
        model: what was explained, as in `amplify.explain`: a proxy or its folder (probabilities over its labels), or a
            model or its spec (log-probabilities of continuations).
        metrics: of `METRICS`.
        examples: what was explained, in order; needed where examples bring their own choices, and for chats.
        k: different words on top; half of an input's words (at least one) where that is fewer, so that random words
            can be others.
        masks: held-out random coalitions of `lds`, each word kept with probability 1/2.
        draws: random score vectors averaged into the random reference.
        seed: of masks and draws.

    Raises:
        UnknownNameError: no such metric.
        InputError: nothing explained, explainers over different inputs or words, or scores that are not finite.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise UnknownNameError("faithfulness metric", metric, METRICS)
    if k < 1 or masks < 3 or draws < 1:
        raise InputError(f"faithfulness needs k >= 1, masks >= 3 and draws >= 1, got {k}, {masks} and {draws}")
    groups = _grouped(explanations)
    first = next(iter(groups.values()))
    if examples is not None and len(examples) != len(first):
        raise InputError(f"{len(examples)} examples and {len(first)} attributions: one each is needed")
    settings: dict[str, object] = {"k": k, "masks": masks, "draws": draws, "seed": seed}
    with opened(model) as one:
        values, spent = _measured(one, groups, metrics, examples, k, masks, draws, seed)
        settings["model"] = one.name if isinstance(one, Proxy) else one.id
    return Faithfulness(rows_of(list(groups), metrics, values), values, settings, spent)


def _measured(
    model: Proxy | LanguageModel,
    groups: Mapping[str, Sequence[Attribution]],
    metrics: Sequence[str],
    examples: Sequence[Example | Prompt] | None,
    k: int,
    masks: int,
    draws: int,
    seed: int,
) -> tuple[dict[tuple[str, str], Floats], int]:
    """Per explainer or reference and metric one value per item; and evaluations made."""
    held_out_of, drawn_by = stream(seed, "lds"), stream(seed, "faithfulness random")
    found: dict[tuple[str, str], list[float]] = {}
    spent = 0
    for i, attribution in enumerate(next(iter(groups.values()))):
        foil = next((group[i].foil for group in groups.values() if group[i].foil is not None), None)
        game = deletion(replace(attribution, foil=foil), model, examples[i] if examples is not None else None)
        n = len(game.words)
        top = min(k, max(1, n // 2))
        held_out = held_out_of.random((masks, n)) < 0.5
        views = [(name, _view(game, group[i], top, held_out)) for name, group in groups.items()]
        views.append((OCCLUSION, _by_scores(_occluded(game), top, held_out)))
        views += [(RANDOM, _by_scores(drawn_by.normal(size=n), top, held_out)) for _ in range(draws)]
        asked = np.concatenate([METRICS[m].masks(view) for _, view in views for m in metrics])
        whole = game.log_probs(np.concatenate([np.ones((1, n), dtype=bool), asked]))[0]  # an item's masks in one batch
        spent += len(np.unique(np.concatenate([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool), asked]), axis=0))
        for metric in metrics:
            drawn = []
            for name, view in views:
                value = METRICS[metric].read(view, whole, game.log_probs(METRICS[metric].masks(view)))
                if name == RANDOM:
                    drawn.append(value)
                else:
                    found.setdefault((name, metric), []).append(value)
            found.setdefault((RANDOM, metric), []).append(float(np.mean(drawn)))
    return {key: np.array(per_item) for key, per_item in found.items()}, spent


def comprehensiveness(
    proxy: Proxy, examples: Sequence[Example], attributions: Sequence[Attribution], k: int = 5
) -> Floats:
    """How far the target's probability falls when every occurrence of the top k words is deleted.

    Args:
        proxy: the model explained.
        examples: what was explained.
        attributions: one per example, over `amplify.text.input_text(example)`.
        k: different words deleted (fewer where an attribution has fewer).

    Returns:
        p(target | x) - p(target | x without its top words), one per example, in [-1, 1]; above 0 the words mattered.
    """
    if len(examples) != len(attributions):
        raise InputError(f"{len(examples)} examples and {len(attributions)} attributions: one each is needed")
    cut = []
    for example, attribution in zip(examples, attributions, strict=True):
        top = {word.lower() for word in attribution.top(k)}
        spans = [s for w, s in zip(attribution.words, attribution.spans, strict=True) if w.lower() in top]
        cut.append(without_words(example, spans))
    drop = []
    for example, a, whole, rest in zip(
        examples, attributions, proxy.probabilities(examples), proxy.probabilities(cut), strict=True
    ):
        target = proxy.labels_of(example).index(a.target)
        drop.append(whole[target] - rest[target])
    return np.array(drop, dtype=np.float64)


def _grouped(explanations: Sequence[Attribution] | Mapping[str, Sequence[Attribution]]) -> dict[str, list[Attribution]]:
    groups: dict[str, list[Attribution]] = {}
    if isinstance(explanations, Mapping):
        groups = {name: list(group) for name, group in explanations.items()}
    else:
        for attribution in explanations:
            groups.setdefault(attribution.method or "explainer", []).append(attribution)
    if not groups or not all(groups.values()):
        raise InputError("there is no explanation to measure")
    first_name, first = next(iter(groups.items()))
    for name, group in groups.items():
        if name in (RANDOM, OCCLUSION):
            raise InputError(f"{name!r} is a reference that stands in every table: name the explainer otherwise")
        if len(group) != len(first):
            raise InputError(
                f"{name} explains {len(group)} inputs, {first_name} {len(first)}: explainers are compared on the same"
            )
        for mine, theirs in zip(group, first, strict=True):
            # explainers that take no foil leave it out
            foils = {mine.foil, theirs.foil} - {None}
            if (mine.text, mine.spans, mine.target) != (theirs.text, theirs.spans, theirs.target) or len(foils) > 1:
                raise InputError(
                    f"{name} and {first_name} explain different words, targets or foils of {theirs.text[:60]!r}"
                )
            if not np.isfinite(mine.scores).all():
                raise InputError(f"{name} gives scores that are not finite for {mine.text[:60]!r}")
    return groups


def _view(game: Deletion, attribution: Attribution, k: int, held_out: Coalitions) -> View:
    return View(game.order(attribution), game.scores(attribution), k, held_out)


def _by_scores(scores: Floats, k: int, held_out: Coalitions) -> View:
    return View(np.argsort(-scores, kind="stable"), scores, k, held_out)


def _occluded(game: Deletion) -> Floats:
    n = len(game.words)
    values = game.margin(np.concatenate([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool)]))
    return values[0] - values[1:]
