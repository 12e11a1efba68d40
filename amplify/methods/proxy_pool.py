"""The proxy's opinion and the model's, weighed: a log-linear pool of their label probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from amplify.calibration import FOLDS, Calibration, Scores, Way, log_softmax
from amplify.errors import InputError
from amplify.methods.base import Method, Program, Rehearsal, inner_method
from amplify.methods.calibrated import CalibratedProgram, calibrated, fitting, label_scores, unseen_inputs
from amplify.methods.deciding import fit_weights, pooled
from amplify.methods.proxy import ProxyProgram, find_proxy, keep
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.streams import stream
from amplify.types import Answer, Example

if TYPE_CHECKING:
    from amplify.tasks import Task


@dataclass(frozen=True)
class WithProxy(Method):
    """The options of methods in which a proxy answers beside a language model.

    Attributes:
        inner: the language model's part, a method by its label: `few_shot_knn`, `few_shot[shots=4]` …
        calibrate: how its label scores are calibrated.
        proxy, epochs, lora: see `Amplify`.
    """

    inner: str = "few_shot_knn"
    calibrate: Way = "batch"
    proxy: str = "minilm"
    epochs: int = 4
    lora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_method(self.inner, self.mode)

    def small(self, task: Task, seed: int) -> ProxyProgram:
        """The proxy as a program: trained, or found in the cache.

        Raises:
            InputError: free-text answers, or an untrained head.
        """
        if not all(map(task.labels_of, (*task.train[:1], *task.validation[:1], *task.test[:1]))):
            raise InputError(f"{self.name} weighs labels, and task {task.name!r} has free-text answers: leave it out")
        proxy = find_proxy(task, self.proxy, self.epochs, self.lora, seed)
        proxy.require_head(self.name)
        kept = keep(proxy, task, self.proxy, seed)
        return ProxyProgram(str(kept.folder), kept.identity, {"proxy": {"name": kept.name, "identity": kept.identity}})

    def large(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """The language model's part."""
        program = inner_method(self.inner, self.mode).fit(task, model, seed)
        return calibrated(program, task, model, self.calibrate, seed) if self.mode == "score" else program

    def way(self, raw: Program, task: Task, model: LanguageModel, seed: int) -> Way:
        """The calibration of the model's scores; "auto" is chosen."""
        if self.calibrate != "auto":
            return self.calibrate
        found = calibrated(raw, task, model, "auto", seed)
        return found.calibration.way if isinstance(found, CalibratedProgram) else "none"

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """As the inner method; no proxy is trained."""
        told = inner_method(self.inner, self.mode).rehearse(task, model, seed)
        return Rehearsal(told.program, f"{told.note + '; ' if told.note else ''}held-out items are asked while fitting")


@register("method", "proxy_pool")
@dataclass(frozen=True)
class ProxyPool(WithProxy):
    """Label probabilities of the model and of a proxy, multiplied with exponents that held-out items give.

    log p(y) = a log p_model(y) + b log p_proxy(y), normalised. The weights are fitted on validation items, which the
    proxy was not trained on, and on model scores whose calibration was fitted on the other folds. Without a validation
    split both come from folds of the training split. Where a weight is 0 that one is not asked.

    Example:
        >>> amplify.methods.ProxyPool(inner="zero_shot").label
        'proxy_pool[inner=zero_shot]'
    """

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return PoolProgram

    def fit(self, task: Task, model: LanguageModel, seed: int) -> PoolProgram:
        """Train the proxy, fit the inner method, weigh them.

        Raises:
            InputError: generate mode, free-text answers, or nothing held out to weigh on.
        """
        if self.mode != "score":
            raise InputError(f"{self.name} pools label scores: use score mode")
        small = self.small(task, seed)
        raw = inner_method(self.inner, self.mode).fit(task, model, seed)
        inputs = unseen_inputs(raw, task, seed)
        scores = label_scores(raw, inputs, model)
        own = small.answer(inputs, model) if task.validation else self._out_of_fold(task, inputs, model, seed)
        gold = [str(e.label) for e in inputs]
        fit = fitting(self.way(raw, task, model, seed), raw, task, model, scores, gold)
        labels = sorted({label for each in scores for label in each})
        opinions = np.stack([table(apart(fit, scores, seed), labels), table([a.scores for a in own], labels)])
        weights = fit_weights(opinions, np.array([labels.index(label) for label in gold]))
        large: Program = CalibratedProgram(raw, fit(range(len(inputs))), {"inputs": len(inputs)})
        return PoolProgram(large, small, tuple(weights.tolist()), {**small.meta, "held_out": len(inputs)})

    def _out_of_fold(self, task: Task, inputs: Sequence[Example], model: LanguageModel, seed: int) -> list[Answer]:
        """Answers of proxies that were each trained on the training items of the other folds."""
        folds = folds_of(len(inputs), seed)
        answers: dict[str, Answer] = {}
        for fold in np.unique(folds):
            left = [e for e, f in zip(inputs, folds, strict=True) if f == fold]
            out = {e.id for e in left}
            rest = replace(task, train=tuple(e for e in task.train if e.id not in out))
            answers |= {e.id: a for e, a in zip(left, self.small(rest, seed).answer(left, model), strict=True)}
        return [answers[e.id] for e in inputs]


@dataclass(frozen=True)
class PoolProgram(Program):
    """A model's label probabilities and a proxy's, pooled. Needs the proxy's folder.

    Attributes:
        large: whose label scores are the model's.
        small: the proxy.
        weights: of the two.
        meta: what made them.
    """

    kind: ClassVar[str] = "pool"

    large: Program
    small: Program
    weights: tuple[float, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch; `raw_scores` are the model's own."""
        asked = [p for p, weight in zip((self.large, self.small), self.weights, strict=True) if weight]
        answers = [p.answer(examples, model) for p in asked or (self.small,)]
        weights = np.array([weight for weight in self.weights if weight] or [1.0])
        return [_pool(mine, weights) for mine in zip(*answers, strict=True)]


def _pool(answers: Sequence[Answer], weights: npt.NDArray[np.float64]) -> Answer:
    labels = list(answers[0].scores)
    scores = dict(zip(labels, pooled(table([a.scores for a in answers], labels), weights).tolist(), strict=True))
    raw = answers[0].raw_scores or answers[0].scores if answers[0].calls else {}
    best = max(scores, key=scores.__getitem__)
    return replace(answers[0], value=best, scores=scores, raw_scores=raw, logprobs={})


def table(scores: Sequence[Scores], labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Log-probabilities that sum to one, shape (items, labels); -inf where an item does not offer a label."""
    found = np.full((len(scores), len(labels)), -np.inf)
    for row, item in zip(found, scores, strict=True):
        row[[labels.index(label) for label in item]] = log_softmax(np.array(list(item.values())))
    return found


def folds_of(items: int, seed: int) -> npt.NDArray[np.intp]:
    """The fold of each item, at most `FOLDS`, drawn with the seed."""
    return stream(seed, "pool folds").permutation(np.arange(items) % min(FOLDS, items))


def apart(fit: Any, scores: Sequence[Scores], seed: int) -> list[Scores]:
    """Calibrated scores of each item by a calibration that was fitted on the other folds."""
    folds = folds_of(len(scores), seed)
    found: list[Scores] = [{} for _ in scores]
    for fold in np.unique(folds):
        calibration: Calibration = fit(np.flatnonzero(folds != fold).tolist())
        for i in np.flatnonzero(folds == fold).tolist():
            found[i] = calibration(scores[i])
    return found
