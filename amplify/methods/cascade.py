"""Who is asked when: a cascade of proxy and model, and a program that abstains where it is unsure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amplify.calibration import Way
from amplify.errors import InputError
from amplify.methods.base import Method, Program, Rehearsal, inner_method
from amplify.methods.calibrated import calibrated, unseen_inputs
from amplify.methods.deciding import abstention, deferral, needed
from amplify.methods.proxy_pool import WithProxy
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.types import Answer, Example

if TYPE_CHECKING:
    from amplify.tasks import Task


@register("method", "cascade")
@dataclass(frozen=True)
class Cascade(WithProxy):
    """The proxy answers, and the model where the proxy is unsure; or the reverse.

    The confidence below which the second is asked is the one with which most held-out items come out right, "never" and
    "always" among the candidates.

    Attributes:
        reverse: the model is asked first, and the proxy where the model is unsure (score mode).

    Example:
        >>> amplify.methods.Cascade(inner="zero_shot").label
        'cascade[inner=zero_shot]'
    """

    reverse: bool = False

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return CascadeProgram

    def fit(self, task: Task, model: LanguageModel, seed: int) -> CascadeProgram:
        """Train the proxy, fit the inner method, find the threshold.

        Raises:
            InputError: free-text answers, nothing held out, or a reverse cascade without label scores.
        """
        if self.reverse and self.mode != "score":
            raise InputError(f"{self.name}[reverse=true] looks at the model's label scores: use score mode")
        if not task.validation:
            raise InputError(f"{self.name} finds its threshold on validation items, and task {task.name!r} has none")
        small, large = self.small(task, seed), self.large(task, model, seed)
        first, second = (large, small) if self.reverse else (small, large)
        items = unseen_inputs(large, task, seed)
        answers = [program.answer(items, model) for program in (first, second)]
        right = [np.array([float(a.value == e.label) for a, e in zip(given, items, strict=True)]) for given in answers]
        threshold = deferral(np.array([confidence(a) for a in answers[0]]), *right)
        meta = {**small.meta, "held_out": len(items), "right": [float(r.mean()) for r in right]}
        return CascadeProgram(first, second, threshold, meta)


@dataclass(frozen=True)
class CascadeProgram(Program):
    """Two programs, the second asked where the first is unsure.

    Attributes:
        first: asked about every input.
        second: asked where the first's label probability is below the threshold.
        threshold: -inf for never, inf for always (the first is then not asked).
        meta: what made it.
    """

    kind: ClassVar[str] = "cascade"

    first: Program
    second: Program
    threshold: float
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch; an answer of the second costs what both took."""
        if self.threshold == math.inf:
            return self.second.answer(examples, model)
        answers = self.first.answer(examples, model)
        unsure = [i for i, answer in enumerate(answers) if confidence(answer) < self.threshold]
        for i, better in zip(unsure, self.second.answer([examples[i] for i in unsure], model), strict=True):
            first = answers[i]
            answers[i] = replace(
                better,
                prompt_tokens=first.prompt_tokens + better.prompt_tokens,
                completion_tokens=first.completion_tokens + better.completion_tokens,
                calls=first.calls + better.calls,
            )
        return answers


@register("method", "selective")
@dataclass(frozen=True)
class Selective(Method):
    """Answers only where it may: of the answers given at most a wanted share is wrong, with a guarantee.

    With probability 1 - delta over the held-out items, for inputs like them (`methods.deciding.abstention`). An answer
    that is withheld is empty, and counts as unparsed.

    Attributes:
        inner: who answers, a method by its label; in score mode.
        calibrate: how its label scores are calibrated; on one half of the held-out items, the other half is tested on.
        risk: tolerated share of wrong answers among those given.
        delta: chance that the guarantee fails.

    Example:
        >>> amplify.methods.Selective(risk=0.05).label
        'selective[risk=0.05]'
    """

    inner: str = "few_shot_knn"
    calibrate: Way = "batch"
    risk: float = 0.1
    delta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_method(self.inner, self.mode)
        if not 0 < self.risk < 1 or not 0 < self.delta < 1:
            raise InputError(f"{self.name}: risk and delta lie between 0 and 1, not at {self.risk} and {self.delta}")

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return SelectiveProgram

    def fit(self, task: Task, model: LanguageModel, seed: int) -> SelectiveProgram:
        """Fit the inner method and its calibration on one half, find the threshold on the other.

        Raises:
            InputError: generate mode, or no validation split.
        """
        if self.mode != "score":
            raise InputError(f"{self.name} looks at label scores: use score mode")
        half = np.random.default_rng([seed, len(task.validation)]).permutation(len(task.validation))
        fitted, tested = (sorted(part.tolist()) for part in np.array_split(half, 2))
        if not tested:
            raise InputError(f"{self.name} needs validation items to be sure on, and task {task.name!r} has none")
        known = replace(task, validation=tuple(task.validation[i] for i in fitted))
        program = inner_method(self.inner, self.mode).fit(known, model, seed)
        program = calibrated(program, known, model, self.calibrate, seed)
        items = [task.validation[i] for i in tested]
        answers = program.answer(items, model)
        right = np.array([float(a.value == e.label) for a, e in zip(answers, items, strict=True)])
        threshold = abstention(np.array([confidence(a) for a in answers]), right, self.risk, self.delta)
        notes: tuple[str, ...] = ()
        if threshold == math.inf:
            notes = (
                f"abstains always: no confidence could be shown to keep the risk at {self.risk:g} on {len(items)} "
                f"held-out items (at least {needed(self.risk, self.delta)} right answers in a row are needed)",
            )
        return SelectiveProgram(program, threshold, notes, {"held_out": len(items), "right": float(right.mean())})

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """As the inner method."""
        told = inner_method(self.inner, self.mode).rehearse(task, model, seed)
        return Rehearsal(told.program, f"{told.note + '; ' if told.note else ''}held-out items are asked while fitting")


@dataclass(frozen=True)
class SelectiveProgram(Program):
    """Another program's answers where it is sure enough.

    Attributes:
        program: who answers.
        threshold: label probability above which an answer is given.
        notes, meta: see `ShotProgram`.
    """

    kind: ClassVar[str] = "selective"

    program: Program
    threshold: float
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch; `value` is None where it abstains, and the text says what it would have answered."""
        answers = self.program.answer(examples, model)
        return [a if confidence(a) > self.threshold else _withheld(a) for a in answers]


def confidence(answer: Answer) -> float:
    """The answer's probability among the labels scored; 0 where none were."""
    return answer.probabilities().get(answer.value, 0.0) if answer.value is not None else 0.0


def _withheld(answer: Answer) -> Answer:
    return replace(answer, value=None, text=f"abstains: {answer.value} is {100 * confidence(answer):.0f} % likely")
