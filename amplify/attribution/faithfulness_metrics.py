"""Faithfulness metrics: which words each deletes, and what it makes of the model's answers.

What a metric is worth was measured on planted words: see `KEPT` and docs/faithfulness.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from amplify.attribution.deletion import margin
from amplify.attribution.perturbation import Coalitions, Floats

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
