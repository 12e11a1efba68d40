"""Metrics as `evaluate.Metric` objects that need no network, and the same scores for a single item.

A prediction is the parsed answer, or None where nothing could be parsed. None and empty answers never score: not
even against an empty reference.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from amplify.errors import InputError, UnknownNameError
from amplify.values import Example

Prediction = str | None
Reference = str | Sequence[str]


class Metric(Protocol):
    """What `load` returns: an `evaluate.Metric` that can also score one item."""

    name: str

    def compute(self, *, predictions: Sequence[Prediction], references: Sequence[Reference]) -> dict[str, float]:
        """Scores over all items, each in [0, 1]; `unparsed` is the share of predictions that are None or empty."""
        ...

    def per_item(self, prediction: Prediction, example: Example) -> dict[str, float]:
        """Scores of one item, each in [0, 1]; the first is the metric's main score."""
        ...


def normalise(text: str) -> str:
    """Lower case, without punctuation, English articles and extra spaces (SQuAD, Rajpurkar et al. 2016)."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def same_label(prediction: str, reference: str) -> float:
    """1.0 where the two are the same label, letter case and outer spaces aside."""
    return float(prediction.strip().casefold() == reference.strip().casefold())


def exact(prediction: str, reference: str) -> float:
    """1.0 where the two agree up to letter case and runs of spaces; punctuation counts (think of brackets)."""
    return float(prediction.split() != [] and prediction.casefold().split() == reference.casefold().split())


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the bags of normalised tokens; 0.0 if either bag is empty."""
    got, want = normalise(prediction).split(), normalise(reference).split()
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def macro_f1(predictions: Sequence[Prediction], references: Sequence[str]) -> float:
    """Unweighted mean of each label's F1 over the labels among the references.

    A prediction that is no such label (unparsed included) counts against recall, and has no row of its own: what a
    model makes up must not change the number of classes.
    """
    gold = [r.strip().casefold() for r in references]
    got = ["" if p is None else p.strip().casefold() for p in predictions]
    scores = []
    for label in sorted(set(gold)):
        hit = sum(g == p == label for g, p in zip(gold, got, strict=True))
        scores.append(2 * hit / (gold.count(label) + got.count(label)))
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class _Kind:
    """How a metric scores one prediction against one reference, and all of them together."""

    description: str
    item: Callable[[str, str], float]
    item_name: str
    whole: Callable[[Sequence[Prediction], Sequence[str]], float] | None = None


KINDS: Mapping[str, _Kind] = {
    "accuracy": _Kind("share of right labels; an unparsed answer is wrong", same_label, "accuracy"),
    "exact_match": _Kind("share of answers equal to an accepted one", exact, "exact_match"),
    "f1": _Kind("token F1 with the best accepted answer, SQuAD normalisation", token_f1, "f1"),
    "macro_f1": _Kind("mean F1 over the labels", same_label, "accuracy", macro_f1),
}


def item_score(kind: _Kind, prediction: Prediction, references: Sequence[str]) -> dict[str, float]:
    """The best score over the accepted answers, and whether nothing was answered."""
    empty = prediction is None or not prediction.strip()
    score = 0.0 if empty else max((kind.item(str(prediction), r) for r in references), default=0.0)
    return {kind.item_name: score, "unparsed": float(empty)}


def references_of(example: Example) -> tuple[str, ...]:
    """Every accepted gold string of an example: its label, or its answers.

    Raises:
        InputError: the example has neither.
    """
    accepted = example.answers or (() if example.label is None else (example.label,))
    if not accepted:
        raise InputError(f"example {example.id!r} has no gold label and cannot be scored")
    return tuple(accepted)


def load(name: str) -> Metric:
    """A metric by name: accuracy, exact_match, f1 or macro_f1. Combines with others in `evaluate.combine`.

    Raises:
        UnknownNameError: no such metric.
    """
    if name not in KINDS:
        raise UnknownNameError("metric", name, KINDS)
    metric: Metric = _evaluate_class()(name)
    return metric


@functools.cache
def _evaluate_class() -> Any:
    """The `evaluate.Metric` subclass, made on first use because evaluate and datasets are slow to import."""
    import datasets
    import evaluate

    class OfflineMetric(evaluate.Metric):
        def __init__(self, name: str, **options: Any) -> None:
            self.kind = KINDS[name]
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
            mean = {key: sum(item[key] for item in items) / len(items) for key in items[0]}
            if self.kind.whole:
                mean = {self._metric_name: self.kind.whole(predictions, [r[0] for r in references]), **mean}
            return mean

        def per_item(self, prediction: Prediction, example: Example) -> dict[str, float]:
            return item_score(self.kind, prediction, references_of(example))

    return OfflineMetric
