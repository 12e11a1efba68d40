"""Does an explanation name what the model goes by? Delete words by its order and look, beside random orders.

Every metric is a question about the model with some words deleted, never about the explanation's looks. Beside each
explainer stand two references over the same words of the same inputs: random scores, and direct occlusion (each word
left out by itself). What a metric is worth was measured on planted words: see `KEPT` and docs/faithfulness.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from amplify.attribution.deletion import Deletion, deletion, margin
from amplify.attribution.inputs import Model, opened
from amplify.attribution.words import without_words
from amplify.errors import InputError, UnknownNameError, extras
from amplify.models.base import LanguageModel
from amplify.proxies import Proxy
from amplify.render import escape, visible
from amplify.shapley.game import Coalitions, Floats, leave_one_out
from amplify.streams import stream
from amplify.types import Attribution, Example, Prompt

STEPS = 10
"""Points of a deletion curve: a tenth of the words each, or one word where there are fewer."""


class View(NamedTuple):
    """One attribution as metrics see it.

    Attributes:
        order: the different words, most important first.
        scores: of the words, in the order of the game.
        k: words on top.
        held_out: random coalitions that no explainer has seen, shape (masks, words).
    """

    order: npt.NDArray[np.int_]
    scores: Floats
    k: int
    held_out: Coalitions


class Metric(NamedTuple):
    """A metric: what it deletes, and what it makes of the answers.

    Attributes:
        better: "higher" or "lower".
        masks: the coalitions to evaluate.
        read: from (view, log-probabilities of the whole input (columns,), those of the masks (masks, columns)).
        source: where it is defined.
    """

    better: Literal["higher", "lower"]
    masks: Callable[[View], Coalitions]
    read: Callable[[View, Floats, Floats], float]
    source: str


def _cut(view: View, sizes: Sequence[int], *, keep: bool = False, least: bool = False) -> Coalitions:
    """One coalition a size: the first words of the order deleted, or they alone kept."""
    order = view.order[::-1] if least else view.order
    masks = np.full((len(sizes), len(order)), not keep)
    for row, size in zip(masks, sizes, strict=True):
        row[order[:size]] = keep
    return masks


def _curve(view: View) -> list[int]:
    n = len(view.order)
    steps = min(STEPS, n)
    return [round(n * step / steps) for step in range(1, steps + 1)]


def _bins(view: View) -> list[int]:
    return [max(1, round(len(view.order) * share)) for share in (0.01, 0.05, 0.1, 0.2, 0.5)]


def _drop(view: View, whole: Floats, rest: Floats) -> float:
    """Mean fall of the target's probability."""
    return float(np.mean(np.exp(whole[0]) - np.exp(rest[:, 0])))


def _left(view: View, whole: Floats, rest: Floats) -> float:
    """Mean of the target's probability over a curve."""
    return float(np.mean(np.exp(rest[:, 0])))


def _logprob_drop(view: View, whole: Floats, rest: Floats) -> float:
    return float(whole[0] - rest[0, 0])


def _lds(view: View, whole: Floats, rest: Floats) -> float:
    from scipy.stats import spearmanr

    sums, outputs = _levels(view.held_out @ view.scores), _levels(margin(rest))
    if np.ptp(sums) == 0 or np.ptp(outputs) == 0:
        return 0.0  # a constant orders nothing
    return float(spearmanr(sums, outputs).statistic)


def _levels(values: Floats) -> Floats:
    """Values in units of their range, so that round-off makes no ranks of ties."""
    spread = np.ptp(values)
    return np.round((values - values.min()) / spread, 6) if spread > 1e-12 else np.zeros_like(values)


METRICS: dict[str, Metric] = {
    "comprehensiveness": Metric(
        "higher", lambda v: _cut(v, [v.k]), _drop, "p(x) - p(x without its top k words); DeYoung et al. 2020"
    ),
    "sufficiency": Metric(
        "lower", lambda v: _cut(v, [v.k], keep=True), _drop, "p(x) - p(its top k words alone); DeYoung et al. 2020"
    ),
    "aopc": Metric(
        "higher",
        lambda v: _cut(v, _bins(v)),
        _drop,
        "comprehensiveness averaged over the top 1, 5, 10, 20 and 50 %; DeYoung et al. 2020",
    ),
    "morf": Metric(
        "lower",
        lambda v: _cut(v, _curve(v)),
        _left,
        "mean p while words go, most relevant first; Samek et al. 2017",
    ),
    "lerf": Metric(
        "higher",
        lambda v: _cut(v, _curve(v), least=True),
        _left,
        "mean p while words go, least relevant first; Samek et al. 2017",
    ),
    "logprob_drop": Metric(
        "higher",
        lambda v: _cut(v, [v.k]),
        _logprob_drop,
        "log p(x) - log p(x without its top k words); Cohen-Wang et al. 2024",
    ),
    "lds": Metric(
        "higher",
        lambda v: v.held_out,
        _lds,
        "Spearman correlation of summed scores and outputs over held-out masks; Park et al. 2023",
    ),
}

KEPT = ("comprehensiveness", "sufficiency", "aopc", "morf", "lerf", "logprob_drop", "lds")
"""Metrics that passed the causal check on planted words (eval/results/faithfulness_check.json)."""

DEFAULT = ("comprehensiveness", "sufficiency", "logprob_drop", "lds")
"""Of them, those that cost least and say most different things: what goes without words, with them alone, by how much
in log-probability, and whether scores add up."""

RANDOM, OCCLUSION = "random scores", "direct occlusion"


