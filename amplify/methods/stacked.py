"""The input, the model's reasons and its label scores, each an opinion: explanations as features (arXiv 2305.19523)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from amplify.errors import InputError
from amplify.methods.base import Preset, Program, Rehearsal, examples_in, inner_method
from amplify.methods.calibrated import CalibratedProgram, fitting, scores_of, unseen_inputs
from amplify.methods.deciding import fit_weights, pooled
from amplify.methods.proxy_pool import WithProxy, apart, table
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.streams import stream
from amplify.types import Answer, Example

if TYPE_CHECKING:
    from amplify.tasks import Task

Reasons = Literal["own", "others", "unnamed"]
NOTHING = "-"  # stands where no reason was written


@dataclass(frozen=True)
class Stacked(WithProxy):
    """Three opinions in a log-linear pool: a proxy that reads the input, one that reads the model's reason, the model.

    (TAPE; He et al. 2023: a language model's explanations as features of small models.) The model writes a reason for
    some training inputs without being told their labels, and a second proxy learns to tell the label from the reason.
    Weights are fitted on validation items, which neither proxy was trained on, with model scores that are calibrated on
    the other folds. A reason that could not be had counts as an empty one.

    Attributes:
        inner: the method whose rationales are the reasons and whose label scores are the model's, e.g. zero_shot_cot.
        rows: training inputs that reasons are written for, drawn with the seed; one model call each.
        reasons: the model's "own"; those of "others" (does it matter what is said of this input?), or with the labels'
            names taken out ("unnamed": does a reason say more than the guess in it?).

    Example:
        >>> amplify.methods.Stacked(epochs=2).label
        'stacked[epochs=2]'
    """

    inner: str = "zero_shot_cot"
    rows: int = 96
    reasons: Reasons = "own"

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return StackedProgram

    def fit(self, task: Task, model: LanguageModel, seed: int) -> StackedProgram:
        """Let reasons be written, train both proxies, weigh.

        Raises:
            InputError: generate mode, free-text answers, no validation split, or an inner method without rationales.
        """
        if self.mode != "score":
            raise InputError(f"{self.name} pools label scores: use score mode")
        if not task.validation or not task.train:
            raise InputError(f"{self.name} needs a training and a validation split; task {task.name!r} has not both")
        raw = inner_method(self.inner, self.mode).fit(task, model, seed)
        shown = {shot["id"] for shot in examples_in(raw.to_dict())}
        free = [e for e in task.train if e.id not in shown]
        some = [free[i] for i in sorted(stream(seed, "stacked rows").permutation(len(free))[: self.rows].tolist())]
        written = raw.answer(some, model)
        if not any(answer.rationale for answer in written):
            raise InputError(f"{self.name}: {self.inner} writes no rationale; take zero_shot_cot, amplify …")
        text = self.small(task, seed)
        pool = tuple(answer.rationale or NOTHING for answer in written)
        read = Reading(self.reasons, task.labels, pool)
        inputs = unseen_inputs(raw, task, seed)
        answers = raw.answer(inputs, model)
        scores = scores_of(answers)
        train, held = read.of(some, written), read.of(inputs, answers)
        reason = self.small(replace(task, train=tuple(train), validation=()), seed)
        gold = [str(e.label) for e in inputs]
        fit = fitting(self.way(raw, task, model, seed), raw, task, model, scores, gold)
        labels = sorted({label for each in scores for label in each})
        opinions = np.stack([
            table(apart(fit, scores, seed), labels),
            table([a.scores for a in text.answer(inputs, model)], labels),
            table([a.scores for a in reason.answer(held, model)], labels),
        ])  # fmt: skip
        weights = fit_weights(opinions, np.array([labels.index(label) for label in gold]))
        large = CalibratedProgram(raw, fit(range(len(inputs))), {"inputs": len(inputs)})
        without = sum(not answer.rationale for answer in (*written, *answers))
        notes = (f"{without} of {len(some) + len(inputs)} reasons could not be had",) if without else ()
        meta = {**text.meta, "rows": len(some), "held_out": len(inputs)}
        return StackedProgram(large, text, reason, tuple(weights.tolist()), read, notes, meta)

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """As the inner method, which writes the reasons too; no proxy is trained."""
        told = super().rehearse(task, model, seed)
        if told.program is not None:
            told.program.answer(task.train[: self.rows], model)
        return told


@dataclass(frozen=True)
class Reading:
    """What the second proxy reads instead of an input.

    Attributes:
        reasons: see `Stacked`.
        labels: names that are taken out where reasons are "unnamed".
        pool: reasons of training inputs, for those of "others".
    """

    reasons: Reasons
    labels: tuple[str, ...]
    pool: tuple[str, ...]

    def of(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Example]:
        """The examples with reasons for texts."""
        return [replace(e, text=self._text(e, a)) for e, a in zip(examples, answers, strict=True)]

    def _text(self, example: Example, answer: Answer) -> str:
        said = answer.rationale.strip() or NOTHING
        if self.reasons == "others":
            others = [text for text in self.pool if text != said] or [NOTHING]
            return others[zlib.crc32(example.text.encode()) % len(others)]
        if self.reasons == "unnamed":
            names = "|".join(re.escape(label) for label in (*self.labels, *example.options) if label)
            return re.sub(rf"\b(?:{names})\b", "…", said, flags=re.IGNORECASE) if names else said
        return said


register("method", "stacked", Preset(Stacked, fixed={"reasons": "own"}))
register(
    "method", "stacked_others_reasons",
    Preset(
        Stacked, "The same with reasons written for other inputs: does it matter what is said?", "control",
        fixed={"reasons": "others"},
    ),
)  # fmt: skip
register(
    "method", "stacked_unnamed",
    Preset(
        Stacked, "The same with the labels' names taken out of the reasons: is there more in them than a guess?",
        "control", fixed={"reasons": "unnamed"},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class StackedProgram(Program):
    """Label probabilities of the model, of a proxy on the input and of one on the model's reason, pooled.

    Attributes:
        large: writes the reason and scores the labels behind it.
        text, reason: the proxies.
        weights: of the three, in this order.
        reading: what the second proxy reads.
        notes, meta: what a reader must know, and what made it.
    """

    kind: ClassVar[str] = "stacked"

    large: Program
    text: Program
    reason: Program
    weights: tuple[float, ...]
    reading: Reading
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch; the rationale is the model's reason. Where the input's proxy alone counts none is asked."""
        first, second, third = self.weights
        if not first and not third:
            return self.text.answer(examples, model)
        own = self.large.answer(examples, model)
        given = [own, self.text.answer(examples, model), self.reason.answer(self.reading.of(examples, own), model)]
        weights = np.array([first, second, third])
        return [_pooled(mine, weights) for mine in zip(*given, strict=True)]


def _pooled(answers: Sequence[Answer], weights: Any) -> Answer:
    labels = list(answers[0].scores)
    mixed = pooled(table([a.scores for a in answers], labels), weights)
    scores = dict(zip(labels, mixed.tolist(), strict=True))
    raw = answers[0].raw_scores or answers[0].scores
    return replace(answers[0], value=max(scores, key=scores.__getitem__), scores=scores, raw_scores=raw, logprobs={})
