"""What was measured of explainers: a row each explainer and metric, with intervals over items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from amplify.attribution.faithfulness_metrics import METRICS
from amplify.attribution.perturbation import Floats
from amplify.errors import InputError

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
        from amplify.render import visible

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
        from amplify.render import escape

        return f"<pre>{escape(str(self))}</pre>"


def pooled(tables: Sequence[Faithfulness]) -> Faithfulness:
    """One table over the items of several, which hold the same explainers and metrics of other inputs.

    Raises:
        InputError: no table, or one with other explainers or metrics.
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
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Mean(float(x.mean()), -np.inf, np.inf)
    means = x[np.random.default_rng(0).integers(0, len(x), (resamples, len(x)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(float(x.mean()), float(low), float(high))
