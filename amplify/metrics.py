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
from dataclasses import dataclass, field
from typing import Any, Protocol

from amplify import text_metrics
from amplify.errors import InputError, UnknownNameError
from amplify.evidence import evidence_scores
from amplify.values import Answer, Example

Prediction = str | None
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


def answer_match(prediction: str, reference: str) -> float:
    """1.0 where the two agree after SQuAD's normalisation, the exact match of question answering."""
    return float(normalise(prediction) == normalise(reference) != "")


def contains(prediction: str, reference: str) -> float:
    """1.0 where the normalised reference stands in the normalised prediction as whole words.

    The accuracy of Lost in the Middle (Liu et al. 2023), made for models that answer in sentences.
    """
    want = normalise(reference)
    return float(bool(want) and f" {want} " in f" {normalise(prediction)} ")


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
    """How a metric scores one prediction against one reference, and all of them together.

    `further` are scores of the prediction against the reference that it fits best; `beside` are scores that are each
    the best over the references.
    """

    description: str
    item: Callable[[str, str], float]
    item_name: str
    whole: Callable[[Sequence[Prediction], Sequence[str]], float] | None = None
    further: Callable[[str, str], dict[str, float]] | None = None
    beside: Mapping[str, Callable[[str, str], float]] = field(default_factory=dict)


KINDS: Mapping[str, _Kind] = {
    "accuracy": _Kind("share of right labels; an unparsed answer is wrong", same_label, "accuracy"),
    "exact_match": _Kind("share of answers equal to an accepted one", exact, "exact_match"),
    "f1": _Kind("token F1 with the best accepted answer, SQuAD normalisation", token_f1, "f1"),
    "qa": _Kind(
        "share of answers equal to an accepted one after SQuAD normalisation; token F1; share that contain one",
        answer_match,
        "exact_match",
        beside={"f1": token_f1, "contains": contains},
    ),
    "evidence": _Kind(
        "documents alone: probability that a gold document is ranked above another one (AUC); needs no gold answer",
        lambda prediction, reference: 0.0,
        "evidence_auc",
    ),
    "macro_f1": _Kind("mean F1 over the labels", same_label, "accuracy", macro_f1),
    "json": _Kind(
        "share of answers that are JSON as a whole, with exactly the keys and values wanted",
        text_metrics.json_strict,
        "strict_accuracy",
        further=text_metrics.json_further,
    ),
    "pronouns": _Kind(
        "share of answers that change every pronoun and nothing else",
        text_metrics.pronouns_strict,
        "strict_accuracy",
        further=text_metrics.pronouns_further,
    ),
    "refusal": _Kind(
        "share of prompts treated rightly: safe ones answered, unsafe ones refused",
        text_metrics.refusal_strict,
        "right_treatment",
        further=text_metrics.refusal_further,
    ),
    # a choice of the new fact over the old one, by log-probability of the whole targets in score mode
    "efficacy": _Kind("share of items where the new fact beats the old one", same_label, "efficacy"),
    "paraphrase": _Kind("share of paraphrases where the new fact beats the old one", same_label, "paraphrase_score"),
}


def item_score(kind: _Kind, prediction: Prediction, references: Sequence[str]) -> dict[str, float]:
    """The best score over the accepted answers, what else the metric tells of it, and whether nothing was answered."""
    empty = prediction is None or not prediction.strip()
    scored = [(0.0 if empty else kind.item(str(prediction), r), r) for r in references]
    score, best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    further = kind.further("" if empty else str(prediction), best) if kind.further and references else {}
    for name, beside in kind.beside.items():
        further[name] = 0.0 if empty else max((beside(str(prediction), r) for r in references), default=0.0)
    return {kind.item_name: score, **further, "unparsed": float(empty)}


def answer_scores(name: str, answer: Answer, example: Example) -> dict[str, float]:
    """Scores of one answer, the metric's main score first; with those of its documents where it read some.

    Args:
        name: of the metric, a key of `KINDS`.
        answer: what a program answered.
        example: with its gold answer and gold evidence.

    Raises:
        InputError: the example has no gold answer, or the metric needs documents and the answer has none.
    """
    kind = KINDS[name]
    documents = evidence_scores(answer.sources, example) if answer.sources else {}
    if name != "evidence":
        scores = item_score(kind, answer.value, references_of(example))
        del scores["unparsed"]
        return {**scores, **documents}
    if kind.item_name not in documents:
        raise InputError(
            f"example {example.id!r}: the metric 'evidence' judges how documents are ranked, so it needs gold evidence "
            "and a method that reads documents (rag, rag_rerank_shapley, …)"
        )
    return {kind.item_name: documents.pop(kind.item_name), **documents}


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
    """A metric by name, one of `KINDS`. Combines with others in `evaluate.combine`.

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
            keys = dict.fromkeys(key for item in items for key in item)
            own = {key: [item[key] for item in items if key in item] for key in keys}
            mean = {key: sum(values) / len(values) for key, values in own.items()}
            if self.kind.whole:
                mean = {self._metric_name: self.kind.whole(predictions, [r[0] for r in references]), **mean}
            return mean

        def per_item(self, prediction: Prediction, example: Example) -> dict[str, float]:
            return item_score(self.kind, prediction, references_of(example))

    return OfflineMetric