class Mean(NamedTuple):
    """A mean over items with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One explainer on one metric.

    Attributes:
        method, metric: their names.
        better: which direction is good.
        value: of the explainer.
        random, occlusion: of the references on the same items.
        gain: over random, paired by item, counted so that above 0 is better.
        items: inputs averaged over.
    """

    method: str
    metric: str
    better: str
    value: Mean
    random: Mean
    occlusion: Mean
    gain: Mean
    items: int

    @property
    def beats_random(self) -> bool:
        """Whether it is better than random scores with intervals that do not touch."""
        return self.value.low > self.random.high if self.better == "higher" else self.value.high < self.random.low


@dataclass(frozen=True)
class Faithfulness:
    """Explainers by metrics. `print` shows the table; a notebook too.

    Attributes:
        rows: one per explainer and metric.
        values: (explainer or reference, metric) -> one value per item, random averaged over its draws.
        settings: k, masks, draws, seed and the model.
        evaluations: of the model.

    Example:
        >>> found = amplify.explain_many(["good old day"], [" yes"], model="scripted:echo", methods=["occlusion"])
        >>> table = amplify.faithfulness(found, "scripted:echo", metrics=["comprehensiveness"])
        >>> table.methods, table.row("occlusion", "comprehensiveness").items
        (['occlusion'], 1)
    """

    rows: tuple[Row, ...]
    values: Mapping[tuple[str, str], Floats]
    settings: Mapping[str, object]
    evaluations: int

    @property
    def methods(self) -> list[str]:
        """The explainers, in the order given."""
        return list(dict.fromkeys(row.method for row in self.rows))

    def row(self, method: str, metric: str) -> Row:
        """The row of an explainer and a metric."""
        return next(row for row in self.rows if (row.method, row.metric) == (method, metric))

    def gains(self, method: str, metric: str) -> Floats:
        """What an explainer has over random scores on each item, counted so that above 0 is better."""
        sign = 1.0 if METRICS[metric].better == "higher" else -1.0
        gain: Floats = sign * (self.values[method, metric] - self.values[RANDOM, metric])
        return gain

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, per-item values left out."""
        rows = [
            {
                "method": row.method,
                "metric": row.metric,
                "better": row.better,
                **{name: list(getattr(row, name)) for name in ("value", "random", "occlusion", "gain")},
                "beats_random": row.beats_random,
                "items": row.items,
            }
            for row in self.rows
        ]
        return {"settings": dict(self.settings), "evaluations": self.evaluations, "rows": rows}

    def __str__(self) -> str:
        cells = [("explainer", "metric", "better", "value", "random", "occlusion", "")]
        for row in self.rows:
            own, random, occlusion = (
                f"{v.mean:.3f} [{v.low:.3f}, {v.high:.3f}]" for v in (row.value, row.random, row.occlusion)
            )
            verdict = "beats random" if row.beats_random else ""
            cells.append((visible(row.method), row.metric, row.better, own, random, occlusion, verdict))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        items = self.rows[0].items if self.rows else 0
        return "\n".join([*lines, f"{items} items, {self.evaluations:,} evaluations, 95 % intervals over items"])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def pooled(tables: Sequence[Faithfulness]) -> Faithfulness:
    """One table over the items of several, which hold the same explainers and metrics of other inputs.

    Raises:
        InputError: no table, or one with other explainers or metrics.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> texts = ["Name the capital of France", "Which capital has the tower?"]
        >>> each = [amplify.explain(text, " Paris", model=model, method="occlusion") for text in texts]
        >>> table = pooled([amplify.faithfulness([one], model, ["logprob_drop"], k=1) for one in each])
        >>> table.rows[0].items
        2
    """
    if len({frozenset(table.values) for table in tables}) != 1:
        raise InputError("tables to pool are one or more, of the same explainers and metrics")
    first = tables[0]
    values = {key: np.concatenate([table.values[key] for table in tables]) for key in first.values}
    names = list(dict.fromkeys(name for name, _ in values if name not in (RANDOM, OCCLUSION)))
    metrics = list(dict.fromkeys(metric for _, metric in values))
    return Faithfulness(rows_of(names, metrics, values), values, first.settings, sum(t.evaluations for t in tables))


def rows_of(names: Sequence[str], metrics: Sequence[str], values: Mapping[tuple[str, str], Floats]) -> tuple[Row, ...]:
    """The rows of a table, from one value per item of each explainer or reference and metric."""
    rows = []
    for name in names:
        for metric in metrics:
            sign = 1.0 if METRICS[metric].better == "higher" else -1.0
            own, chance = values[name, metric], values[RANDOM, metric]
            rows.append(
                Row(
                    name,
                    metric,
                    METRICS[metric].better,
                    interval(own),
                    interval(chance),
                    interval(values[OCCLUSION, metric]),
                    interval(sign * (own - chance)),
                    len(own),
                )
            )
    return tuple(rows)


def interval(values: Floats, resamples: int = 2000) -> Mean:
    """The mean with its 95 % percentile bootstrap interval over items; the same values give the same interval.

    One item says nothing of others: its interval is infinite.

    Example:
        >>> interval([1.0, 1.0, 1.0, 1.0])
        Mean(mean=1.0, low=1.0, high=1.0)
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Mean(float(x.mean()), -np.inf, np.inf)
    means = x[np.random.default_rng(0).integers(0, len(x), (resamples, len(x)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(float(x.mean()), float(low), float(high))


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

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> texts = ["Name the capital of France", "Which capital has the tower?"]
        >>> found = amplify.explain_many(texts, [" Paris"] * 2, model=model, methods=["kernel_shap"])
        >>> table = amplify.faithfulness(found, model, ["logprob_drop"], k=1)
        >>> table.row("kernel_shap", "logprob_drop").value.mean
        2.0
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
        views.append((OCCLUSION, _by_scores(leave_one_out(game.margin, n), top, held_out)))
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
