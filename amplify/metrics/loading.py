"""Metrics as `evaluate.Metric` objects that need no network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

from amplify.errors import InputError
from amplify.metrics.answers import Prediction
from amplify.metrics.kinds import find, item_score, references_of
from amplify.types import Example

Reference = str | Sequence[str]


class Metric(Protocol):
    """What `load` returns: an `evaluate.Metric` that can also score one item."""

    name: str

    def compute(self, *, predictions: Sequence[Prediction], references: Sequence[Reference]) -> dict[str, float]:
        """Scores over all items, each in [0, 1] but fluency (bits); `unparsed` is the share that is None or empty."""
        ...

    def per_item(self, prediction: Prediction, example: Example) -> dict[str, float]:
        """Scores of one item, each in [0, 1] but fluency (bits); the first is the metric's main score."""
        ...


def load(name: str) -> Metric:
    """A metric by name, see `kinds.find`. Combines with others in `evaluate.combine`.

    Raises:
        UnknownNameError: no such metric.
    """
    find(name)
    metric: Metric = _evaluate_class()(name)
    return metric


@functools.cache
def _evaluate_class() -> Any:
    """The `evaluate.Metric` subclass, made on first use because evaluate and datasets are slow to import."""
    import datasets
    import evaluate

    class OfflineMetric(evaluate.Metric):
        def __init__(self, name: str, **options: Any) -> None:
            self.kind = find(name)
            self._metric_name = name
            super().__init__(config_name=name, keep_in_memory=True, **options)

        @property
        def name(self) -> str:
            return self._metric_name

        def _info(self) -> Any:
            string = datasets.Value("string")
            return evaluate.MetricInfo(
                description=self.kind.description,
                citation="",
                inputs_description="predictions: parsed answers or None; references: a gold string or a list of them",
                features=datasets.Features({"predictions": string, "references": datasets.Sequence(string)}),
            )

        def add_batch(
            self, *, predictions: Sequence[Prediction], references: Sequence[Reference], **options: Any
        ) -> None:
            """Take predictions (None where unparsed) and gold strings or lists of them."""
            if not predictions:
                raise InputError("there is nothing to score: no predictions")
            if len(predictions) != len(references):
                raise InputError(f"{len(predictions)} predictions but {len(references)} references")
            given = ["" if p is None else p for p in predictions]  # an Arrow column has no None, and both are unparsed
            accepted = [[r] if isinstance(r, str) else list(r) for r in references]
            super().add_batch(predictions=given, references=accepted, **options)

        def add(self, *, prediction: Prediction, reference: Reference, **options: Any) -> None:
            """Take one prediction (None where unparsed) and a gold string or a list of them."""
            self.add_batch(predictions=[prediction], references=[reference], **options)

        def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
            if self.kind.whole and any(len(r) != 1 for r in references):
                raise InputError(f"{self._metric_name} needs exactly one gold label an item")
            items = [item_score(self.kind, p, r) for p, r in zip(predictions, references, strict=True)]
            keys = dict.fromkeys(key for item in items for key in item)
            own = {key: [item[key] for item in items if key in item] for key in keys}
            mean = {key: sum(values) / len(values) for key, values in own.items()}
            if self.kind.whole:
                mean = {self._metric_name: self.kind.whole(predictions, [r[0] for r in references]), **mean}
            return mean

        def per_item(self, prediction: Prediction, example: Example) -> dict[str, float]:
            return item_score(self.kind, prediction, references_of(example))

    return OfflineMetric
